"""A template is a layout as plain Python: names to shapes, dtypes and names of axes."""

import json
from collections import OrderedDict
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from tests.example_trees import DTYPES, Pair, says, trees

F4 = np.float32
AXON = {"dense_0.kernel": (2, 2), "dense_0.bias": (2,), "dense_1.kernel": (2, 1), "dense_1.bias": (1,)}


def test_dotted_names_are_rebuilt_into_nested_dicts() -> None:
    layout = fs.from_template(AXON, ".", align=1)
    assert list(layout.by_path) == ["dense_0/bias", "dense_0/kernel", "dense_1/bias", "dense_1/kernel"]
    assert layout.size == 9 and layout.nbytes == 36
    tree = fs.Store.zeros(layout).tree
    assert {node: sorted(inside) for node, inside in tree.items()} == {
        "dense_0": ["bias", "kernel"],
        "dense_1": ["bias", "kernel"],
    }
    assert type(tree) is dict and tree["dense_0"]["kernel"].shape == (2, 2)


def test_slashed_names_are_flatstores_paths() -> None:
    layout = fs.from_template({"my_net~1~0~1linear_0/w": [3], "b": []})
    assert fs.Store.zeros(layout).tree["my_net/~/linear_0"]["w"].shape == (3,)
    assert list(layout.by_path) == ["b", "my_net~1~0~1linear_0/w"]


def test_an_entry_is_a_shape_a_mapping_or_what_has_a_shape_and_a_dtype() -> None:
    row = fs.Layout.from_tree({"w": np.zeros(3, "i2")}, trainable="w", dims={"w": ("n",)}).leaves[0]
    layout = fs.from_template(
        {
            "a": (2,),
            "b": {"shape": [2, 3], "dtype": "bfloat16", "dims": ["in", None]},
            "c": np.zeros((4, 0), "c8"),
            "d": jax.ShapeDtypeStruct((), "int32"),
            "e": row,
        },
        dtype="float16",
    )
    found = [(x.shape, x.dtype.name, x.dims, x.trainable) for x in layout.leaves]
    assert found == [
        ((2,), "float16", None, True),
        ((2, 3), "bfloat16", ("in", None), True),
        ((4, 0), "complex64", None, True),
        ((), "int32", None, False),
        ((3,), "int16", ("n",), True),
    ]


def test_numbers_in_names_come_in_numeric_order_if_asked() -> None:
    names = {f"layers.{i}.w": (1,) for i in (10, 9, 2)} | {f"l{i}.w": (1,) for i in (10, 2)}
    assert list(fs.from_template(names, ".").by_path) == ["l10/w", "l2/w", "layers/10/w", "layers/2/w", "layers/9/w"]
    numeric = ["l2/w", "l10/w", "layers/2/w", "layers/9/w", "layers/10/w"]
    assert list(fs.from_template(names, ".", order="numeric").by_path) == numeric
    given_order = fs.from_template(names, ".", order="given")
    assert list(given_order.by_path) == ["layers/10/w", "layers/9/w", "layers/2/w", "l10/w", "l2/w"]
    assert type(fs.Store.zeros(given_order).tree) is OrderedDict


@given(trees(DTYPES), st.sampled_from([1, 64]))
def test_json_takes_a_layout_there_and_back(tree: Any, align: int) -> None:
    layout = fs.Layout.from_tree({"tree": tree}, align=align)
    sent = json.dumps(fs.to_template(layout))
    back = fs.from_template(json.loads(sent), order="given", align=align)
    assert back == layout
    assert fs.to_template(back) == json.loads(sent)


def test_ties_names_of_axes_and_what_trains_survive_json() -> None:
    w = np.ones((2, 3), F4)
    tree = {"a[0]": Pair(w, w), "*": w + 1, "n": np.arange(3), "f": np.ones(3, F4)}
    layout = fs.Layout.from_tree(tree, trainable=["a*", "n"], dims={"a*": ("in", "out")})
    template = json.loads(json.dumps(fs.to_template(layout)))
    assert template["a[0]/right"] == {
        "shape": [2, 3],
        "dtype": "float32",
        "dims": ["in", "out"],
        "tied": "a[0]/left",
    }
    assert template["n"]["trainable"] is True and template["f"]["trainable"] is False
    assert fs.from_template(template, order="given") == layout
    dotted = {name.replace("/", "."): row for name, row in template.items()}
    dotted["a[0].right"]["tied"] = "a[0].left"
    assert fs.from_template(dotted, ".", order="given") == layout
    assert fs.from_template(dict(layout.by_path), order="given") == layout


def test_an_order_in_memory_is_not_in_a_template() -> None:
    layout = fs.Layout.from_tree({"a": np.ones(2, F4), "b": np.ones(3, F4)})
    ordered = fs.replan(layout, order=["b", "a"])
    assert ordered != layout and fs.from_template(fs.to_template(ordered)) == layout


def test_a_template_of_a_hundred_billion_parameters_allocates_nothing() -> None:
    assert fs.from_template({f"l{i}.w": (100_000, 10_000) for i in range(100)}, ".").size == 10**11


def test_all_entries_that_cannot_be_read_are_listed() -> None:
    with pytest.raises(fs.StructureError) as error:
        fs.from_template(
            {
                "a": 2,
                "b": (2, -1),
                "c": {"shape": [2], "dtype": "float31"},
                "d": {"shape": [2], "stride": 1},
                "e": {"dtype": "float32"},
                "f": {"shape": [True]},
                "g": {"shape": [2], "dims": "n"},
                "h": {"shape": [2], "trainable": "yes"},
                "i": np.array(["x"]),
                "j": {"shape": [1], "dtype": "O"},
                "k": (1,),
            }
        )
    says(error, "'stride'", "float31", "2", "(2, -1)", "10 leaves of the template that cannot be read")
    assert [x.path for x in error.value.differences] == list("abcdefghij")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fs.from_template({"a": (1,), "a.b": (1,)}, "."), ["'a'", "'a.b'", "rename one of them"]),
        (lambda: fs.to_template({"a": 1.0}), ["dict", "Layout.from_tree"]),  # type: ignore[arg-type]
        (lambda: fs.to_template(fs.Store.from_tree({"a": 1.0})), ["Store", "store.layout"]),  # type: ignore[arg-type]
        (lambda: fs.from_template({"a~b": (1,)}), ["'a~b'", "'~0'"]),
        (lambda: fs.from_template({"a": (1,)}, order="natural"), ["'natural'", "'numeric'"]),  # type: ignore[arg-type]
        (lambda: fs.from_template([1]), ["list"]),  # type: ignore[arg-type]
        (lambda: fs.from_template({}), ["numeric leaf"]),
        (lambda: fs.from_template({"a": {"shape": [2], "dims": ["n", "m"]}}), ["'a'", "(2,)"]),
        (lambda: fs.from_template({"a": {"shape": [2], "tied": "z"}}), ["'z'"]),
        (lambda: fs.from_template({"a": (2,), "b": {"shape": [3], "tied": "a"}}), ["'a'", "float32[3]"]),
        (lambda: fs.from_template({3: (1,)}), ["3"]),  # type: ignore[dict-item]
    ],
)
def test_bad_input_says_what_was_expected(call: Any, words: list[str]) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    says(error, *words)
    assert "escape=" not in str(error.value)
