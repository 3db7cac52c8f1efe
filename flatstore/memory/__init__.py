"""Who owns the bytes, and who reads them now."""

from flatstore.memory.guarded import GuardedView as GuardedView
from flatstore.memory.guarded import LentError as LentError
from flatstore.memory.host import Memory as Memory
from flatstore.memory.host import is_lent as is_lent
from flatstore.memory.host import leases as leases
from flatstore.memory.host import lock as lock
from flatstore.memory.host import overlap as overlap
from flatstore.memory.host import settle as settle
from flatstore.memory.lending import JAX_ALIGN as JAX_ALIGN
from flatstore.memory.lending import Lend as Lend
from flatstore.memory.lending import check_library as check_library
from flatstore.memory.lending import import_views as import_views
