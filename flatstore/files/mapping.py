"""open: a store over the file's own bytes, which the system reads as they are used."""

from __future__ import annotations

import mmap
import os
import re
import sys
from functools import partial
from io import FileIO
from typing import Any, NamedTuple

import numpy as np

from flatstore.files import checksums
from flatstore.files.checksums import PIECE, checksum
from flatstore.files.contents import Contents, Path, contents_of
from flatstore.files.half_way import refuse_half_way
from flatstore.files.loading import check_sum
from flatstore.files.planning import Plan, plan
from flatstore.files.rows import pieces, rows_of
from flatstore.files.shards import INDEX
from flatstore.layout import Array
from flatstore.memory import Memory
from flatstore.store import Population, Store
from flatstore.threads import uninterrupted, when_dropped
from flatstore.trees import Difference, StructureError

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_SUMS = re.compile(rb'"' + re.escape(checksums.KEY.encode()) + rb'"[ \t\n\r]*:[ \t\n\r]*"([0-9a-f ]*)"')


class WrittenFile(NamedTuple):
    """A file that a memory writes through to."""

    path: str
    number: int
    """That of the open file."""
    mapping: mmap.mmap
    start: int
    """The byte of the mapping at which the memory starts."""
    last: Any
    """What closes the file as it is dropped."""


def open(path: str | os.PathLike[str], mode: str = "r", *, like: Any = None, verify: bool = False) -> Any:
    """A store, or a population, over the bytes of a safetensors file: views. Nothing is read before it is used.

    Leaves lie as in the file, packed; the layout is that which `load` gives, and so are `like` and the errors. NumPy
    views every leaf, and so does torch; JAX those that start at a multiple of 64 bytes, which `save` sees to where it
    can, and `lend` names the others.

    Args:
        path: a safetensors file, of flatstore or of others.
        mode: 'r': to read; views are read-only, and verbs that write raise. 'r+': what is written goes to the file, at
            the latest when `flush(x)` returns; the file has no checksums then until it is saved again. 'c': what is
            written stays in memory (copy on write).
        like: as for `load`.
        verify: whether the data are read once, and compared with the checksums that `save` wrote.

    While it is open the file may be replaced, as `save` does; it must not be made shorter.

    Raises `ValueError` for another mode, for the index of several files, and for a population whose generation was
    killed half-way; `StructureError` with the leaves that do
    not start at a multiple of the size of their numbers, as some libraries write them: `load` takes these.
    """
    if mode not in ("r", "r+", "c"):
        raise ValueError(f"mode: expected 'r', 'r+' or 'c', got {mode!r}; fix: pass 'r' to read, 'r+' to write")
    refuse_half_way(path)
    return open_half_way(path, mode, like=like, verify=verify)


def open_half_way(path: Path, mode: str, *, like: Any = None, verify: bool = False) -> Any:
    """What `open` returns, also if a generation in the file is not over."""
    if os.fspath(path).endswith(INDEX):
        raise ValueError(f"expected one file, got the index {os.fspath(path)!r}; fix: load it, or open its files")
    with contents_of(path, mode="rb+" if mode == "r+" else "rb") as contents:
        planned = plan(contents, like, None, None)
        _check_places(planned, contents)
        if mode == "r+":
            _blank_checksums(contents)
        memory, data_start = _mapped(contents, mode)
        starts = {
            at: contents.tensors[name].start - data_start
            for at, name in planned.names.items()
            if planned.layout.by_path[at].tied is None
        }
        if planned.members is None:
            x = Store.in_file(memory, planned.layout, starts)
        else:
            x = Population.in_file(memory, planned.layout, starts, planned.members.size)
        if verify:
            _verify(planned, contents, x)
    return x


def flush(x: Store | Population) -> None:
    """Wait until all that was written to a file opened with mode='r+' is on the disk.

    Raises `ValueError` for what is in no such file.
    """
    file = written_file(x.memory)
    if file is None:
        raise ValueError("expected a store of open(path, mode='r+'), got another; fix: save(path, x) writes any store")
    file.mapping.flush()


def written_file(memory: Memory) -> WrittenFile | None:
    """The file that a memory writes through to, if there is one."""
    return memory.file


def _check_places(planned: Plan, contents: Contents) -> None:
    """Raise `StructureError` with the leaves that NumPy's numbers cannot be read from where they lie."""
    differences: list[Difference] = []
    for at, name in planned.names.items():
        leaf, start = planned.layout.by_path[at], contents.tensors[name].start
        if leaf.tied is not None:
            fix = f"load(path, like=...), which compares it with {leaf.tied!r}"
            differences.append(Difference(at, "tied leaves once", "a tensor of its own", fix))
        elif start % leaf.dtype.itemsize and contents.tensors[name].nbytes:
            got = f"byte {start:,} of the file"
            fix = "load the file, and save it: flatstore puts each where it can be read"
            differences.append(Difference(at, f"a start at a multiple of {leaf.dtype.itemsize} bytes", got, fix))
    if differences:
        raise StructureError(differences, f"of {contents.path!r} that cannot be views")


def _mapped(contents: Contents, mode: str) -> tuple[Memory, int]:
    """The data of a file as a memory, and the byte at which they start."""
    located = contents.tensors.values()
    file = next(iter(located)).file
    start, stop = min(x.start for x in located), max(x.start + x.nbytes for x in located)
    widest = max(spec.dtype.itemsize for spec in contents.specs.values())
    start -= start % widest  # positions count whole numbers from here
    if mode == "r+":
        mapping = mmap.mmap(file.fileno(), stop, flags=mmap.MAP_SHARED)
    else:  # private pages of 'r', too: whoever writes one past all flags changes neither the file nor the process
        flags = mmap.MAP_PRIVATE | _NO_RESERVE
        mapping = mmap.mmap(file.fileno(), stop, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    data: Array = np.frombuffer(mapping, np.uint8)[start:]
    memory = Memory(data, is_read_only=mode == "r")
    if mode == "r+":
        memory.file = uninterrupted(lambda: _written(os.path.realpath(contents.path), file, mapping, start))
    return memory, start


def _written(path: str, file: FileIO, mapping: mmap.mmap, start: int) -> WrittenFile:
    number = os.dup(file.fileno())
    return WrittenFile(path, number, mapping, start, when_dropped(partial(os.close, number)))


def _blank_checksums(contents: Contents) -> None:
    """Write spaces in the place of the checksums, on the disk before anything else is."""
    if all(located.checksum is None for located in contents.tensors.values()):
        return
    located = next(iter(contents.tensors.values()))
    located.file.seek(8)
    content = located.file.read(min(x.start for x in contents.tensors.values()))
    places = [*_SUMS.finditer(content)]  # of several of one name the last one counts
    if not places:
        raise ValueError(
            f"expected checksums as save writes them, got others in {contents.path!r}; fix: load the file, and save it"
        )
    for found in places:
        located.file.seek(8 + found.start(1))
        located.file.write(checksums.blank(found[1].decode()).encode())
    os.fsync(located.file.fileno())


def _verify(planned: Plan, contents: Contents, x: Store | Population) -> None:
    for at, name in planned.names.items():
        source = contents.tensors[name]
        if source.checksum is not None:
            check_sum(source, checksum(pieces(rows_of(x, planned.layout.by_path[at]), PIECE)))
