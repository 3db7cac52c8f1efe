"""DLPack and the array API: a store's views go to any consumer, and any producer's memory can be a store."""

import array
import ctypes
import weakref
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flatstore as fs
from flatstore.interop.torch import from_numpy
from tests.example_trees import bits, same_bits, says

F4 = np.float32
LAYOUT = fs.Layout.from_tree({"b": np.zeros(3, F4), "w": np.zeros((2, 4), F4)}, align=1)
SIXTEEN_BITS_OR_LESS = ["bfloat16", "float8_e4m3fn", "float8_e5m2"]


def address(x: Any) -> int:
    """Where an array of any library starts."""
    pointer = getattr(x, "data_ptr", None) or getattr(x, "unsafe_buffer_pointer", None)
    return pointer() if pointer else x.ctypes.data


def filled() -> fs.Store:
    """A store that JAX can take as it is."""
    return fs.Store.from_tree({"b": np.arange(16, dtype=F4), "w": np.arange(32, dtype=F4).reshape(4, 8)})


@pytest.mark.parametrize("xp", [np, torch, jnp], ids=lambda xp: xp.__name__)
def test_flat_and_leaves_go_to_a_consumer_of_the_array_api_as_views(xp: ModuleType) -> None:
    store = filled()
    for view in (store.flat, store["b"], store["w"]):
        got = xp.from_dlpack(view)
        assert address(got) == view.ctypes.data and got.shape == view.shape
        assert same_bits(np.asarray(got), view)


def test_what_a_consumer_writes_stands_in_the_store() -> None:
    store = filled()
    torch.from_dlpack(store.flat).mul_(2)
    np.from_dlpack(store["b"])[0] = -1
    memoryview(store["w"])[3, 7] = 5.0
    assert store.to_vector().tolist() == [-1.0, *range(2, 32, 2), *range(0, 62, 2), 5.0]


@pytest.mark.parametrize("dtype", SIXTEEN_BITS_OR_LESS)
def test_types_that_numpy_has_no_name_for_go_to_torch_and_jax_as_what_they_are(dtype: str) -> None:
    store = fs.Store.from_tree({"w": bits((4, 8), dtype, 0)})
    view = store["w"]
    tensor = from_numpy(view)
    assert tensor.data_ptr() == address(view) and tensor.dtype == getattr(torch, dtype)
    assert same_bits(tensor.view(torch.uint8).numpy(), view.view(np.uint8))
    with store.lend("jax") as params:
        assert address(params["w"]) == address(view) and params["w"].dtype == dtype


class Producer:
    """An array that shows itself through DLPack only."""

    device = (1, 0)

    def __init__(self, array: Any, edit: Callable[[int], None] = lambda start: None) -> None:
        self.array, self.edit, self.keywords = array, edit, {}

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **keywords: Any) -> Any:
        self.keywords = keywords
        capsule = self.array.__dlpack__(**keywords)
        get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
            ("PyCapsule_GetPointer", ctypes.pythonapi)
        )
        self.edit(get(capsule, b"dltensor_versioned"))
        return capsule


class Old(Producer):
    """One from before DLPack 1.0: it knows no keywords, and cannot say that it is read-only."""

    def __dlpack__(self, stream: Any = None) -> Any:
        return self.array.__dlpack__()


class Deaf(Producer):
    """One that takes the keywords and answers as before DLPack 1.0."""

    def __dlpack__(self, **_: Any) -> Any:
        return self.array.__dlpack__()


class OnAnotherDevice(Producer):
    """One whose memory is a GPU's. It must not even be asked to export."""

    device = (2, 0)

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("asked")


class NeedsACopy(Producer):
    """One that has no memory to show."""

    def __dlpack__(self, *, copy: Any = None, **_: Any) -> Any:
        assert copy is False
        raise BufferError("cannot export without a copy")


class Says(Producer):
    """One that does not keep to the standard."""

    def __init__(self, device: Any, capsule: Any) -> None:
        self.device, self.capsule = device, capsule

    def __dlpack__(self, **_: Any) -> Any:
        if isinstance(self.capsule, Exception):
            raise self.capsule
        return self.capsule


class Pinned(Producer):
    """Memory of the host that a GPU knows of."""

    device = (3, 0)


def set_copied(start: int) -> None:
    ctypes.c_uint64.from_address(start + 24).value |= 2


@pytest.mark.parametrize("kind", [Producer, Pinned])
def test_a_producer_is_asked_for_a_view_in_a_version_that_can_be_read_only(kind: Any) -> None:
    owner = np.zeros(11, F4)
    producer = kind(owner)
    store = fs.Store.wrap(producer, LAYOUT)
    assert producer.keywords["copy"] is False and producer.keywords["max_version"] >= (1, 0)
    store["w"][1, 3] = 4
    assert owner[10] == 4 and store.flat.ctypes.data == owner.ctypes.data


