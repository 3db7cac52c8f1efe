"""The genetic algorithm: one generation in the population's own memory."""

from flatstore.ga.crossover import Uniform as Uniform
from flatstore.ga.select import Tournament as Tournament
from flatstore.ga.select import Truncation as Truncation
from flatstore.ga.step import step as step
