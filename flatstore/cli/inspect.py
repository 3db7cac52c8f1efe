"""`flatstore inspect`: where every leaf lives, as a table and as a picture.

```
path            shape      dtype    offset   bytes  trainable  tied
--------------  ---------  -------  ------  ------  ---------  ----
Dense_0/bias    (256,)     float32       0   1,024  yes
Dense_0/kernel  (64, 256)  float32   1,024  65,536  yes

2 leaves, 16,640 parameters, 66,560 bytes (0 of padding, align=64)
```
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from flatstore.cli.layout_text import as_json, table
from flatstore.cli.plot_layout import picture
from flatstore.files import layout_of
from flatstore.layout import Layout
from flatstore.store import Population, Store


class BadInput(ValueError):
    """Input that the user has to correct; the message is the line to print."""


class _UserCodeError(Exception):
    """The user's own code raised an error, which is the cause of this one."""

    def __init__(self, expected: str, error: Exception) -> None:
        super().__init__(f"expected {expected}, got {type(error).__name__}; fix: see the traceback above")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `flatstore inspect`. `run` takes what they parse to."""
    parser.usage = (
        "%(prog)s [-h] SOURCE [--json] [--plot FILE.png] [--dark] [--html FILE.html] [--align N] [--trainable GLOB ...]"
    )
    parser.description = "Show where every leaf lives: offsets and sizes in bytes, shapes in elements."
    parser.epilog = (
        "For ties, dims or a predicate let the function return a layout, like fs.Layout.from_tree(tree, tied=True)."
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a safetensors file, or module:function that returns a pytree of arrays or shapes, a Layout or a Store",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in the place of the table")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the memory as a picture, too")
    parser.add_argument("--dark", action="store_true", help="draw it on a dark ground")
    parser.add_argument("--html", metavar="FILE.html", help="write the memory map as a page, too")
    parser.add_argument(
        "--align", metavar="N", type=int, help="start every leaf at a multiple of N bytes (default: 64)"
    )
    parser.add_argument(
        "--trainable",
        metavar="GLOB",
        nargs="+",
        action="extend",
        help="the paths that train, like '*/kernel' (default: floating and complex leaves)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the layout and draw it, if asked. Nothing is printed or drawn unless all of the input is good.

    Returns the exit status: 0; 2 for bad input, with one message on stderr that says how to correct it; 1 if the user's
    own code raised, with the traceback of that code. Never raises for either.
    """
    try:
        layout = layout_from(arguments.source, arguments.align, arguments.trainable)
        if arguments.dark and arguments.plot is None:
            raise BadInput("--dark: expected a picture to draw, got no --plot; fix: add --plot FILE.png")
        if arguments.plot is not None:
            _plot(layout, arguments.plot, arguments.source, arguments.dark)
        if arguments.html is not None:
            _write("--html", arguments.html, ".html", _page(layout, arguments.source))
    except _UserCodeError as bug:
        _print_traceback(bug.__cause__)
        print(f"flatstore inspect: {bug}", file=sys.stderr)
        return 1
    except BadInput as refused:
        print(f"flatstore inspect: {refused}", file=sys.stderr)
        return 2
    # A pipe gets whole paths, a terminal gets paths that fit.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    drawn = f"\npicture: {arguments.plot}" if arguments.plot is not None else ""
    drawn += f"\npage: {arguments.html}" if arguments.html is not None else ""
    text = as_json(layout) if arguments.json else table(layout, width) + drawn
    try:
        print(text.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding or "utf-8"))
        sys.stdout.flush()
    except BrokenPipeError:  # as by `| head`; Python would complain when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def layout_from(source: str, align: int | None = None, trainable: Sequence[str] | None = None) -> Layout:
    """The layout of a safetensors file, or of what `module:function` returns. The data of a file are not read.

    `align` (bytes, 64 by default) and `trainable` (globs) are for a function that returns a tree.

    Raises `BadInput` with a message for the user: expected, got, fix. An error that the user's own code raises is the
    cause of the error raised here.
    """
    module, colon, function = source.rpartition(":")
    options = [f"--{name}" for name, value in (("align", align), ("trainable", trainable)) if value is not None]
    if os.path.exists(source) or not colon or os.sep in source:
        if options and os.path.exists(source):
            raise BadInput(
                f"expected {' and '.join(options)} with module:function, got the file {source!r}, whose layout is what "
                "it was saved with; fix: leave the option out"
            )
        return _layout_of_file(source)
    with _current_directory_importable():
        value = _call(_find_function(module, function, source), source)
    if isinstance(value, (Layout, Store, Population)):
        if options:
            raise BadInput(
                f"expected {' and '.join(options)} with a function that returns a tree, got a {type(value).__name__}, "
                f"which is planned already, from {source}; fix: plan it that way in the function"
            )
        return value if isinstance(value, Layout) else value.layout
    try:
        return Layout.from_tree(value, align=64 if align is None else align, trainable=trainable)
    except (ValueError, TypeError) as error:
        raise BadInput(f"{source}: {error}") from error


