"""Headers of files: hostile ones are our ValueError, and the verdict is that of the safetensors library."""

import io
import json
import random
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from flatstore.files import layout_of
from flatstore.files.header import BITS, header_bytes, parsed, read_header
from flatstore.layout import Spec
from tests.conftest import ALL

GOOD = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b/c": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
    "empty": {"dtype": "I64", "shape": [0, 5], "data_offsets": [26, 26]},
}


def file_of(header, data=bytes(26)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def ours(content):
    """The tensors that we find, or None."""
    try:
        found = read_header(io.BytesIO(content), len(content))
    except ValueError:
        return None
    return {name: (x.dtype, list(x.shape), content[x.begin : x.end]) for name, x in found.tensors.items()}


def theirs(content):
    """The tensors that the library finds, or None."""
    try:
        found = safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return None
    return {name: (x["dtype"], x["shape"], bytes(x["data"])) for name, x in found}


def test_a_good_header_is_read_as_the_library_reads_it():
    content = file_of(GOOD, bytes(range(26)))
    assert ours(content) == theirs(content) != None  # noqa: E711
    assert read_header(io.BytesIO(content), len(content)).metadata == {"format": "pt"}


BAD = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "a length past the end": struct.pack("<Q", 1 << 40) + b"{}",
    "a length of 2 ** 64 - 1": b"\xff" * 8 + b"{}",
    "no JSON": file_of(b"nonsense", b""),
    "a list": file_of(b"[]", b""),
    "not UTF-8": file_of(b'{"\xff": 1}', b""),
    "NaN": file_of({**GOOD, "a": {"dtype": "F32", "shape": [float("nan")], "data_offsets": [0, 24]}}),
    "a hole": file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
    "an overlap": file_of({x: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for x in "ab"}, bytes(4)),
    "bytes behind": file_of(GOOD, bytes(27)),
    "bytes missing": file_of(GOOD, bytes(25)),
    "another size": file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
    "backwards": file_of({"a": {"dtype": "U8", "shape": [], "data_offsets": [1, 0]}}, bytes(1)),
    "an overflow": file_of({"a": {"dtype": "U8", "shape": [1 << 63, 2], "data_offsets": [0, 0]}}, b""),
    "a negative size": file_of({"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 0]}}, b""),
    "a fraction": file_of({"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}, bytes(1)),
    "a truth value": file_of({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, bytes(1)),
    "another dtype": file_of({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 1]}}, bytes(1)),
    "three offsets": file_of({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, bytes(1)),
    "no shape": file_of({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, bytes(1)),
    "metadata of numbers": file_of({"__metadata__": {"a": 1}}, b""),
    "metadata in a list": file_of({"__metadata__": []}, b""),
    "half of a surrogate pair": file_of(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', bytes(1)),
    "2,000 deep": file_of(b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}", b""),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_as_by_the_library(name, tmp_path):
    assert ours(BAD[name]) is None
    assert theirs(BAD[name]) is None
    (tmp_path / "a").write_bytes(BAD[name])
    for read in (fs.load, layout_of):
        with pytest.raises(ValueError, match="expected a safetensors file, got .*: .*; fix"):
            read(tmp_path / "a")


def test_a_file_that_ends_anywhere_is_refused():
    content = file_of(GOOD)
    for stop in range(len(content)):
        assert ours(content[:stop]) is None, stop


NUMBERS = [0, 1, 4, 24, 26, 27, -1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1, 1 << 64, 1.0, None, True, "4", []]


def damaged(rng):
    """A good file with a few changes of structure or of bytes."""
    header = json.loads(json.dumps(GOOD))
    for _ in range(rng.randint(0, 2)):
        name = rng.choice(list(header))
        row = header[name]
        what = rng.randint(0, 6)
        if what == 0:
            del header[name]
        elif what == 1:
            header[rng.choice(["a", "b", "~", "~2", "__metadata__", "a/b", "\U0001f600", ""])] = row
        elif what == 2:
            header[name] = rng.choice([*NUMBERS, {}, {"dtype": "F32"}])
        elif isinstance(row, dict) and row:
            key = rng.choice(list(row))
            value = row[key]
            if isinstance(value, list) and value and what < 6:
                value[rng.randrange(len(value))] = rng.choice(NUMBERS)
            elif key == "dtype":
                row[key] = rng.choice([*BITS, "f32", ""])
            else:
                row[key] = rng.choice([*NUMBERS, [0, 24], [24, 26]])
    content = bytearray(file_of(header, bytes(rng.choice([0, 24, 26, 26, 26, 27]))))
    for _ in range(rng.choice([0, 0, 0, 1, 3])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content[: rng.choice([len(content)] * 9 + [rng.randrange(len(content))])])


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_read_or_refused_as_by_the_library(seed):
    rng, seen = random.Random(seed), {True: 0, False: 0}
    for _ in range(250_000 if ALL else 5_000):
        content = damaged(rng)
        found, expected = ours(content), theirs(content)
        assert found == expected, content
        seen[found is None] += 1
    assert min(seen.values()) > 100, seen


@given(
    st.recursive(st.none() | st.text(max_size=5) | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_json_means_what_it_means_elsewhere(value):
    assert parsed(json.dumps(value)) == value


def test_a_small_file_cannot_ask_for_much_more_than_its_size():
    content = file_of(b'{"a":[' + b"[]," * (1 << 20) + b"0]}", b"")
    tracemalloc.start()
    assert ours(content) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * len(content)


def test_what_is_written_begins_at_a_multiple_of_64_and_the_library_reads_it():
    for length in range(1, 70):
        tensors = {"x" * length: ("F32", Spec((2,), np.dtype("f4"))), "y": ("U8", Spec((3,), np.dtype("u1")))}
        header = header_bytes({"b": "2", "a": "1"}, tensors)
        assert len(header) % 64 == 0
        assert theirs(header + bytes(range(11)))["y"] == ("U8", [3], bytes([8, 9, 10]))
