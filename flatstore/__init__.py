"""Parameters in one buffer for their whole life; trees are views of it.

`Layout` says where every leaf lives, `Store` is one model in one buffer, `Population` many.
"""

from flatstore import es as es
from flatstore import ga as ga
from flatstore import scale as scale
from flatstore.evaluation import Workers as Workers
from flatstore.files import load as load
from flatstore.files import open as open
from flatstore.files import save as save
from flatstore.interop import adopt as adopt
from flatstore.interop import adopt_parts as adopt_parts
from flatstore.layout import Layout as Layout
from flatstore.layout import Leaf as Leaf
from flatstore.layout import from_template as from_template
from flatstore.layout import to_template as to_template
from flatstore.memory import LentError as LentError
from flatstore.memory import waiting as waiting
from flatstore.noise import Normal as Normal
from flatstore.noise import Rademacher as Rademacher
from flatstore.noise import seeds as seeds
from flatstore.store import Population as Population
from flatstore.store import Store as Store
from flatstore.store import attach as attach
from flatstore.surgery import put_back as put_back
from flatstore.surgery import replan as replan
from flatstore.surgery import transfer as transfer
from flatstore.trees import StructureError as StructureError
from flatstore.trees import flatten_dict as flatten_dict
from flatstore.trees import unflatten_dict as unflatten_dict
from flatstore.vectors import Rebuild as Rebuild
from flatstore.vectors import destructure as destructure
