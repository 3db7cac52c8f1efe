"""The lines of a journal: JSON, each with the checksum of all that stands before it in the line.

```
{"number":7,"fitness":[-0.5,1.25,"nan"],"crc32":"1c291ca3"}
```

Python writes the shortest decimal that reads back as the same float, so that fitness comes back to the bit. JSON has no
numbers that are not finite; they are texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np

from flatstore.layout import Array
from flatstore.threads import rounded_to_nearest

_END = re.compile(rb',"crc32":"([0-9a-f]{8})"\}\n')
_LENGTH = len(b',"crc32":"00000000"}\n')


@rounded_to_nearest
def _as_json(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, separators=(",", ":"), allow_nan=False)


def line_of(entry: Mapping[str, Any]) -> bytes:
    r"""The line of an entry, whose first key is its number.

    >>> line_of({"number": 7, "rate": 0.1})
    b'{"number":7,"rate":0.1,"crc32":"f06706e2"}\n'
    """
    content = _as_json(entry)[:-1].encode()
    return b'%s,"crc32":"%08x"}\n' % (content, crc32(content))


@rounded_to_nearest  # as decimals were made of floats
def read_json(text: str | bytes) -> Any:
    """What a text of JSON holds, floats to the bit."""
    return json.loads(text)


def is_whole(line: bytes) -> bool:
    """Whether a line is as it was written: to its end, with its checksum."""
    end = _END.fullmatch(line, max(0, len(line) - _LENGTH))
    return end is not None and int(end[1], 16) == crc32(line[: end.start()])


def has_number(line: bytes, number: int) -> bool:
    """Whether a line is that of an entry."""
    return line.startswith(b'{"number":%d,' % number)


def entry_of(line: bytes) -> dict[str, Any]:
    """The entry of a line that is whole, without the checksum. Raises `ValueError` for any other."""
    try:
        entry: dict[str, Any] = read_json(line)
        del entry["crc32"]
        if type(number := entry["number"]) is not int or not has_number(line, number):
            raise ValueError("two numbers")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"expected an entry of a run, got other JSON, {line[:40]!r} ... ({error}); fix: take a copy of the run"
        ) from error
    return entry


def as_texts(values: Array) -> list[Any]:
    """A vector of float64 as JSON can hold it.

    >>> as_texts(np.array([0.1, -0.0, np.nan, -np.inf]))
    [0.1, -0.0, 'nan', '-inf']
    """
    plain: list[Any] = values.tolist()
    return plain if np.isfinite(values).all() else [x if np.isfinite(x) else str(x) for x in plain]


def as_numbers(values: Any) -> Array:
    """The vector that `as_texts` was given. Raises `ValueError` or `TypeError` for anything else."""
    try:
        return np.array([float(x) for x in values], np.float64)
    except OverflowError as error:
        raise ValueError(f"numbers of float64, got a larger one ({error})") from error
