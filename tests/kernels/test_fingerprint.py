"""The fingerprint of a function says what it executes: no more, so that it is found again; no less, so never stale."""

import sys
import textwrap
from types import ModuleType

import numba
import numpy as np
import pytest

from flatstore.kernels import COMPILES, cpu
from flatstore.kernels.fingerprint import Unknown, fingerprint, type_name

CODE = """
    import math
    import numba
    import numpy as np
    import constants

    SIZE = 4
    KEYS = np.array([1, 2], np.uint32)
    WIDE = np.uint64(7)
    PAIR = (1, 2.0)

    @numba.njit(fastmath={"nnan"})
    def inner(x):
        return x + SIZE

    def factory(step, other):
        def kernel(x, unit=1.0):
            # A comment.
            y = np.sqrt(x) + math.pi + KEYS[0] + WIDE + PAIR[1] + constants.DEPTH
            if y < 0:
                raise ValueError("negative")
            return inner(y) * step + other(y) + (-0.0)
        return kernel

    kernel = factory(5, inner)
"""


@pytest.fixture
def read(monkeypatch):
    """Runs code as a module, and returns the module."""

    def module(code=CODE, name="userscode", depth=3):
        constants, made = ModuleType("constants"), ModuleType(name)
        constants.DEPTH = depth
        monkeypatch.setitem(sys.modules, "constants", constants)
        monkeypatch.setitem(sys.modules, name, made)
        exec(textwrap.dedent(code), made.__dict__)
        return made

    return module


@pytest.mark.parametrize(
    "old, new",
    [
        ("# A comment.", "# Another, longer comment.\n"),
        ("SIZE = 4", "UNUSED = object()\n\n    SIZE = 4"),
        ("SIZE = 4", "SIZE = 2 + 2"),
        ("np.array([1, 2], np.uint32)", "np.arange(1, 3, dtype=np.uint32)"),
    ],
)
def test_it_stays_for_an_edit_that_changes_nothing(read, old, new):
    assert CODE.count(old) == 1
    assert fingerprint(read(CODE.replace(old, new)).kernel) == fingerprint(read().kernel)


@pytest.mark.parametrize(
    "old, new",
    [
        ("SIZE = 4", "SIZE = 5"),
        ("SIZE = 4", "SIZE = 4.0"),
        ("SIZE = 4", "SIZE = np.int64(4)"),
        ("[1, 2], np.uint32", "[1, 3], np.uint32"),
        ("[1, 2], np.uint32", "[1, 2], np.int32"),
        ("[1, 2], np.uint32", "[[1, 2]], np.uint32"),
        ("np.uint64(7)", "np.uint32(7)"),
        ("PAIR = (1, 2.0)", "PAIR = (1, 2)"),
        ("return x + SIZE", "return x - SIZE"),
        ('fastmath={"nnan"}', "fastmath=True"),
        ("factory(5, inner)", "factory(6, inner)"),
        ("factory(5, inner)", "factory(5, numba.njit(lambda x: x))"),
        ("np.sqrt", "np.cbrt"),
        ("import math", "import cmath as math"),
        ("unit=1.0", "unit=2.0"),
        ('"negative"', '"below zero"'),
        ("-0.0", "0.0"),
        ("y < 0", "y < False"),
    ],
)
def test_it_changes_with_what_is_executed(read, old, new):
    assert CODE.count(old) == 1
    assert fingerprint(read(CODE.replace(old, new)).kernel) != fingerprint(read().kernel)


def test_it_changes_with_a_constant_of_another_module(read):
    assert fingerprint(read(depth=3).kernel) != fingerprint(read(depth=4).kernel)


def test_it_changes_with_the_module_that_a_function_is_in(read):
    # Machine code is loaded together with its module.
    assert fingerprint(read(name="one").kernel) != fingerprint(read(name="two").kernel)


def test_functions_that_call_each_other_have_one(read):
    code = """
        import numba
        @numba.njit
        def even(x):
            return True if x == 0 else odd(x - 1)
        @numba.njit
        def odd(x):
            return False if x == 0 else even(x - 1)
    """
    one = fingerprint(read(code).even.py_func)
    assert one == fingerprint(read(code).even.py_func)
    assert one != fingerprint(read(code.replace("x == 0 else even", "x == 1 else even")).even.py_func)


