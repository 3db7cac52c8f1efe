"""The genetic algorithm: one generation in the population's own memory."""

from flatstore.ga.bounds import Bounds as Bounds
from flatstore.ga.breeding import step as step
from flatstore.ga.crossover import Blend as Blend
from flatstore.ga.crossover import Exchange as Exchange
from flatstore.ga.crossover import PerGene as PerGene
from flatstore.ga.crossover import Points as Points
from flatstore.ga.crossover import Uniform as Uniform
from flatstore.ga.evolution import evolve as evolve
from flatstore.ga.generation import UnfinishedError as UnfinishedError
from flatstore.ga.generation_records import Generation as Generation
from flatstore.ga.in_files import seed_of as seed_of
from flatstore.ga.in_jit import Births as Births
from flatstore.ga.in_jit import births as births
from flatstore.ga.in_jit import stepped as stepped
from flatstore.ga.kept_generations import records as records
from flatstore.ga.mutation import Mutate as Mutate
from flatstore.ga.mutation import Reset as Reset
from flatstore.ga.mutation import Sparse as Sparse
from flatstore.ga.on_torch import CardBreeding as CardBreeding
from flatstore.ga.selection import Tournament as Tournament
from flatstore.ga.selection import Truncation as Truncation
from flatstore.ga.selection import Universal as Universal
