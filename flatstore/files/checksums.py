"""Checksums of tensors, XXH3 of 64 bits, kept in the metadata of a file.

They tell what a disk or a cable has changed, not what somebody changes who wishes to. XXH3 reads memory as fast as it
comes: https://github.com/Cyan4973/xxHash. In the file they are digits, sixteen for each tensor, by the tensors' names:

    >>> written({"b": 1, "a": 0xEF})
    '00000000000000ef0000000000000001'
    >>> read('00000000000000ef                ', ["b", "a"])
    {'a': 239}

A file that is opened to be written has spaces there until it is saved anew: nobody knows when it is complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import xxhash

from flatstore.layout import Array

KEY = "flatstore.xxh3_64"
"""The name of the checksums among the metadata."""

DIGITS = 16
PIECE = 1 << 20
"""Bytes that are read, or written, and counted while a processor has them near."""

_DIGITS = re.compile("[0-9a-f]{16}")

Counter = xxhash.xxh3_64
"""What takes bytes piece by piece, `update(piece)`, and has the checksum of all, `intdigest()`."""


def checksum(parts: Iterable[Array]) -> int:
    """The checksum of some bytes that follow each other.

    >>> import numpy as np
    >>> hex(checksum([np.arange(10, dtype=np.uint8)]))
    '0xab69a08ef83d8f77'
    """
    counter = Counter()
    for part in parts:
        counter.update(part.data)
    return counter.intdigest()


def written(sums: Mapping[str, int]) -> str:
    """The checksums of tensors, by name, as text."""
    return "".join(f"{sums[name]:0{DIGITS}x}" for name in sorted(sums))


def read(text: str, names: Sequence[str]) -> dict[str, int]:
    """The checksums that `written` wrote, by name, of all tensors of a file; those that were blanked are left out.

    Raises `ValueError` for a text of another length.
    """
    if len(text) != DIGITS * len(names):
        raise ValueError(f"expected {DIGITS} digits for each of {len(names)} tensors, got {len(text)} characters")
    parts = {name: text[i * DIGITS : (i + 1) * DIGITS] for i, name in enumerate(sorted(names))}
    return {name: int(part, 16) for name, part in parts.items() if _DIGITS.fullmatch(part)}


def blank(text: str) -> str:
    """Spaces in the place of checksums."""
    return " " * len(text)