@pytest.mark.parametrize("dtype", [*SIXTEEN_BITS_OR_LESS, "complex64", "bool", "float16", "int64"])
def test_a_producer_of_any_dtype_is_memory(dtype: str) -> None:
    owner = torch.zeros(64 // getattr(torch, dtype).itemsize, dtype=getattr(torch, dtype))
    store = fs.Store.wrap(Producer(owner), fs.Layout.from_tree({"w": np.zeros(owner.shape, dtype)}, align=1))
    store["w"][1] = 1
    assert owner[1] == 1 and not owner[0] and store["w"].ctypes.data == owner.data_ptr()


def read_only() -> np.ndarray:
    owner = np.zeros(11, F4)
    owner.flags.writeable = False
    return owner


def deleted() -> jax.Array:
    gone = jnp.zeros(11)
    gone.delete()
    return gone


def used_up() -> Any:
    capsule = np.zeros(11, F4).__dlpack__(max_version=(1, 0))
    keep = type("Keep", (Producer,), {"__dlpack__": lambda self, **_: capsule})(None)
    np.from_dlpack(keep)
    return capsule


BAD: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "read-only": (lambda: Producer(read_only()), ("writable memory", "read-only Producer")),
    "jax": (lambda: jnp.zeros(11), ("ArrayImpl", "read-only", "wrap a writable copy")),
    "jax bfloat16": (lambda: jnp.zeros(32, jnp.bfloat16), ("ArrayImpl", "read-only")),
    "deleted": (deleted, ("ArrayImpl", "read-only")),
    "old": (lambda: Old(np.zeros(11, F4)), ("DLPack 1.0", "an older one of Old", "read-only")),
    "deaf": (lambda: Deaf(np.zeros(11, F4)), ("DLPack 1.0", "an older one of Deaf")),
    "device": (
        lambda: OnAnotherDevice(np.zeros(11, F4)),
        ("memory of the host", "device type 2", "copy it to the host"),
    ),
    "copies": (lambda: NeedsACopy(np.zeros(11, F4)), ("NeedsACopy: cannot export without a copy",)),
    "copied": (lambda: Producer(np.zeros(11, F4), set_copied), ("expected a view, got a copy", "that owns the bytes")),
    "raises": (lambda: Says((1, 0), ValueError("not now")), ("memory that NumPy can view, got Says: not now",)),
    "has none": (lambda: Says((1, 0), AttributeError("gone")), ("memory that NumPy can view, got Says: gone",)),
    "no capsule": (lambda: Says((1, 0), None), ("got Says: its __dlpack__ returned NoneType, not a DLPack capsule",)),
    "used up": (
        lambda: Says((1, 0), used_up()),
        ("got Says: its __dlpack__ returned PyCapsule, not a DLPack capsule",),
    ),
    "no device": (lambda: Says(None, None), ("got Says: its __dlpack_device__ did not return (device type, device)",)),
    "device in words": (lambda: Says("cpu", None), ("its __dlpack_device__ did not return (device type, device)",)),
    "meta": (lambda: torch.zeros(11, device="meta"), ("host memory", "meta")),
    "small": (lambda: Producer(np.zeros(10, F4)), ("at least 44 bytes, got 40",)),
    "strided": (lambda: Producer(np.zeros((11, 2), F4)[:, 0]), ("contiguous",)),
    "grad": (lambda: Producer(torch.zeros(11, requires_grad=True)), ("Producer", "require gradient")),
}


@pytest.mark.parametrize("kind", BAD)
def test_memory_that_the_standard_does_not_let_us_write_is_refused(kind: str) -> None:
    make, words = BAD[kind]
    with pytest.raises(ValueError) as error:
        fs.Store.wrap(make(), LAYOUT)
    says(error, *words)


def test_a_refused_export_is_given_back() -> None:
    owner = np.zeros(11, F4)
    alive = weakref.ref(owner)
    with pytest.raises(ValueError):
        fs.Store.wrap(Producer(owner, set_copied), LAYOUT)
    del owner
    assert alive() is None


def test_the_buffer_protocol_is_memory_too() -> None:
    shared = SharedMemory(create=True, size=64)
    try:
        for buffer in (array.array("f", [0] * 11), (ctypes.c_float * 11)(), shared.buf):
            store = fs.Store.wrap(buffer, LAYOUT)
            store["b"][2] = 3
            assert np.frombuffer(buffer, F4)[2] == 3
            del store, buffer
    finally:
        shared.close()
        shared.unlink()
