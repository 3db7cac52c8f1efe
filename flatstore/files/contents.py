"""What a file holds, or several of one model: its tensors, its metadata, its layout. The data are read elsewhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from io import FileIO
from typing import NamedTuple

from flatstore.files import checksums, layout_note
from flatstore.files.dtypes import specs_of
from flatstore.files.half_way import not_waiting
from flatstore.files.header import Header, Tensor, read_header
from flatstore.files.layout_note import Members, Note, Rows
from flatstore.files.shards import INDEX, shards_of
from flatstore.layout import Layout, Spec, is_trainable_dtype
from flatstore.threads import uninterrupted
from flatstore.trees import path_of

Path = str | os.PathLike[str]


class Located(NamedTuple):
    """A tensor in a file that is open."""

    file: FileIO
    path: str
    """That of the file."""
    name: str
    start: int
    """The byte of the file at which its data start."""
    nbytes: int
    checksum: int | None
    """That of its data as `save` wrote them, if the file says it."""


class Contents(NamedTuple):
    """What a file holds, or several of one model."""

    path: str
    tensors: dict[str, Located]
    """By name, sorted."""
    specs: dict[str, Spec]
    """By name, sorted."""
    metadata: dict[str, str]

    @property
    def has_note(self) -> bool:
        """Whether `save` wrote it, so that the names are paths."""
        return layout_note.KEY in self.metadata

    def note(self) -> Note:
        """The note that `save` wrote, or that of one packed dict. Raises `ValueError` for one that is damaged."""
        if not self.specs:
            raise ValueError(f"expected a file with tensors, got none in {self.path!r}; fix: save a store")
        if not self.has_note:
            trains = {path_of((name,)): is_trainable_dtype(spec.dtype) for name, spec in self.specs.items()}
            rows: Rows = {path: (trainable, None, None) for path, trainable in trains.items()}
            return Note(1, rows, None)
        try:
            return layout_note.read(self.metadata[layout_note.KEY], self.specs)
        except ValueError as error:
            raise self.damaged(error) from error

    def damaged(self, error: ValueError) -> ValueError:
        """The error that the note is not one that `save` wrote."""
        return ValueError(
            f"expected the table of leaves that save writes, got other metadata in {self.path!r} ({error}); "
            "fix: load(path, like=...) takes a tree or a layout in place of the table"
        )

    def layout(self) -> tuple[Layout, Members | None]:
        """The layout that the note says, and the members of a population."""
        note = self.note()
        specs = self.specs if self.has_note else {path_of((name,)): spec for name, spec in self.specs.items()}
        try:
            return layout_note.planned(note, specs), note.members
        except ValueError as error:
            raise self.damaged(error) from error


@contextmanager
def contents_of(path: Path, *, mode: str = "rb") -> Generator[Contents]:
    """A context in which the files of a model are open, one or those that an index names, and what they hold.

    A file that is replaced meanwhile is read as it was. Raises `ValueError` that names the file and says what is wrong
    with it, `StructureError` for dtypes and shapes that NumPy and JAX do not have, `OSError` for a file that is not
    there.
    """
    name = os.fspath(path)
    with ExitStack() as stack:
        if not name.endswith(INDEX):
            file, header = stack.enter_context(_opened(name, mode))
            located = _located(file, name, header)
            specs = specs_of(sorted(header.tensors))
            yield Contents(name, {key: located[key] for key in specs}, specs, header.metadata)
            return
        tensors: dict[str, Tensor] = {}
        located: dict[str, Located] = {}
        shards = shards_of(name)
        mapped = {key for names in shards.values() for key in names}
        for shard, names in shards.items():
            file, header = stack.enter_context(_opened(shard, mode))
            there = {tensor.name: tensor for tensor in header.tensors}
            for key in [key for key in names if key not in there]:
                raise ValueError(
                    f"{key!r}: expected it in {shard!r}, as {name!r} says, got a file without it; "
                    "fix: download the file again"
                )
            for key in there.keys() - mapped:
                raise ValueError(
                    f"{key!r}: expected tensors that {name!r} names, got another in {shard!r}; "
                    "fix: download the index again, or load the file alone"
                )
            at = _located(file, shard, header)
            tensors |= {key: there[key] for key in names}
            located |= {key: at[key] for key in names}
        specs = specs_of(sorted(tensors.values()))
        yield Contents(name, {key: located[key] for key in specs}, specs, {})


@contextmanager
def _opened(path: str, mode: str) -> Generator[tuple[FileIO, Header]]:
    """A context in which a file is open, and its header. Raises `ValueError` that says what is wrong with it."""
    with uninterrupted(lambda: FileIO(path, mode, opener=not_waiting)) as file:
        status = os.fstat(file.fileno())
        try:
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is a device or a pipe")
            header = read_header(file, status.st_size)
        except ValueError as error:
            raise ValueError(f"expected a safetensors file, got {path!r}: {error}; fix: save it again") from error
        yield file, header


def _located(file: FileIO, path: str, header: Header) -> dict[str, Located]:
    """The tensors of a file by name. Raises `ValueError` for checksums that are not ones."""
    names = [tensor.name for tensor in header.tensors]
    sums: Mapping[str, int] = {}
    if checksums.KEY in header.metadata:
        try:
            sums = checksums.read(header.metadata[checksums.KEY], names)
        except ValueError as error:
            raise ValueError(
                f"expected the checksums that save writes, got other metadata in {path!r} ({error}); "
                "fix: save the tensors again with the library that wrote them last, without this metadata"
            ) from error
    return {
        tensor.name: Located(
            file, path, tensor.name, header.data_start + tensor.start, tensor.stop - tensor.start, sums.get(tensor.name)
        )
        for tensor in header.tensors
    }


def layout_of(path: Path) -> Layout:
    """The layout of a safetensors file, or of one member of a population; its data are not read.

    If `save` wrote the file, it is the layout that was saved, over a tree of ordered dicts; otherwise that of one
    packed dict whose keys are the tensors' names.

    Raises `ValueError` if it is not a safetensors file, holds no tensors, or if the note in its metadata is damaged;
    `StructureError` for dtypes and shapes that NumPy and JAX do not have.
    """
    with contents_of(path) as contents:
        return contents.layout()[0]


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file: strings by name, without those of flatstore. Its data are not read.

    A file that is saved again keeps them by `save(path, store, metadata=metadata_of(path))`.

    Raises `ValueError` if it is not a safetensors file.
    """
    with _opened(os.fspath(path), "rb") as (_, header):
        own = {layout_note.KEY, checksums.KEY}
        return {name: header.metadata[name] for name in sorted(header.metadata) if name not in own}
