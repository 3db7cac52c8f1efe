"""Files: what is damaged is a ValueError that names the file, or loads as it says; never anything else."""

import copy
import json
import random
import struct
from typing import Any

import numpy as np
import pytest
from safetensors import deserialize

import flatstore as fs
from flatstore.files import layout_of
from flatstore.files.layout_note import written
from tests.example_trees import says


def a_store() -> fs.Store:
    """Ties, names of axes, names that are escaped, 0-d and empty leaves, integers and flags."""
    shared = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = {
        "a": {"b": shared, "c": [np.full(2, 3, "f8"), {"d": shared}], "~": np.int32(4)},
        "x/y": np.zeros((0, 3), "f4"),
        "z": {"on": np.array([True, False]), "w": np.ones((2, 2), "bfloat16"), "twin": shared},
    }
    return fs.Store.from_tree(tree, dims={"a/b": ("in", "out"), "z/w": ("in", None)}, align=16)


STORE = a_store()
TABLE: dict[str, Any] = json.loads(written(STORE.layout))


def file_of(note: str, store: fs.Store = STORE) -> bytes:
    """A file of the store's tensors with this note in its metadata, whatever it is."""
    header: dict[str, Any] = {"__metadata__": {"flatstore": note}}
    data = b""
    kinds = {"float32": "F32", "float64": "F64", "int32": "I32", "bool": "BOOL", "bfloat16": "BF16"}
    for leaf in store.layout.homes:
        end = len(data) + leaf.nbytes
        header[leaf.path] = {"dtype": kinds[leaf.dtype.name], "shape": leaf.shape, "data_offsets": [len(data), end]}
        data += store[leaf.path].tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_the_note_as_it_was_written_loads(tmp_path):
    (tmp_path / "a").write_bytes(file_of(json.dumps(TABLE)))
    again = fs.load(tmp_path / "a")
    assert again.layout == layout_of(tmp_path / "a") == STORE.layout
    assert again.buffer.tobytes() == STORE.buffer.tobytes()


def row(i: int, j: int, value: Any) -> dict[str, Any]:
    """The table with one cell changed."""
    table = copy.deepcopy(TABLE)
    table["leaves"][i][j] = value
    return table


