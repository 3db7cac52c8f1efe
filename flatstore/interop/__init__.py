"""Other libraries' objects over a store's bytes. Whatever is a pytree, or takes NumPy arrays, needs nothing here."""

from flatstore.interop.torch import adopt as adopt
