"""In a notebook a layout, a store and a population show their memory maps, in both of Jupyter's themes."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.browser import TELL, needs_a_browser, told_by

CELLS = [
    "import numpy as np, flatstore as fs",
    "tree = {'bias': np.zeros(64, 'f4'), 'kernel': np.zeros((64, 64), 'f4'), 'step': np.int32(3)}",
    "fs.Layout.from_tree(tree)",
    "fs.Store.from_tree(tree)",
    "fs.Population.from_tree(tree, 4)",
]

SEEN = """<script>addEventListener("load", () => {
    const seen = [...document.querySelectorAll(".jp-OutputArea svg")].map(map => {
        const boxes = [...map.querySelectorAll("rect")].map(box => box.getBoundingClientRect());
        const around = map.parentElement;
        let ground = around;
        while (getComputedStyle(ground).backgroundColor == "rgba(0, 0, 0, 0)") ground = ground.parentElement;
        around.querySelector("details").open = true;
        return {
            title: around.firstElementChild.textContent,
            map: [map.getBoundingClientRect().width, map.getBoundingClientRect().height],
            boxes: boxes.map(box => box.width),
            rows: around.querySelectorAll("tr").length,
            ink: getComputedStyle(around.firstElementChild).color,
            paper: getComputedStyle(ground).backgroundColor,
        };
    });
    tell(seen);
})</script></body>"""
"""Tells what each map looks like."""


PROGRAM = """
import json, sys
import nbconvert, nbformat
from nbconvert.preprocessors import ExecutePreprocessor

notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in json.loads(sys.argv[1])])
ExecutePreprocessor(kernel_name="python3", timeout=300).preprocess(notebook)
nbformat.write(notebook, "maps.ipynb")
for theme in ("light", "dark"):
    page = nbconvert.HTMLExporter(theme=theme, mathjax_url="", require_js_url="", jquery_url="")
    open(f"{theme}.html", "w").write(page.from_notebook_node(notebook)[0])
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """A notebook that a kernel has executed, and its page in each theme."""
    for name in ("nbconvert", "ipykernel"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    folder = tmp_path_factory.mktemp("notebook")
    own = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    env = os.environ | {name: str(folder / name) for name in own}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", PROGRAM, json.dumps(CELLS)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def brightness(colour):
    red, green, blue = (int(part) for part in colour.strip("rgba()").split(",")[:3])
    return 0.3 * red + 0.6 * green + 0.1 * blue


def test_cells_have_a_map_beside_their_text(notebook):
    cells = json.loads((notebook / "maps.ipynb").read_text())["cells"]
    shown = [output["data"] for cell in cells for output in cell["outputs"]]
    assert [sorted(data) for data in shown] == [["text/html", "text/plain"]] * 3


@needs_a_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_draws_the_maps_in_a_notebook(notebook, theme):
    page = notebook / f"{theme}.html"
    page.write_text(page.read_text().replace("</body>", TELL + SEEN))
    maps, errors = told_by(notebook, page.name)
    assert not errors
    assert [seen["title"].partition(":")[0] for seen in maps] == ["Layout", "Store", "Population"]
    for seen in maps:
        width, height = seen["map"]
        assert width > 300 and height > 20
        assert len(seen["boxes"]) == 4 and min(seen["boxes"]) > 0 and sum(seen["boxes"][1:]) > 0.9 * width
        assert seen["rows"] == 4
        light, dark = sorted([brightness(seen["ink"]), brightness(seen["paper"])], reverse=True)
        assert light - dark > 100 and (brightness(seen["ink"]) == light) == (theme == "dark")
