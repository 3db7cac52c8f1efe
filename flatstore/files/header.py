"""The header of a safetensors file: what tensors lie where in it, and its metadata.

```
8 bytes    header, JSON                                              data
| length | {"__metadata__": {...}, "w": {"dtype": "F32", ...}}     | w | b |
```

The data have neither holes nor overlaps. A header is taken if, and only if, the safetensors library takes it, in time
and memory that grow with its length alone. The format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import BinaryIO, NamedTuple

from flatstore.files.bounded_json import Scanner

MOST = 100_000_000
"""The bytes that a header may take."""

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""The dtypes of safetensors, and the bits of a number of each."""

DATA_ALIGN = 64
"""The bytes at whose multiples the data start, in the files that are written here."""

_METADATA = "__metadata__"

# An entry as most writers write it; what does not match is read field by field.
_INT = "(?:0|[1-9][0-9]{0,18})"
_PLAIN = re.compile(
    rf' ?\{{"dtype": ?"({"|".join(BITS)})", ?"shape": ?\[((?:{_INT}(?:, ?{_INT})*+)?)\], ?'
    rf'"data_offsets": ?\[({_INT}), ?({_INT})\]\}}'
)


class Tensor(NamedTuple):
    """Where a tensor lies in a file, and what it is."""

    name: str
    dtype: str
    """A key of `BITS`."""
    shape: tuple[int, ...]
    start: int
    """Its first byte, counted from that of the data."""
    stop: int


class Header(NamedTuple):
    """What a file holds."""

    tensors: list[Tensor]
    """In the order of the data."""
    metadata: dict[str, str]
    data_start: int
    """The byte of the file at which the data start."""


def read_header(file: BinaryIO, size: int) -> Header:
    """The header of a file of `size` bytes, which is at its first. Raises `ValueError` that says what is wrong."""
    length = int.from_bytes(_read_all(file, min(8, size)), "little")
    if size < 8:
        raise ValueError(f"expected at least 8 bytes, got {size}")
    if length > min(MOST, size - 8):
        raise ValueError(f"expected a header of at most {min(MOST, size - 8):,} bytes, got one of {length:,}")
    tensors, metadata = parsed(_read_all(file, length))
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    _check_places(tensors, size - 8 - length)
    return Header(tensors, metadata, 8 + length)


def _read_all(file: BinaryIO, length: int) -> bytes:
    parts: list[bytes] = []
    while length:
        part = file.read(length)
        if not part:
            raise ValueError(f"expected {length:,} more bytes, got the end of the file")
        parts.append(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def parsed(content: bytes) -> tuple[list[Tensor], dict[str, str]]:
    """The tensors and the metadata of a header; whether the tensors lie well is not checked.

    >>> parsed(b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"a": "b"}}')
    ([Tensor(name='w', dtype='F32', shape=(2,), start=0, stop=8)], {'a': 'b'})

    Raises `ValueError` that says what is wrong.
    """
    scan = Scanner(content)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] | None = None
    for name in scan.keys():
        if name != _METADATA:
            tensors[name] = _tensor(scan, name)  # of several of one name the last one counts
        elif metadata is not None:
            raise ValueError(f"expected {_METADATA!r} once, got it twice")
        else:
            metadata = {} if scan.null() else {key: scan.string() for key in scan.keys()}
    scan.end()
    return list(tensors.values()), metadata or {}


def _tensor(scan: Scanner, name: str) -> Tensor:
    found = scan.pattern(_PLAIN)
    if found is not None:
        shape = tuple(map(int, found[2].split(","))) if found[2] else ()
        return Tensor(name, found[1], shape, int(found[3]), int(found[4]))
    fields: dict[str, tuple[int, ...] | str] = {}
    try:
        if scan.peek() == "[":
            keys = iter(("dtype", "shape", "data_offsets"))
            for _ in scan.elements():
                _read_field(scan, next(keys, "a fourth field"), fields)
        else:
            for key in scan.keys():
                _read_field(scan, key, fields)
        dtype, shape, (start, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]
    except KeyError as error:
        raise ValueError(f"{name[:60]!r}: expected its dtype, shape and data_offsets, got no {error}") from None
    except ValueError as error:
        raise ValueError(f"{name[:60]!r}: {error}") from None
    assert isinstance(dtype, str) and isinstance(shape, tuple) and isinstance(start, int) and isinstance(stop, int)
    return Tensor(name, dtype, shape, start, stop)


def _read_field(scan: Scanner, key: str, fields: dict[str, tuple[int, ...] | str]) -> None:
    if key in fields:
        raise ValueError(f"expected each field once, got {key!r} twice")
    if key == "dtype":
        fields[key] = _dtype(scan)
    elif key in ("shape", "data_offsets"):
        fields[key] = tuple([scan.natural() for _ in scan.elements()])
        if key == "data_offsets" and len(fields[key]) != 2:
            raise ValueError(f"expected data_offsets of two numbers, got {len(fields[key])}")
    elif key == "a fourth field":
        raise ValueError("expected three fields, got a fourth")
    else:
        scan.skip(2)


def _dtype(scan: Scanner) -> str:
    """A dtype: its name, or an object of its name and null."""
    found = [""]
    if scan.peek() == "{":
        found = [name for name in scan.keys() if scan.null() or _refuse(scan)]
    else:
        found = [scan.string()]
    if len(found) != 1 or found[0] not in BITS:
        raise ValueError(f"expected a dtype of safetensors, got {str(found)[:60]}")
    return found[0]


def _refuse(scan: Scanner) -> bool:
    raise scan.error("a dtype of safetensors")


def _check_places(tensors: Sequence[Tensor], size: int) -> None:
    """Raise `ValueError` unless the tensors fill `size` bytes of data, without holes and overlaps."""
    end = 0
    for name, dtype, shape, start, stop in tensors:
        if start != end or stop < start:
            raise ValueError(f"{name[:60]!r}: expected data from byte {end:,} on, got {start:,} .. {stop:,}")
        bits = 1
        for n in (*shape, BITS[dtype]):
            bits *= n
            if bits >= 1 << 64:
                raise ValueError(f"{name[:60]!r}: expected a size below 2**64, got {dtype}{str(shape)[:60]}")
        if bits != 8 * (stop - start):
            raise ValueError(
                f"{name[:60]!r}: expected {bits // 8:,} bytes of {dtype}{str(list(shape))[:60]}, got {stop - start:,}"
            )
        end = stop
    if end != size:
        raise ValueError(f"expected {end:,} bytes of data, as the header says, got {size:,}")


def written(tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> bytes:
    """A header, its length before it, with spaces behind it so that the data start at a multiple of `DATA_ALIGN`.

    >>> header = written([Tensor("w", "F32", (2,), 0, 8)], {"a": "b"})
    >>> len(header), header[8:].rstrip()
    (128, b'{"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}')

    Raises `ValueError` if it takes more than `MOST` bytes, which other libraries do not read.
    """
    entries = {x.name: {"dtype": x.dtype, "shape": x.shape, "data_offsets": (x.start, x.stop)} for x in tensors}
    header = {_METADATA: dict(sorted(metadata.items())), **entries}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    length = -(-(8 + len(text)) // DATA_ALIGN) * DATA_ALIGN - 8
    if length > MOST:
        raise ValueError(
            f"expected names and metadata of at most {MOST:,} bytes, got {length:,}; "
            "fix: shorten the metadata, or the names of leaves"
        )
    return length.to_bytes(8, "little") + text.ljust(length)
