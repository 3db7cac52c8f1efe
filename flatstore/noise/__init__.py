"""A seed is a perturbation: noise as a pure function of kind, seed and index."""

from flatstore.noise import in_jax as in_jax
from flatstore.noise.kinds import CROSSOVER as CROSSOVER
from flatstore.noise.kinds import MUTATION as MUTATION
from flatstore.noise.kinds import ROUNDING as ROUNDING
from flatstore.noise.kinds import SPARSE as SPARSE
from flatstore.noise.kinds import Factor as Factor
from flatstore.noise.kinds import Noise as Noise
from flatstore.noise.kinds import Normal as Normal
from flatstore.noise.kinds import Rademacher as Rademacher
from flatstore.noise.kinds import spans as spans
from flatstore.noise.normal import BEND as BEND
from flatstore.noise.normal import MIDDLE as MIDDLE
from flatstore.noise.normal import RATE as RATE
from flatstore.noise.normal import normals as normals
from flatstore.noise.philox import ROUNDS as ROUNDS
from flatstore.noise.philox import words as words
from flatstore.noise.seeding import Seed as Seed
from flatstore.noise.seeding import as_keys as as_keys
from flatstore.noise.seeding import integers_of as integers_of
from flatstore.noise.seeding import seeds as seeds
