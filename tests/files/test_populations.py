"""Populations as files: stacked leaves that any reader takes, and that come back as a population."""

import numpy as np
import pytest
import safetensors.numpy

import flatstore as fs
from flatstore.files import layout_of
from flatstore.files.rows import pieces, rows_of
from tests.example_trees import bits, same_bits, says

TREE = {"w": np.zeros((4, 3), "f4"), "b": np.zeros((), "f4"), "e": np.zeros((0, 2), "f4"), "n": np.arange(3)}


def a_population(order="leaf", size=5):
    pop = fs.Population.from_tree(TREE, size, order=order)
    pop["w"][...] = bits((size, 4, 3), "f4", 1)
    pop["b"][...] = bits((size,), "f4", 2)
    return pop


def same(a, b):
    return a.layout == b.layout and a.size == b.size and all(same_bits(a[x], b[x]) for x in a.layout.by_path)


@pytest.mark.parametrize("order", ["leaf", "member"])
def test_a_population_comes_back_in_its_order_and_others_read_stacked_leaves(tmp_path, order):
    pop = a_population(order)
    fs.save(tmp_path / "p", pop)
    again = fs.load(tmp_path / "p")
    assert type(again) is fs.Population and again.order == order and same(again, pop)
    shapes = {"w": (5, 4, 3), "b": (5,), "e": (5, 0, 2), "n": (3,)}
    theirs = safetensors.numpy.load_file(tmp_path / "p")
    assert {name: array.shape for name, array in theirs.items()} == shapes
    assert all(same_bits(theirs[name], pop[name]) for name in theirs)
    assert layout_of(tmp_path / "p") == pop.layout


def test_populations_of_either_order_give_files_that_differ_in_the_note_alone(tmp_path):
    for order in ("leaf", "member"):
        fs.save(tmp_path / order, a_population(order))
    data = [(tmp_path / order).read_bytes() for order in ("leaf", "member")]
    assert data[0][-284:] == data[1][-284:]  # 5 * (12 + 1) * 4 + 3 * 8


@pytest.mark.parametrize("order", ["leaf", "member"])
def test_some_members_are_saved_as_a_population_and_one_as_a_store(tmp_path, order):
    pop = a_population(order)
    fs.save(tmp_path / "p", pop[1:4])
    assert same(fs.load(tmp_path / "p"), pop[1:4].copy())
    fs.save(tmp_path / "s", pop[2])
    assert type(fs.load(tmp_path / "s")) is fs.Store and same_bits(fs.load(tmp_path / "s")["w"], pop[2]["w"])


def test_a_population_of_one_is_a_population(tmp_path):
    fs.save(tmp_path / "p", a_population(size=1))
    assert fs.load(tmp_path / "p").size == 1 and fs.open(tmp_path / "p").size == 1


def test_stacked_leaves_of_others_are_loaded_like_a_population(tmp_path):
    pop = a_population()
    safetensors.numpy.save_file({name: np.array(pop[name]) for name in pop.layout.by_path}, tmp_path / "t")
    again = fs.load(tmp_path / "t", like=a_population("member"))
    assert same(again, pop) and again.order == "member"
    with pytest.raises(fs.StructureError) as caught:
        fs.load(tmp_path / "t", like=a_population(size=4))
    says(caught, "'w': expected float32[4,4,3], got float32[5,4,3]")
    assert type(fs.load(tmp_path / "t")) is fs.Store


def test_a_population_is_loaded_like_one_member(tmp_path):
    pop = a_population()
    fs.save(tmp_path / "p", pop)
    again = fs.load(tmp_path / "p", like=TREE)
    assert type(again.tree) is dict and same(again, pop)
    part = fs.load(tmp_path / "p", only=["w", "n"], rename={"w": "net/w"})
    assert part.size == 5 and same_bits(part["net/w"], pop["w"]) and list(part.layout.by_path) == ["n", "net/w"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"size\\": 5', b'"size\\": 4', "expected 4 members before its axes, got shape (5,"),
        (b'"size\\": 5', b'"size\\": 0', "members before its axes"),
        (b'"size\\": 5', b'"size\\": x', "expected a version, an alignment and a list of leaves"),
        (b'"version\\": 2', b'"version\\": 1', "expected version 2, got 1"),
        (b'"order\\": \\"leaf', b'"order\\": \\"loaf', "expected a version, an alignment"),
    ],
)
def test_a_note_that_is_not_that_of_the_population_is_an_error(tmp_path, old, new, words):
    fs.save(tmp_path / "p", a_population())
    content = (tmp_path / "p").read_bytes()
    old, new = old.replace(b'"', b'\\"').replace(b"\\\\", b"\\"), new.replace(b'"', b'\\"').replace(b"\\\\", b"\\")
    assert old in content
    (tmp_path / "p").write_bytes(content.replace(old, new))
    with pytest.raises(ValueError) as caught:
        fs.load(tmp_path / "p")
    says(caught, "expected the table of leaves that save writes", words)


@pytest.mark.parametrize("most", [1, 3, 7, 16, 48, 1000])
@pytest.mark.parametrize("order", ["leaf", "member"])
def test_the_bytes_of_a_leaf_come_and_go_in_pieces_of_any_size(most, order):
    pop, other = a_population(order), fs.Population.from_tree(TREE, 5, order=order)
    for leaf in pop.layout.homes:
        content = b"".join(piece.tobytes() for piece in pieces(rows_of(pop, leaf), most))
        assert content == np.ascontiguousarray(pop[leaf.path]).tobytes()
        at = 0
        for piece in pieces(rows_of(other, leaf), most, to_be_filled=True):
            assert 0 < piece.size <= most
            piece[...] = np.frombuffer(content[at : at + piece.size], np.uint8)
            at += piece.size
    assert same(pop, other)
