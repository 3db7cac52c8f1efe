"""Zero-copy views into JAX through DLPack, and when they end.

A lend exports a NumPy view per leaf and lets JAX import it. The view lives exactly as long as JAX holds the export:
until the array is deleted *and* the last computation that reads it has finished. That is how the end of a lend knows
that nobody reads any more:

```
store's memory  <- NumPy view <- DLPack capsule <- XLA buffer <- jax.Array     (each keeps the one to its left)
                   weakref: dead?                  running jit  '- deleted at the exit
```

The source is the DLPack standard: https://dmlc.github.io/dlpack/latest/.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from flatstore.layout import Array
from flatstore.memory.dlpack import PLAIN, code_of
from flatstore.memory.guarded_views import LentError
from flatstore.memory.holds import held
from flatstore.memory.host import Memory
from flatstore.memory.live_views import joined
from flatstore.memory.overlaps import region_of
from flatstore.memory.readers_and_writers import Access, released
from flatstore.threads import Leaving, add_notes, moment, uninterrupted, when_dropped
from flatstore.trees import Difference, first_of, listing

JAX_ALIGN = 64
"""Bytes: JAX on CPU takes a view only of memory that starts at a multiple of this."""

# Types that NumPy knows through JAX but cannot export: (DLPack's type code, the unsigned integers of the same width).
_UNSIGNED: dict[np.dtype[Any], tuple[int, Any]] = {
    np.dtype(name): (code, np.uint16 if name == "bfloat16" else np.uint8)
    for name, code in {
        "bfloat16": 4,
        "float8_e3m4": 7,
        "float8_e4m3": 8,
        "float8_e4m3b11fnuz": 9,
        "float8_e4m3fn": 10,
        "float8_e4m3fnuz": 11,
        "float8_e5m2": 12,
        "float8_e5m2fnuz": 13,
        "float8_e8m0fnu": 14,
    }.items()
}

_jnp: Any = jax.numpy
_dlpack: Any = jax.dlpack


class _Retyped:
    """A DLPack producer that exports a view of unsigned integers under the type code of the floats they hold."""

    def __init__(self, view: Array, code: int) -> None:
        self.view, self.code = view, code

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.view.__dlpack_device__()

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self.view.__dlpack__()
        code_of(capsule, PLAIN).value = self.code
        return capsule


def dtype_obstacle(dtype: np.dtype[Any]) -> tuple[str, str] | None:
    """Why JAX cannot take a view of any array of this dtype: (what it expects, the fix), or None."""
    if (dtype.kind not in "biufc" or dtype.char in "gG") and dtype not in _UNSIGNED:
        return "a dtype that JAX has", "leave it out with only=, or convert the leaf"
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        fix = "switch jax_enable_x64 on, or leave it out with only="
        return "a dtype of at most 32 bits while jax_enable_x64 is off", fix
    return None


def place_obstacle(path: str, view: Array, address: int) -> Difference | None:
    """Why JAX cannot take a view of this array, whatever its dtype, or None."""
    if not view.flags.c_contiguous:
        fix = "lend a population in order='leaf', or leave it out with only="
        return Difference(path, "contiguous bytes", f"strides {view.strides} over shape {view.shape}", fix)
    past = address % JAX_ALIGN if view.size else 0
    if past:
        fix = "plan the layout with align=64, lend whole chunks of a population, or copy()"
        return Difference(path, f"a start at a multiple of {JAX_ALIGN} bytes", f"{past} bytes past one", fix)
    return None


def addresses_of(views: Mapping[str, Array]) -> dict[str, int]:
    """Where views start, by path. Raises `BufferError` that names every leaf that JAX would have to copy."""
    addresses = {path: view.__array_interface__["data"][0] for path, view in views.items()}
    dtypes = {dtype: dtype_obstacle(dtype) for dtype in {view.dtype for view in views.values()}}
    obstacles: list[Difference] = []
    for path, view in views.items():
        of_dtype = dtypes[view.dtype]
        if of_dtype is not None:
            obstacles.append(Difference(path, of_dtype[0], view.dtype.name, of_dtype[1]))
        elif (of_place := place_obstacle(path, view, addresses[path])) is not None:
            obstacles.append(of_place)
    refuse(obstacles)
    return addresses


def refuse_jax_at_the_end() -> None:
    """Raise `RuntimeError` while the interpreter ends; to be called before JAX is.

    By then JAX has dropped its backend. It would make another one in a thread, and wait for ever for that to start.
    """
    if sys.is_finalizing():
        raise RuntimeError(
            "expected a process in which JAX can run, got one that ends; "
            "fix: do it earlier, such as by atexit.register, or use the NumPy views store[path]"
        )


def import_views(
    views: Mapping[str, Array], addresses: Mapping[str, int]
) -> tuple[dict[str, Array], dict[str, jax.Array]]:
    """JAX arrays over the bytes of `views`, by path: (the NumPy views exported, the arrays imported).

    `addresses` are what `addresses_of` returns.
    """
    refuse_jax_at_the_end()
    exports: dict[str, Array] = {}
    arrays: dict[str, jax.Array] = {}
    for path, view in views.items():
        if not view.size:  # there is no byte to share, and its address may be any
            arrays[path] = _jnp.zeros(view.shape, view.dtype)
            continue
        producer: Any = view
        if view.dtype in _UNSIGNED:
            code, unsigned = _UNSIGNED[view.dtype]
            view = view.view(unsigned)
            producer = _Retyped(view, code)
        exports[path] = view
        arrays[path] = _dlpack.from_dlpack(producer, copy=False)
    refuse(
        [
            Difference(path, "a view", "a copy that JAX made", "leave it out with only=, and report this as a bug")
            for path, array in arrays.items()
            if array.size and array.unsafe_buffer_pointer() != addresses[path]
        ]
    )
    return exports, arrays


def refuse(obstacles: list[Difference]) -> None:
    """Raise a `BufferError` that names every obstacle, if there is any."""
    if obstacles:
        raise BufferError(listing(obstacles, "that JAX cannot view without a copy"))


class Lend:
    """A context manager: inside it, a tree of `jax.Array`s over the bytes of a store. See `Store.lend`."""

    def __init__(
        self,
        memory: Memory,
        views: Callable[[], dict[str, Array]],
        tree: Callable[[Mapping[str, jax.Array]], Any],
        patience: float,
    ) -> None:
        self._memory, self._views, self._tree, self._patience = memory, views, tree, patience
        self._access: Access | None = None
        self._arrays: list[jax.Array] = []
        self._locks: list[Any] = []

    __exit__: Leaving = Leaving(lambda lend: lend._access is None)

    def __enter__(self) -> Any:
        """Begin the lend and return the tree: until the exit, nothing writes the buffer through the store."""
        if self._access is not None:
            raise RuntimeError("expected a lend that was not entered before; fix: call lend() again")
        self._access = access = Access(lends=[self._memory])
        self._since = moment()
        try:
            views = self._views()
            addresses = addresses_of(views)
            access.begin()
            self._freeze((addresses[path], addresses[path] + view.nbytes) for path, view in views.items())
            if access.holds:
                self._locks = [when_dropped(hold.release) for hold in access.holds]
                views = {path: held(view, self._locks) for path, view in views.items()}
            exports, arrays = import_views(views, addresses)
            self._arrays = list(arrays.values())
            noted = [(addresses[path], path, weakref.ref(view)) for path, view in exports.items()]
            del views, exports  # what is raised from here on holds this frame, which must not hold what is waited for
            access.note(noted)
            return self._tree(arrays)
        except BaseException:
            access.over = True
            uninterrupted(lambda: self.leave(None))
            raise

    def _freeze(self, spans: Iterable[tuple[int, int]]) -> None:
        """Make read-only, in all memories over the same bytes, what shows any of these (start, stop)."""
        for start, stop in joined(spans):
            for part in self._memory.parts_at(start, stop):
                for member in region_of(part).members():
                    member.views.freeze(start, stop)

    def leave(self, error: BaseException | None) -> None:
        """Delete the arrays, and end the access."""
        if self._access is None:
            return
        for array in self._arrays:
            array.delete()
        self._arrays = []
        self._access.end()

    def left(self, error: BaseException | None) -> None:
        """Wait until the last computation that reads the arrays has finished."""
        held = released(self._access, self._patience) if self._access else []
        if not held:
            return
        if self._access:
            self._access.holds = self._locks = []  # from here on the exports alone hold the locks
        message = (
            f"expected all lent leaves back, got {len(held)} still read after {self._patience} s: "
            f"{first_of(held)}; "
            "fix: drop the NumPy or torch views taken in the block (np.asarray, jax.device_get), or raise patience= "
            "for a longer computation. The store stays lent until they are gone"
        )
        if error is None:
            raise LentError(message)
        add_notes(error, self._since, message)


def check_library(library: str) -> None:
    """Raise `ValueError` unless `library` can be lent to: it is 'jax'."""
    if library != "jax":
        hint = " (torch writes: wrap or adopt its memory instead)" if library == "torch" else ""
        raise ValueError(f"expected 'jax', got {library!r}{hint}; fix: pass 'jax', or use the NumPy views store[path]")
