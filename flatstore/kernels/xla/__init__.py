"""Arithmetic inside `jax.jit` that XLA does not change."""

from flatstore.kernels.xla.rounding import added as added
from flatstore.kernels.xla.rounding import constant as constant
from flatstore.kernels.xla.rounding import dithered as dithered
from flatstore.kernels.xla.rounding import float_of as float_of
from flatstore.kernels.xla.rounding import loaded as loaded
from flatstore.kernels.xla.rounding import product as product
from flatstore.kernels.xla.rounding import rounded as rounded
