"""The graphs over commits that `.ci/history` makes, by asv, in a browser."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser import TELL, needs_a_browser, told_by

ROOT = Path(__file__).parents[2]

LIBRARIES = {
    "jquery-3.3.1.min.js": ("jquery@3.3.1", "dist/jquery.min.js"),
    "jquery.flot.min.js": ("flot@0.8.3", "jquery.flot.js"),
    "jquery.flot.time.min.js": ("flot@0.8.3", "jquery.flot.time.js"),
    "jquery.flot.selection.min.js": ("flot@0.8.3", "jquery.flot.selection.js"),
    "jquery.flot.categories.min.js": ("flot@0.8.3", "jquery.flot.categories.js"),
    "jquery.flot.orderBars.js": ("flot-orderbars@1.0.0", "js/jquery.flot.orderBars.js"),
    "stupidtable.min.js": ("stupid-table-plugin@1.1.3", "stupidtable.min.js"),
    "md5.min.js": ("blueimp-md5@2.19.0", "js/md5.min.js"),
    "bootstrap.min.js": ("bootstrap@3.1.1", "dist/js/bootstrap.min.js"),
    "bootstrap.min.css": ("bootstrap@3.1.1", "dist/css/bootstrap.min.css"),
}
"""What asv's page loads from elsewhere, and the npm packages that have it."""

DRAWN = """<script>const wait = setInterval(() => {
    const plot = $("#main-graph").data("plot");
    if (!plot) return;
    clearInterval(wait);
    tell(plot.getData().map(line => line.data.filter(point => point && point[1] !== null).length));
}, 100)</script></body>"""
"""Tells how many points each line of the graph has."""


def ran(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """What `.ci/history` writes of the last three commits."""
    if subprocess.run(["git", "rev-parse", "-q", "--verify", "HEAD~2"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("this is no checkout with a history of three commits")
    out = tmp_path_factory.mktemp("history")
    there = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"OUT": str(out), "COMMITS": "HEAD~2 HEAD~1 HEAD", "PATH": there, "JAX_PLATFORMS": "cpu"}
    said = ran(ROOT / ".ci/history", "--quick", "--bench", "Small", env=env)
    assert "graphs of 3 commits" in said and "failed" not in said, said
    return out


def self_contained(site, folder):
    """A copy of the site that loads nothing from elsewhere, and tells what it draws."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which has what asv's page loads from elsewhere")
    shutil.copytree(site, folder)
    packages = sorted({package for package, _ in LIBRARIES.values()})
    ran("npm", "install", "--no-audit", "--no-fund", "--prefix", folder, *packages)
    page = (folder / "index.html").read_text()
    for name, (package, path) in LIBRARIES.items():
        local = f"node_modules/{package.partition('@')[0]}/{path}"
        assert (folder / local).exists()
        page, found = re.subn(rf'"https://[^"]*/{re.escape(name)}" integrity="[^"]*"', f'"{local}"', page)
        assert found == 1, name
    (folder / "index.html").write_text(page.replace("</body>", TELL + DRAWN))
    return folder


@pytest.mark.long
@needs_a_browser
def test_a_browser_draws_a_graph_over_the_commits(graphs, tmp_path):
    folder = self_contained(graphs / "html", tmp_path / "site")
    (name,) = [path.stem for path in (folder / "graphs/summary").glob("*.Small.*.json")]
    counts, errors = told_by(folder, f"#{name}")
    assert {*counts} == {3} and not errors
