"""save_text: a text as a file, with the same care as a model."""

from __future__ import annotations

import os

from flatstore.files.replacing import replacing


def save_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text to a file, in UTF-8. The file is replaced as a whole, or not at all, and is on the disk then.

    Raises the same errors as `save`.
    """
    with replacing(path) as file:
        file.write(text.encode(), 0)
