"""A journal: what was appended is there, what was torn is cut off, what is damaged is an error, and one writes."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flatstore.recording import journal_file
from flatstore.recording.journal_file import Journal, entries_of
from flatstore.recording.line_text import line_of


def entry(number):
    return {"number": number, "fitness": [number / 3]}


@pytest.fixture
def path(tmp_path):
    """A journal of five entries."""
    journal = Journal(str(tmp_path / "journal.jsonl"))
    for number in range(5):
        journal.append(entry(number))
    journal.close()
    return journal.path


def test_entries_come_back_from_any_number_on(path):
    journal = Journal(path)
    assert len(journal) == 5
    for first in range(7):
        assert list(journal.entries(first)) == [entry(number) for number in range(first, 5)]
    assert list(entries_of(path)) == list(journal.entries(0))
    journal.close()


def test_the_last_line_is_cut_off_wherever_it_was_torn(path):
    whole = b"".join(line_of(entry(number)) for number in range(4))
    content = Path(path).read_bytes()
    for size in range(len(whole), len(content)):
        Path(path).write_bytes(content[:size])
        assert len(list(entries_of(path))) == 4
        assert os.path.getsize(path) == size  # whoever reads changes nothing
        journal = Journal(path)
        assert len(journal) == 4 and os.path.getsize(path) == len(whole)
        journal.append(entry(4))
        journal.close()
        assert Path(path).read_bytes() == content


@pytest.mark.parametrize("tail", [b"\0" * 50, b"\0" * 50 + b"\n", b'{"number":5,"fitness":[0.1],"crc32":"00000000"}\n'])
def test_a_last_line_that_a_power_cut_has_left_without_its_data_is_cut_off(path, tail):
    content = Path(path).read_bytes()
    with open(path, "ab") as file:
        file.write(tail)
    journal = Journal(path)
    assert len(journal) == 5
    journal.close()
    assert Path(path).read_bytes() == content


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("how", ["changed", "left out", "twice"])
def test_a_damaged_line_before_others_is_an_error_that_says_where(path, number, how):
    lines = [line_of(entry(i)) for i in range(5)]
    start = sum(map(len, lines[:number]))
    if how == "changed":
        lines[number] = lines[number].replace(b"fitness", b"fatness")
    elif how == "left out":
        del lines[number]
    else:
        lines.insert(number, lines[number])
        number, start = number + 1, start + len(lines[number])
    content = b"".join(lines)
    Path(path).write_bytes(content)
    for read in (Journal, lambda path: list(entries_of(path))):
        with pytest.raises(
            ValueError, match=f"expected the entry {number} of a run, got a damaged line at byte {start:,}"
        ):
            read(path)
    assert Path(path).read_bytes() == content


def test_an_entry_that_is_taken_back_leaves_no_trace(path):
    content = Path(path).read_bytes()
    journal = Journal(path)
    journal.append(entry(5))
    journal.take_back()
    assert Path(path).read_bytes() == content and len(journal) == 5
    journal.append(entry(5))
    assert len(journal) == 6
    journal.close()
    assert list(entries_of(path))[-1] == entry(5)


def test_only_one_may_append_at_a_time_in_this_process_or_in_others(path):
    journal = Journal(path)
    code = "import sys; from flatstore.recording.journal_file import Journal; Journal(sys.argv[1])"
    with pytest.raises(BlockingIOError):
        Journal(path)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert "BlockingIOError" in done.stderr
    journal.close()
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == 0
    Journal(path).close()


def test_a_journal_is_free_though_memory_was_short_as_it_was_closed(path, monkeypatch):
    def failing(*_):
        raise MemoryError

    journal = Journal(path)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(fcntl, "flock", failing)
        journal.close()
    again = Journal(path)
    assert len(again) == 5
    again.close()


def test_a_journal_that_nobody_holds_any_more_is_free(path):
    journal = Journal(path)
    del journal
    Journal(path).close()


FORKING = """
import os, sys, time
from flatstore.recording.journal_file import Journal
journal = Journal(sys.argv[1])
ours, its = os.pipe()
child = os.fork()
if not child:
    try:
        journal.append({"number": 5})
    except OSError:
        os.write(its, b"refused")
    time.sleep(60)  # it lives on, and has nothing of the run
    os._exit(0)
try:
    assert os.read(ours, 7) == b"refused"
    try:
        Journal(sys.argv[1])
        raise AssertionError("expected the parent's lock")
    except BlockingIOError:
        journal.append({"number": 5, "fitness": []})
    journal.close()
    Journal(sys.argv[1]).close()
finally:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


def test_a_forked_child_neither_writes_the_journal_nor_keeps_it(path):
    done = subprocess.run([sys.executable, "-c", FORKING, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(entries_of(path))) == 6


FORKED_AS_IT_OPENS = """
import os, signal, sys
from flatstore.recording import journal_file
from flatstore.recording.journal_file import Journal
close, children = journal_file.finalize, []
def forks(*arguments):
    child = os.fork()
    if not child:
        signal.pause()
    children.append(child)
    return close(*arguments)
journal_file.finalize = forks
try:
    journal = Journal(sys.argv[1])
    journal_file.finalize = close
    journal.close()
    Journal(sys.argv[1]).close()
finally:
    for child in children:
        os.kill(child, 9)
"""


def test_a_child_that_was_forked_as_the_journal_was_opened_does_not_keep_it(path):
    done = subprocess.run([sys.executable, "-c", FORKED_AS_IT_OPENS, path], stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 0, done.stderr


def test_where_the_file_system_has_no_locks_a_run_goes_on_without(path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(journal_file.fcntl, "flock", refuse)
    journal = Journal(path)
    journal.append(entry(5))
    journal.close()
