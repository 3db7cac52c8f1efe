"""Loops for cards, written in Triton, which is imported where they are used: each file by its name."""

from flatstore.kernels.triton.prepared import Planned as Planned
