"""Parameters in one buffer for their whole life; trees are views of it.

`Layout` says where every leaf lives, `Store` is one model in one buffer, `Population` many.
"""

from flatstore import es as es
from flatstore import ga as ga
from flatstore.files import load as load
from flatstore.files import save as save
from flatstore.layout import Layout as Layout
from flatstore.memory import LentError as LentError
from flatstore.noise import Normal as Normal
from flatstore.noise import Rademacher as Rademacher
from flatstore.noise import seeds as seeds
from flatstore.population import Population as Population
from flatstore.store import Store as Store
from flatstore.structure import StructureError as StructureError
from flatstore.table import Leaf as Leaf