def _layout_of_file(source: str) -> Layout:
    if not os.path.exists(source):
        raise BadInput(
            f"expected a safetensors file or module:function, got {source!r}, which does not exist; "
            "fix: check the path, or name a function like model:params"
        )
    if os.path.isdir(source):
        raise BadInput(f"expected a safetensors file, got the directory {source!r}; fix: name a file in it")
    try:
        return layout_of(source)
    except (ValueError, ImportError) as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        raise BadInput(
            f"expected a file that can be read, got {source!r}: {error.strerror or error}; fix: check its permissions"
        ) from error


@contextlib.contextmanager
def _current_directory_importable() -> Generator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # their code may have removed it
            sys.path.remove(here)


def _find_function(module: str, function: str, source: str) -> Callable[..., Any]:
    """The function behind `module:function`; a dotted one is looked up attribute by attribute."""
    if not module or not function or module.startswith("."):
        raise BadInput(f"expected module:function, got {source!r}; fix: name both, like model:params")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}.")):
            raise _UserCodeError(f"to import {module!r}", error) from error
        fix = (
            f"say {module.removesuffix('.py')}:{function}"
            if module.endswith(".py")
            else "run it in the directory that holds it"
        )
        raise BadInput(f"expected a module, got {module!r}, which cannot be found; fix: {fix}") from error
    for name in function.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            functions = [
                other for other in dir(found) if not other.startswith("_") and callable(getattr(found, other, None))
            ]
            raise BadInput(
                f"expected a function of {module!r}, got {function!r}, which is not there; "
                f"fix: one of {', '.join(functions[:8]) or 'its functions (it has none)'}"
            ) from error
    if not callable(found):
        kind = type(found).__name__
        raise BadInput(f"expected a function, got {source}, which is a {kind}; fix: name a function that returns it")
    return found


def _call(function: Callable[..., Any], source: str) -> Any:
    needed: list[str] = []
    with contextlib.suppress(ValueError, TypeError):  # it has no signature
        needed = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
    if needed:
        raise BadInput(
            f"expected a function without arguments, got {source}({', '.join(needed)}); "
            "fix: name one that calls it with what it needs"
        )
    try:
        return function()
    except Exception as error:
        raise _UserCodeError(f"{source}() to return a tree", error) from error


def _print_traceback(error: BaseException | None) -> None:
    """The traceback from the first line of the user's own code on."""
    if error is None:
        return
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        frames = frames.tb_next
    traceback.print_exception(type(error), error, frames)


_OURS = {__name__.partition(".")[0], "importlib"}


def _plot(layout: Layout, target: str, source: str, dark: bool) -> None:
    try:
        image = picture(layout, _title(source), dark)
    except ImportError as error:
        raise BadInput(f"--plot: {error}") from error
    _write("--plot", target, ".png", image)


def _page(layout: Layout, source: str) -> bytes:
    """The memory map with what a page has around it: dark where its reader likes that."""
    title = escape(_title(source))
    head = f'<meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>{title}</title>'
    style = "<style>body { font-family: sans-serif; margin: 2em } td, th { padding-right: 1em }</style>"
    return f"<!doctype html>{head}{style}<h1>{title}</h1>{layout._repr_html_()}\n".encode()  # pyright: ignore[reportPrivateUsage]


def _title(source: str) -> str:
    return os.path.basename(source) if os.path.exists(source) else source


def _write(option: str, target: str, ending: str, content: bytes) -> None:
    if Path(target).suffix.lower() != ending:
        raise BadInput(f"{option}: expected a file that ends in {ending}, got {target!r}; fix: name a {ending} file")
    try:
        Path(target).write_bytes(content)
    except OSError as error:
        raise BadInput(
            f"{option}: expected a file that can be written, got {target!r}: {error.strerror or error}; "
            "fix: name a file in a directory that you can write to"
        ) from error
