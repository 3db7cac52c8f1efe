"""Where every parameter lives: what counts as a number, the rows of a layout, ties, templates."""

from flatstore.layout.dtypes import is_floating as is_floating
from flatstore.layout.dtypes import is_integer as is_integer
from flatstore.layout.dtypes import is_numeric as is_numeric
from flatstore.layout.dtypes import is_torch_tensor as is_torch_tensor
from flatstore.layout.dtypes import is_trainable_dtype as is_trainable_dtype
from flatstore.layout.dtypes import torch_dtype as torch_dtype
from flatstore.layout.layout import Layout as Layout
from flatstore.layout.layout import check_layout as check_layout
from flatstore.layout.leaf import Leaf as Leaf
from flatstore.layout.leaf import describe as describe
from flatstore.layout.leaf import place as place
from flatstore.layout.leaf import round_up as round_up
from flatstore.layout.leaf import validate as validate
from flatstore.layout.numeric import Array as Array
from flatstore.layout.numeric import Spec as Spec
from flatstore.layout.numeric import as_numpy as as_numpy
from flatstore.layout.numeric import is_deleted as is_deleted
from flatstore.layout.numeric import spec_of as spec_of
from flatstore.layout.options import Dims as Dims
from flatstore.layout.options import Trainable as Trainable
from flatstore.layout.planning import rows_of as rows_of
from flatstore.layout.standing_in import stand_ins as stand_ins
from flatstore.layout.template import from_template as from_template
from flatstore.layout.template import to_template as to_template
from flatstore.layout.ties import Tied as Tied
from flatstore.layout.ties import find_ties as find_ties
