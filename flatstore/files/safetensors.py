"""Files: a store as safetensors, which other libraries read and write.

A tensor per home, named by its path. The metadata hold 'format', which other libraries ask for, what the caller adds,
and the note that gives the layout back. The format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Generator, Mapping
from io import FileIO
from typing import Any

import jax
import numpy as np

from flatstore.files import layout_note
from flatstore.files.header import ALIGN, Header, Tensor, header_bytes, is_text, read_header
from flatstore.files.replacing import replaced
from flatstore.layout import Array, Layout, Spec
from flatstore.memory import reading
from flatstore.store import Store
from flatstore.trees import Difference, StructureError, path_of

# safetensors' names of the dtypes whose values take whole bytes: its F4 and F6 share bytes, NumPy's do not.
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip

_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_NOTE = "flatstore"

_COPIED = 1 << 22
"""The most bytes that are copied at a time where a leaf does not lie in one piece."""

# The default of 'format'. Of files with metadata, huggingface_hub loads 'pt' and 'mlx'
# (serialization/_torch.py), transformers 4 'pt', 'tf', 'flax' and 'mlx' (modeling_utils.py), and 5 any.
_FORMAT = "pt"


def save(path: str | os.PathLike[str], store: Store, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a store to a safetensors file: a copy. The file is replaced as a whole, or not at all.

    It is on the disk when this returns. Of a file that is replaced, mode, owner and group stay; a symbolic link is
    written through. What a save has left that was killed, the next one to the same file removes. No memory is needed
    beside the store, but for 4 MiB where leaves do not lie in one piece.

    `metadata` is a mapping of strings that the file keeps, for people and for other libraries; `metadata_of` reads it.
    Its entry 'format' is 'pt' by default, which most libraries load. A tied leaf is written once, under the path of its
    home.

    Raises `StructureError` for dtypes, names and axes that the format cannot hold, `ValueError` for a layout that is
    mostly gaps and for metadata under the name that flatstore uses, `TypeError` if `store` is not a store or metadata
    are not strings, `FileNotFoundError` for a folder that does not exist, `OSError` if it cannot be written, and
    `LentError` while another thread writes the store. In all these cases the file is left as it was.
    """
    if not isinstance(store, Store):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected a Store, got {type(store).__name__}; fix: save a member, pop[i]")
    homes = store.layout.homes
    unknown = [
        Difference(leaf.path, "a dtype of safetensors", leaf.dtype.name, "convert the leaf")
        for leaf in homes
        if leaf.dtype.name not in _DTYPES.values()
    ]
    if unknown:
        raise StructureError(unknown, "of a dtype that cannot be saved")
    unnamed = [
        Difference(leaf.path, "a name that safetensors can write", leaf.path, "rename the key")
        for leaf in homes
        if leaf.path == "__metadata__" or not is_text(leaf.path)
    ]
    if unnamed:
        raise StructureError(unnamed, "of a name that cannot be saved")
    if not (metadata is None or isinstance(metadata, Mapping)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"metadata: expected strings by name, got {metadata!r}; fix: pass a dict, or None for none")
    for name, value in (metadata or {}).items():
        if not (is_text(name) and is_text(value)):
            raise TypeError(f"metadata: expected strings by name, got {name!r}: {value!r}; fix: json.dumps the value")
        if name == _NOTE:
            raise ValueError(f"metadata: expected names other than flatstore's own, got {name!r}; fix: leave it out")
    texts = {"format": _FORMAT, **(metadata or {}), _NOTE: layout_note.written(store.layout)}
    ordered = sorted(homes, key=lambda leaf: (leaf.nbytes % ALIGN != 0, -leaf.dtype.itemsize))
    header = header_bytes(texts, {leaf.path: (_NAMES[leaf.dtype.name], leaf.spec) for leaf in ordered})
    with replaced(path) as file, reading(store.memory):
        _write(file, header)
        for leaf in ordered:
            for part in _parts(store.leaf_view(leaf.path)):
                _write(file, part)


def _parts(array: Array) -> Generator[Any]:
    """The bytes of an array in C order, as buffers: views where it is contiguous, else copies of a few MiB at most."""
    if array.flags.c_contiguous:
        yield array.reshape(-1).view(np.uint8)
    elif array.nbytes <= _COPIED:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    elif array[0].nbytes >= _COPIED:
        for row in array:
            yield from _parts(row)
    else:
        rows = _COPIED // max(1, array[0].nbytes)
        for start in range(0, len(array), rows):
            yield from _parts(array[start : start + rows])


def _write(file: FileIO, data: Any) -> None:
    """Write all bytes of a buffer: the system may take them in parts."""
    left = memoryview(data)
    while left.nbytes:
        left = left[file.write(left) :]


def _read_into(file: FileIO, out: Any, path: str | os.PathLike[str]) -> None:
    """Read as many bytes as `out` has, straight into it."""
    left = memoryview(out)
    while left.nbytes:
        count = file.readinto(left)
        if not count:
            raise _not_a_file(path, f"expected {left.nbytes:,} bytes more, got its end")
        left = left[count:]


