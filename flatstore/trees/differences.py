"""Differences between what was expected and what was given: one error that lists them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """One leaf that is not as expected."""

    path: str
    expected: str
    got: str
    fix: str

    def __str__(self) -> str:
        return f"{self.path!r}: expected {self.expected}, got {self.got}; fix: {self.fix}"


def count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, as a person would say it.

    >>> count(1, "leaf", "leaves"), count(2410, "parameter")
    ('1 leaf', '2,410 parameters')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def first_of(paths: Sequence[str], most: int = 8) -> str:
    """The first of some paths, for a message.

    >>> first_of(["a", "b/c", "d"], most=2)
    "'a', 'b/c', …"
    """
    return ", ".join([*map(repr, paths[:most]), *(["…"] if len(paths) > most else [])])


def in_words(error: BaseException) -> str:
    """The text that describes an exception in a message: its type, and its own text if it has one.

    >>> in_words(KeyError("w")), in_words(AssertionError())
    ("KeyError: 'w'", 'AssertionError')
    """
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def listing(differences: Sequence[Difference], what: str) -> str:
    """A message with a line per difference."""
    return "\n  ".join([f"{count(len(differences), 'leaf', 'leaves')} {what}:", *map(str, differences)])


class StructureError(ValueError):
    """A tree, vector, file or buffer that does not match the layout. Nothing was written.

    `differences` holds every leaf that differs, not only the first.
    """

    __module__ = "flatstore"

    def __init__(self, differences: Sequence[Difference], what: str = "unlike the layout") -> None:
        self.differences: tuple[Difference, ...] = tuple(differences)
        self._what = what
        super().__init__(listing(self.differences, what))

    def __reduce__(self) -> Any:
        """Pickled as what it was made of: it may be raised in another process."""
        return type(self), (self.differences, self._what), self.__dict__
