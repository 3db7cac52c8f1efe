"""Compiled functions whose machine code is kept on disk, under a key of all that it depends on.

The key is a digest of what the function executes (see `fingerprint`), the types of its arguments, the processor, and
the versions of Python, NumPy, Numba and llvmlite. So an edited function never runs stale, and closures over other
compiled functions are found again in the next process.

The folder is `FLATSTORE_CACHE_DIR`, else `flatstore` in `XDG_CACHE_HOME`, else `~/.cache/flatstore`; it may be deleted
at any time. Nothing is kept if `FLATSTORE_CACHE_DIR` is empty. A damaged file is compiled and written anew; a folder
that cannot be written is left alone, and so is one that others may write, or that belongs to another user. Of several
processes that need the same function, one compiles it, and the others wait. The logger `flatstore.kernels` reports at
level INFO what is compiled, at WARNING a folder or file that others may write, and at DEBUG what is loaded and why
something could not be loaded or kept.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import secrets
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import call
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import llvmlite  # pyright: ignore[reportMissingTypeStubs]
import numba
import numpy as np

from flatstore.checks import repeats
from flatstore.kernels.code_cache import Turn, cache_folder, log, read, write
from flatstore.kernels.fingerprint import Unknown, fingerprint, type_name
from flatstore.threads import raised_later, refuse_waiting_at_the_end

F = TypeVar("F", bound=Callable[..., object])

_numba: Any = numba
_core: Any = _numba.core
_llvmlite: Any = llvmlite

_OPTIONS = {"nogil": True, "error_model": "numpy"}
_SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "ENABLE_AVX", "USING_SVML", "DEBUGINFO_DEFAULT")


COMPILES: bool = not _numba.config.DISABLE_JIT
"""Whether functions are compiled; under `NUMBA_DISABLE_JIT` they stay what they are."""


def compiled(function: F) -> F:
    """Compile a function by `numba.njit(nogil=True, error_model="numpy")`, and keep its machine code on disk.

    It is compiled, or loaded, when it is first called with arguments of new types. Functions that it calls become part
    of its machine code. If it refers to something that has no fingerprint, such as an object of a class of the user's,
    its machine code lasts as long as the process.
    """
    refuse_waiting_at_the_end()
    made: Any = _numba.njit(**_OPTIONS)(function)
    if isinstance(made, _core.dispatcher.Dispatcher):  # not under NUMBA_DISABLE_JIT
        made._cache = _KernelCache(made.py_func)
    return made


def inlined(function: F) -> F:
    """Compile a function so that it is always inlined; left to itself, the compiler would call a long one."""
    made: Any = _numba.njit(inline="always", **_OPTIONS)(function)
    return made


class _Compilations(_core.event.Listener):
    """Counts how deeply Numba's compilations are nested, and logs the outermost: it contains the others."""

    def __init__(self):
        self.depth = 0
        self.turn: Turn | None = None

    def on_start(self, event: Any) -> None:
        function = event.data["dispatcher"]
        if self.depth == 0 and isinstance(function._cache, _KernelCache):
            types = event.data["args"]
            arrays = [f"{x.dtype}" for x in types if isinstance(x, _numba.types.Array)]  # the first tells the dtype
            log.info("compiling %s (%s)", function.__name__, ", ".join(arrays[:1] or map(str, types)))
        self.depth += 1

    def on_end(self, event: Any) -> None:
        self.depth -= 1
        if self.depth == 0 and sys.exception() is not None:  # it has failed; otherwise the turn ends with the saving
            self.end_turn()

    def end_turn(self) -> None:
        """Let another process compile, too."""
        turn, self.turn = self.turn, None
        if turn is not None:
            turn.end()


_compilations = _Compilations()
_core.event.register("numba:compile", _compilations)


def _number_functions_at_random() -> None:
    """Let Numba number the functions of this process from a random number on.

    The numbers tell apart the symbols of functions of one name, such as closures of one factory. Counted from 1 in each
    process, two closures would share a symbol once one is loaded from disk, and one would silently run as the other.
    """
    _core.bytecode.FunctionIdentity._unique_ids = itertools.count(secrets.randbits(62))


