"""Parameters in one buffer for their whole life; trees are views of it.

`Layout` says where every leaf lives, `Store` is one model in one buffer, `Population` many.
"""

from flatstore import es as es
from flatstore import ga as ga
from flatstore.destructure import destructure as destructure
from flatstore.files import load as load
from flatstore.files import save as save
from flatstore.flat_dicts import flatten_dict as flatten_dict
from flatstore.flat_dicts import unflatten_dict as unflatten_dict
from flatstore.interop.torch import adopt as adopt
from flatstore.layout import Layout as Layout
from flatstore.memory import LentError as LentError
from flatstore.noise import Normal as Normal
from flatstore.noise import Rademacher as Rademacher
from flatstore.noise import seeds as seeds
from flatstore.population import Population as Population
from flatstore.putting_back import put_back as put_back
from flatstore.rebuild import Rebuild as Rebuild
from flatstore.store import Store as Store
from flatstore.structure import StructureError as StructureError
from flatstore.surgery import replan as replan
from flatstore.surgery import transfer as transfer
from flatstore.table import Leaf as Leaf
from flatstore.template import from_template as from_template
from flatstore.template import to_template as to_template