def test_an_intrinsic_enters_by_the_code_that_generates_it(read):
    code = """
        from numba import types
        from numba.core import cgutils
        from numba.extending import intrinsic
        @intrinsic
        def increased(typingctx, x):
            def codegen(context, builder, signature, args):
                return builder.add(args[0], args[0].type(1))
            return types.int64(types.int64), codegen
        def kernel(x):
            return increased(x)
    """
    assert fingerprint(read(code).kernel) == fingerprint(read(code).kernel)
    assert fingerprint(read(code).kernel) != fingerprint(read(code.replace(".type(1)", ".type(2)")).kernel)


def test_an_intrinsic_enters_by_the_functions_and_classes_that_it_uses_as_it_is_compiled(read):
    code = """
        from numba import types
        from numba.extending import intrinsic
        STEPS = {"one": (1, "add")}
        class Builder:
            def __init__(self, builder):
                self.builder = builder
            def added(self, x):
                return getattr(self.builder, STEPS["one"][1])(x, constant(x, 3))
        def constant(x, number):
            return x.type(number)
        @intrinsic
        def increased(typingctx, x):
            def codegen(context, builder, signature, args):
                return Builder(builder).added(args[0])
            return types.int64(types.int64), codegen
        def kernel(x):
            return increased(x)
    """
    one = fingerprint(read(code).kernel)
    assert fingerprint(read(code).kernel) == one
    for old, new in [
        ("(x, 3)", "(x, 4)"),
        ("type(number)", "type(-number)"),
        ('"add"', '"sub"'),
        ('"one": (1', '"one": (2'),
    ]:
        assert fingerprint(read(code.replace(old, new)).kernel) != one


LOOPS = {
    "perturb": lambda dtype, width: cpu.perturbation_loop(dtype, width),
    "sample": lambda dtype, width: cpu.sampling_loop(dtype, width),
    "update": lambda dtype, width: cpu.update_loop(dtype, width, dtype == "float32"),
    "keep a log": lambda dtype, width: cpu.logged_loop(dtype, width, False, True),
    "use a log": lambda dtype, width: cpu.logged_loop(dtype, width, True, False),
    "update by a log": lambda dtype, width: cpu.update_loop(dtype, width, False, True),
}


@pytest.mark.skipif(not COMPILES, reason="nothing is compiled")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("width", [1, 16])
@pytest.mark.parametrize("loop", LOOPS)
def test_loops_over_noise_have_one_so_that_they_are_kept_on_disk(loop, dtype, width):
    if "log" in loop and dtype == "float32":
        pytest.skip("there is no such loop")
    assert len(fingerprint(LOOPS[loop](dtype, width).py_func)) == 32


@pytest.mark.parametrize(
    "value",
    ["object()", "[1, 2]", "{'a': 1}", "lambda x: x", "type('Mine', (), {})", "constants", "np.array([None])"],
)
def test_what_it_does_not_know_has_none(read, value):
    code = f"import constants\nimport numpy as np\nthing = {value}\ndef kernel(x):\n    return thing, x\n"
    with pytest.raises(Unknown):
        fingerprint(read(code).kernel)


def test_a_function_whose_module_cannot_be_imported_has_none():
    scope = {"__name__": "nowhere"}
    exec("def kernel(x):\n    return x", scope)
    with pytest.raises(Unknown, match="kernel, whose module nowhere cannot be imported"):
        fingerprint(scope["kernel"])


def test_types_of_numbers_arrays_and_tuples_have_a_name_of_their_own():
    frozen = np.ones(2)
    frozen.flags.writeable = False
    values = [
        *(1, 1.0, 1j, True, None, "a", np.float32(1), np.uint8(1), (1, 2), (1, 2, 3), (1, 2.0), ((1, 2), 3)),
        *(np.ones(2), np.ones(4)[::2], np.ones((2, 2)), np.ones((2, 2)).T, np.ones(2, np.float32), frozen),
        *((np.ones(2), 1), (frozen, 1), np.ones(2, [("a", "f4")]), np.ones(2, [("b", "f4")])),
    ]
    names = [type_name(numba.typeof(value)) for value in values]
    assert len(set(names)) == len(names)


def test_types_that_say_nothing_of_their_contents_have_none():
    for value in (numba.njit(lambda x: x), numba.typed.List([1])):
        with pytest.raises(Unknown, match="the type "):
            type_name(numba.typeof(value))
