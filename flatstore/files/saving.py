"""save: a store, or a population, as a safetensors file.

A tensor per home, named by its path; a population's have an axis of the members before their own. The metadata hold
'format', which other libraries ask for, what the caller adds, the note that gives the layout back, and checksums.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from flatstore.files import checksums, header, layout_note
from flatstore.files.checksums import PIECE, checksum
from flatstore.files.dtypes import check_savable, is_text, short_name
from flatstore.files.header import Tensor
from flatstore.files.layout_note import Members
from flatstore.files.replacing import Writer, replacing
from flatstore.files.rows import pieces, rows_of
from flatstore.files.shards import refuse_name
from flatstore.files.tensor_order import Size, in_file_order
from flatstore.layout import Array, Leaf
from flatstore.memory import reading
from flatstore.store import AnyPopulation, AnyStore

# The default of 'format'. Of files with metadata, huggingface_hub loads 'pt' and 'mlx'
# (serialization/_torch.py), transformers 4 'pt', 'tf', 'flax' and 'mlx' (modeling_utils.py), and 5 any.
FORMAT = "pt"

_WRITTEN_AT_ONCE = 4 << 20
"""Bytes: what comes in larger parts lies in larger pages of the system's cache, and is read faster from there."""

_OWN = {layout_note.KEY, checksums.KEY}


def save(
    path: str | os.PathLike[str], x: AnyStore | AnyPopulation, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a store or a population to a safetensors file: a copy. The file is replaced as a whole, or not at all.

    It is written leaf by leaf beside the old one, and flushed to the disk; a few MiB of memory are needed for any size.
    An old file's mode and owner stay, and so does a link at `path`. What saves that were killed have left in the folder
    is removed.

    `metadata` is a mapping of strings that the file keeps, for people and for other libraries; `metadata_of` reads it.
    Its entry 'format' is 'pt' by default, which most libraries load. A tied leaf is written once, under the path of its
    home. Leaves lie so that as many as can start at a multiple of 64 bytes, where `open` lets JAX view them. The
    members of a population become the first axis of each leaf that trains.

    Raises `StructureError` for dtypes, names and axes that the format cannot hold, `ValueError` for a layout that is
    mostly gaps and for metadata under names that flatstore uses, `TypeError` if `x` is neither a store nor a population
    or metadata are not strings, `FileNotFoundError` for a folder that does not exist, `LentError` while another thread
    writes the memory, and `OSError` for what the disk refuses. In all these cases the file is left as it was.
    """
    if not isinstance(x, AnyStore | AnyPopulation):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected a Store or a Population, got {type(x).__name__}; fix: Store.from_tree(tree)")
    if x.parts is not None:
        raise ValueError(
            "expected a whole model, got parts of one, whose indices a file does not keep; fix: save the whole model, "
            "or fs.Store.from_tree(dict(store)), a model of its own"
        )
    refuse_name(path)
    members = None
    if isinstance(x, AnyPopulation):
        members = Members(len(x), "member" if x.order == "member" else "leaf")
    check_savable(x.layout.homes)
    texts = _checked(metadata) | {layout_note.KEY: layout_note.written(x.layout, members)}
    homes = homes_in_order(x.layout.homes, members)
    tensors = placed(homes, members)
    texts[checksums.KEY] = checksums.written({tensor.name: 0 for tensor in tensors})
    data_start = len(header.written(tensors, texts))  # the same for any checksums
    with reading(x.memory), replacing(path) as file:
        sums = {
            leaf.path: _write(file, x, leaf, data_start + tensor.start)
            for leaf, tensor in zip(homes, tensors, strict=True)
        }
        texts[checksums.KEY] = checksums.written(sums)
        file.write(header.written(tensors, texts), 0)


def _checked(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The metadata of the caller, with the default of 'format'."""
    if not (metadata is None or isinstance(metadata, Mapping)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"metadata: expected strings by name, got {metadata!r}; fix: pass a dict, or None for none")
    for name, value in (metadata or {}).items():
        if not (is_text(name) and is_text(value)):
            raise TypeError(f"metadata: expected strings by name, got {name!r}: {value!r}; fix: json.dumps the value")
        if name in _OWN:
            raise ValueError(f"metadata: expected names other than flatstore's own, got {name!r}; fix: leave it out")
    return {"format": FORMAT, **(metadata or {})}


def _shape(leaf: Leaf, members: Members | None) -> tuple[int, ...]:
    """The shape that a leaf has in the file."""
    return (members.size, *leaf.shape) if members and leaf.trainable else leaf.shape


def homes_in_order(homes: tuple[Leaf, ...], members: Members | None) -> list[Leaf]:
    """The homes in the order in which they lie in a file."""
    in_memory = sorted(homes, key=lambda leaf: (leaf.offset, leaf.nbytes))
    sizes = [
        Size(leaf.nbytes * (members.size if members and leaf.trainable else 1), leaf.dtype.itemsize)
        for leaf in in_memory
    ]
    return [in_memory[i] for i in in_file_order(sizes)]


def placed(homes: list[Leaf], members: Members | None) -> list[Tensor]:
    """The tensors of homes that lie in this order."""
    tensors: list[Tensor] = []
    end = 0
    for leaf in homes:
        nbytes = leaf.nbytes * (members.size if members and leaf.trainable else 1)
        tensors.append(Tensor(leaf.path, short_name(leaf.dtype), _shape(leaf, members), end, end := end + nbytes))
    return tensors


def _write(file: Writer, x: AnyStore | AnyPopulation, leaf: Leaf, at: int) -> int:
    """Write the data of a leaf at a place in the file, and return their checksum."""

    def parts() -> Iterator[Array]:
        nonlocal at
        for piece in pieces(rows_of(x, leaf), _WRITTEN_AT_ONCE):
            yield from pieces(piece.reshape(1, -1), PIECE)
            file.write(piece.data, at)
            at += piece.size

    return checksum(parts())
