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


def tree_of(name: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{name}.py").read_text())


def imports_of(name: str):
    """(dotted module below flatstore, name) of all that a file imports from the package, wherever in the file."""
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("flatstore.") for alias in node.names), f"{name}: import by from"
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: relative import"
            if node.module == "flatstore" or (node.module or "").startswith("flatstore."):
                for alias in node.names:
                    yield node.module.removeprefix("flatstore").lstrip("."), alias.name


def handed_out(room: str) -> set[str]:
    """The names that a room's `__init__` hands out."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree_of(f"{room}/__init__"))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def is_same_room(inner: str, outer: str) -> bool:
    """Whether a room is another one, or a room inside of it."""
    return f"{inner}/".startswith(f"{outer}/")


def test_the_list_names_every_file_and_no_other():
    there = [path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")]
    assert sorted(FILES) == sorted(name for name in there if Path(name).name not in ("__init__", "__main__"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_from_the_rooms_above_it_through_their_doors_and_from_the_files_above_it(name):
    room = name.rpartition("/")[0]
    rooms = list(HOUSE)
    for module, imported in imports_of(name):
        source = module.replace(".", "/")
        if source == "":  # a whole room, as in `from flatstore import es`
            assert rooms.index(imported) < rooms.index(room), f"{name} imports the room {imported} from below"
        elif source in FILES and "/" in source:  # a file: of this room, or of the one around it
            assert is_same_room(room, source.rpartition("/")[0]), f"{name} passes the door of {source}"
            assert FILES.index(source) < FILES.index(name), f"{name} imports {source} from below"
        elif source in FILES:
            assert FILES.index(source) < FILES.index(name), f"{name} imports {source} from below"
        elif source == room:  # a whole file of this room
            assert FILES.index(f"{room}/{imported}") < FILES.index(name), f"{name} imports {imported} from below"
        else:
            assert rooms.index(source) < rooms.index(room), f"{name} imports the room {source} from below"
            assert imported in handed_out(source), f"{source} does not hand out {imported}, which {name} imports"


@pytest.mark.parametrize("room", [room for room in HOUSE if room])
def test_the_door_of_a_room_only_hands_out_and_no_name_is_a_function_and_a_file(room):
    if room != "cli":  # whose door is the command line itself
        kinds = {type(node) for node in tree_of(f"{room}/__init__").body}
        assert kinds <= {ast.Expr, ast.ImportFrom}
    modules = {name for module, name in imports_of(f"{room}/__init__") if module.replace(".", "/") == room}
    clash = handed_out(room) & set(HOUSE[room]) - modules
    assert not clash, f"{room} hands out {sorted(clash)}, and has files of these names"


def test_nothing_that_the_package_hands_out_is_a_file_of_the_same_name():
    names = {name for module, name in imports_of("__init__") if module}
    assert not names & {file for files in HOUSE.values() for file in files}


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_two(name):
    assert len((PACKAGE / f"{name}.py").read_text().splitlines()) <= 300
