"""JSON read value by value: what is not expected is an error at its byte, and nothing is built of it."""

import tracemalloc

import pytest

from flatstore.files.bounded_json import Scanner


@pytest.mark.parametrize(
    "value",
    [
        "null",
        "true",
        "-1.5e3",
        '"\\u00e9\\n"',
        "[]",
        "{}",
        '[1, {"a": [2, "]"]}]',
        "[" * 127 + "]" * 127,
        " [ ] ",
        "9" * 300,
    ],
)
def test_a_value_is_skipped_to_its_end(value):
    scan = Scanner(f"[{value}, 7]".encode())
    read = [scan.skip() if i == 0 else scan.natural() for i, _ in enumerate(scan.elements())]
    scan.end()
    assert read == [None, 7]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "nul",
        "01",
        "1.",
        ".5",
        "+1",
        "1e999",
        '"',
        '"\x01"',
        '"\\x"',
        '"\\ud800"',
        "[1",
        "[1,]",
        "{1:2}",
        '{"a"}',
        "[" * 128,
    ],
)
def test_what_is_no_value_is_an_error_that_says_where(value):
    with pytest.raises(ValueError, match=r"byte \d+: expected .*, got ") as caught:
        Scanner(value.encode(errors="surrogatepass")).skip()
        Scanner(value.encode()).end()
    assert not isinstance(caught.value, UnicodeError)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"é"', "é"), ('"\\u00e9"', "é"), ('"é\\u00e9"', "éé"), ('"\\ud83d\\ude00"', "😀"),
        ('"😀\\n"', "😀\n"), ('"\\"\\/"', '"/'),
    ],
)  # fmt: skip
def test_strings_are_decoded_whether_they_are_escaped_or_not(text, value):
    assert Scanner(text.encode()).string() == value


def test_whole_numbers_go_up_to_64_bits():
    assert Scanner(b"18446744073709551615").natural() == 2**64 - 1
    for text in (b"18446744073709551616", b"9" * 21, b"-1", b"1.0", b"1e1", b"00"):
        with pytest.raises(ValueError, match="byte 0: expected a whole number"):
            Scanner(text).natural()


def test_values_without_end_are_an_error_and_take_no_memory():
    text = b"[" + b"[]," * 4_000_000 + b"[]]"
    tracemalloc.start()
    with pytest.raises(ValueError, match="at most 100,000 values beside those that count"):
        Scanner(text).skip()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(text)
