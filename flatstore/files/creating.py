"""create: a population of zeros in a new file, larger than memory if need be."""

from __future__ import annotations

import os

from flatstore.files import header, layout_note
from flatstore.files.dtypes import check_savable
from flatstore.files.layout_note import Members
from flatstore.files.mapping import open as _open
from flatstore.files.replacing import replacing
from flatstore.files.saving import FORMAT, homes_in_order, placed
from flatstore.files.shards import refuse_name
from flatstore.layout import Layout, check_layout
from flatstore.store import Population, placement_of_population


def create(path: str | os.PathLike[str], layout: Layout, size: int) -> Population:
    """A population of zeros over the bytes of a new file, whose room on the disk is taken: views."""
    refuse_name(path)
    check_layout(layout)
    placement_of_population(layout, size, "leaf")  # raises what Population.zeros does
    check_savable(layout.homes)
    members = Members(size, "leaf")
    tensors = placed(homes_in_order(layout.homes, members), members)
    start = header.written(tensors, {"format": FORMAT, layout_note.KEY: layout_note.written(layout, members)})
    with replacing(path, first=True) as file:
        file.write(start, 0)
        file.reserve(len(start) + tensors[-1].stop)
    return _open(path, "r+")
