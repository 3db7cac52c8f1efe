"""load: what a safetensors file holds, as a store or a population."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from flatstore.files.checksums import PIECE, Counter
from flatstore.files.contents import Located, contents_of
from flatstore.files.half_way import refuse_half_way
from flatstore.files.layout_note import Members
from flatstore.files.planning import Plan, plan
from flatstore.files.rows import pieces, rows_of
from flatstore.layout import Array, Layout, Leaf
from flatstore.store import AnyPopulation, AnyStore, Population, Store, zeros_on_device
from flatstore.threads import each, threads
from flatstore.trees import Difference, Glob, Rename, StructureError

_AT_ONCE = 0.2
"""Seconds that a thread reads before an interrupt is raised."""


def load(
    path: str | os.PathLike[str],
    *,
    like: Any = None,
    only: Glob | None = None,
    rename: Rename = None,
    verify: bool = True,
    device: Any = None,
) -> Any:
    """A store, or a population, with what a safetensors file holds: a copy, read straight into its memory.

    With a `device` of JAX it is a `JaxStore` or a `JaxPopulation`, with one of torch a `TorchStore` or a
    `TorchPopulation`: each leaf is read, sent there and forgotten here.

    Without `like` the tree is made of ordered dicts, and what `save` wrote has the same layout again; a file of others
    gives one dict of its tensors' names. A '/' in such a name is part of a key then, so '~1' in its path, and in a file
    that is saved of it; `like`, or `rename={'*~1*': '*/*'}`, makes nodes of it. The file's metadata are not kept:
    `metadata_of` reads them, and `save` takes them.

    Args:
        path: a safetensors file, or the index of several (`model.safetensors.index.json`).
        like: a tree (of arrays or shapes), a store, a population or a layout that says which leaves to expect and of
            which nodes the tree is made.
        only: globs of the leaves that are read, by their names in the file, a tied leaf by any of its names. Into a
            model that has others, too: `store.assign(load(path, only="backbone/*").items())`.
        rename: new names for leaves and nodes, {'model/*': '*'}, as for `replan`; before they are compared with `like`.
        verify: whether the checksums of what is read are compared with those that `save` wrote.
        device: one of JAX, such as `jax.devices()[0]`, or of torch, such as "cuda"; None for NumPy memory on the host.

    Raises:
        StructureError: every leaf that differs from `like`; dtypes and shapes that NumPy and JAX do not have.
        ValueError: what is no safetensors file, holds no tensors, or is damaged; globs that match nothing.
        OSError: a file that is not there, or cannot be read.
        TypeError, ValueError: a device that is neither of JAX nor of torch, or is not there.
    """
    refuse_half_way(path)
    with contents_of(path) as contents:
        planned = plan(contents, like, only, rename)
        layout, members = planned.layout, planned.members
        x = _zeros(layout, members, device)
        sources = {at: contents.tensors[name] for at, name in planned.names.items()}
        in_order = sorted(sources.items(), key=lambda item: (item[1].path, item[1].start))
        homes = [(source, layout.by_path[at]) for at, source in in_order if layout.by_path[at].tied is None]
        if device is None:
            _in_threads(_read(source, rows_of(x, leaf), verify) for source, leaf in homes)
        else:
            for source, leaf in homes:
                rows = np.empty((1, source.nbytes), np.uint8)
                _in_threads([_read(source, rows, verify)])
                x[leaf.path] = rows.view(leaf.dtype).reshape(tuple(x[leaf.path].shape))
        _compare_ties(planned, sources, x)
    return x


def _zeros(layout: Layout, members: Members | None, device: Any) -> Any:
    """What is to be filled."""
    if device is not None:
        return zeros_on_device(layout, device, members and members.size)
    return Store.zeros(layout) if members is None else Population.zeros(layout, members.size, order=members.order)


def _in_threads(tensors: Iterable[Iterator[None]]) -> None:
    """Read tensors to their ends, several at once; each is an iterator over its pieces."""
    waiting = deque(tensors)

    def read_some(number: int) -> None:
        stop = time.monotonic() + _AT_ONCE
        while True:
            try:
                tensor = waiting.popleft()
            except IndexError:  # others have the rest
                return
            for _ in tensor:
                if time.monotonic() >= stop:
                    waiting.appendleft(tensor)
                    return

    while waiting:
        each(read_some, threads())


def _read(source: Located, rows: Array, verify: bool) -> Iterator[None]:
    """Read a tensor into the bytes of its leaf, piece by piece; to `verify`, compare the checksum."""
    counter, at = Counter(), source.start
    for piece in pieces(rows, PIECE, to_be_filled=True):
        read_into(source, piece, at)
        if verify and source.checksum is not None:
            counter.update(piece.data)
        at += piece.size
        yield
    if verify and source.checksum is not None:
        check_sum(source, counter.intdigest())


def read_into(source: Located, piece: Array, at: int) -> None:
    """Fill a piece with the bytes of a file from a place on. Raises `ValueError` if it ends too early."""
    rest = piece.data
    while rest:
        count = os.preadv(source.file.fileno(), [rest], at)
        if not count:
            raise ValueError(
                f"{source.name!r}: expected {source.nbytes:,} bytes, got a file that became shorter while it was read, "
                f"{source.path!r}; fix: replace files as save does, by renaming"
            )
        rest, at = rest[count:], at + count


def check_sum(source: Located, got: int) -> None:
    """Raise `ValueError` unless the data have the checksum that `save` wrote."""
    if source.checksum != got:
        raise ValueError(
            f"{source.name!r}: expected the data that save wrote, with the checksum {source.checksum:016x}, got "
            f"others, with {got:016x}, in {source.path!r}; "
            "fix: take another copy of the file; verify=False reads it as it is"
        )


def _compare_ties(planned: Plan, sources: dict[str, Located], x: AnyStore | AnyPopulation) -> None:
    """Raise `StructureError` if tied leaves are several tensors in the file, and not the same."""
    differences: list[Difference] = []
    for at, source in sources.items():
        home = planned.layout.by_path[at].tied
        if home is not None and not _is_same(source, x, planned.layout.by_path[home]):
            fix = f"give both the same, or plan with tied=False: it is another name of {home!r}"
            differences.append(Difference(at, f"the values of {home!r}", "other values", fix))
    if differences:
        raise StructureError(differences)


def _is_same(source: Located, x: AnyStore | AnyPopulation, home: Leaf) -> bool:
    at = source.start
    for piece in pieces(rows_of(x, home), PIECE):
        other = piece.copy()
        read_into(source, other, at)
        if other.tobytes() != piece.tobytes():
            return False
        at += piece.size
    return True
