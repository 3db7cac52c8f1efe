"""A model taken apart for an edit: its leaves as rows of its layout, its nodes with arrays in them."""

from __future__ import annotations

from flatstore.layout import Layout, stand_ins
from flatstore.store import Population, Views
from flatstore.trees import OldNodes, Piece, expanded, names_of, pieces_of


def row_pieces(model: Layout | Views, old_nodes: OldNodes, number: tuple[int, ...] = (), at: str = "") -> list[Piece]:
    """The pieces of a model, with the rows of its layout in place of numeric leaves; its nodes go into `old_nodes`.

    The nodes are made anew: with the views of a store or of a population's first member, with stand-ins for a layout.
    """
    if isinstance(model, Layout):
        layout, tree = model, model.unflatten(stand_ins(model.leaves))
    else:
        layout, tree = model.layout, expanded(model[0] if isinstance(model, Population) else model)
    rows = {number + names_of(row.key_path): row for row in layout.leaves}
    return [piece._replace(value=rows.get(piece.old, piece.value)) for piece in pieces_of(tree, old_nodes, number, at)]
