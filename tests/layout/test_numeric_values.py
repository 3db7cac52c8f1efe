"""What cannot be read as an array: an error of ours that names the leaf, with advice that fits."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch

import flatstore as fs
from tests.example_trees import F4, says

MAKERS = (fs.Layout.from_tree, fs.Store.from_tree)


class Claims:
    """An object with a dtype and a shape that it says, and a conversion."""

    def __init__(self, convert: Callable[[], Any] = lambda: np.ones((2, 3), F4), shape: Any = (2, 3)) -> None:
        self.dtype, self.shape, self.convert = np.dtype(F4), shape, convert

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.convert()


def raises(error: BaseException) -> Callable[[], Any]:
    def convert() -> Any:
        raise error

    return convert


@pytest.mark.parametrize(
    "error", [AttributeError("data"), KeyError("w"), OSError("gone"), RuntimeError(), ValueError()]
)
def test_whatever_a_conversion_raises_is_said_with_the_path(error: Exception) -> None:
    with pytest.raises(TypeError) as caught:
        fs.Store.from_tree({"in": {"w": Claims(raises(error))}})
    said = f"{type(error).__name__}: {error}" if str(error) else f"{type(error).__name__};"
    says(caught, "'in/w': ", "got a Claims, of which it makes", said)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()])
def test_an_interrupt_in_a_conversion_or_a_property_is_not_swallowed(error: BaseException) -> None:
    with pytest.raises(type(error)):
        fs.Store.from_tree({"w": Claims(raises(error))})


def test_an_exception_of_a_signal_handler_in_a_conversion_comes_through_as_it_is() -> None:
    signals = [TimeoutError("a signal")]

    def convert() -> Any:
        if signals:
            raise signals.pop()
        return np.ones((2, 3), F4)

    with pytest.raises(TimeoutError, match="a signal"):
        fs.Store.from_tree({"w": Claims(convert)})


def test_an_exception_of_a_signal_handler_comes_through_a_torch_tensor_as_it_is() -> None:
    signals = [TimeoutError("a signal")]

    class Struck(torch.Tensor):
        def numpy(self, **_: Any) -> Any:
            if signals:
                raise signals.pop()
            return super().numpy()

    with pytest.raises(TimeoutError, match="a signal"):
        fs.Store.zeros(fs.Layout.from_tree({"w": np.zeros(2, F4)})).assign({"w": torch.ones(2).as_subclass(Struck)})


class Lost:
    """An object whose shape or dtype cannot be had."""

    def __init__(self, of: str) -> None:
        self.of = of

    @property
    def shape(self) -> Any:
        if self.of == "shape":
            raise OSError("the file is closed")
        return (2,)

    @property
    def dtype(self) -> Any:
        if self.of == "dtype":
            raise OSError("the file is closed")
        return np.dtype(F4)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("of", ["shape", "dtype"])
def test_a_property_that_raises_is_said_with_the_path(make: Any, of: str) -> None:
    with pytest.raises(TypeError) as error:
        make({"in": {"w": Lost(of)}})
    says(error, "'in/w': ", "a dtype and a shape that NumPy has", "got a Lost", "OSError: the file is closed")


@pytest.mark.parametrize("shape", [(2.5,), (np.float32(2),), ("2",), 3, (None,)])
def test_a_shape_that_is_not_whole_is_refused_and_not_rounded(shape: Any) -> None:
    for make in MAKERS:
        with pytest.raises(TypeError) as error:
            make({"w": Claims(shape=shape)})
        says(error, "'w': ", f"got a Claims, dtype float32, shape {shape} (TypeError: ")


def test_a_conversion_to_a_masked_array_is_refused() -> None:
    masked = np.ma.masked_array(np.ones((2, 3), F4), np.eye(2, 3))
    for make in (fs.Store.from_tree, fs.destructure, fs.Store.from_tree({"w": np.zeros((2, 3), F4)}).assign):
        with pytest.raises(TypeError) as error:
            make({"w": Claims(lambda: masked)})
        says(error, "'w': expected an array without a mask, got a MaskedArray", "filled")


def test_a_matrix_of_numpys_is_read_as_an_array() -> None:
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix([[1, 2]], F4)
    assert fs.Store.from_tree({"w": Claims(lambda: matrix, (1, 2))})["w"].tolist() == [[1, 2]]


def test_a_leaf_of_a_layout_is_a_shape_without_numbers() -> None:
    leaf = fs.Layout.from_tree({"w": np.ones(3, F4)}).leaves[0]
    assert fs.Layout.from_tree({"x": leaf}).leaves[0].shape == (3,)
    with pytest.raises(TypeError) as error:
        fs.Store.from_tree({"x": leaf})
    says(error, "'x': expected an array, got only its shape", "fix: pass arrays, or build from shapes")


def test_a_module_rides_along() -> None:
    assert fs.Store.from_tree({"np": np, "w": np.ones(1)}).tree["np"] is np


@pytest.mark.parametrize("make", [*MAKERS, fs.destructure])
def test_a_lazy_tensor_of_torch_is_an_error_that_says_how_to_initialise_it(make: Any) -> None:
    for tensor in (torch.nn.LazyLinear(3).weight, torch.nn.LazyBatchNorm1d().running_mean):
        with pytest.raises(TypeError) as error:
            make({"in": {"w": tensor}})
        says(error, "'in/w': expected an initialised torch tensor, got a lazy one", "call the module once")


@pytest.mark.parametrize("make", MAKERS)
def test_a_tensor_on_meta_has_no_numbers_and_the_advice_fits(make: Any) -> None:
    tensor = torch.ones(3, device="meta")
    with pytest.raises(ValueError) as error:
        make({"w": tensor})
    says(error, "'w': ", "got one on meta", "to_empty(device='cpu')", "ShapeDtypeStruct(shape, dtype)")
    assert ".cpu()" not in str(error.value)
    assert fs.Layout.from_tree({"w": jax.ShapeDtypeStruct(tuple(tensor.shape), F4)}).size == 3
