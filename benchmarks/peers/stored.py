"""The ways to write parameters to a file, and to read them.

Beside flatstore stand `save_file` and `load_file` of safetensors' NumPy interface, and the roof, which is what the
system does by itself: `write` of all bytes at once and `fsync`; `readinto` of a new array. All read from the cache of
the system: what a disk takes to read is the disk's.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

import flatstore as fs

from .peer import Peer, shapes

MIB = 1 << 20


def random_store(nbytes: int, leaves: int = 16) -> fs.Store:
    """Random bits in some leaves of float32."""
    store = fs.Store.zeros(fs.Layout.from_tree(shapes(leaves, nbytes // 4)))
    random = np.random.default_rng(0)
    for view in store.values():
        view.view(np.uint32)[:] = random.integers(0, 1 << 32, view.size, np.uint32)
    return store


class Stored(Peer):
    """The verbs, of a store, or of one of random bits. The file lies in a folder of its own, and goes with the peer."""

    def __init__(self, given: int | fs.Store) -> None:
        super().__init__()
        self.store = random_store(given) if isinstance(given, int) else given
        folder = tempfile.mkdtemp()
        self.path = Path(folder, "file")
        weakref.finalize(self, shutil.rmtree, folder)

    def save(self) -> None:
        """Write the file. It is on the disk when this is over."""
        raise NotImplementedError

    def load(self) -> Any:
        """What the file holds, in new memory."""
        raise NotImplementedError

    def open(self) -> Any:
        """What the file holds, without reading it."""
        raise NotImplementedError(f"{type(self).__name__} has no open")

    def beyond(self) -> int:
        """The bytes of the file that are not parameters'."""
        self.save()
        return self.path.stat().st_size - sum(leaf.nbytes for leaf in self.store.layout.homes)


class Flatstore(Stored):
    """`fs.save` and `fs.load`, which reads in threads, with checksums."""

    def save(self) -> None:
        fs.save(self.path, self.store)

    def load(self) -> Any:
        return fs.load(self.path)

    def open(self) -> Any:
        return fs.open(self.path)


class Safetensors(Stored):
    """`save_file`, which does not flush, and a flush; `load_file`."""

    library = "safetensors"

    def write(self) -> None:
        """Write the file, without a flush."""
        from safetensors.numpy import save_file

        save_file(dict(self.store), self.path)

    def flush(self) -> None:
        """Wait until it is on the disk."""
        number = os.open(self.path, os.O_RDWR)
        os.fsync(number)
        os.close(number)

    def save(self) -> None:
        self.write()
        self.flush()

    def load(self) -> Any:
        from safetensors.numpy import load_file

        return load_file(self.path)


class Roof(Stored):
    """What the system does by itself, in one thread."""

    def save(self) -> None:
        number = os.open(self.path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        rest = self.store.buffer.data
        while rest:
            rest = rest[os.write(number, rest) :]
        os.fsync(number)
        os.close(number)

    def load(self) -> Any:
        return read(self.path, self.store.buffer.nbytes)


def read(path: Path, nbytes: int) -> Any:
    """The last bytes of a file, in a new array."""
    array = np.empty(nbytes, np.uint8)
    with open(path, "rb", buffering=0) as file:
        file.seek(-nbytes, os.SEEK_END)
        rest = array.data
        while rest:
            rest = rest[file.readinto(rest) :]
    return array


PEERS: dict[str, type[Stored]] = {"flatstore": Flatstore, "safetensors": Safetensors, "roof": Roof}
