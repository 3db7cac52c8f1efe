"""The house of docs/design.md is the one that stands: its rooms, its files, and the direction of every import."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flatstore"


def listed() -> dict[str, list[str]]:
    """The rooms of the list with their files, top to bottom: {room: files}, a file outside of all rooms in ''."""
    block = re.search(r"^flatstore/\n((?:    .*\n)+)", (ROOT / "docs/design.md").read_text(), re.MULTILINE)[1]
    rooms: dict[str, list[str]] = {"": []}
    for line in block.splitlines():
        name, indent = line.split()[0], len(line) - len(line.lstrip())
        if name.endswith("/"):
            room = rooms[name.rstrip("/")] = []
        else:
            (room if indent > 4 else rooms[""]).append(name)
    return rooms


HOUSE = listed()
FILES = [f"{room}/{file}".lstrip("/") for room, files in HOUSE.items() for file in files]


DOORS = [f"{room}/__init__" for room in HOUSE if room]


def listed_tests() -> dict[str, list[str]]:
    """The files without tests of their own, and the tests of what is made of them, from the second list."""
    text = (ROOT / "docs/design.md").read_text().partition("**Where the tests are.**")[2]
    block = re.search(r"```\n(.*?)```", text, re.DOTALL)[1]
    rows = (line.replace(",", "").split() for line in block.splitlines())
    return {file: tests for file, *tests in rows}


ELSEWHERE = listed_tests()


def tree_of(name: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{name}.py").read_text())


def imports_of(tree: ast.Module):
    """(room or file, name) of all that a file imports from the package, wherever in the file.

    The name is None where it imports the package itself, or by a relative path.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "flatstore":
                    yield alias.name, None
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "." * node.level + (node.module or ""), None
        elif isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "flatstore":
            for alias in node.names:
                yield node.module.removeprefix("flatstore").lstrip(".").replace(".", "/"), alias.name


def handed_out(room: str) -> set[str]:
    """The names that a room's `__init__` hands out: what it imports, and the command line's own function."""
    names: set[str] = set()
    for node in tree_of(f"{room}/__init__").body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
    return names


def is_inside(inner: str, outer: str) -> bool:
    """Whether a room is another one, or a room inside of it."""
    return f"{inner}/".startswith(f"{outer}/")


def is_handed_out(source: str, name: str) -> bool:
    return source in HOUSE and bool(source) and name in handed_out(source)


def may_import(name: str, source: str, imported: str) -> bool:
    """Whether a file may import a name from a file or a room of the package; '' is the package itself."""
    room, _, file = name.rpartition("/")
    rooms, files = list(HOUSE), [*FILES, "cli/__init__"]  # the door of the command line is a file below its others
    if name == "__main__":
        return source == "cli" and is_handed_out(source, imported)
    if name == "__init__":  # from any room, or a whole one
        return imported in HOUSE if source == "" else is_handed_out(source, imported)
    if file == "__init__" and room != "cli":
        if source == room:
            return imported in HOUSE[room]
        if source in FILES:
            return source.rpartition("/")[0] == room
        hands_on = is_inside(source, room) or (room, source) == ("kernels", "threads")
        return hands_on and is_handed_out(source, imported)
    if source == "":  # a whole room
        return imported in HOUSE and rooms.index(imported) < rooms.index(room)
    if source == room:  # a whole file
        source = f"{room}/{imported}"
    if source in FILES:  # of this room, of the one around it, or of none
        is_near = "/" not in source or is_inside(room, source.rpartition("/")[0])
        return is_near and files.index(source) < files.index(name)
    return is_handed_out(source, imported) and rooms.index(source) < rooms.index(room)


def refused(name: str, tree: ast.Module) -> list[tuple[str, str | None]]:
    """The imports of a file that it may not have; `import flatstore` and relative ones are refused everywhere."""
    return [(source, x) for source, x in imports_of(tree) if x is None or not may_import(name, source, x)]


