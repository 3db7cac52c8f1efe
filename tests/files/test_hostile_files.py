"""Files that nobody should have written, read whole: our ValueError, or what they say; never memory without end."""

import io
import json
import random
import struct
import tracemalloc

import numpy as np
import pytest

import flatstore as fs
from flatstore.files import layout_of, metadata_of
from flatstore.files.header import read_header
from tests.files.hostile_files import a_file as a_hostile_file
from tests.files.test_header import a_file


def peak_of(read):
    tracemalloc.start()
    try:
        read()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_hostile_files_are_a_value_error_or_load_and_open_as_they_say(tmp_path):
    rng, path, read = random.Random(3), tmp_path / "a", 0
    for _ in range(1500):
        content = a_hostile_file(rng)
        path.write_bytes(content)
        for call in (fs.load, layout_of, metadata_of, fs.open):
            try:
                result = call(path)
            except ValueError as error:
                assert str(path) in str(error) or isinstance(error, fs.StructureError), content
                continue
            if call is fs.load:
                read += 1
                header = read_header(io.BytesIO(content), len(content))
                for tensor in header.tensors:
                    data = content[header.data_start + tensor.start : header.data_start + tensor.stop]
                    assert result[(tensor.name,)].tobytes() == data
    assert read > 100


NOTES = {
    "31 million empty lists": '{"version": 1, "align": 64, "leaves": [' + "[]," * 3_000_000 + "[]]}",
    "empty lists in a row": '{"version": 1, "align": 64, "leaves": [["w", true, null, [' + "[]," * 3_000_000 + "[]]]]}",
    "lists in lists": '{"version": 1, "align": 64, "leaves": ' + "[" * 5_000_000,
    "axes without end": '{"version": 1, "align": 64, "leaves": [["w", true, null, [' + "null," * 200_000 + "null]]]}",
    "a path without end": '{"version": 1, "align": 64, "leaves": [["' + "w/" * 3_000_000 + '", true, null, null]]}',
    "escapes without end": '{"version": 1, "align": 64, "leaves": [["' + "\\n" * 3_000_000 + '", true, null, null]]}',
    "a number without end": '{"version": 1, "align": ' + "9" * 9_000_000 + ', "leaves": []}',
    "spaces without end": '{"version": 1, "align": 64, "leaves": [' + " " * 9_000_000 + "x]}",
    "the same tie without end": '{"version": 1, "align": 64, "leaves": [["w", true, null, null],'
    + '["w", true, "w", null],' * 300_000
    + "]}",
}


@pytest.mark.parametrize("kind", NOTES)
def test_a_note_without_end_is_an_error_in_memory_bounded_by_the_files_size(tmp_path, kind):
    content = a_file(
        {"__metadata__": {"flatstore": NOTES[kind]}, "w": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}},
        bytes(4),
    )
    (tmp_path / "a").write_bytes(content)

    def read():
        for call in (fs.load, fs.open):
            with pytest.raises(ValueError, match="expected the table of leaves that save writes, got other metadata"):
                call(tmp_path / "a")

    assert peak_of(read) < 8 * len(content)


HEADERS = {
    "empty lists": b'{"a":' + b"[]," * 3_000_000,
    "lists in lists": b"[" * 9_000_000,
    "values beside those that count": b'{"a":{"x":[' + b"[]," * 3_000_000 + b"[]]}}",
    "fields that nobody knows": b'{"a":{' + b'"x":0,' * 1_500_000 + b'"x":0}}',
    "names": b'{"' + b"a" * 9_000_000 + b'":1}',
    "one key again and again": b"{" + b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},' * 150_000 + b'"a":1}',
    "a key without end": b'{"' + b"a" * 9_000_000,
    "numbers without end": b'{"a":{"dtype":"U8","shape":[' + b"1" * 9_000_000 + b"]}}",
    "spaces": b"{" + b" " * 9_000_000,
    "one character of four bytes": b'{"' + b"a" * 9_000_000 + "\U0001f600".encode() + b'":1}',
}


