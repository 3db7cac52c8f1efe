"""Who owns the bytes, and who reads and writes them now."""

from flatstore.memory.access import at_once as at_once
from flatstore.memory.access import memories_of as memories_of
from flatstore.memory.access import reading as reading
from flatstore.memory.access import using as using
from flatstore.memory.access import write as write
from flatstore.memory.access import write_at_once as write_at_once
from flatstore.memory.guarded_views import GuardedView as GuardedView
from flatstore.memory.guarded_views import LentError as LentError
from flatstore.memory.host import Memory as Memory
from flatstore.memory.lending import JAX_ALIGN as JAX_ALIGN
from flatstore.memory.lending import Lend as Lend
from flatstore.memory.lending import addresses_of as addresses_of
from flatstore.memory.lending import check_library as check_library
from flatstore.memory.lending import import_views as import_views
from flatstore.memory.lending import refuse_jax_at_the_end as refuse_jax_at_the_end
from flatstore.memory.overlaps import region_of as region_of
from flatstore.memory.readers_and_writers import MOVED as MOVED
from flatstore.memory.readers_and_writers import Access as Access
from flatstore.memory.readers_and_writers import released as released
from flatstore.memory.readers_and_writers import settle as settle
from flatstore.memory.segments import PAGE as PAGE
from flatstore.memory.segments import sweep as sweep
from flatstore.memory.spans import Spans as Spans
from flatstore.memory.waits import patience as patience
from flatstore.memory.waits import waiting as waiting
