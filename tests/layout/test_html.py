"""A memory map has a box for each leaf, true to scale, and says nothing that a page would take for markup."""

import re
from html.parser import HTMLParser

import jax
import numpy as np
import pytest

import flatstore as fs

TREE = {"a<b>": np.zeros(256, "f4"), "c": {"half": np.zeros((4, 256), "f2"), "step": np.int32(3)}}


class Page(HTMLParser):
    """The elements of a page and its text; all that is opened is closed."""

    def __init__(self, html):
        super().__init__()
        self.opened, self.elements, self.words = [], [], []
        self.feed(html)
        assert not self.opened

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.opened.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def boxes(self):
        return [attributes for tag, attributes in self.elements if tag == "rect"][1:]  # the first is the ground


def test_boxes_are_where_the_leaves_are_and_as_wide_as_their_bytes():
    layout = fs.Layout.from_tree(TREE)
    page = Page(layout._repr_html_())
    homes = sorted(layout.homes, key=lambda leaf: leaf.offset)
    assert len(page.boxes) == len(homes) == 3
    for box, leaf in zip(page.boxes, homes, strict=True):
        assert float(box["x"]) == pytest.approx(leaf.offset / layout.nbytes * 1000, abs=0.01)
        assert float(box["width"]) == pytest.approx(leaf.nbytes / layout.nbytes * 1000, abs=0.5)
        assert (box["opacity"] == "1") == leaf.trainable
    assert len({box["fill"] for box in page.boxes}) == 3
    text = " ".join(page.words)
    assert "a<b>: float32[256], 1,024 bytes at 0" in text and layout.summary in text
    assert not any(tag in ("script", "style", "b") for tag, _ in page.elements)


def test_neighbours_that_are_too_thin_share_a_box_and_a_long_table_is_cut():
    tree = {f"w{i:03d}": np.zeros(1, "f4") for i in range(300)} | {"z": np.zeros(1_000_000, "f4")}
    page = Page(fs.Layout.from_tree(tree, align=1)._repr_html_())
    assert len(page.boxes) < 5
    assert "300 leaves, w000 to w299, from byte 0 on" in page.words
    assert "and 101 more" in page.words
    assert sum(tag == "tr" for tag, _ in page.elements) == 201


def test_a_tied_leaf_is_in_the_table_and_has_no_box_of_its_own():
    w = np.zeros(30, "f4")
    page = Page(fs.Layout.from_tree({"a": w, "b": w})._repr_html_())
    assert len(page.boxes) == 1 and "those of a" in page.words


@pytest.mark.parametrize(
    "x",
    [
        fs.Store.from_tree(TREE),
        fs.Population.from_tree(TREE, 3),
        fs.Population.from_tree(TREE, 3)[1],
        fs.Store.from_tree(TREE, device=jax.devices()[0]),
        fs.Store.from_tree(TREE, device="cpu"),
    ],
    ids=["store", "population", "member", "jax", "torch"],
)
def test_whatever_has_a_layout_shows_it_under_its_own_name(x):
    page = Page(x._repr_html_())
    assert repr(x).partition("\n")[0] in page.words
    assert len(page.boxes) == 3
    assert re.search(r"<svg [^>]*width:100%", x._repr_html_())


def test_a_layout_without_bytes_has_a_map():
    assert Page(fs.Layout.from_tree({"a": np.zeros((0, 3), "f4")})._repr_html_()).boxes == []
