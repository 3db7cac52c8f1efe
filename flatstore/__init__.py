"""Parameters in one buffer for their whole life; trees are views of it.

`Layout` says where every leaf lives, `Store` is one model in one buffer, `Population` many. What compiles
loops, or is not for everybody, is imported when it is first used.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

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
from flatstore.trees import StructureError as StructureError
from flatstore.trees import flatten_dict as flatten_dict
from flatstore.trees import unflatten_dict as unflatten_dict

if TYPE_CHECKING:
    from flatstore import bench as bench
    from flatstore import es as es
    from flatstore import ga as ga
    from flatstore import scale as scale
    from flatstore.evaluation import Workers as Workers
    from flatstore.files import load as load
    from flatstore.files import open as open
    from flatstore.files import save as save
    from flatstore.interop import adopt as adopt
    from flatstore.interop import adopt_parts as adopt_parts
    from flatstore.surgery import put_back as put_back
    from flatstore.surgery import replan as replan
    from flatstore.surgery import transfer as transfer
    from flatstore.vectors import Rebuild as Rebuild
    from flatstore.vectors import destructure as destructure

_ROOMS = ("bench", "es", "evaluation", "files", "ga", "interop", "kernels", "scale", "surgery", "vectors")
_NAMES = {
    "Workers": "evaluation",
    "load": "files",
    "open": "files",
    "save": "files",
    "adopt": "interop",
    "adopt_parts": "interop",
    "put_back": "surgery",
    "replan": "surgery",
    "transfer": "surgery",
    "Rebuild": "vectors",
    "destructure": "vectors",
}
"""What is not imported yet: rooms, and names with the rooms that hand them out."""


def __getattr__(name: str) -> _Any:
    if name in _ROOMS:
        return _import_module(f"flatstore.{name}")
    if name not in _NAMES:
        raise AttributeError(f"module 'flatstore' has no attribute {name!r}")
    found = globals()[name] = getattr(_import_module(f"flatstore.{_NAMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, *_NAMES})
