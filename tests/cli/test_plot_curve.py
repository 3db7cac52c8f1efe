"""The points of a learning curve as they are kept in a file, and its picture under any name."""

import json

import matplotlib.image
import pytest

from flatstore.cli.digits import Digits
from flatstore.cli.plot_curve import Curve, Line, draw

ODD = [
    b"\xff\xfe", b"{", b"[" * 100_000, b"3", b"[1, 2]", b"[[], 1, {}]", b"[true, 1, {}]", b'[9, "x", {}]',
    b'[9, 1, {"training": "x"}]', b'[9, 1, ["x"]]', b"[9, 1" + b"0" * 400 + b", {}]",
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd[:20]))
def test_lines_that_are_no_points_are_measured_again(tmp_path, odd):
    path = tmp_path / "curve.jsonl"
    curve = Curve(path)
    curve.add(1, 0.5, {"training": 10.0, "test": 9.0})
    with open(path, "ab") as file:
        file.write(b"\n" + odd)
    Curve(path).add(2, 0.6, {"training": 20.0, "test": 19.0})
    assert sorted(Curve(path).points) == [1, 2]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_points_of_other_measures_do_not_keep_a_run_from_its_picture(tmp_path, number):
    path = tmp_path / "curve.jsonl"
    path.write_text(json.dumps([number, 1.0, {"other": 2.0}]))
    curve = Curve(path)
    curve.add(2, 0.6, {"training": 20.0, "test": 19.0})
    curve.write(tmp_path / "curve.png", "title", Digits)
    assert matplotlib.image.imread(tmp_path / "curve.png").shape[0] > 300


def test_a_picture_has_the_name_that_is_given_and_a_folder_is_none(tmp_path):
    lines = [Line("a", [1, 2], [0.0, 1.0], "#1f5fa8")]
    draw(tmp_path / "picture", lines, title="title", axis="axis")
    assert (tmp_path / "picture").read_bytes().startswith(b"\x89PNG")
    draw(tmp_path / "P.SVG", lines, title="title", axis="axis")
    assert b"<svg" in (tmp_path / "P.SVG").read_bytes()
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        draw(tmp_path / "folder", lines, title="title", axis="axis")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["P.SVG", "folder", "picture"]