@pytest.mark.long(but="empty lists")
@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_without_end_is_an_error_in_memory_bounded_by_the_files_size(tmp_path, kind):
    content = struct.pack("<Q", len(HEADERS[kind])) + HEADERS[kind] + bytes(1)

    def read():
        with pytest.raises(ValueError):
            read_header(io.BytesIO(content), len(content))

    assert peak_of(read) < 30 * len(content)


def test_a_tensor_of_axes_without_end_is_an_error_that_names_it(tmp_path):
    tensor = {"dtype": "U8", "shape": [1] * 1_000_000, "data_offsets": [0, 1]}
    (tmp_path / "a").write_bytes(a_file({"w": tensor}, bytes(1)))
    for read in (fs.load, fs.open):
        with pytest.raises(fs.StructureError, match="'w': expected a shape that NumPy can have.* got 1000000 axes"):
            read(tmp_path / "a")


@pytest.mark.long
def test_many_tensors_without_data_take_memory_that_grows_with_their_number():
    peaks = []
    for count in (20_000, 80_000):
        entries = {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}
        content = a_file(entries)
        peaks.append(peak_of(lambda content=content: read_header(io.BytesIO(content), len(content))) / len(content))
    assert max(peaks) < 15


@pytest.mark.parametrize("size", [2**31, 2**40, 2**62, 2**63, 2**64 - 1])
def test_tensors_that_say_they_are_large_allocate_nothing(tmp_path, size):
    for tensor in (
        {"dtype": "U8", "shape": [size], "data_offsets": [0, size]},
        {"dtype": "U8", "shape": [size, 0], "data_offsets": [0, 0]},
        {"dtype": "F64", "shape": [size // 8], "data_offsets": [0, 8]},
    ):
        (tmp_path / "a").write_bytes(a_file({"w": tensor}, bytes(8)))

        def read():
            for call in (fs.load, fs.open):
                with pytest.raises(ValueError):
                    call(tmp_path / "a")

        assert peak_of(read) < 1 << 20


@pytest.mark.parametrize("names", [["~2"], ["~"], ["a", "a/b"], ["", "/"], ["a/b", "a~1b"], ["__metadata"], ["0", "1"]])
def test_names_of_others_that_are_no_paths_load_by_the_names_themselves(tmp_path, names):
    entries = {name: {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i, name in enumerate(names)}
    (tmp_path / "a").write_bytes(a_file(entries, bytes(range(len(names)))))
    for read in (fs.load, fs.open):
        store = read(tmp_path / "a")
        assert [store[(name,)][0] for name in names] == list(range(len(names)))


def test_a_file_cut_off_anywhere_in_its_first_bytes_is_an_error_however_it_is_read(tmp_path):
    tree = {f"layer_{i}": {"w": np.full(3, i, "f4"), "b": np.zeros((), "i4")} for i in range(40)}
    fs.save(tmp_path / "a", fs.Store.from_tree(tree))
    content = (tmp_path / "a").read_bytes()
    for length in range(0, 4097, 3):
        (tmp_path / "a").write_bytes(content[:length])
        for read in (fs.open, metadata_of):
            with pytest.raises(ValueError, match="expected a safetensors file, got .*fix: "):
                read(tmp_path / "a")


def test_json_that_is_no_note_but_text_of_a_note_is_read_as_the_text_says(tmp_path):
    note = {"version": 1, "align": 64, "leaves": [["w", True, None, ["é", None]]]}
    for text in (json.dumps(note), json.dumps(note, ensure_ascii=False), json.dumps(note, indent=2)):
        tensor = {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}
        (tmp_path / "a").write_bytes(a_file({"__metadata__": {"flatstore": text}, "w": tensor}, bytes(8)))
        assert fs.load(tmp_path / "a").layout.leaf("w").dims == ("é", None)
