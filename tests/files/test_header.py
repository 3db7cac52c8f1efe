"""Headers: what one holds, what is wrong with it in words, and the same verdict as the safetensors library."""

import io
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize

from flatstore.files.header import MOST, Tensor, read_header, written
from tests.files.hostile_files import counted, our_verdict, their_verdict


def a_file(header, data=b"", length=None):
    text = (
        header
        if isinstance(header, bytes)
        else header.encode()
        if isinstance(header, str)
        else json.dumps(header).encode()
    )
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def read(content):
    return read_header(io.BytesIO(content), len(content))


W = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_the_tensors_come_in_the_order_of_the_data_and_the_metadata_beside_them():
    after = {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]}
    header = read(a_file({"b": after, "__metadata__": {"é": "ü\n"}, "a": W}, bytes(10)))
    assert header.tensors == [Tensor("a", "F32", (2,), 0, 8), Tensor("b", "BF16", (), 8, 10)]
    assert header.metadata == {"é": "ü\n"}
    assert header.data_start + 10 == len(a_file({"b": after, "__metadata__": {"é": "ü\n"}, "a": W}, bytes(10)))


WRONG = {
    "nothing": (b"", "expected at least 8 bytes, got 0"),
    "a length alone": (b"12345678", "expected a header of at most 0 bytes"),
    "a header longer than the file": (a_file({"w": W}, bytes(8), length=1000), "expected a header of at most"),
    "a header of 2**63": (a_file({"w": W}, bytes(8), length=2**63), "got one of 9,223,372,036,854,775,808"),
    "no JSON": (a_file("nonsense"), "byte 0: expected '{', got 'nonsense'"),
    "no UTF-8": (a_file(b'{"\xff": 1}'), "byte 2: expected a string in UTF-8"),
    "half of a pair": (a_file('{"\\ud800": 1}'), "expected a string in UTF-8"),
    "no dtype": (a_file({"w": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "got no 'dtype'"),
    "another dtype": (a_file({"w": {**W, "dtype": "C128"}}, bytes(8)), "expected a dtype of safetensors, got ['C128']"),
    "a size below zero": (a_file({"w": {**W, "shape": [-2]}}, bytes(8)), "expected a whole number, got '-2"),
    "a float": (a_file({"w": {**W, "shape": [2.0]}}, bytes(8)), "expected a whole number, got '2.0"),
    "three offsets": (
        a_file({"w": {**W, "data_offsets": [0, 8, 8]}}, bytes(8)),
        "expected data_offsets of two numbers",
    ),
    "a hole before it": (a_file({"w": {**W, "data_offsets": [4, 12]}}, bytes(12)), "'w': expected data from byte 0 on"),
    "an overlap": (a_file({"v": W, "w": {**W, "data_offsets": [4, 12]}}, bytes(12)), "expected data from byte 8 on"),
    "the end before the start": (a_file({"w": {**W, "data_offsets": [8, 0]}}, bytes(8)), "expected data from byte 0"),
    "too few bytes": (a_file({"w": {**W, "shape": [3]}}, bytes(8)), "expected 12 bytes of F32[3], got 8"),
    "a size that overflows": (a_file({"w": {**W, "shape": [2**40, 2**40]}}, bytes(8)), "expected a size below 2**64"),
    "data behind the last": (a_file({"w": W}, bytes(9)), "expected 8 bytes of data, as the header says, got 9"),
    "data cut off": (a_file({"w": W}, bytes(7)), "expected 8 bytes of data, as the header says, got 7"),
    "metadata that are a list": (a_file({"__metadata__": []}), "expected '{', got '[]}'"),
    "metadata of numbers": (a_file({"__metadata__": {"a": 1}}), "expected '\"', got '1}}'"),
    "metadata twice": (a_file('{"__metadata__":{},"__metadata__":{}}'), "expected '__metadata__' once, got it twice"),
    "a field twice": (a_file('{"w":{"dtype":"U8","dtype":"U8"}}'), "expected each field once, got 'dtype' twice"),
    "too deep": (a_file('{"w":{"x":' + "[" * 200 + "]" * 200 + "}}"), "expected values at most 126 deep"),
    "a list of four": (a_file('{"w":["U8",[0],[0,0],0]}'), "expected three fields, got a fourth"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_a_header_is_said_in_words(kind):
    content, words = WRONG[kind]
    with pytest.raises(ValueError) as caught:
        read(content)
    assert type(caught.value) is ValueError and words in str(caught.value)
    assert their_verdict(content) == "refused"


def test_a_hundred_thousand_damaged_files_are_taken_or_refused_as_by_the_library(capsys):
    found = counted(100_000, seed=1)
    with capsys.disabled():
        print(f" {dict(found)} ", end="")
    assert min(found["taken"], found["refused"]) > 10_000


@pytest.mark.parametrize(
    "header", ['{"a":["U8",[0],[0,0]]}', '{"a":{"dtype":{"U8":null},"shape":[0],"data_offsets":[0,0]}}']
)
def test_entries_in_the_forms_that_few_writers_use_are_taken_as_by_the_library(header):
    content = a_file(header)
    assert read(content).tensors == [Tensor("a", "U8", (0,), 0, 0)]
    assert our_verdict(content) == their_verdict(content) == "taken"


def test_a_header_of_more_than_a_hundred_megabytes_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        file.write(struct.pack("<Q", MOST + 1))
        file.truncate(MOST + 100)
    with (
        open(tmp_path / "a", "rb") as file,
        pytest.raises(ValueError, match="expected a header of at most 100,000,000"),
    ):
        read_header(file, MOST + 100)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    st.dictionaries(text.filter(lambda x: x != "__metadata__"), st.integers(0, 40), max_size=6),
    st.dictionaries(text, text, max_size=4),
)
def test_what_is_written_is_read_again_by_us_and_by_the_library_and_data_start_at_64_bytes(sizes, metadata):
    end, tensors = 0, []
    for name, size in sizes.items():
        tensors.append(Tensor(name, "U8", (size,), end, end := end + size))
    header = written(tensors, metadata)
    content = header + bytes(end)
    again = read(content)
    assert sorted(again.tensors) == sorted(tensors) and again.metadata == metadata
    assert again.data_start == len(header) and len(header) % 64 == 0
    assert {name: tensor["shape"] for name, tensor in deserialize(content)} == {
        name: [size] for name, size in sizes.items()
    }


def test_names_that_take_more_than_others_read_are_an_error():
    with pytest.raises(ValueError, match="expected names and metadata of at most 100,000,000 bytes, got .*fix: "):
        written([], {"a": "b" * MOST})
