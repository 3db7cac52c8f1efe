"""Views that are not exported through DLPack while they may not be written.

NumPy keeps a read-only view from being written. DLPack has a flag for it, too, but not every library that imports
memory honours the flag: torch writes what it gets. So a view that is handed out while it must not be written is a
`GuardedView`: it reads like any other array, and refuses to be exported for as long as it is read-only.

    >>> view = np.zeros(2).view(GuardedView)
    >>> view.flags.writeable = False
    >>> view.__dlpack__(max_version=(1, 0))
    Traceback (most recent call last):
    flatstore.LentError: expected a view that may be written, got one that is read-only; fix: export a copy, np.array(x)
    >>> type(view + 1)
    <class 'numpy.ndarray'>
"""

from __future__ import annotations

from typing import Any

import numpy as np


class LentError(BufferError):
    """Raised for what a buffer does not allow while it is lent or being written. Nothing was written."""

    __module__ = "flatstore"


class GuardedView(np.ndarray[Any, np.dtype[Any]]):
    """A NumPy view that DLPack does not export while it is read-only. Functions of NumPy return ordinary arrays."""

    def __dlpack__(self, **keywords: Any) -> Any:
        """Export the bytes as a DLPack capsule: a view. Raises `LentError` while this is read-only."""
        if not self.flags.writeable:
            raise LentError(
                "expected a view that may be written, got one that is read-only; fix: export a copy, np.array(x)"
            )
        return super().__dlpack__(**keywords)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Return the result of a NumPy function as an ordinary array or scalar."""
        return array[()] if return_scalar else np.asarray(array)
