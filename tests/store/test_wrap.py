"""`wrap`: a store over memory that the user holds."""

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flatstore as fs
from tests.example_trees import says
from tests.interop.modules import fake, nested, quantised

F4 = np.float32
LAYOUT = fs.Layout.from_tree({"b": np.zeros(3, F4), "w": np.zeros((2, 4), F4)}, align=16)


def aligned(nbytes: int, align: int = 64, past: int = 0) -> np.ndarray:
    """Zeroed bytes that start `past` bytes after a multiple of `align`."""
    array = np.zeros(nbytes + 2 * align, np.uint8)
    skip = -array.ctypes.data % align + past
    return array[skip : skip + nbytes]


def owners() -> Iterator[tuple[str, Any, Any]]:
    """Memory that somebody else holds, and a function that shows it as bytes."""
    array = aligned(LAYOUT.nbytes)
    yield "numpy", array, array
    floats = aligned(LAYOUT.nbytes).view(F4).reshape(-1, 2)
    yield "numpy 2-d float", floats, floats.reshape(-1).view(np.uint8)
    raw = bytearray(LAYOUT.nbytes)
    yield "bytearray", raw, np.frombuffer(raw, np.uint8)
    tensor = torch.from_numpy(aligned(LAYOUT.nbytes).view(F4))
    yield "torch", tensor, tensor.numpy().view(np.uint8)
    half = torch.from_numpy(aligned(LAYOUT.nbytes).view(np.int16)).view(torch.bfloat16)
    yield "torch bfloat16", half, half.view(torch.uint8).numpy()
    mapping = mmap.mmap(-1, 4096)
    yield "mmap", mapping, np.frombuffer(mapping, np.uint8)
    view = memoryview(aligned(LAYOUT.nbytes))
    yield "memoryview", view, np.asarray(view)
    shared = aligned(LAYOUT.nbytes)
    yield "DLPack", Producer(shared), shared


