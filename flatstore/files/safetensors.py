"""Files: a store as safetensors, through the safetensors library.

A tensor per home, named by its path. The metadata hold 'format', which other libraries ask for, what the caller adds,
and the note that gives the layout back. The format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections import OrderedDict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from flatstore.extras import require
from flatstore.files import layout_note
from flatstore.layout import Layout, Spec
from flatstore.memory import reading
from flatstore.store import Store
from flatstore.threads import Leaving
from flatstore.trees import Difference, StructureError, path_of

# safetensors' names of the dtypes whose values take whole bytes: its F4 and F6 share bytes, NumPy's do not.
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip

_NOTE = "flatstore"

# The default of 'format'. Of files with metadata, huggingface_hub loads 'pt' and 'mlx'
# (serialization/_torch.py), transformers 4 'pt', 'tf', 'flax' and 'mlx' (modeling_utils.py), and 5 any.
_FORMAT = "pt"


def save(path: str | os.PathLike[str], store: Store, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a store to a safetensors file: a copy. The file is replaced as a whole, or not at all.

    `metadata` is a mapping of strings that the file keeps, for people and for other libraries; `metadata_of` reads it.
    Its entry 'format' is 'pt' by default, which most libraries load. A tied leaf is written once, under the path of its
    home.

    Raises `StructureError` for dtypes, names and axes that the format cannot hold, `ValueError` for a layout that is
    mostly gaps and for metadata under the name that flatstore uses, `TypeError` if `store` is not a store or metadata
    are not strings, `FileNotFoundError` for a folder that does not exist, `ImportError` without safetensors, and
    `LentError` while another thread writes the store. In all these cases the file is left as it was.
    """
    library = require("safetensors.numpy", "demo")
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
        if leaf.path == "__metadata__" or not _is_text(leaf.path)
    ]
    if unnamed:
        raise StructureError(unnamed, "of a name that cannot be saved")
    if not (metadata is None or isinstance(metadata, Mapping)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"metadata: expected strings by name, got {metadata!r}; fix: pass a dict, or None for none")
    for name, value in (metadata or {}).items():
        if not (_is_text(name) and _is_text(value)):
            raise TypeError(f"metadata: expected strings by name, got {name!r}: {value!r}; fix: json.dumps the value")
        if name == _NOTE:
            raise ValueError(f"metadata: expected names other than flatstore's own, got {name!r}; fix: leave it out")
    texts = {"format": _FORMAT, **(metadata or {}), _NOTE: layout_note.written(store.layout)}
    target = Path(path)
    if not target.parent.is_dir() or target.is_dir():
        raise FileNotFoundError(f"expected a file in a folder that exists, got {str(target)!r}; fix: make the folder")
    name = target.parent / f".{target.name}.{secrets.token_hex(4)}"  # known before it is there, so that it is removed
    with _Temporary(name):
        name.touch(exist_ok=False)
        mode = name.stat().st_mode  # that of any new file; the library makes one that is private
        with reading(store.memory):
            library.save_file({leaf.path: store[leaf.path] for leaf in homes}, name, metadata=texts)
        with open(name, "r+b") as written:
            _sort_metadata(written)
            written.flush()
            os.fsync(written.fileno())
        name.chmod(mode)
        os.replace(name, target)


class _Temporary:
    """A context at whose end a file is removed, if it is there: however often it is interrupted."""

    def __init__(self, name: Path) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    __exit__ = Leaving(idle=True)

    def leave(self, error: BaseException | None) -> None:
        """Remove the file. It has been renamed if all is done, or if the interrupt came after that."""
        self._name.unlink(missing_ok=True)


