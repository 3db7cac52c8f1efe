"""What makes and opens populations in files: a room below this one hands it in, since it finishes generations there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, NamedTuple

from flatstore.layout import Layout

FilePath = str | PathLike[str]


class InFiles(NamedTuple):
    """The two calls behind `Population.create` and `Population.open`."""

    create: Callable[[FilePath, Layout, int], Any]
    open: Callable[[FilePath, Mapping[str, Any] | None, bool], Any]


handed_in: list[InFiles] = []
"""One, as soon as the package is imported."""

hand_in_files = handed_in.append
