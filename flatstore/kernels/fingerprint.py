"""What a compiled function executes, as bytes: bytecode, constants, and the values of everything it refers to.

Two functions with one fingerprint compile to the same machine code. The fingerprint changes with an edit of a
global constant or of a function that is called, in whatever file, but not with that of a comment or of lines above.
"""

from __future__ import annotations

import builtins
import dis
import hashlib
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, cast

import numba
import numpy as np

_numba: Any = numba
_types: Any = numba.types
_Dispatcher: Any = _numba.core.dispatcher.Dispatcher
_Intrinsic: Any = _numba.core.extending._Intrinsic

_PLAIN = {bool, int, float, complex, str, bytes, type(None), type(Ellipsis)}
_VERSIONED = sys.stdlib_module_names | {"numpy", "numba", "llvmlite"}
"""Packages whose contents follow from their version: what they define enters by its name."""
_NOT_EXECUTED = set(vars(type("_", (), {}))) | {"__annotations__", "__firstlineno__", "__static_attributes__"}
"""Attributes of a class that it has whatever it is."""
_ABSENT = object()


class Unknown(Exception):
    """Raised if a function refers to something whose influence on the machine code is unknown."""


def fingerprint(function: FunctionType) -> bytes:
    """Return the fingerprint (32 bytes) of a Python function that is to be compiled.

    Numbers, strings, tuples, NumPy scalars, dtypes and arrays enter by value, other compiled functions by what they
    execute, and so do functions and classes that an intrinsic uses as it is compiled; objects of NumPy, Numba and the
    standard library by name. Raises `Unknown` if it refers to anything else.
    """
    reader = _Reader()
    reader.function(function)
    return reader.digest()


def type_name(kind: Any) -> str:
    """Return a name that no other Numba type has. Raises `Unknown` unless it is a type of numbers, arrays or tuples."""
    if isinstance(kind, _types.BaseTuple):
        items: Any = kind
        return f"{type(items).__name__}({', '.join(type_name(item) for item in items)}){items}"
    if isinstance(kind, _types.Omitted) and type(kind.value) in _PLAIN:
        return f"omitted({kind.value!r})"
    if type(kind) is _types.Array and isinstance(kind.dtype, (_types.Number, _types.Boolean, _types.Record)):
        return str(kind)
    if isinstance(kind, (_types.Number, _types.Boolean, _types.NoneType, _types.UnicodeType, _types.Literal)):
        return str(kind)
    raise Unknown(f"the type {kind}")


