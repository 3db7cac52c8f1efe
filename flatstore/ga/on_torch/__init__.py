"""Generations of populations of torch on a card."""

from flatstore.ga.on_torch.breeding import CardBreeding as CardBreeding
