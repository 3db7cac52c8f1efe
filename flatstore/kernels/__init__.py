"""What compiles loops, and keeps their machine code on disk; and how many threads run them."""

from flatstore.kernels.compiler import COMPILES as COMPILES
from flatstore.kernels.compiler import compiled as compiled
from flatstore.threads import set_threads as set_threads
from flatstore.threads import threads as threads
