"""Generations of populations of torch."""

from flatstore.ga.on_torch.breeding import CardBreeding as CardBreeding
from flatstore.ga.on_torch.breeding import HostBreeding as HostBreeding
