"""README and docs are programs: their Python blocks run, top to bottom, and show what they say."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ON_RAY = ROOT / "docs/scale.md"  # which `tests/scale` runs, on a cluster of their own
PAGES = [
    str(page.relative_to(ROOT))
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if page != ON_RAY and "```python\n" in page.read_text()
]


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs_as_shown(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page)


def run_page(page):
    """Run the Python blocks of a page, in the folder of this process."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, object] = {}
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags)
    for number, block in enumerate(blocks):
        test = doctest.DocTestParser().get_doctest(block, names, f"{page}[{number}]", page, 0)
        if test.examples:
            report: list[str] = []
            runner.run(test, out=report.append, clear_globs=False)
            names.update(test.globs)
            assert not report, "".join(report)
        else:
            exec(compile(block, f"{page}[{number}]", "exec"), names)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def test_the_quick_start_is_two_commands():
    section = (ROOT / "README.md").read_text().split("## Quick start")[1]
    block = re.search(r"^```bash\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert len(block[1].strip().splitlines()) == 2
