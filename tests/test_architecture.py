"""The list of modules in docs/design.md is the theory, in order: each imports only from those above it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flatstore"


def listed():
    """The modules of the list, top to bottom."""
    block = re.search(r"^flatstore/\n((?:    .*\n)+)", (ROOT / "docs/design.md").read_text(), re.MULTILINE)[1]
    return [line.split()[0].removesuffix(".py").rstrip("/") for line in block.splitlines()]


def imports_of(file):
    """The modules of the package that a file imports from."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "flatstore":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flatstore."):
            yield node.module.split(".")[1]


def test_the_list_names_every_module():
    there = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(listed()) == sorted(there - {"__init__", "__main__"})


def test_every_module_imports_only_from_those_above_it():
    order = listed()
    for position, name in enumerate(order):
        files = list((PACKAGE / name).glob("*.py")) or [PACKAGE / f"{name}.py"]
        for file in files:
            below = set(imports_of(file)) - set(order[: position + 1])
            assert not below, f"{file.relative_to(ROOT)} imports {sorted(below)} from below"


def test_no_file_is_two():
    for file in PACKAGE.rglob("*.py"):
        assert len(file.read_text().splitlines()) <= 300, file
