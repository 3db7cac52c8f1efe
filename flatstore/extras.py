"""Optional libraries: imported where they are used, with an error that names the extra to install."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """Import an optional module. Raises an `ImportError` that names the extra of flatstore to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise ImportError(
            f"expected the library {module.partition('.')[0]!r}, got none; fix: pip install 'flatstore[{extra}]'",
            name=error.name,
        ) from error
