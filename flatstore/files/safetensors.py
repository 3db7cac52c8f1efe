"""Files: a store as safetensors, through the safetensors library.

A tensor per home, named by its path; the metadata holds the order of the leaves and what a layout knows beyond shapes
and dtypes, so that the file gives the same layout back. The format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import OrderedDict
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flatstore.extras import require
from flatstore.layout import Array, Layout
from flatstore.store import Store
from flatstore.trees import Difference, StructureError, keys_of, path_of

# safetensors' names of the dtypes that it knows.
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def save(path: str | os.PathLike[str], store: Store) -> None:
    """Write a store to a safetensors file: a copy. The file is replaced as a whole, or not at all.

    Raises `StructureError` for dtypes that the format does not know, `FileNotFoundError` for a folder that is not
    there, `ImportError` without safetensors.
    """
    library = require("safetensors.numpy", "demo")
    if not isinstance(store, Store):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected a Store, got {type(store).__name__}; fix: save a member, pop[i]")
    layout = store.layout
    unknown = [
        Difference(leaf.path, "a dtype of safetensors", leaf.dtype.name, "convert the leaf")
        for leaf in layout.homes
        if leaf.dtype.name not in _DTYPES.values()
    ]
    if unknown:
        raise StructureError(unknown, "of a dtype that cannot be saved")
    rows = [[leaf.path, leaf.trainable, leaf.tied, leaf.dims] for leaf in layout.leaves]
    metadata = {"flatstore": json.dumps({"version": 1, "align": layout.align, "leaves": rows})}
    target = Path(path)
    if not target.parent.is_dir() or target.is_dir():
        raise FileNotFoundError(f"expected a file in a folder that exists, got {str(target)!r}; fix: make the folder")
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        library.save_file({leaf.path: store[leaf.path] for leaf in layout.homes}, name, metadata=metadata)
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load(path: str | os.PathLike[str], *, like: Any = None) -> Store:
    """A store with what a safetensors file holds: a copy.

    `like` is a tree (of arrays or shapes) or a layout that says which leaves to expect and what nodes they live in;
    without it the tree is made of ordered dicts, and a file that `save` wrote has the digest it had.

    Raises `StructureError` with every leaf that differs, `ValueError` if it is no safetensors file.
    """
    saved, _ = _header(path)
    tensors = {name if saved or like is not None else path_of((name,)): array for name, array in _read(path).items()}
    if isinstance(like, Layout):
        layout = like
    else:
        layout = Layout.from_tree(like) if like is not None else layout_of(path)
    ties = {leaf.path: tensors[leaf.tied] for leaf in layout.leaves if leaf.tied in tensors}
    values = {**ties, **tensors}
    layout.check_leaves(values.items())
    store = Store.zeros(layout)
    store.assign(values)
    return store


def layout_of(path: str | os.PathLike[str]) -> Layout:
    """The layout of a safetensors file; its data are not read.

    Of a file that `save` wrote, the layout that it was saved with, over a tree of ordered dicts; of any other, one
    packed dict whose keys are the tensors' names.

    Raises `ValueError` if it is no safetensors file, `StructureError` for dtypes that NumPy and JAX do not have.
    """
    saved, shapes = _header(path)
    if saved is None:
        return Layout.from_tree(OrderedDict(shapes), align=1)
    tree: OrderedDict[str, Any] = OrderedDict()
    for name, row in saved.rows.items():
        node, (*above, last) = tree, keys_of(name)
        for key in above:
            node = node.setdefault(key, OrderedDict())
        node[last] = shapes[row.tied or name]

    def as_saved(name: str, _leaf: Any, _parent: Any) -> bool:
        return saved.rows[name].trainable

    return Layout.from_tree(
        tree,
        align=saved.align,
        trainable=as_saved,
        dims={escape(name): row.dims for name, row in saved.rows.items() if row.dims},
        tied={name: row.tied for name, row in saved.rows.items() if row.tied},
    )


class _Saved(NamedTuple):
    """The metadata of a file that `save` wrote."""

    align: int
    rows: dict[str, _Row]


class _Row(NamedTuple):
    """What the metadata say of a leaf."""

    trainable: bool
    tied: str | None
    dims: list[str | None] | None


def _header(path: str | os.PathLike[str]) -> tuple[_Saved | None, dict[str, jax.ShapeDtypeStruct]]:
    """What `save` noted, if it did, and a shape for each tensor by name."""
    library = require("safetensors", "demo")
    shapes: dict[str, jax.ShapeDtypeStruct] = {}
    unknown: list[Difference] = []
    try:
        with library.safe_open(path, framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                tensor = file.get_slice(name)
                if tensor.get_dtype() in _DTYPES:
                    shapes[name] = jax.ShapeDtypeStruct(tensor.get_shape(), np.dtype(_DTYPES[tensor.get_dtype()]))
                else:
                    fix = "convert the file with the library that wrote it"
                    unknown.append(Difference(name, "a dtype of NumPy or JAX", tensor.get_dtype(), fix))
    except library.SafetensorError as error:
        raise ValueError(
            f"expected a safetensors file, got {os.fspath(path)!r}: {error}; fix: save it again"
        ) from error
    if unknown:
        raise StructureError(unknown, "of a dtype that cannot be read")
    note = metadata.get("flatstore")
    return (None if note is None else _saved(note, shapes, path)), shapes


def _saved(note: str, shapes: dict[str, Any], path: str | os.PathLike[str]) -> _Saved:
    try:
        table: Any = json.loads(note)
        rows = {name: _Row(trainable, tied, dims) for name, trainable, tied, dims in table["leaves"]}
        saved = _Saved(table["align"], rows)
        homes = {name for name, row in rows.items() if row.tied is None}
        if table["version"] != 1 or homes != shapes.keys():
            raise ValueError(f"version {table['version']}, leaves {sorted(homes ^ shapes.keys())[:3]} unmatched")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected the table of leaves that save writes, got other metadata in {os.fspath(path)!r} ({error}); "
            "fix: save it again with this version"
        ) from error
    return saved


def _read(path: str | os.PathLike[str]) -> dict[str, Array]:
    library = require("safetensors", "demo")
    return {
        name: np.frombuffer(tensor["data"], np.dtype(_DTYPES[tensor["dtype"]])).reshape(tensor["shape"])
        for name, tensor in library.deserialize(Path(path).read_bytes())
    }
