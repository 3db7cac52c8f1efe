"""How much memory parameters take as they are handled, what is copied on the way, and how fast it is.

For asv, pytest, or a notebook: every function returns numbers, and none of them asserts.
"""

from flatstore.bench import asv as asv
from flatstore.bench.leaves import addresses as addresses
from flatstore.bench.leaves import moved as moved
from flatstore.bench.planned_memory import XlaMemory as XlaMemory
from flatstore.bench.planned_memory import xla_memory as xla_memory
from flatstore.bench.process_memory import peak_memory as peak_memory
from flatstore.bench.process_memory import resident as resident
from flatstore.bench.process_memory import tidy as tidy
from flatstore.bench.timing import interleaved as interleaved
from flatstore.bench.timing import of_roof as of_roof
from flatstore.bench.timing import ratio as ratio
from flatstore.bench.timing import roof as roof
from flatstore.bench.timing import scaled as scaled
from flatstore.bench.timing import seconds as seconds
