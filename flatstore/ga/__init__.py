"""The genetic algorithm: one generation in the population's own memory."""

from flatstore.ga.crossover import Blend as Blend
from flatstore.ga.crossover import Exchange as Exchange
from flatstore.ga.crossover import PerGene as PerGene
from flatstore.ga.crossover import Points as Points
from flatstore.ga.crossover import Uniform as Uniform
from flatstore.ga.evolve import Generation as Generation
from flatstore.ga.evolve import evolve as evolve
from flatstore.ga.mutation import Reset as Reset
from flatstore.ga.mutation import Sparse as Sparse
from flatstore.ga.passes import UnfinishedError as UnfinishedError
from flatstore.ga.select import Tournament as Tournament
from flatstore.ga.select import Truncation as Truncation
from flatstore.ga.select import Universal as Universal
from flatstore.ga.step import step as step
