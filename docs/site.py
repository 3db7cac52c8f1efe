"""What makes the site of these pages: examples get pages of their own, doctests are shown as code, and the README's
figures stand where a page leads to them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TO_FIGURES = "[The figures](../README.md#figures)"


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add a page for each example."""
    for path in sorted(EXAMPLES.glob("*.py")):
        page = f"# {path.name}\n\n```python\n{path.read_text()}```\n"
        files.append(
            File.generated(config, f"examples/{path.stem}.md", content=page, inclusion=InclusionLevel.NOT_IN_NAV)
        )
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead to those pages, from any folder; in the repository the same links lead to the programs, and the README."""
    linked = re.sub(r"\]\(((?:\.\./)*)\.\./examples/(\w+)\.py\)", r"](\1examples/\2.md)", markdown)
    return linked.replace(TO_FIGURES, _figures()) if TO_FIGURES in linked else linked


def _figures() -> str:
    """The pictures and the tables, and what stands between them."""
    found = re.search(r"\n## Figures\n(.*\n\|[^\n]*\n)", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found, "expected tables of figures in README.md"
    return found[1].replace("](docs/", "](")


class Doctests(griffe.Extension):
    """Examples in docstrings as blocks of code, and square brackets in them as they are."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for everything that has a docstring."""
        if obj.docstring is not None:
            fenced = re.sub(r"^( *)>>> .*(?:\n(?! *$).*)*", _fenced, obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^(Raises[ ,].*):$", r"Raises: \1", fenced, flags=re.MULTILINE)  # a title


def _fenced(found: re.Match[str]) -> str:
    code = "\n".join(line.removeprefix(found[1]) for line in found[0].splitlines())
    return f"```pycon\n{code}\n```"  # not indented, which would be a block of code that shows its fences