def _sort_metadata(file: BinaryIO) -> None:
    """Sort the metadata by name, in place: the library's order is random, and equal stores should give equal files."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    file.seek(8)
    file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def _is_text(value: Any) -> bool:
    """Whether a value is a string that UTF-8 can encode, without half of a surrogate pair."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def load(path: str | os.PathLike[str], *, like: Any = None) -> Store:
    """A store with what a safetensors file holds: a copy.

    `like` is a tree (of arrays or shapes), a store or a layout that says which leaves to expect and of which nodes the
    tree is made. Without it the tree is made of ordered dicts, and a store that `save` wrote has the same digest again.
    The store does not keep the file's metadata: `metadata_of` reads them, and `save` takes them.

    Raises `StructureError` with every leaf that differs from `like`, and otherwise the errors of `layout_of`.
    """
    library = require("safetensors", "demo")
    content = Path(path).read_bytes()  # once: a file that is replaced meanwhile is read whole, old or new
    with _errors_of(path):
        found = dict(sorted(library.deserialize(content)))
    # The library gives the metadata of paths alone. It has checked the header by now.
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata: dict[str, str] = header.get("__metadata__") or {}
    del content
    specs = _specs({name: (tensor["dtype"], tensor["shape"]) for name, tensor in found.items()})
    if like is None:
        layout = _layout(metadata, specs, path)
    else:
        given = like.layout if isinstance(like, Store) else like
        layout = given if isinstance(given, Layout) else Layout.from_tree(given)
    are_paths = like is not None or _NOTE in metadata
    tensors = {
        name if are_paths else path_of((name,)): np.frombuffer(found[name]["data"], spec.dtype).reshape(spec.shape)
        for name, spec in specs.items()
    }
    ties = {leaf.path: tensors[leaf.tied] for leaf in layout.leaves if leaf.tied in tensors}
    values = {**ties, **tensors}
    layout.check_leaves(values.items())
    store = Store.zeros(layout)
    store.assign(values)
    return store


def layout_of(path: str | os.PathLike[str]) -> Layout:
    """The layout of a safetensors file; its data are not read.

    If `save` wrote the file, it is the layout that was saved, over a tree of ordered dicts; otherwise that of one
    packed dict whose keys are the tensors' names.

    Raises `ValueError` if it is not a safetensors file, holds no tensors, or if the note in its metadata is damaged;
    `StructureError` for dtypes and shapes that NumPy and JAX do not have; `ImportError` without safetensors.
    """
    library = require("safetensors", "demo")
    with _errors_of(path), library.safe_open(path, framework="np") as file:
        metadata: dict[str, str] = file.metadata() or {}
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        kinds = {name: (tensor.get_dtype(), tensor.get_shape()) for name, tensor in slices.items()}
    return _layout(metadata, _specs(kinds), path)


def metadata_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file: strings by name, without the note of flatstore. Its data are not read.

    A file that is saved again keeps them by `save(path, store, metadata=metadata_of(path))`.

    Raises `ValueError` if it is not a safetensors file, `ImportError` without safetensors.
    """
    library = require("safetensors", "demo")
    with _errors_of(path), library.safe_open(path, framework="np") as file:
        metadata: dict[str, str] = file.metadata() or {}
    return {name: metadata[name] for name in sorted(metadata) if name != _NOTE}


@contextmanager
def _errors_of(path: str | os.PathLike[str]) -> Generator[None]:
    """Raise errors of the library as `ValueError`s that name the file."""
    library = require("safetensors", "demo")
    try:
        yield
    except library.SafetensorError as error:
        raise ValueError(
            f"expected a safetensors file, got {os.fspath(path)!r}: {error}; fix: save it again"
        ) from error


def _specs(kinds: Mapping[str, tuple[str, list[int]]]) -> dict[str, Spec]:
    """Shapes and dtypes by name. Raises `StructureError` for each that NumPy and JAX do not have."""
    specs: dict[str, Spec] = {}
    unknown: list[Difference] = []
    for name, (dtype, shape) in kinds.items():
        if dtype not in _DTYPES:
            unknown.append(Difference(name, "a dtype of NumPy or JAX", dtype, _CONVERT))
            continue
        specs[name] = Spec(tuple(shape), np.dtype(_DTYPES[dtype]))
        # NumPy counts the bytes of the other axes where one has no elements.
        if len(shape) > 64 or math.prod(filter(None, shape)) * specs[name].dtype.itemsize >= 2**63:
            got = f"{len(shape)} axes" if len(shape) > 64 else str(shape)
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
