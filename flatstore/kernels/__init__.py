"""What compiles loops and runs them: a cache of machine code, a pool of threads, interrupts held back."""

from flatstore.kernels.compiler import compiled as compiled
from flatstore.kernels.interrupts import Interrupts as Interrupts
from flatstore.kernels.pool import each as each
from flatstore.kernels.pool import set_threads as set_threads
from flatstore.kernels.pool import threads as threads
from flatstore.kernels.tasks import StoppedAt as StoppedAt
from flatstore.kernels.tasks import Task as Task
from flatstore.kernels.tasks import run_tasks as run_tasks
