"""A layout as HTML, for notebooks: the memory as a strip, true to scale, with a box for each leaf, and its table.

```
Store: 3 leaves, 16,641 parameters, 66,564 bytes (60 of padding, align=64)
|####|##########################################|.|     coloured by dtype, frozen leaves pale, padding grey
> leaves                                                path, shape, dtype, offset, bytes
```

It has no script and no style sheet, and takes its ink from the page, so that it can be read on a dark one, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from flatstore.layout.leaf import Leaf

_COLOURS = "#5b8fd0 #d98a3d #57a65c #b06bb0 #b89a2f #3fa5a3 #c9605f #8a78c9".split()
_WIDTH = 1000  # units of the strip
_THIN = 1.5  # units; neighbours below that are one box
_ROWS = 200  # of the table, at most


def memory_map(title: str, leaves: Sequence[Leaf], nbytes: int) -> str:
    """The memory map of leaves that lie in so many bytes, under a title: HTML, without what a page has around it."""
    homes = sorted((leaf for leaf in leaves if leaf.tied is None and leaf.nbytes), key=lambda leaf: leaf.offset)
    names = list(dict.fromkeys(leaf.dtype.name for leaf in homes))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    scale = _WIDTH / max(nbytes, 1)
    boxes = "".join(_box(run, colours, scale) for run in _runs(homes, scale))
    legend = "".join(f'<span style="color:{colours[name]}">&#9632;</span> {escape(name)} &ensp;' for name in names)
    return (
        f'<div style="max-width:60em;font-size:90%"><div>{escape(title)}</div>'
        f'<svg viewBox="0 0 {_WIDTH} 40" preserveAspectRatio="none" style="width:100%;height:2.5em;display:block">'
        f'<rect width="{_WIDTH}" height="40" fill="currentColor" opacity="0.12"/>{boxes}</svg>'
        f'<div style="opacity:0.75">{legend}frozen leaves are pale, padding is grey; a box tells its leaf</div>'
        f"<details><summary>leaves</summary>{_table(leaves)}</details></div>"
    )


def _runs(homes: Sequence[Leaf], scale: float) -> Iterator[list[Leaf]]:
    """The leaves of each box: one, or neighbours of which each is too thin to be seen."""
    run: list[Leaf] = []
    for leaf in homes:
        if run and (leaf.nbytes * scale >= _THIN or (leaf.offset - run[0].offset) * scale >= _THIN):
            yield run
            run = []
        run.append(leaf)
        if leaf.nbytes * scale >= _THIN:
            yield run
            run = []
    if run:
        yield run


def _box(run: Sequence[Leaf], colours: dict[str, str], scale: float) -> str:
    first, last = run[0], run[-1]
    x, wide = first.offset * scale, (last.offset + last.nbytes - first.offset) * scale
    told = f"{first.path}: {first.spec}, {first.nbytes:,} bytes at {first.offset:,}"
    if len(run) > 1:
        told = f"{len(run):,} leaves, {first.path} to {last.path}, from byte {first.offset:,} on"
    gap = 0.4 if wide > 2 * _THIN else 0
    return (
        f'<rect x="{x:.2f}" width="{max(wide - gap, 0.3):.2f}" height="40" fill="{colours[first.dtype.name]}" '
        f'opacity="{1 if first.trainable else 0.45}"><title>{escape(told)}</title></rect>'
    )


def _table(leaves: Sequence[Leaf]) -> str:
    head = "".join(f'<th style="text-align:left">{name}</th>' for name in ("path", "shape", "dtype", "offset", "bytes"))
    rows = "".join(
        f"<tr><td style='text-align:left'>{escape(leaf.path)}</td><td>{leaf.shape}</td><td>{escape(leaf.dtype.name)}"
        f"{'' if leaf.trainable else ', frozen'}</td><td>{leaf.offset:,}</td><td>{_bytes(leaf)}</td></tr>"
        for leaf in leaves[:_ROWS]
    )
    more = f"<div>and {len(leaves) - _ROWS:,} more</div>" if len(leaves) > _ROWS else ""
    return f'<div style="overflow-x:auto"><table><tr>{head}</tr>{rows}</table></div>{more}'


def _bytes(leaf: Leaf) -> str:
    return f"{leaf.nbytes:,}" if leaf.tied is None else f"those of {escape(leaf.tied)}"
