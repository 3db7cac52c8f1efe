"""`flatstore inspect` shows a layout as it is, and says in one line what is wrong with its input."""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from matplotlib.image import imread

import flatstore as fs
from flatstore.cli import inspect, main

MODEL = """
import jax, jax.numpy as jnp, numpy as np
import flatstore as fs

def shape(*dims, dtype="float32"):
    return jax.ShapeDtypeStruct(dims, jnp.dtype(dtype))

def params():
    return {"a": shape(3), "b": {"k": shape(1000, 5), "half": shape(7, dtype="bfloat16")}, "step": np.int32(3)}

def layout():
    return fs.Layout.from_tree(params(), align=1, tied={})

def store():
    return fs.Store.from_tree({"w": np.ones(4)}, align=16)

class Nets:
    @staticmethod
    def small():
        return [1.0]

def divides():
    return 1 / 0

def wants(key, width=3):
    return {}

def nothing():
    return {"name": "no number"}

def repeated():
    x = jnp.zeros(3)
    return [x, x]

constant = {"w": 1.0}
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A module `model_<n>` in the current directory, with a name of its own in each test."""
    monkeypatch.chdir(tmp_path)
    name = f"model_{abs(hash(tmp_path.name))}"
    (tmp_path / f"{name}.py").write_text(MODEL)
    yield name
    sys.modules.pop(name, None)


def inspected(*words: str) -> int:
    parser = argparse.ArgumentParser("flatstore inspect")
    inspect.add_arguments(parser)
    return inspect.run(parser.parse_args(list(words)))


def rows(text: str) -> list[list[str]]:
    """The cells of the table: columns are two spaces apart, as the rule under the header says."""
    header, rule, *lines = text.split("\n\n")[0].splitlines()
    ends = [0]
    for dashes in rule.split("  "):
        ends.append(ends[-1] + len(dashes) + 2)
    return [[line[a:b].strip() for a, b in zip(ends, ends[1:], strict=False)] for line in (header, *lines)]