class _Reader:
    """Walks over a function and all that it refers to, and digests what it meets."""

    def __init__(self):
        self._hash = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._intrinsics = 0

    def digest(self) -> bytes:
        return self._hash.digest()

    def function(self, function: FunctionType) -> None:
        if id(function) in self._seen:
            return self._put("seen", self._seen[id(function)])
        self._seen[id(function)] = len(self._seen)
        home = function.__globals__.get("__name__")
        # Machine code is loaded together with the module of each function in it.
        if home not in sys.modules or function.__module__ not in sys.modules:
            raise Unknown(f"{function.__qualname__}, whose module {home} cannot be imported")
        self._put("function", home, function.__module__, function.__qualname__)
        self.value(function.__defaults__)
        self.value(tuple(sorted((function.__kwdefaults__ or {}).items())))
        self._code(function.__code__)
        for path, value in _references(function):
            self._put("refers", path)
            self.value(value)

    def _code(self, code: CodeType) -> None:
        counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
        names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
        self._put("code", code.co_name, counts, names, code.co_code, code.co_exceptiontable, len(code.co_consts))
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._code(constant)
            else:
                self.value(constant)

    def value(self, value: Any) -> None:
        kind: Any = cast(Any, type(value))
        if value is _ABSENT or kind in _PLAIN:
            self._put(kind.__name__, "absent" if value is _ABSENT else value)
        elif kind is tuple:
            self._put("tuple", len(value))
            for item in value:
                self.value(item)
        elif kind in (frozenset, set) and {type(item) for item in value} <= _PLAIN:
            self._put("set", sorted(map(repr, value)))
        elif kind is slice:
            self._put("slice")
            self.value((value.start, value.stop, value.step))
        elif kind is np.ndarray and not value.dtype.hasobject:
            self._put("array", str(_numba.typeof(value)), value.dtype, value.shape, value.tobytes())
        elif issubclass(kind, np.generic):
            self._put("scalar", value.dtype, value.tobytes())
        elif issubclass(kind, np.dtype):
            self._put("dtype", value)
        elif isinstance(value, _Dispatcher):
            self._put("compiled", sorted((name, repr(option)) for name, option in _options(value)))
            self.function(value.py_func)
        elif isinstance(value, _Intrinsic):
            self._put("intrinsic", value._prefer_literal, sorted(map(repr, value._ctor_kwargs.items())))
            self._intrinsics += 1
            self.function(value._defn)
            self._intrinsics -= 1
        elif isinstance(value, _types.Type):
            self._put("type", type_name(value))
        elif isinstance(value, ModuleType) and _is_versioned(value.__name__):
            self._put("module", value.__name__)
        elif _is_named(value):
            self._put("named", value.__module__, value.__name__)
        elif kind is FunctionType and self._intrinsics:  # it is called as the intrinsic is compiled
            self._put("python")
            self.function(cast(FunctionType, value))
        elif kind is dict and self._intrinsics:
            self._put("dict")
            self.value(tuple(value.items()))
        elif kind is type and self._intrinsics:
            self._put("class", value.__qualname__)
            self.value(value.__bases__)
            self.value({name: part for name, part in sorted(vars(value).items()) if name not in _NOT_EXECUTED})
        else:
            raise Unknown(f"{kind.__module__}.{kind.__qualname__} {value!r:.80}")

    def _put(self, *parts: Any) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else f"{type(part).__name__} {part!r}".encode()
            self._hash.update(len(data).to_bytes(8, "little") + data)


def _options(compiled: Any) -> Iterator[tuple[str, Any]]:
    """Yield the options that a function is compiled with. Raises `Unknown` for an option that is not a plain value."""
    options: dict[str, Any] = {**compiled.targetoptions, "locals": compiled.locals or None}
    for name, option in options.items():
        if type(option) in _PLAIN:
            yield name, option
        elif type(option) is set:
            yield name, sorted(cast(set[str], option))
        else:
            raise Unknown(f"the option {name}={option!r}")


def _references(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function refers to outside of itself: (dotted name, value), each name once."""
    cells: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            cells[name] = cell.cell_contents
        except ValueError:
            cells[name] = _ABSENT
    yielded: set[str] = set()
    met: set[str] = set()
    for steps in _instructions(function.__code__):
        for at, step in enumerate(steps):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                value = function.__globals__.get(step.argval, getattr(builtins, step.argval, _ABSENT))
            elif step.opname == "LOAD_DEREF" and step.argval in cells:
                value = cells[step.argval]
            else:
                continue
            path = str(step.argval)
            met.add(path)
            # `shapes.SIZE`, where `shapes` is a module of the user's, means the value in that module.
            while isinstance(value, ModuleType) and not _is_versioned(value.__name__):
                at += 1
                if steps[at].opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                    break
                path += f".{steps[at].argval}"
                value = getattr(value, steps[at].argval, _ABSENT)
            if path not in yielded:
                yielded.add(path)
                yield path, value
    yield from ((name, value) for name, value in cells.items() if name not in met)


def _instructions(code: CodeType) -> Iterator[list[dis.Instruction]]:
    yield [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)


def _is_versioned(module: str) -> bool:
    return module.partition(".")[0] in _VERSIONED


def _is_named(value: Any) -> bool:
    """Whether a value is what its name says: a class or function of a versioned package, or an exception's class."""
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return False
    if getattr(sys.modules.get(module), name, _ABSENT) is not value:
        return False
    return _is_versioned(module) or (isinstance(value, type) and issubclass(value, BaseException))
