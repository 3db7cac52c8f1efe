"""The picture of a layout: true to scale, and a page of sane size for any."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from matplotlib.image import imread

import flatstore as fs
from flatstore.cli.plot_layout import picture


def test_the_picture_is_true_to_scale(tmp_path):
    tree = {"a": np.zeros(300, np.float32), "b": np.zeros(600, np.int32), "c": np.zeros(100, np.float64)}
    layout = fs.Layout.from_tree(tree, align=1, trainable="*")
    (tmp_path / "x.png").write_bytes(picture(layout, "x"))
    image = (imread(tmp_path / "x.png")[..., :3] * 255).round().astype(int)
    strip = [line for line in image if sum((line == (0x8D, 0xB4, 0xD9)).all(1)) > 300][2]
    widths = [(strip == np.frombuffer(bytes.fromhex(c), np.uint8)).all(1).sum() for c in ("8db4d9", "eab07f", "96c99a")]
    np.testing.assert_allclose(np.divide(widths, sum(widths)), np.divide([1200, 2400, 800], 4400), atol=0.01)


@pytest.mark.parametrize(
    "tree",
    [
        [jax.ShapeDtypeStruct((7,), np.float32)] * 1000,
        {"huge": jax.ShapeDtypeStruct((10**6, 10**5), np.float32), **{f"b{i}": np.float32(i) for i in range(40)}},
        {"$x^2": np.zeros(0, np.float32), "神経": np.zeros(3, np.float32)},
        np.zeros(0, np.float32),
    ],
    ids=["1000 leaves", "one huge, 40 tiny", "odd names, no bytes", "nothing to draw"],
)
def test_any_layout_makes_a_page_of_sane_size(tmp_path, tree):
    (tmp_path / "x.png").write_bytes(picture(fs.Layout.from_tree(tree), "x"))
    height, width, _ = imread(tmp_path / "x.png").shape
    assert width == 1800 and 100 < height < 4000
