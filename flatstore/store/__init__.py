"""One model or many in one buffer, as views."""

from flatstore.store.assigning import checked_leaves as checked_leaves
from flatstore.store.assigning import same_bits as same_bits
from flatstore.store.attaching import attach as attach
from flatstore.store.donation import replace_together as replace_together
from flatstore.store.in_files import InFiles as InFiles
from flatstore.store.in_files import hand_in_files as hand_in_files
from flatstore.store.jax_population import JaxPopulation as JaxPopulation
from flatstore.store.jax_store import JaxStore as JaxStore
from flatstore.store.jax_store import OnDevice as OnDevice
from flatstore.store.moves import Breeding as Breeding
from flatstore.store.moves import Moves as Moves
from flatstore.store.moves import Step as Step
from flatstore.store.moves import breeding_of as breeding_of
from flatstore.store.moves import moves_of as moves_of
from flatstore.store.parts import Parts as Parts
from flatstore.store.placement import placement_of_population as placement_of_population
from flatstore.store.population import AnyPopulation as AnyPopulation
from flatstore.store.population import Population as Population
from flatstore.store.store import AnyStore as AnyStore
from flatstore.store.store import Store as Store
from flatstore.store.verbs import memories_in as memories_in
from flatstore.store.views import Views as Views