def test_the_table_shows_each_leaf_at_the_byte_where_it_lies(model, capsys):
    assert inspected(f"{model}:params") == 0
    out = capsys.readouterr().out
    # float32 first, then bfloat16, then what does not train; each start a multiple of 64
    k = -(-3 * 4 // 64) * 64
    half = -(-(k + 1000 * 5 * 4) // 64) * 64
    step = -(-(half + 7 * 2) // 64) * 64
    assert rows(out) == [
        ["path", "shape", "dtype", "offset", "bytes", "trainable", "tied"],
        ["a", "(3,)", "float32", "0", "12", "yes", ""],
        ["b/half", "(7,)", "bfloat16", f"{half:,}", "14", "yes", ""],
        ["b/k", "(1000, 5)", "float32", f"{k:,}", "20,000", "yes", ""],
        ["step", "()", "int32", f"{step:,}", "4", "no", ""],
    ]
    padding = step + 4 - (12 + 14 + 20_000 + 4)
    assert out.endswith(
        f"\n\n4 leaves, {3 + 7 + 5000 + 1:,} parameters, {step + 4:,} bytes ({padding} of padding, align=64)\n"
    )


def test_a_tied_leaf_shows_the_place_and_the_name_of_its_home():
    w = np.zeros((2, 3), np.float32)
    layout = fs.Layout.from_tree({"embed": w, "gap": np.zeros(5, np.float32), "head": {"kernel": w}}, align=1)
    assert rows(inspect.table(layout))[1:] == [
        ["embed", "(2, 3)", "float32", "0", "24", "yes", ""],
        ["gap", "(5,)", "float32", "24", "20", "yes", ""],
        ["head/kernel", "(2, 3)", "float32", "0", "24", "yes", "embed"],
    ]


def test_align_and_trainable_plan_the_tree(model, capsys):
    assert inspected(f"{model}:params", "--align", "1", "--trainable", "b/*", "step") == 0
    places = {row[0]: (row[3], row[5]) for row in rows(capsys.readouterr().out)[1:]}
    assert places == {
        "b/half": ("0", "yes"),
        "b/k": ("16", "yes"),  # 14, and then a multiple of its item size
        "step": ("20,016", "yes"),
        "a": ("20,020", "no"),
    }


@pytest.mark.parametrize(("function", "line"), [("layout", "a "), ("store", "w "), ("Nets.small", "0 ")])
def test_a_function_may_return_a_layout_or_a_store_and_live_in_a_class(model, capsys, function, line):
    assert inspected(f"{model}:{function}") == 0
    assert capsys.readouterr().out.splitlines()[2].startswith(line)


def test_a_saved_file_gives_the_table_of_the_tree_that_it_was_saved_from(tmp_path, capsys):
    w = np.ones((4, 3), np.float32)
    tree = {"a": w, "frozen": np.ones(5, np.float32), "n": np.arange(3), "tied": w}
    store = fs.Store.from_tree(tree, trainable=["a", "tied"], align=32)
    fs.save(tmp_path / "champion.safetensors", store)
    assert inspected(str(tmp_path / "champion.safetensors")) == 0
    assert capsys.readouterr().out == inspect.table(store.layout) + "\n"


def test_json_says_what_the_table_says(model, capsys):
    assert inspected(f"{model}:params", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert inspected(f"{model}:params") == 0
    header, *lines = rows(capsys.readouterr().out)
    assert list(shown["leaves"][0]) == header
    for leaf, line in zip(shown["leaves"], lines, strict=True):
        words = {True: "yes", False: "no", None: ""}
        told = [leaf["path"], str(tuple(leaf["shape"])), leaf["dtype"], f"{leaf['offset']:,}", f"{leaf['bytes']:,}"]
        assert [*told, words[leaf["trainable"]], words[leaf["tied"]]] == line
    assert {name: shown[name] for name in ("parameters", "bytes", "padding", "align")} == {
        "parameters": 5011,
        "bytes": shown["bytes"],
        "padding": shown["bytes"] - 4 * 5003 - 2 * 7 - 4,
        "align": 64,
    }


def test_a_page_has_the_memory_map(model, capsys):
    assert inspected(f"{model}:params", "--html", "map.html") == 0
    assert capsys.readouterr().out.endswith("\npage: map.html\n")
    page = Path("map.html").read_text()
    assert page.startswith("<!doctype html>") and f"<title>{model}:params</title>" in page and page.count("<rect") == 5


def test_a_narrow_terminal_gets_shorter_paths_and_a_pipe_gets_all_of_them():
    paths = [f"encoder/block_{i}/attention/query/projection/kernel" for i in range(3)]
    layout = fs.Layout.from_tree({path: np.zeros(2, np.float32) for path in paths})
    assert all(path.replace("/", "~1") in inspect.table(layout) for path in paths)
    narrow = inspect.table(layout, 80).splitlines()[:5]
    assert max(map(len, narrow)) <= 80
    assert all(line.startswith("encoder~1") and "kernel  (2,)" in line for line in narrow[2:])


def test_a_path_cannot_break_the_table_or_the_terminal():
    layout = fs.Layout.from_tree({"line\nbreak\x1b[31m": np.zeros(2, np.float32)})
    assert rows(inspect.table(layout))[1][0] == r"line\nbreak\x1b[31m"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.safetensors"], "expected a safetensors file or module:function, got 'nowhere.safetensors'"),
        (["."], "expected a safetensors file, got the directory '.'"),
        (["MODULE.py"], "expected a safetensors file, got 'MODULE.py'"),
        (["no_such_module:f"], "expected a module, got 'no_such_module', which cannot be found"),
        (["MODULE.py:params"], "fix: say MODULE:params"),
        (
            ["MODULE:parms"],
            "expected a function of 'MODULE', got 'parms', which is not there; fix: one of Nets, divides",
        ),
        (["MODULE:"], "expected module:function, got 'MODULE:'"),
        (["MODULE:constant"], "expected a function, got MODULE:constant, which is a dict"),
        (["MODULE:wants"], "expected a function without arguments, got MODULE:wants(key)"),
        (["MODULE:nothing"], "expected a tree with at least one numeric leaf"),
        (["MODULE:repeated"], "expected each jax.Array once"),
        (["MODULE:params", "--align", "3"], "align: expected a power of two in bytes, got 3"),
        (["MODULE:params", "--trainable", "x*"], "trainable: expected globs that match a leaf, got 'x*'"),
        (["MODULE:params", "--dark"], "--dark: expected a picture to draw, got no --plot; fix: add --plot FILE.png"),
        (["MODULE:params", "--html", "x.png"], "--html: expected a file that ends in .html, got 'x.png'; fix: name a"),
        (["MODULE:params", "--html", "no/x.html"], "--html: expected a file that can be written, got 'no/x.html': No"),
        (["MODULE:store", "--align", "1"], "expected --align with a function that returns a tree, got a Store"),
        (["MODULE.py", "--trainable", "*"], "expected --trainable with module:function, got the file 'MODULE.py'"),
        (["MODULE:params", "--plot", "none/x.png"], "--plot: expected a file that can be written, got 'none/x.png'"),
        (["MODULE:params", "--plot", "x.svg"], "--plot: expected a file that ends in .png, got 'x.svg'"),
    ],
)
def test_bad_input_is_one_message_and_status_2(model, capsys, words, message):
    assert inspected(*(word.replace("MODULE", model) for word in words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("flatstore inspect: ") and message.replace("MODULE", model) in err and "fix: " in err
    assert "Traceback" not in err


def header_only(dtype: str) -> bytes:
    header = json.dumps({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


@pytest.mark.parametrize(
    "content",
    [
        header_only("F4"),
        safetensors.numpy.save({"a": np.zeros(3)}, {"flatstore": "not JSON"}),
    ],
    ids=["a dtype that we do not know", "metadata that are not ours"],
)
def test_a_safetensors_file_that_is_no_layout_is_one_message_and_status_2(tmp_path, capsys, content):
    (tmp_path / "odd.safetensors").write_bytes(content)
    assert inspected(str(tmp_path / "odd.safetensors")) == 2
    err = capsys.readouterr().err
    assert "expected" in err and "fix: " in err


def test_a_bug_in_the_users_code_shows_their_lines_and_not_ours(model, capsys):
    Path("broken.py").write_text("import a_library_that_is_not_there\n")
    for source, line in ((f"{model}:divides", "return 1 / 0"), ("broken:f", "import a_library_that_is_not_there")):
        assert inspected(source) == 1
        err = capsys.readouterr().err
        assert "Traceback" in err and line in err and os.path.join("cli", "inspect.py") not in err


def test_a_missing_matplotlib_names_the_extra_that_brings_it(model, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # Python's own word for "do not import"
    assert inspected(f"{model}:params", "--plot", "x.png") == 2
    assert "fix: pip install 'flatstore[demo]'" in capsys.readouterr().err
    assert not Path("x.png").exists()


def test_a_pipe_that_closes_early_is_no_error(model):
    code = (
        "import argparse, sys; from flatstore.cli import inspect; parser = argparse.ArgumentParser(); "
        "inspect.add_arguments(parser); sys.stdin.readline(); sys.exit(inspect.run(parser.parse_args()))"
    )
    command = [sys.executable, "-c", code, f"{model}:params"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.close()
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.stderr.read() == b"" and process.wait() == 0


def colours(image: np.ndarray) -> set[str]:
    pixels = (image[..., :3] * 255).round().astype(np.uint8).reshape(-1, 3)
    return {"#" + bytes(pixel).hex() for pixel in np.unique(pixels, axis=0)}


def test_the_picture_has_a_colour_per_dtype_and_one_for_padding(model, capsys):
    assert inspected(f"{model}:params", "--plot", "memory.png") == 0
    assert capsys.readouterr().out.endswith("\npicture: memory.png\n")
    assert Path("memory.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = imread("memory.png")
    height, width, _ = image.shape
    assert width == 1800 and 200 < height < 1800
    assert {"#ffffff", "#8db4d9", "#eab07f", "#96c99a", "#d4d4d4"} <= colours(image)


def test_a_dark_picture_is_dark_where_the_paper_is_and_has_the_same_boxes(model, capsys):
    for options in ((), ("--dark",)):
        assert inspected(f"{model}:params", "--plot", f"x{len(options)}.png", *options) == 0
    light, dark = (imread(f"x{i}.png")[..., :3] for i in (0, 1))
    assert light.shape == dark.shape and light[3, 3].min() == 1 and dark[3, 3].max() < 0.2
    blue = np.array([0x8D, 0xB4, 0xD9]) / 255
    boxes = [(abs(image - blue) < 0.01).all(2) for image in (light, dark)]
    assert boxes[0].sum() > 1000 and (boxes[0] == boxes[1]).all()


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"flatstore {version('flatstore')}\n"