class _Fork(threading.local):
    """A fork that is to come: the locks that this thread has taken for it, and what handlers have raised.

    A fork waits for a compilation of another thread, half of which would be of no use to the child, and for LLVM, which
    other threads also call to drop what was compiled.
    """

    locks: tuple[Any, ...] = _core.compiler_lock.global_compiler_lock._lock, _llvmlite.binding.ffi.lib._lock._lock
    taken: Sequence[Any] = ()
    struck: BaseException | None = None

    def begin(self) -> None:
        """Take the locks. What is raised meanwhile would be lost here, and is kept: a child must not be made before."""
        taken: list[Any] = []
        self.taken = taken
        while len(taken) < len(self.locks):
            try:
                lock = self.locks[len(taken)]
                deque(map(call, (lock.acquire, partial(taken.append, lock))), 0)  # both, or neither: one call of C
            except BaseException as error:
                if error.__context__ is None and error is not self.struck:
                    error.__context__ = self.struck
                self.struck = error

    def end_in_parent(self) -> None:
        """Give the locks back, and have raised what was kept as soon as the fork is over."""
        struck = self.struck
        self._give_back()
        if struck is not None:
            raised_later(struck)[0]

    def end_in_child(self) -> None:
        """Give the locks back; what was kept is the parent's."""
        self._give_back()
        _number_functions_at_random()

    def _give_back(self) -> None:
        taken, self.taken, self.struck = self.taken, (), None
        for lock in reversed(taken):
            lock.release()


_number_functions_at_random()
if hasattr(os, "register_at_fork"):
    _fork = _Fork()
    os.register_at_fork(before=_fork.begin, after_in_parent=_fork.end_in_parent, after_in_child=_fork.end_in_child)


class _KernelCache(_core.caching._Cache):
    """The cache of one function, with the methods that Numba calls. Only outermost functions are kept."""

    def __init__(self, function: FunctionType):
        self._function = function
        self._enabled = True

    @property
    def cache_path(self) -> str | None:
        """The folder that machine code is kept in, or None if it is not kept."""
        return str(path) if (path := cache_folder()) else None

    def enable(self) -> None:
        """Load and save from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Neither load nor save from now on."""
        self._enabled = False

    def flush(self) -> None:
        """Do nothing: files on disk are never stale."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function for a signature, or None if it must be compiled."""
        if (file := self._file(sig, target_context)) is None:
            return None
        if (content := read(file)) is None:
            _compilations.end_turn()  # of a compilation that was broken off
            _compilations.turn = Turn(file)
            _compilations.turn.take()
            if (content := read(file)) is None:
                return None
            _compilations.end_turn()  # another process has made it meanwhile
        target_context.refresh()

        def rebuilt() -> Any:
            return _core.compiler.CompileResult._rebuild(target_context, *pickle.loads(content))

        try:
            loaded = rebuilt()
        except Exception:
            if not repeats(rebuilt):
                raise  # it is the exception of a signal handler that was called meanwhile
            # Unpickling may raise anything, for instance if a module of the function has moved.
            log.debug("cannot load %s from %s", self._function.__name__, file, exc_info=True)
            return None
        log.debug("loaded %s from %s", self._function.__name__, file)
        return loaded

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function on disk, unless its machine code is of use in this process only."""
        try:
            self._save(sig, data)
        finally:
            if _compilations.depth == 0:
                _compilations.end_turn()

    def _save(self, sig: Any, data: Any) -> None:
        if (file := self._file(sig, data.target_context)) is None:
            return
        if data.lifted or data.library.has_dynamic_globals:
            log.debug("%s is not kept: its machine code holds addresses", self._function.__name__)
            return

        def pickled() -> bytes:
            return _core.serialize.dumps(data._reduce())

        try:
            content = pickled()
        except Exception:
            if not repeats(pickled):
                raise  # as above
            # The function is compiled and works, so it is used even if it cannot be pickled.
            log.debug("cannot pickle %s", self._function.__name__, exc_info=True)
            return
        write(file, content)

    def _file(self, sig: Any, target_context: Any) -> Path | None:
        """The file of the machine code for a signature, or None if it is not kept."""
        if not self._enabled or _compilations.depth > 0 or (path := cache_folder()) is None:
            return None
        arguments, result = _core.sigutils.normalize_signature(sig)
        try:
            parts = [
                fingerprint(self._function).hex(),
                *map(type_name, arguments),
                "" if result is None else type_name(result),
            ]
        except Unknown as unknown:
            log.debug("%s is not kept: it depends on %s", self._function.__name__, unknown)
            return None
        parts += map(repr, (sys.version, np.__version__, _numba.__version__, _llvmlite.__version__, _OPTIONS))
        parts += map(repr, target_context.codegen().magic_tuple())
        parts += [repr(getattr(_core.config, name, None)) for name in _SETTINGS]
        return path / f"{hashlib.sha256(repr(parts).encode()).hexdigest()}.kernel"
