"""Steps that nothing comes between: they call nothing and have no loop, and so no handler and no other thread comes."""

import dis

import pytest

import flatstore  # noqa: F401 (all functions that are declared so are known then)
from flatstore.threads import unparted
from flatstore.threads.atomic_steps import STEPS

# Where CPython looks whether there is a signal to handle, or another thread to let go on.
LOOKS = ("CALL", "PRECALL", "JUMP_BACKWARD", "POP_JUMP_BACKWARD", "FOR_ITER", "SEND", "YIELD", "BEFORE_WITH", "IMPORT")


def looks(function):
    """The instructions of a function at which it may be left, but for its first line."""
    names = [instruction.opname for instruction in dis.get_instructions(function)]
    return [name for name in names[names.index("RESUME") + 1 :] if name.startswith((*LOOKS, "RESUME"))]


def test_there_are_some():
    assert {"enter", "_merge", "_replace", "_freeze", "_thaw"} <= {function.__name__ for function in STEPS}


@pytest.mark.parametrize("function", STEPS, ids=lambda function: function.__name__)
def test_a_function_that_says_so_calls_nothing_and_has_no_loop(function):
    assert looks(function) == []


def test_a_call_and_a_loop_are_found():
    def calls(x):
        return len(x)

    def loops(x):
        while x:
            x -= 1

    assert looks(calls)
    assert looks(loops)


def test_without_the_interpreter_s_lock_another_one_is_held(monkeypatch):
    monkeypatch.setattr("flatstore.threads.atomic_steps._has_lock", False)
    held = []

    class Lock:
        def __enter__(self):
            held.append("begin")

        def __exit__(self, *_):
            held.append("end")

    monkeypatch.setattr("flatstore.threads.atomic_steps._lock", Lock())

    def add(x):
        held.append(x)

    try:
        unparted(add)(7)
    finally:
        STEPS.remove(add)
    assert held == ["begin", 7, "end"]
