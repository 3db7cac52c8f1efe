"""Other libraries' objects over a store's bytes. Whatever is a pytree, or takes NumPy arrays, needs nothing here."""

from flatstore.interop.torch import adopt as adopt
from flatstore.interop.torch_parts import adopt_parts as adopt_parts
