"""A generation of the genetic algorithm inside `jax.jit`."""

from flatstore.ga.in_jit.on_device import JaxBreeding as JaxBreeding
from flatstore.ga.in_jit.parentage import Births as Births
from flatstore.ga.in_jit.parentage import births as births
from flatstore.ga.in_jit.stepping import stepped as stepped