def load(path: str | os.PathLike[str], *, like: Any = None) -> Store:
    """A store with what a safetensors file holds: a copy, read straight into its place.

    `like` is a tree (of arrays or shapes), a store or a layout that says which leaves to expect and of which nodes the
    tree is made. Without it the tree is made of ordered dicts, and a store that `save` wrote has the same digest again.
    The store does not keep the file's metadata: `metadata_of` reads them, and `save` takes them.

    Raises `StructureError` with every leaf that differs from `like`, and otherwise the errors of `layout_of`.
    """
    with open(path, "rb", buffering=0) as file:  # once: a file that is replaced meanwhile is read whole
        found = _header(file, path)
        specs = _specs(found.tensors)
        if like is None:
            layout = _layout(found.metadata, specs, path)
        else:
            given = like.layout if isinstance(like, Store) else like
            layout = given if isinstance(given, Layout) else Layout.from_tree(given)
        are_paths = like is not None or _NOTE in found.metadata
        paths = {name: name if are_paths else path_of((name,)) for name in specs}
        there = {paths[name]: jax.ShapeDtypeStruct(*spec) for name, spec in specs.items()}
        ties = {leaf.path: there[leaf.tied] for leaf in layout.leaves if leaf.tied in there}
        layout.check_leaves({**ties, **there}.items())
        store = Store.zeros(layout)
        again: dict[str, Array] = {}  # tensors of leaves that are tied here, and are not in their file
        for name, tensor in found.tensors.items():
            leaf = layout.by_path[paths[name]]
            if leaf.tied is None:
                start = store.start_of(leaf)
                part = store.memory.bytes[start : start + leaf.nbytes]
            else:
                part = np.empty(leaf.nbytes, np.uint8)
                again[leaf.path] = part.view(leaf.dtype).reshape(leaf.shape)
            file.seek(tensor.begin)
            _read_into(file, part, path)
    if again:
        store.assign({path: store.leaf_view(leaf.path) for path, leaf in layout.by_path.items()} | again)
    return store


def layout_of(path: str | os.PathLike[str]) -> Layout:
    """The layout of a safetensors file; its data are not read.

    If `save` wrote the file, it is the layout that was saved, over a tree of ordered dicts; otherwise that of one
    packed dict whose keys are the tensors' names.

    Raises `ValueError` if it is not a safetensors file, holds no tensors, or if the note in its metadata is damaged;
    `StructureError` for dtypes and shapes that NumPy and JAX do not have.
    """
    with open(path, "rb", buffering=0) as file:
        found = _header(file, path)
    return _layout(found.metadata, _specs(found.tensors), path)


def metadata_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file: strings by name, without the note of flatstore. Its data are not read.

    A file that is saved again keeps them by `save(path, store, metadata=metadata_of(path))`.

    Raises `ValueError` if it is not a safetensors file.
    """
    with open(path, "rb", buffering=0) as file:
        metadata = _header(file, path).metadata
    return {name: metadata[name] for name in sorted(metadata) if name != _NOTE}


def _header(file: FileIO, path: str | os.PathLike[str]) -> Header:
    """The header of an open file. Raises `ValueError` that names the file."""
    try:
        return read_header(file, os.fstat(file.fileno()).st_size)
    except ValueError as error:
        raise _not_a_file(path, error) from error


def _not_a_file(path: str | os.PathLike[str], why: object) -> ValueError:
    return ValueError(f"expected a safetensors file, got {os.fspath(path)!r}: {why}; fix: save it again")


def _specs(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """Shapes and dtypes by name. Raises `StructureError` for each that NumPy and JAX do not have."""
    specs: dict[str, Spec] = {}
    unknown: list[Difference] = []
    for name, (dtype, shape, *_) in sorted(tensors.items()):
        if dtype not in _DTYPES:
            unknown.append(Difference(name, "a dtype of NumPy or JAX", dtype, _CONVERT))
            continue
        specs[name] = Spec(shape, np.dtype(_DTYPES[dtype]))
        # NumPy counts the bytes of the other axes where one has no elements.
        if len(shape) > 64 or math.prod(filter(None, shape)) * specs[name].dtype.itemsize >= 2**63:
            got = f"{len(shape)} axes" if len(shape) > 64 else str(list(shape))
            unknown.append(Difference(name, "a shape that NumPy can have, of at most 64 axes", got, _CONVERT))
    if unknown:
        raise StructureError(unknown, "of a kind that cannot be read")
    return specs


_CONVERT = "convert the file with the library that wrote it"


def _layout(metadata: Mapping[str, str], specs: Mapping[str, Spec], path: str | os.PathLike[str]) -> Layout:
    """The layout that the note in a file's metadata says, or one packed dict without a note."""
    if not specs:
        raise ValueError(f"expected a file with tensors, got none in {os.fspath(path)!r}; fix: save a store")
    if _NOTE not in metadata:
        shapes = {name: jax.ShapeDtypeStruct(*spec) for name, spec in specs.items()}
        return Layout.from_tree(OrderedDict(shapes), align=1)
    try:
        return layout_note.planned(layout_note.read(metadata[_NOTE], specs), specs)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"expected the table of leaves that save writes, got other metadata in {os.fspath(path)!r} ({error}); "
            "fix: load(path, like=...) takes a tree or a layout in place of the table"
        ) from error
