"""Where the leaves of one model, or of many, lie in one memory: worked out once, then executed without a decision.

```
store             | bias | gap | kernel |                        each leaf where the layout says
order="leaf"      | bias of 0, 1, 2 | kernel of 0, 1, 2 |        a dense block per leaf
order="member"    | bias 0, kernel 0 | bias 1, kernel 1 | ...    a packed row per member
```
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from flatstore.layout import Layout, round_up
from flatstore.memory import JAX_ALIGN

Order = Literal["store", "leaf", "member"]


class Place(NamedTuple):
    """Where a leaf lies, in bytes from the start of the memory."""

    offset: int
    step: int | None
    """From one member to the next; None for a leaf that there is one of."""


class Plan(NamedTuple):
    """Where all leaves lie."""

    places: dict[str, Place]
    """By path; a tied leaf has the place of its home."""
    blocks: tuple[tuple[int, int], ...]
    """(first byte, number of bytes) of all that is data; what lies between is padding."""
    order: Order
    nbytes: int


def refuse_no_layout(layout: Any) -> None:
    """Raise `TypeError` for what is no layout."""
    if not isinstance(layout, Layout):
        raise TypeError(f"expected a Layout, got {type(layout).__name__}; fix: pass Layout.from_tree(tree)")


def store_plan(layout: Layout) -> Plan:
    """The plan of a store: each leaf where the layout says. Raises `TypeError` for what is no layout."""
    refuse_no_layout(layout)
    places = {leaf.path: Place(leaf.offset, None) for leaf in layout.leaves}
    return Plan(places, tuple((leaf.offset, leaf.nbytes) for leaf in layout.homes), "store", layout.nbytes)


def population_plan(layout: Layout, size: int, order: str) -> Plan:
    """Where the leaves of `size` members lie. Raises `ValueError` for what cannot be a population."""
    refuse_no_layout(layout)
    if size < 1:
        raise ValueError(f"expected at least one member, got size {size}; fix: name a number of members")
    in_memory = sorted(layout.homes, key=lambda leaf: (leaf.offset, leaf.nbytes))
    trainable = [leaf for leaf in in_memory if leaf.trainable]
    if not trainable:
        raise ValueError("expected trainable leaves, got none; fix: say trainable= when you plan the layout")
    places: dict[str, Place] = {}
    blocks: list[tuple[int, int]] = []
    end = 0
    if order == "member":
        dtypes = sorted({leaf.dtype.name for leaf in trainable})
        if len(dtypes) > 1:
            raise ValueError(
                f"expected trainable leaves of one dtype for order='member', got {', '.join(dtypes)}; "
                "fix: order='leaf', or trainable= that picks one dtype"
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
        raise ValueError(f"expected order 'leaf' or 'member', got {order!r}; fix: see Population")
    for leaf in (leaf for leaf in in_memory if not leaf.trainable):
        start = round_up(end, JAX_ALIGN)
        end = start + leaf.nbytes
        places[leaf.path] = Place(start, None)
        blocks.append((start, leaf.nbytes))
    places |= {leaf.path: places[leaf.tied] for leaf in layout.leaves if leaf.tied is not None}
    return Plan(places, tuple(blocks), order, end)
