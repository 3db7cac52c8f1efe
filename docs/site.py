"""What makes the site of these pages: examples get pages of their own, and doctests are shown as code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files, InclusionLevel

EXAMPLES = Path(__file__).parent.parent / "examples"


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add a page for each example."""
    for path in sorted(EXAMPLES.glob("*.py")):
        page = f"# {path.name}\n\n```python\n{path.read_text()}```\n"
        files.append(
            File.generated(config, f"examples/{path.stem}.md", content=page, inclusion=InclusionLevel.NOT_IN_NAV)
        )
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead to those pages; in the repository the same links lead to the programs."""
    return re.sub(r"\]\(\.\./examples/(\w+)\.py\)", r"](examples/\1.md)", markdown)


class Doctests(griffe.Extension):
    """Examples in docstrings as blocks of code, and square brackets in them as they are."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for everything that has a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^( *)>>> .*(?:\n(?! *$).*)*", _fenced, obj.docstring.value, flags=re.MULTILINE
            )


def _fenced(found: re.Match[str]) -> str:
    lines = [line.removeprefix(found[1]) for line in found[0].splitlines()]
    code = "\n".join(found[1] + line for line in lines)
    return f"{found[1]}```pycon\n{code}\n{found[1]}```"
