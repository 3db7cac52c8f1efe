"""What makes and opens populations in files: a room below this one hands it in, since it finishes generations there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from os import PathLike
from typing import Any, NamedTuple

from flatstore.layout import Layout

FilePath = str | PathLike[str]


class InFiles(NamedTuple):
    """The two calls behind `Population.create` and `Population.open`."""

    create: Callable[[FilePath, Layout, int], Any]
    open: Callable[[FilePath, Mapping[str, Any] | None, bool], Any]


_handed_in: list[InFiles] = []

hand_in_files: Callable[[InFiles], None] = _handed_in.append


def in_files() -> InFiles:
    """The two calls, from the room that has them, which is imported if it is not yet."""
    if not _handed_in:
        import_module("flatstore.ga")
    return _handed_in[0]
