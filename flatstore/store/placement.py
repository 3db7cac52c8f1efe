"""Where the leaves of one model, or of many, lie in one memory: worked out once, before any view is made.

```
store             | bias | gap | kernel |                        each leaf where the layout says
order="leaf"      | bias of 0, 1, 2 | kernel of 0, 1, 2 |        a dense block per leaf
order="member"    | bias 0, kernel 0 | bias 1, kernel 1 | ...    a packed row per member
a file            | kernel | bias |                              packed, in the order of the file
spans             | kernel | others' bytes | bias |              each where its owner keeps it
```
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from flatstore.checks import whole
from flatstore.layout import Layout, check_layout, round_up
from flatstore.memory import JAX_ALIGN
from flatstore.store.parts import Parts

Order = Literal["store", "leaf", "member", "file", "spans"]

CHUNK = 32 << 20
"""Bytes of the members that are lent at once, unless it is told how many they are, or 1 % of a population is more."""


class Place(NamedTuple):
    """Where a leaf lies, in bytes from the start of the memory."""

    offset: int
    step: int | None
    """Bytes from one member to the next; None for a leaf that is held once."""


class Placement(NamedTuple):
    """Where all leaves lie, and how many bytes that takes."""

    places: dict[str, Place]
    """By path; a tied leaf has the place of its home."""
    blocks: tuple[tuple[int, int], ...]
    """(first byte, number of bytes) of each block of data; the bytes between blocks are padding."""
    order: Order
    nbytes: int
    parts: Parts | None = None
    """Where the leaves stand in a whole model, if they are parts of one."""


def placement_of_store(layout: Layout) -> Placement:
    """The placement of a store: each leaf where the layout says. Raises `TypeError` unless that is a `Layout`."""
    check_layout(layout)
    places = {leaf.path: Place(leaf.offset, None) for leaf in layout.leaves}
    return Placement(places, tuple((leaf.offset, leaf.nbytes) for leaf in layout.homes), "store", layout.nbytes)


def placement_in_file(layout: Layout, starts: Mapping[str, int], size: int | None) -> Placement:
    """The placement of a store in a file in which its homes start at these bytes; with a `size`, of a population.

    The members' copies of a leaf lie side by side there, as in order='leaf'.
    """
    members = {leaf.path: size if leaf.trainable else None for leaf in layout.homes}
    sizes = {leaf.path: leaf.nbytes * (size if size is not None and leaf.trainable else 1) for leaf in layout.homes}
    places = {
        leaf.path: Place(starts[leaf.path], None if members[leaf.path] is None else leaf.nbytes)
        for leaf in layout.homes
    }
    places |= {leaf.path: places[leaf.tied] for leaf in layout.leaves if leaf.tied is not None}
    blocks = tuple((starts[path], nbytes) for path, nbytes in sizes.items())
    nbytes = max(start + nbytes for start, nbytes in blocks)
    return Placement(places, blocks, "file" if size is None else "leaf", nbytes)


def placement_in_spans(layout: Layout, starts: Mapping[str, int], parts: Parts | None) -> Placement:
    """The placement of a store whose homes lie where others keep them, each from one of these bytes of a memory on."""
    places = {leaf.path: Place(starts[leaf.tied or leaf.path], None) for leaf in layout.leaves}
    blocks = tuple((starts[leaf.path], leaf.nbytes) for leaf in layout.homes)
    return Placement(places, blocks, "spans", max(start + nbytes for start, nbytes in blocks), parts)


def placement_of_population(layout: Layout, size: int, order: str) -> Placement:
    """The placement of `size` members. Raises `TypeError` and `ValueError` as `Population.zeros` does."""
    check_layout(layout)
    if not whole(size) >= 1:
        raise ValueError(f"expected at least one member, got size {size!r}; fix: pass a size of 1 or more")
    in_memory = sorted(layout.homes, key=lambda leaf: (leaf.offset, leaf.nbytes))
    trainable = [leaf for leaf in in_memory if leaf.trainable]
    if not trainable:
        raise ValueError("expected trainable leaves, got none; fix: pass trainable= when you plan the layout")
    places: dict[str, Place] = {}
    blocks: list[tuple[int, int]] = []
    end = 0
    if order == "member":
        dtypes = sorted({leaf.dtype.name for leaf in trainable})
        if len(dtypes) > 1:
            raise ValueError(
                f"expected trainable leaves of one dtype for order='member', got {', '.join(dtypes)}; "
                "fix: pass order='leaf', or a trainable= that picks leaves of one dtype"
            )
        row = sum(leaf.nbytes for leaf in trainable)
        for leaf in trainable:
            places[leaf.path] = Place(end, row)
            end += leaf.nbytes
        end = size * row
        blocks.append((0, end))
    elif order == "leaf":
        for leaf in trainable:
            start = round_up(end, JAX_ALIGN)
            end = start + size * leaf.nbytes
            places[leaf.path] = Place(start, leaf.nbytes)
            blocks.append((start, size * leaf.nbytes))
    else:
        raise ValueError(f"expected order 'leaf' or 'member', got {order!r}; fix: pass one of these")
    for leaf in (leaf for leaf in in_memory if not leaf.trainable):
        start = round_up(end, JAX_ALIGN)
        end = start + leaf.nbytes
        places[leaf.path] = Place(start, None)
        blocks.append((start, leaf.nbytes))
    places |= {leaf.path: places[leaf.tied] for leaf in layout.leaves if leaf.tied is not None}
    return Placement(places, tuple(blocks), order, end)


def aligned_members(layout: Layout) -> int:
    """The members from one at which every leaf starts where JAX takes it to the next, in order='leaf'."""
    sizes = [leaf.nbytes for leaf in layout.homes if leaf.trainable]
    return math.lcm(*(JAX_ALIGN // math.gcd(JAX_ALIGN, nbytes) for nbytes in sizes))


def members_at_once(layout: Layout, size: int, at_most: int | None, stride: int = 1) -> int:
    """How many of `size` members are lent at once: at most so many, in multiples of `stride`, unless they are all.

    None: as many as have 32 MiB, or 1 % of all if that is more, aligned as in order='leaf'; so they depend on the
    layout and on the number of members, on nothing else. Raises `ValueError` for less than 1, or than `stride`.
    """
    if at_most is None:
        member, stride = sum(leaf.nbytes for leaf in layout.homes if leaf.trainable), aligned_members(layout)
        parts = -(-size * member // max(CHUNK, size * member // 100)) or 1
        return size if parts == 1 else -(-size // (parts * stride)) * stride  # equal parts: one shape to compile
    if not whole(at_most) >= 1:
        raise ValueError(f"expected at_most >= 1, got {at_most!r}; fix: pass 1 or more")
    length = at_most - at_most % stride
    if at_most < size and not length:
        raise ValueError(
            f"expected at_most >= {stride}, the members from one aligned start to the next, got {at_most}; "
            f"fix: pass {stride} or more, or use order='member' if JAX need not take the chunks"
        )
    return length or size
