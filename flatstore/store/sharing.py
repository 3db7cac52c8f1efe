"""The text of a segment: what lies in it, so that other processes find the same views.

It is JSON: the alignment, the leaves as in `to_template`, each with the byte at which it starts in the layout, the
layout's digest, and for a population its size and order.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, NamedTuple

from flatstore.layout import Layout, from_template, to_template
from flatstore.memory import PAGE


class Shared(NamedTuple):
    """What lies in a segment."""

    layout: Layout
    size: int | None
    """The number of members; None for a store."""
    order: str | None


def text_of(shared: Shared) -> str:
    """What lies in a segment, as text. Raises `ValueError` for leaves aligned to more than a page."""
    layout, size, order = shared
    if layout.align > PAGE:
        raise ValueError(f"expected align <= {PAGE}, got {layout.align}; fix: plan the layout with align=64")
    template = {leaf.path: [leaf.offset, entry] for leaf, entry in zip(layout.leaves, _entries(layout), strict=True)}
    return json.dumps(
        {"align": int(layout.align), "digest": layout.digest, "size": size, "order": order, "leaves": template}
    )


def _entries(layout: Layout) -> Any:
    return to_template(layout).values()


def read(text: str) -> Shared:
    """What `text_of` has written. Raises `ValueError` for any other text.

    >>> import numpy as np
    >>> layout = Layout.from_tree({"b": np.zeros(3), "w": np.zeros((2, 3), "f4")})
    >>> read(text_of(Shared(layout, 4, "leaf"))) == (layout, 4, "leaf")
    True
    """
    try:
        table = json.loads(text)
        planned = from_template(
            {path: entry for path, (_, entry) in table["leaves"].items()}, order="given", align=table["align"]
        )
        offsets = [offset for offset, _ in table["leaves"].values()]
        leaves = tuple(replace(leaf, offset=at) for leaf, at in zip(planned.leaves, offsets, strict=True))
        layout = Layout(leaves, planned.align, planned.treedef)
        if layout.digest != table["digest"]:
            raise ValueError(f"a layout with the digest {layout.digest[:16]}…")
        return Shared(layout, table["size"], table["order"])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"expected the text of a segment, got another ({str(error)[:200]}); fix: share it again, by this flatstore"
        ) from error
