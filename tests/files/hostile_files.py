"""Files that nobody should have written: headers and notes with something in them changed, as JSON and as bytes.

python -m tests.files.hostile_files 10_000_000      # the long form: verdicts beside the library's, counts printed
"""

from __future__ import annotations

import io
import json
import random
import struct
import sys
from collections import Counter
from typing import Any

from safetensors import SafetensorError, deserialize

from flatstore.files.header import BITS, read_header

NUMBERS = ["0", "1", "2", "8", "-1", "-0", "1.0", "1e2", "01", "18446744073709551615", "18446744073709551616", "1e999"]
NUMBERS += ["4294967296", "9223372036854775808", "9" * 30]
VALUES = [*NUMBERS, "null", "true", '""', '"F32"', '"a"', "[]", "{}", "[0]", "[0,0]", "[0,0,0]", '{"F32":null}']
VALUES += ['"\\ud800"', '"\\u00e9"', '"\\ud83d\\ude00"', '"\x01"', "[" * 125 + "]" * 125, "[" * 127 + "]" * 127, "nul"]
NAMES = ["a", "b", "a/b", "~", "~2", "", "__metadata__", "é", "x" * 300, "a\\n", "\\u0061"]
FIELDS = ["dtype", "shape", "data_offsets", "more"]
SPACES = ["", "", "", " ", "\n\t"]


def a_tensor(rng: random.Random, end: int) -> tuple[list[tuple[str, str]], int]:
    """The fields of a tensor that is as it should be, from a byte on, and the byte after it."""
    dtype = rng.choice(list(BITS))
    shape = [rng.choice([0, 1, 2, 3, 4, 8]) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
    bits = BITS[dtype]
    for n in shape:
        bits *= n
    fields = [("dtype", f'"{dtype}"'), ("shape", json.dumps(shape)), ("data_offsets", f"[{end}, {end + bits // 8}]")]
    return fields, end + bits // 8


def a_file(rng: random.Random) -> bytes:
    """A file, most often with something wrong in it."""
    entries: list[tuple[str, Any]] = []
    end = 0
    for i in range(rng.choice([0, 1, 1, 2, 2, 3])):
        fields, end = a_tensor(rng, end)
        entries.append((f"t{i}" if rng.random() < 0.7 else rng.choice(NAMES), fields))
    if rng.random() < 0.4:
        entries.append(("__metadata__", rng.choice(['{"a":"b"}', "{}", "null", '{"a":1}', '{"a":"b","a":"c"}', "[]"])))
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        change(rng, entries)
    rng.shuffle(entries)
    text = written(rng, entries).encode(errors="surrogatepass")
    if rng.random() < 0.15:
        text = garbled(rng, text)
    size = max(0, end + rng.choice([0] * 12 + [-1, 1, 8]))
    length = max(0, len(text) + rng.choice([0] * 20 + [-1, 1, 8, 2**40, 2**62]))
    content = struct.pack("<Q", length) + text + bytes(size)
    return content[: rng.randrange(len(content) + 1)] if rng.random() < 0.03 else content


def change(rng: random.Random, entries: list[tuple[str, Any]]) -> None:
    """Change something in a header."""
    if not entries:
        entries.append((rng.choice(NAMES), rng.choice(VALUES)))
        return
    i = rng.randrange(len(entries))
    name, fields = entries[i]
    if not isinstance(fields, list) or rng.random() < 0.2:
        kind = rng.randrange(4)
        if kind == 0:
            entries[i] = (name, rng.choice(VALUES))
        elif kind == 1:
            entries.append(entries[i])
        elif kind == 2:
            entries[i] = (rng.choice(NAMES), fields)
        elif isinstance(fields, list):
            entries[i] = (name, "[" + ",".join(value for _, value in fields) + "]")
        return
    j = rng.randrange(len(fields))
    key, value = fields[j]
    match rng.randrange(6):
        case 0:
            fields[j] = (key, rng.choice(VALUES))
        case 1:
            del fields[j]
        case 2:
            fields.append((rng.choice(FIELDS), rng.choice(VALUES)))
        case 3:
            fields[j] = (key, f"[{rng.choice(NUMBERS)},{rng.choice(NUMBERS)}]")
        case 4 if value[0] == "[":
            numbers = [*value[1:-1].split(","), rng.choice(NUMBERS)]
            numbers[rng.randrange(len(numbers))] = rng.choice(NUMBERS)
            fields[j] = (key, "[" + ",".join(numbers[: rng.choice([1, 2, len(numbers)])]) + "]")
        case _:
            fields[j] = (rng.choice(FIELDS), value)


def written(rng: random.Random, entries: list[tuple[str, Any]]) -> str:
    """The header as text, with spaces here and there."""

    def space() -> str:
        return rng.choice(SPACES)

    parts: list[str] = []
    for name, fields in entries:
        if isinstance(fields, list):
            rng.random() < 0.2 and rng.shuffle(fields)
            inside = ",".join(f'{space()}"{key}"{space()}:{space()}{value}{space()}' for key, value in fields)
            fields = "{" + inside + "}"
        parts.append(f'{space()}"{name}":{space()}{fields}{space()}')
    return rng.choice(SPACES) * (rng.random() < 0.1) + "{" + ",".join(parts) + "}" + space()


def garbled(rng: random.Random, text: bytes) -> bytes:
    """A text with a byte or a part of it gone, doubled or changed."""
    i = rng.randrange(len(text) + 1)
    j = min(len(text), i + rng.choice([1, 1, 4, 40]))
    other = bytes([rng.choice([*b'[]{}",:\\ 0-.e', rng.randrange(256), 0xC3, 0xED])])
    return text[:i] + rng.choice([b"", text[i:j] * 2, other]) + text[j:]


def our_verdict(content: bytes) -> str:
    """What we say of a file: 'taken', or 'refused' by a ValueError that says why."""
    try:
        header = read_header(io.BytesIO(content), len(content))
    except ValueError as error:
        assert type(error) is ValueError and "expected" in str(error) and "got" in str(error), content
        return "refused"
    assert header.data_start <= len(content)
    return "taken"


def their_verdict(content: bytes) -> str:
    """What the library says of it."""
    try:
        deserialize(content)
    except SafetensorError:
        return "refused"
    return "taken"


def counted(count: int, seed: int) -> Counter[str]:
    """How many of some files are taken, and refused, by both. Raises `AssertionError` with one that is not."""
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    for _ in range(count):
        content = a_file(rng)
        ours, theirs = our_verdict(content), their_verdict(content)
        assert ours == theirs, f"{ours}, the library says {theirs}: {content!r}"
        found[ours] += 1
    return found


if __name__ == "__main__":
    print(dict(counted(int(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
