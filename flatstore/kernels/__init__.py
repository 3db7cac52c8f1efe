"""Compiled loops over blocks, and the threads that run them: the only files that know of compilers and threads."""

from flatstore.kernels.threads import set_threads as set_threads
from flatstore.kernels.threads import threads as threads