PATHS = [leaf[0] for leaf in TABLE["leaves"]]  # a/b, a/c/0, a/c/1/d, a/~0, x~1y, z/on, z/twin, z/w
NOTES: dict[str, tuple[Any, str]] = {
    "no table": ([], "expected a version, an alignment and a list of leaves, got '[]'"),
    "no align": ({"version": 1, "leaves": []}, "expected a version, an alignment"),
    "another version": ({**TABLE, "version": 2}, "expected version 1, got 2"),
    "a flag for a version": ({**TABLE, "version": True}, "expected a version, an alignment"),
    "align null": ({**TABLE, "align": None}, "expected a version, an alignment"),
    "align true": ({**TABLE, "align": True}, "expected a version, an alignment"),
    "align 1.5": ({**TABLE, "align": 1.5}, "expected a version, an alignment"),
    "align 24": ({**TABLE, "align": 24}, "align: expected a power of two in bytes, got 24"),
    "align 0": ({**TABLE, "align": 0}, "align: expected a power of two"),
    "align 2**62": ({**TABLE, "align": 2**62}, "align: expected gaps of at most 134,217,728 bytes, got "),
    "align 2**2000": ({**TABLE, "align": 2**2000}, "align: expected gaps of at most"),
    "leaves that are a name": ({**TABLE, "leaves": "abcd"}, "expected a version, an alignment"),
    "no leaves": ({**TABLE, "leaves": []}, "expected a row for each tensor and no other"),
    "a row that is a name": ({**TABLE, "leaves": ["abcd"]}, "row 0: expected a path, whether it trains"),
    "a short row": ({**TABLE, "leaves": [["a/b", True, None]]}, "row 0: expected a path"),
    "trainable is a word": (row(1, 1, "yes"), "row 1: expected a path, whether it trains, its home and names of axes"),
    "trainable is 1": (row(1, 1, 1), "row 1: expected a path"),
    "axes are numbers": (row(1, 3, [3]), 'got ["a/c/0", true, null, [3]]'),
    "axes are a word": (row(1, 3, "n"), "row 1: expected a path"),
    "an axis too many": (row(1, 3, ["n", "m"]), "dims: expected 1 names for 'a/c/0'"),
    "a path is a number": (row(1, 0, 7), "row 1: expected a path"),
    "a path twice": (row(1, 0, "a/b"), "row 1: expected a path of its own, as path_of writes it, got 'a/b'"),
    "a path that is none": (row(3, 0, "a/~"), "row 3: expected a path of its own, as path_of writes it, got 'a/~'"),
    "~2": (row(3, 0, "~2"), "got '~2'"),
    "another path": (row(3, 0, "a/e"), "expected a row for each tensor and no other, got ['a/e', 'a/~0']"),
    "tied to itself": (row(2, 2, "a/c/1/d"), "'a/c/1/d': expected a home that comes before it, got 'a/c/1/d'"),
    "tied to a tie": (row(6, 2, "a/c/1/d"), "'z/twin': expected a home that comes before it, got 'a/c/1/d'"),
    "tied to what comes later": (row(2, 2, "z/w"), "'a/c/1/d': expected a home that comes before it, got 'z/w'"),
    "tied to nothing": (row(2, 2, "none"), "expected a home that comes before it, got 'none'"),
    "a tie that trains otherwise": (row(2, 1, False), "expected tied leaves 'a/b' and 'a/c/1/d' to agree"),
    "a leaf that is a node": (row(2, 0, "a/b/d"), "expected leaves or nodes, got 'a/b', which is both"),
    "a node that is a leaf": (row(6, 0, "a"), "expected leaves or nodes, got 'a', which is both"),
    "others in between": (
        {**TABLE, "leaves": [TABLE["leaves"][i] for i in (0, 1, 4, 2, 3, 5, 6, 7)]},
        "expected the leaves of each node side by side, got others between them",
    ),
    "a path without end": (row(2, 0, "/".join("k" * 5000)), "expected at most 200 keys in a path, got 5000"),
}


@pytest.mark.parametrize("kind", NOTES)
def test_a_note_that_no_save_wrote_is_an_error_that_says_what_is_wrong_with_it(tmp_path, kind):
    table, words = NOTES[kind]
    (tmp_path / "a").write_bytes(file_of(json.dumps(table)))
    for read in (fs.load, layout_of):
        with pytest.raises(ValueError) as caught:
            read(tmp_path / "a")
        says(caught, "expected the table of leaves that save writes", repr(str(tmp_path / "a")), words)
        assert "load(path, like=...) takes a tree or a layout" in str(caught.value)
    again = fs.load(tmp_path / "a", like=STORE.layout)  # the advice
    assert again.buffer.tobytes() == STORE.buffer.tobytes()


@pytest.mark.parametrize(
    "note",
    ["", "nonsense", "[" * 2000, "[" * 100_000, '{"a":' * 2000, '{"version": 1, "align": ' + "9" * 5000, "NaN", "\x00"],
)
def test_a_note_that_is_no_json_is_an_error_that_names_the_file(tmp_path, note):
    (tmp_path / "a").write_bytes(file_of(note))
    for read in (fs.load, layout_of):
        with pytest.raises(ValueError, match="expected the table of leaves that save writes, got other metadata in"):
            read(tmp_path / "a")


def test_rows_nested_without_end_are_an_error_that_names_the_file(tmp_path):
    note = json.dumps(TABLE).replace("null", "[" * 900 + "]" * 900, 1)
    (tmp_path / "a").write_bytes(file_of(note))
    with pytest.raises(ValueError, match="expected the table of leaves that save writes, got other metadata in"):
        fs.load(tmp_path / "a")


VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    1.5,
    64,
    2**24,
    2**62,
    10**30,
    "",
    "~",
    "~2",
    "a",
    "/",
    "in",
    [],
    {},
    [3],
    ["in"],
]


def damaged(table: Any, rng: random.Random) -> Any:
    """A table with something in it changed: a value, a place, an order, a number of times."""
    table = copy.deepcopy(table)
    node, key = table, rng.choice(list(table))
    while isinstance(node[key], (list, dict)) and node[key] and rng.random() < 0.8:
        node = node[key]
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
    match rng.randrange(5):
        case 0:
            del node[key]
        case 1 if isinstance(node, list):
            node.insert(rng.randrange(len(node) + 1), copy.deepcopy(node[key]))
        case 2 if isinstance(node, list):
            other = rng.randrange(len(node))
            node[key], node[other] = node[other], node[key]
        case 3 if isinstance(node[key], str):
            node[key] = rng.choice([*PATHS, node[key] + "/x", node[key][:-1], node[key] + "~1"])
        case _:
            node[key] = rng.choice(VALUES)
    return table


def garbled(text: str, rng: random.Random) -> str:
    """A text with a character or a part of it gone, doubled or changed."""
    i, j = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    j = min(j, i + rng.choice([1, 1, 1, 4, 40, len(text)]))
    return text[:i] + rng.choice(["", text[i:j] * 2, rng.choice('[]{}",:~/01-nulltrue \u20ac')]) + text[j:]


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_note_is_an_error_or_loads_as_it_says(tmp_path, seed):
    rng = random.Random(seed)
    loaded = 0
    for _ in range(800):
        note = json.dumps(TABLE)
        if rng.random() < 0.7:
            table = TABLE
            for _ in range(rng.choice([1, 1, 2, 3])):
                table = damaged(table, rng) or TABLE
            note = json.dumps(table)
        else:
            note = garbled(note, rng)
        (tmp_path / "a").write_bytes(file_of(note))
        try:
            again = fs.load(tmp_path / "a")
        except ValueError as error:
            assert str(tmp_path / "a") in str(error) and "fix: " in str(error), note
            continue
        loaded += 1
        said, now = json.loads(note), json.loads(written(again.layout))
        assert {key: said[key] for key in now} == now
        assert all(again[leaf.path].tobytes() == STORE[leaf.path].tobytes() for leaf in STORE.layout.homes)
    assert loaded  # some damage is a note of another layout


def big_file(tmp_path) -> bytes:
    """A file whose header is longer than 4 KiB."""
    tree = {f"layer_{i}": {"w": np.full(3, i, "f4"), "b": np.zeros((), "i4")} for i in range(40)}
    fs.save(tmp_path / "big", fs.Store.from_tree(tree))
    content = (tmp_path / "big").read_bytes()
    assert int.from_bytes(content[:8], "little") > 4096
    return content


def test_a_file_that_ends_too_early_is_an_error_wherever_it_ends(tmp_path):
    content = big_file(tmp_path)
    for length in (*range(4097), len(content) - 1):
        (tmp_path / "a").write_bytes(content[:length])
        for read in (fs.load, layout_of):
            with pytest.raises(ValueError, match="expected a safetensors file, got .*fix: "):
                read(tmp_path / "a")


def test_a_garbled_header_is_an_error_or_loads_as_the_library_reads_it(tmp_path):
    content = big_file(tmp_path)
    rng = random.Random(5)
    for _ in range(1500):
        bad = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            bad[rng.choice([rng.randrange(8), rng.randrange(8, 4096)])] = rng.choice([rng.randrange(256), *b'0"[,:~/'])
        (tmp_path / "a").write_bytes(bad)
        try:
            again = fs.load(tmp_path / "a")
        except ValueError:
            continue
        for name, tensor in deserialize(bytes(bad)):
            assert again[name if name in again else (name,)].tobytes() == tensor["data"]