def test_the_list_names_every_file_and_no_other():
    there = [path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")]
    assert sorted(FILES) == sorted(name for name in there if Path(name).name not in ("__init__", "__main__"))


@pytest.mark.parametrize("name", [*FILES, *DOORS, "__init__", "__main__"])
def test_a_file_imports_only_from_the_rooms_above_it_through_their_doors_and_from_the_files_above_it(name):
    assert not refused(name, tree_of(name))


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("layout/__init__", "from flatstore.es import ranks as ranks"),  # upwards
        ("layout/__init__", "from flatstore.trees import Glob as Glob"),  # what another room hands out
        ("layout/__init__", "from flatstore import es as es"),
        ("files/__init__", "from flatstore.memory.host import Memory as Memory"),  # past a door
        ("es/__init__", "from flatstore.es.in_jit.blocks import Block as Block"),
        ("kernels/__init__", "from flatstore.threads.pool import each as each"),
        ("kernels/__init__", "from flatstore.kernels import cpu as cpu"),
        ("trees/edits", "def f():\n    import flatstore\n    return flatstore.es"),
        ("trees/edits", "import flatstore.es.ranks as ranks"),
        ("trees/edits", "import numpy, flatstore"),
        ("trees/edits", "from . import paths"),
        ("trees/edits", "from ..es import evolve"),
        ("trees/edits", "def f():\n    from flatstore import es"),
        ("trees/edits", "from flatstore import Store"),
        ("trees/edits", "from flatstore.trees import unflatten_dict"),  # its own door
        ("trees/paths", "from flatstore.trees import edits"),
        ("trees/paths", "from flatstore.trees.edits import built"),
        ("store/verbs", "from flatstore.memory import host"),
        ("es/ranks", "from flatstore.es.in_jit.blocks import Block"),
        ("es/ranks", "from flatstore.es.in_jit import virtual"),
        ("kernels/compiler", "from flatstore.kernels.cpu import CLIP"),
        ("extras", "from flatstore.trees import Glob"),
        ("__init__", "from flatstore.memory.host import Memory as Memory"),
        ("__init__", "from flatstore.memory import Host as Host"),
        ("__main__", "from flatstore import es"),
        ("__main__", "from flatstore.cli.evolve import run"),
        ("cli/__init__", "from flatstore.es.ranks import centred_ranks"),
        ("cli/__init__", "import flatstore as fs"),
        ("store/store", "from flatstore.cli import main"),
    ],
)
def test_an_import_past_a_door_from_below_or_of_the_whole_package_is_found(name, edit):
    tree = tree_of(name)
    tree.body += ast.parse(edit).body
    assert len(refused(name, tree)) > 0


def test_a_room_inside_of_a_room_may_import_the_files_of_the_one_around_it():
    assert may_import("kernels/cpu/draws", "kernels/compiler", "compiled")
    assert may_import("es/in_jit/blocks", "es/groups", "NO_NOISE")
    assert not may_import("es/in_jit/blocks", "kernels/compiler", "compiled")


@pytest.mark.parametrize("room", [room for room in HOUSE if room])
def test_the_door_of_a_room_only_hands_out_and_no_name_is_a_function_and_a_file(room):
    if room != "cli":  # whose door is the command line itself
        kinds = {type(node) for node in tree_of(f"{room}/__init__").body}
        assert kinds <= {ast.Expr, ast.ImportFrom}
    modules = {name for module, name in imports_of(tree_of(f"{room}/__init__")) if module == room}
    clash = handed_out(room) & set(HOUSE[room]) - modules
    assert not clash, f"{room} hands out {sorted(clash)}, and has files of these names"


@pytest.mark.parametrize("room", [room for room in HOUSE if room])
def test_every_room_has_a_folder_of_tests(room):
    assert list((ROOT / "tests" / room).glob("test_*.py"))


@pytest.mark.parametrize("name", FILES)
def test_the_tests_of_a_file_are_at_its_path_or_where_the_list_says(name):
    room, _, file = name.rpartition("/")
    own = (ROOT / "tests" / room / f"test_{file}.py").exists()
    assert own != (name in ELSEWHERE)
    for test in ELSEWHERE.get(name, ()):
        assert (ROOT / "tests" / f"{test}.py").exists()


def test_the_list_of_tests_names_files_of_the_house():
    assert set(ELSEWHERE) <= set(FILES) and all(ELSEWHERE.values())


def test_nothing_that_the_package_hands_out_is_a_file_of_the_same_name():
    names = {name for module, name in imports_of(tree_of("__init__")) if module}
    assert not names & {file for files in HOUSE.values() for file in files}


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_two(name):
    assert len((PACKAGE / f"{name}.py").read_text().splitlines()) <= 300
