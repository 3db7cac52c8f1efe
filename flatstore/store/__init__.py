"""One model or many in one buffer, as views."""

from flatstore.store.assigning import checked_leaves as checked_leaves
from flatstore.store.assigning import same_bits as same_bits
from flatstore.store.attaching import attach as attach
from flatstore.store.in_files import InFiles as InFiles
from flatstore.store.in_files import hand_in_files as hand_in_files
from flatstore.store.in_host_memory import host_of as host_of
from flatstore.store.jax_store import JaxPopulation as JaxPopulation
from flatstore.store.jax_store import JaxStore as JaxStore
from flatstore.store.jax_store import OnDevice as OnDevice
from flatstore.store.parts import Parts as Parts
from flatstore.store.parts import whole_leaf as whole_leaf
from flatstore.store.placement import placement_of_population as placement_of_population
from flatstore.store.population import Population as Population
from flatstore.store.store import Store as Store
from flatstore.store.torch_population import TorchPopulation as TorchPopulation
from flatstore.store.torch_store import OnTorch as OnTorch
from flatstore.store.torch_store import TorchStore as TorchStore
from flatstore.store.torch_tensors import array_of as array_of
from flatstore.store.verbs import memories_in as memories_in
from flatstore.store.views import Views as Views