class Producer:
    """Something that knows DLPack and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


@pytest.mark.parametrize(("buffer", "shown"), [pytest.param(b, s, id=name) for name, b, s in owners()])
def test_wrap_sees_and_makes_the_changes_of_the_owner(buffer: Any, shown: np.ndarray) -> None:
    store = fs.Store.wrap(buffer, LAYOUT)
    store["w"][0, 1] = 1.5
    store.flat[0] = -2
    assert shown[20:24].view(F4) == 1.5 and shown[:4].view(F4) == -2
    shown[:4] = np.frombuffer(np.float32(8).tobytes(), np.uint8)
    assert store["b"][0] == store.tree["b"][0] == 8
    assert store.buffer.size == LAYOUT.nbytes


def test_what_stands_in_the_buffer_are_the_parameters() -> None:
    source = fs.Store.from_tree({"b": np.arange(3, dtype=F4), "w": np.ones((2, 4), F4)}, align=16)
    np.testing.assert_array_equal(fs.Store.wrap(source.buffer, LAYOUT).to_vector(), [0, 1, 2] + [1] * 8)


def with_a_gap() -> np.ndarray:
    array = aligned(LAYOUT.nbytes)
    array[13] = 1
    return array


BAD = {
    "small": (aligned(LAYOUT.nbytes - 1), ValueError, "48 bytes"),
    "read-only": (np.frombuffer(bytes(256), np.uint8), ValueError, "read-only"),
    "jax": (jnp.zeros(16), ValueError, "read-only"),
    "misaligned": (aligned(LAYOUT.nbytes, past=4), ValueError, "multiple of 16"),
    "not contiguous": (aligned(256)[::2], ValueError, "contiguous"),
    "objects": (np.zeros(64, object), ValueError, "object"),
    "values in a gap": (with_a_gap(), ValueError, "zeros between the leaves"),
    "no memory": ([0.0] * 64, TypeError, "list"),
    "text": ("0" * 64, TypeError, "str"),
}


@pytest.mark.parametrize("kind", BAD)
def test_memory_that_cannot_be_a_store_is_refused_and_left_alone(kind: str) -> None:
    buffer, expected, words = BAD[kind]
    before = np.asarray(buffer).tobytes()
    with pytest.raises(expected) as error:
        fs.Store.wrap(buffer, LAYOUT)
    says(error, words)
    assert np.asarray(buffer).tobytes() == before


@pytest.mark.parametrize("layout", [{"b": np.zeros(3, F4)}, None, 11])
def test_only_a_layout_says_what_lies_in_the_buffer(layout: Any) -> None:
    for make in (
        lambda: fs.Store.wrap(aligned(64), layout),
        lambda: fs.Population.wrap(aligned(64), layout, 2),
        lambda: fs.Store.zeros(layout),
    ):
        with pytest.raises(TypeError) as error:
            make()
        says(error, f"expected a Layout, got {type(layout).__name__}", "Layout.from_tree(tree)")


OUT_OF_NUMPY: dict[str, tuple[Callable[[], torch.Tensor], str, str]] = {
    "conjugate": (lambda: torch.ones(3, dtype=torch.complex64).conj(), "conjugate bit", "resolve_conj()"),
    "negated": (lambda: torch.ones(3, dtype=torch.complex64).conj().imag, "negative bit", "resolve_neg()"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "Sparse layout", "to_dense()"),
    "mkldnn": (lambda: torch.eye(3).to_mkldnn(), "Mkldnn layout", "to_dense()"),
    "fake": (fake, "tensor subclasses", ""),
    "quantised": (quantised, "torch.qint8", "dequantize()"),
    "half complex": (lambda: torch.zeros(4, dtype=torch.half).view(torch.complex32), "torch.complex32", ""),
    "four bits": (lambda: torch.empty(4, dtype=torch.uint4), "torch.uint4", ""),
    "nested": (nested, "ested", ""),
}


@pytest.mark.parametrize("kind", OUT_OF_NUMPY)
@pytest.mark.parametrize("into", ["wrap", "from_tree", "assign", "destructure", "flatten"])
def test_a_torch_tensor_that_numpy_cannot_view_is_refused(kind: str, into: str) -> None:
    make, got, fix = OUT_OF_NUMPY[kind]
    tensor = make()
    shape = tuple(tensor.shape) if kind != "nested" else (3,)
    dtype = np.complex64 if kind == "conjugate" else F4
    store = fs.Store.from_tree({"a": np.ones(2, F4), "b": np.ones(shape, dtype)}, tied=False)
    before = store.buffer.tobytes()
    tree = {"a": np.zeros(2, F4), "b": tensor}
    calls: dict[str, Callable[[], Any]] = {
        "wrap": lambda: fs.Store.wrap(tensor, LAYOUT),
        "from_tree": lambda: fs.Store.from_tree(tree),
        "assign": lambda: store.assign(tree),
        "destructure": lambda: fs.destructure(tree),
        "flatten": lambda: fs.destructure(store)[1].flatten(tree),
    }
    with pytest.raises((ValueError, TypeError)) as error:
        calls[into]()
    says(error, "'buffer'" if into == "wrap" else "'b'", got, fix)
    assert store.buffer.tobytes() == before


def test_a_wrapped_buffer_is_kept_alive_and_stays_writable_after_a_lend() -> None:
    layout = fs.Layout.from_tree({"w": np.zeros(16, F4)})
    for buffer in (aligned(64), torch.from_numpy(aligned(64)), memoryview(aligned(64)), Producer(aligned(64))):
        store = fs.Store.wrap(buffer, layout)
        del buffer
        store.flat[:] = 3
        with store.lend() as params:
            assert (np.asarray(params["w"] + 1) == 4).all() and not store["w"].flags.writeable
        store["w"][0] = 5
        assert store.flat[0] == 5


def test_two_stores_over_parts_of_one_buffer_know_of_each_others_lends() -> None:
    layout = fs.Layout.from_tree({"w": np.zeros(16, F4)})
    buffer = aligned(192)
    whole = fs.Store.wrap(buffer, fs.Layout.from_tree({"w": np.zeros(32, F4)}))
    first, last = fs.Store.wrap(buffer, layout), fs.Store.wrap(buffer[128:], layout)
    with first.lend():
        last.assign(np.ones(16, F4))
        with pytest.raises(fs.LentError) as error:
            whole.assign(np.ones(32, F4))
        says(error, "'w'")
    whole.assign(np.ones(32, F4))
    assert (first["w"] == 1).all()


@pytest.mark.parametrize("order", ["leaf", "member"])
def test_a_population_can_be_wrapped_too(order: Any) -> None:
    layout = fs.Layout.from_tree({"mean": np.zeros(2, F4), "w": np.zeros((2, 3), F4)}, trainable="w")
    owner = fs.Population.zeros(layout, 3, order=order)
    owner.assign(np.hstack([np.full((3, 2), 7, F4), np.arange(18, dtype=F4).reshape(3, 6)]))
    pop = fs.Population.wrap(owner.buffer, layout, 3, order=order)
    np.testing.assert_array_equal(pop.to_vector(), owner.to_vector())
    pop[2]["w"][:] = -1
    pop["mean"][0] = -2
    assert (owner["w"][2] == -1).all() and owner[0]["mean"][0] == -2
    with pytest.raises(ValueError) as error:
        fs.Population.wrap(owner.buffer[:-1], layout, 3, order=order)
    says(error, f"{owner.buffer.size:,} bytes")
    owner.buffer[72] = 1  # after the last member's last weight
    with pytest.raises(ValueError) as error:
        fs.Population.wrap(owner.buffer, layout, 3, order=order)
    says(error, "zeros between the leaves")


@pytest.mark.parametrize("kind", ["array", "buffer", "records", "buffer of records"])
def test_numbers_in_another_order_of_bytes_are_refused(kind):
    foreign = np.arange(4, dtype=np.dtype("f4").newbyteorder("S"))
    layout = fs.Layout.from_tree({"w": np.zeros(4, "f4")}, align=1)
    given = foreign.view([("x", foreign.dtype)]) if "records" in kind else foreign
    with pytest.raises(ValueError, match="expected numbers in the order of bytes of this machine, got dtype .*>f"):
        fs.Store.wrap(memoryview(given) if "buffer" in kind else given, layout)
    assert fs.Store.wrap(foreign.astype("f4"), layout)["w"].tolist() == [0, 1, 2, 3]


def test_numbers_in_another_order_of_bytes_are_refused_inside_of_structures_too():
    class Foreign(ctypes.BigEndianStructure if sys.byteorder == "little" else ctypes.LittleEndianStructure):
        _fields_ = [("x", ctypes.c_float)]

    class Native(ctypes.Structure):
        _fields_ = [("x", ctypes.c_float)]

    layout = fs.Layout.from_tree({"w": np.zeros(4, "f4")}, align=1)
    odd = np.zeros(4, [("a", np.dtype("f4").newbyteorder("S"))])
    for foreign in ((Foreign * 4)(), memoryview(odd)):
        with pytest.raises(ValueError, match="expected numbers in the order of bytes of this machine"):
            fs.Store.wrap(foreign, layout)
    for native in ((Native * 4)(), memoryview(np.zeros(4, [("a>b", "f4")]))):
        assert fs.Store.wrap(native, layout)["w"].tolist() == [0, 0, 0, 0]
