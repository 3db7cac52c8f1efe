"""The header of a safetensors file: which tensors it holds, and where their bytes are.

```
bytes   0          8                     8 + n
        | n, uint64 | JSON, n bytes ...   | tensors, one behind the other, without gaps
```

It is data from elsewhere: what it says is checked against the size of the file, and it is not longer than 100 MB.

Source: https://huggingface.co/docs/safetensors; the checks are those of the library of this name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

from flatstore.layout import Spec

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""The bits of an element, for each dtype that the format has."""

LONGEST = 100_000_000
"""The most bytes of a header, as in other libraries."""

ALIGN = 64
"""Where the tensors begin in what is written: at a multiple of this, so that they can be used where they lie."""


_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


class Tensor(NamedTuple):
    """A tensor of a file."""

    dtype: str
    """The name that the format has for it."""
    shape: tuple[int, ...]
    begin: int
    """The first byte, from the start of the file."""
    end: int


class Header(NamedTuple):
    """What the header of a file says."""

    metadata: dict[str, str]
    tensors: dict[str, Tensor]
    """In the order of their bytes."""


def read_header(file: BinaryIO, size: int) -> Header:
    """The header of a file of `size` bytes, read from its beginning. Raises `ValueError` that says what is wrong."""
    start = file.read(8)
    if len(start) < 8:
        raise ValueError(f"expected a header, got {len(start)} bytes")
    length = int.from_bytes(start, "little")
    if length > LONGEST or length + 8 > size:
        raise ValueError(f"expected a header of at most {min(LONGEST, size - 8):,} bytes, got one of {length:,}")
    text = file.read(length)
    if len(text) < length:
        raise ValueError(f"expected a header of {length:,} bytes, got {len(text):,}")
    table = parsed(text)
    if not text.startswith(b"{") or not isinstance(table, dict):
        raise ValueError("expected a header that begins with '{'")
    given: dict[str, Any] = table  # pyright: ignore[reportUnknownVariableType]
    metadata: Any = given.pop("__metadata__", None)
    if not _are_texts({} if metadata is None else metadata):
        raise ValueError("expected metadata that are strings by name, got others")
    tensors = {name: _tensor(name, row, 8 + length) for name, row in given.items()}
    return Header(metadata or {}, _packed(tensors, 8 + length, size))


def parsed(text: str | bytes) -> Any:
    """What a JSON text says. Raises `ValueError` for what JSON does not have, and for texts that are mostly brackets.

    Outside of strings brackets become objects of a hundred bytes: a file could ask for thirty times its size.
    """
    words = text.decode() if isinstance(text, bytes) else text
    bare = _STRING.sub("", words)
    brackets = bare.count("[") + bare.count("{")
    if brackets > 64 + len(words) // 8:
        raise ValueError(f"expected JSON with strings and numbers in it, got {brackets:,} brackets in {len(words):,}")
    try:
        return json.loads(words, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("expected JSON that is not nested so deeply") from None


def _refuse(name: str) -> Any:
    raise ValueError(f"expected JSON, which has no {name}")


def is_text(value: Any) -> bool:
    """Whether a value is a string that UTF-8 can encode, without half of a surrogate pair."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def _are_texts(metadata: Any) -> bool:
    return isinstance(metadata, dict) and all(is_text(x) for pair in metadata.items() for x in pair)  # pyright: ignore


def _tensor(name: str, row: Any, start: int) -> Tensor:
    match row:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if (
            is_text(name) and dtype in BITS and all(_is_size(x) for x in (*shape, begin, end))
        ):
            return Tensor(dtype, tuple(shape), start + begin, start + end)
        case _:
            raise ValueError(f"{name[:60]!r}: expected a dtype, a shape and two offsets, got {str(row)[:100]}")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 64


def _packed(tensors: dict[str, Tensor], start: int, size: int) -> dict[str, Tensor]:
    """The tensors in the order of their bytes, which are all there, and as many as shapes and dtypes say."""
    ordered = dict(sorted(tensors.items(), key=lambda item: item[1][2:]))
    for name, (dtype, shape, begin, end) in ordered.items():
        if begin != start or end < begin:
            raise ValueError(f"{name[:60]!r}: expected bytes from {start} on, got {begin} .. {end}")
        elements = math.prod(shape)
        if elements >= 1 << 64 or elements * BITS[dtype] != 8 * (end - begin):
            raise ValueError(f"{name[:60]!r}: expected the bytes of {dtype}{list(shape)[:9]}, got {end - begin:,}")
        start = end
    if start != size:
        raise ValueError(f"expected tensors that end where the file does, at {size:,}, got {start:,}")
    return ordered


def header_bytes(metadata: Mapping[str, str], tensors: Mapping[str, tuple[str, Spec]]) -> bytes:
    """The header of tensors that are written one behind the other: {name: (dtype's name in the format, spec)}.

    Spaces at its end bring the first tensor to a multiple of `ALIGN`.
    """
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    at = 0
    for name, (dtype, spec) in tensors.items():
        table[name] = {"dtype": dtype, "shape": list(spec.shape), "data_offsets": [at, at + spec.nbytes]}
        at += spec.nbytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    return len(text).to_bytes(8, "little") + text
