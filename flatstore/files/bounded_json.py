"""JSON of strangers, read value by value, within bounds: nothing is built that was not expected.

`json.loads` makes objects of whatever it finds: a text of empty lists becomes thirty times as much memory. A `Scanner`
is told what comes next, and what is something else is an error at the first byte of it.

    >>> scan = Scanner(b'{"shape": [2, 3]}')
    >>> [(key, [scan.natural() for _ in scan.elements()]) for key in scan.keys()]
    [('shape', [2, 3])]

The text stays bytes, in a string of one byte for each. It is UTF-8, of which only the strings may make use.
"""

from __future__ import annotations

import json.decoder
import math
import re
from collections.abc import Iterator
from typing import Any

_scanstring: Any = json.decoder.scanstring  # pyright: ignore[reportAttributeAccessIssue,reportUnknownMemberType,reportUnknownVariableType]
_SPACE = re.compile(r"[ \t\n\r]*+")
_NATURAL = re.compile(r"(?:0|[1-9][0-9]{0,19})(?![0-9.eE])")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_WORD = re.compile(r"true|false|null")

DEEPEST = 126
"""How deep values may lie inside of each other, as in the library of safetensors."""

_MOST_SKIPPED = 100_000
"""How many values may be skipped: hardly a file has one, and Python takes a tenth of a second for them."""


class Scanner:
    """A place in a JSON text. Each method reads what it is named for, and moves behind it.

    All raise `ValueError` that says what was expected, what came, and at which byte.
    """

    def __init__(self, content: bytes) -> None:
        self._text = content.decode("latin-1")
        self._at = 0
        self._skipped = 0

    def keys(self) -> Iterator[str]:
        """The keys of an object, one after the other; whoever asks reads the value of each before the next."""
        return self._members("{", "}")

    def elements(self) -> Iterator[str]:
        """An empty string for each element of a list; whoever asks reads the element before the next."""
        return self._members("[", "]")

    def _members(self, opening: str, closing: str) -> Iterator[str]:
        self.expect(opening)
        if self.take(closing):
            return
        while True:
            key = ""
            if opening == "{":
                key = self.string()
                self.expect(":")
            yield key
            if self.take(closing):
                return
            self.expect(",")

    def string(self) -> str:
        """A string, decoded."""
        self.expect('"')
        start = self._at
        try:
            value, self._at = _scanstring(self._text, start, True)
            if not value.isascii():  # bytes above 127, or escapes that mean such characters
                raw = self._text[start : self._at].encode("latin-1").decode()
                value, _ = _scanstring(raw, 0, True)
                value.encode()  # half of a pair is no character
        except ValueError as error:
            raise ValueError(f"byte {start}: expected a string in UTF-8, got another ({error})") from None
        return value

    def natural(self) -> int:
        """A whole number, 0 .. 2**64 - 1, written as such."""
        found = self._match(_NATURAL, "a whole number")
        value = int(found)
        if value >= 1 << 64:
            raise self.error("a whole number below 2**64", at=self._at - len(found))
        return value

    def null(self) -> bool:
        """Whether null comes; if not, nothing is read."""
        self._after_space()
        if not self._text.startswith("null", self._at):
            return False
        self._at += 4
        return True

    def skip(self, depth: int = 0) -> None:
        """A value that does not matter, which is made no object of."""
        self._skipped += 1
        if self._skipped > _MOST_SKIPPED:
            raise self.error(f"at most {_MOST_SKIPPED:,} values beside those that count")
        first = self.peek()
        if depth > DEEPEST and first in "[{":
            raise self.error(f"values at most {DEEPEST} deep")
        match first:
            case '"':
                self.string()
            case "{":
                for _ in self.keys():
                    self.skip(depth + 1)
            case "[":
                for _ in self.elements():
                    self.skip(depth + 1)
            case "t" | "f" | "n":
                self._match(_WORD, "a value")
            case _:
                number = self._match(_NUMBER, "a value")
                if math.isinf(float(number)):
                    raise self.error("a number that a float can hold", at=self._at - len(number))

    def end(self) -> None:
        """The end of the text."""
        self._after_space()
        if self._at != len(self._text):
            raise self.error("the end of the text")

    def peek(self) -> str:
        """The next character that is not a space, or nothing at the end; it is not read."""
        self._after_space()
        return self._text[self._at : self._at + 1]

    def take(self, character: str) -> bool:
        """Whether a character comes next; if not, nothing is read."""
        if self.peek() != character:
            return False
        self._at += 1
        return True

    def expect(self, character: str) -> None:
        """A character."""
        if not self.take(character):
            raise self.error(repr(character))

    def pattern(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """What matches a pattern here, spaces before it included; nothing is read if it does not match."""
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return found

    def error(self, expected: str, at: int | None = None) -> ValueError:
        """The error that something else came."""
        place = self._at if at is None else at
        got = self._text[place : place + 40].encode("latin-1").decode(errors="replace")
        return ValueError(f"byte {place}: expected {expected}, got {got!r}")

    def _after_space(self) -> None:
        found = _SPACE.match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _match(self, pattern: re.Pattern[str], expected: str) -> str:
        self._after_space()
        found = self.pattern(pattern)
        if found is None:
            raise self.error(expected)
        return found.group()
