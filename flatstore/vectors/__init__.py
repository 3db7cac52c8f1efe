"""The differentiable map between a tree and one flat vector."""

from flatstore.vectors import custom_call as custom_call
from flatstore.vectors.destructuring import destructure as destructure
from flatstore.vectors.rebuild import Rebuild as Rebuild
