"""Arithmetic inside `jax.jit` that XLA does not change."""

from flatstore.kernels.xla.compiling import jitted as jitted
from flatstore.kernels.xla.exact import Double as Double
from flatstore.kernels.xla.exact import Single as Single
from flatstore.kernels.xla.exact import with_64_bits as with_64_bits
from flatstore.kernels.xla.rounding import added as added
from flatstore.kernels.xla.rounding import cast as cast
from flatstore.kernels.xla.rounding import constant as constant
from flatstore.kernels.xla.rounding import dithered as dithered
from flatstore.kernels.xla.rounding import float_of as float_of
from flatstore.kernels.xla.rounding import held as held
from flatstore.kernels.xla.rounding import is_held_as_bits as is_held_as_bits
from flatstore.kernels.xla.rounding import loaded as loaded
from flatstore.kernels.xla.rounding import product as product
from flatstore.kernels.xla.rounding import rounded as rounded
