"""Torch modules that cannot be adopted: each tensor is named, and nothing has moved."""

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

import flatstore as fs
from flatstore.interop.torch import from_numpy, verify
from tests.example_trees import says
from tests.interop.modules import everything, fake, nested, quantised, tied_pair

F4 = np.float32


def beside(tensor: torch.Tensor, **more: torch.Tensor) -> nn.Module:
    """A module whose first leaf is fine and whose others may not be."""
    module = nn.Module()
    module.fine = nn.Parameter(torch.ones(3))
    for name, value in {"odd": tensor, **more}.items():
        if value.requires_grad or isinstance(value, nn.Parameter):
            module.register_parameter(name, nn.Parameter(value) if not isinstance(value, nn.Parameter) else value)
        else:
            module.register_buffer(name, value)
    return module


def overlapping() -> nn.Module:
    base = torch.zeros(6)
    return beside(nn.Parameter(base[:4]), other=nn.Parameter(base[2:]))


def frozen_twin() -> nn.Module:
    base = torch.zeros(6)
    return beside(nn.Parameter(base), other=base)


def parts() -> nn.Module:
    base = torch.zeros(9)
    return beside(nn.Parameter(base), b=nn.Parameter(base[1:2]), c=nn.Parameter(base[3:4]))


BAD: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "meta": (
        lambda: beside(nn.Parameter(torch.ones(3, device="meta"))),
        ("'odd'", "on meta", "to_empty(device='cpu')"),
    ),
    "lazy": (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)), ("'1.weight'", "'1.bias'", "with an example")),
    "lazy buffer": (nn.LazyBatchNorm1d, ("'running_mean'", "lazy")),
    "sparse": (lambda: beside(nn.Parameter(torch.eye(3).to_sparse())), ("'odd'", "torch.sparse_coo", ".to_dense()")),
    "mkldnn": (lambda: beside(torch.eye(3).to_mkldnn()), ("'odd'", "torch._mkldnn", ".to_dense()")),
    "quantised": (lambda: beside(quantised()), ("'odd'", "qint8", "before it is quantised")),
    "fake": (lambda: beside(nn.Parameter(fake())), ("'odd'", "FakeTensor")),
    "transposed": (lambda: beside(nn.Parameter(torch.ones(2, 3).T)), ("'odd'", "strides (1, 3) over shape (3, 2)")),
    "channels last": (
        lambda: nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last),
        (
            "'weight'",
            "contiguous memory",
            "got the order of torch.channels_last;",
            "memory_format=torch.contiguous_format",
        ),
    ),
    "expanded": (lambda: beside(torch.ones(1).expand(3)), ("'odd'", "strides (0,) over shape (3,)")),
    "nested": (
        lambda: beside(nested()),
        ("'odd'", "a plain tensor", "several shapes"),
    ),
    "conjugate": (lambda: beside(torch.ones(2, dtype=torch.complex64).conj()), ("'odd'", ".resolve_conj()")),
    "half complex": (lambda: beside(torch.zeros(2, dtype=torch.float16).view(torch.complex32)), ("'odd'", "complex32")),
    "int3": (lambda: beside(torch.empty(2, dtype=torch.int3)), ("'odd'", "a dtype that NumPy has", "int3")),
    "views of one another": (overlapping, ("'other'", "bytes of 'odd'", "clone()")),
    "views of one": (parts, ("2 leaves", "'b'", "'c'", "bytes of 'odd'")),
    "trains under one name only": (frozen_twin, ("'other'", "bytes of 'odd'")),
    "empty": (nn.ReLU, ("got one without", "adopt the whole model")),
}


def places(module: nn.Module) -> dict[str, Any]:
    """Which object every tensor is, and where its data lie."""
    named = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    out: dict[str, tuple[int, int | None]] = {}
    for name, tensor in named.items():
        plain = not is_lazy(tensor) and type(tensor.data) is torch.Tensor and tensor.layout is torch.strided
        out[name] = id(tensor), tensor.data_ptr() if plain else None
    return out


@pytest.mark.parametrize("kind", BAD)
def test_a_module_that_cannot_be_adopted_is_refused_and_left_alone(kind: str) -> None:
    make, words = BAD[kind]
    module = make()
    before = places(module)
    with pytest.raises(ValueError) as error:
        fs.adopt(module)
    says(error, *words)
    assert "'fine'" not in str(error.value) and places(module) == before


def follow(module: nn.Module, message: str) -> None:
    """Do what an error says, to the letter."""
    for path, fix in re.findall(r"'(\S+)': expected .*; fix: (.*)", message):
        param = buffer = everything(module)[path]
        scope = {"module": module, "param": param, "buffer": buffer, "torch": torch}
        _, instead, value = fix.partition("replace it by ")
        exec(f"module.{path} = {value}" if instead else fix.rpartition(": ")[2].partition(", then")[0], scope)


def image(*shape: int) -> torch.Tensor:
    return torch.arange(float(np.prod(shape))).reshape(shape)


def conj() -> torch.Tensor:
    return torch.tensor([[1 + 2j, 3j], [4 - 1j, 5]]).conj()


def jagged() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


COMPLEX = np.array([[1 - 2j, -3j], [4 + 1j, 5]])
ADVICE: dict[str, tuple[Callable[[], torch.Tensor], Any, str]] = {
    "sparse": (lambda: nn.Parameter(torch.eye(3).to_sparse()), np.eye(3), "torch.sparse_coo"),
    "a sparse buffer": (lambda: torch.eye(3).to_sparse(), np.eye(3), "torch.sparse_coo"),
    "mkldnn": (lambda: torch.eye(3).to_mkldnn(), np.eye(3), "torch._mkldnn"),
    "quantised": (quantised, np.ones(3), "qint8"),
    "nested": (nested, [[1, 1, 0], [1, 1, 1]], "several shapes"),
    "jagged": (jagged, [[1, 1, 0], [1, 1, 1]], "several shapes"),
    "transposed": (lambda: nn.Parameter(image(2, 3).T), image(2, 3).numpy().T, "strides (1, 3) over shape (3, 2);"),
    "permuted": (lambda: image(2, 3, 4, 5).permute(3, 2, 1, 0), image(2, 3, 4, 5).numpy().T, "shape (5, 4, 3, 2);"),
    "channels last": (
        lambda: nn.Parameter(image(2, 3, 4, 5).to(memory_format=torch.channels_last)),
        image(2, 3, 4, 5),
        "the order of torch.channels_last;",
    ),
    "channels last of volumes": (
        lambda: image(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),
        image(2, 3, 4, 5, 6),
        "the order of torch.channels_last_3d;",
    ),
    "expanded": (lambda: torch.ones(1).expand(3), np.ones(3), "over shape (3,), elements that share memory;"),
    "windows": (lambda: image(4).unfold(0, 2, 1), [[0, 1], [1, 2], [2, 3]], "elements that share memory;"),
    "a row twice": (lambda: image(4).as_strided((2, 2), (0, 3)), [[0, 3], [0, 3]], "elements that share memory;"),
    "columns": (lambda: nn.Parameter(image(2, 3)[:, :2]), [[0, 1], [3, 4]], "gaps between elements;"),
    "every other one": (lambda: image(6)[::2], [0, 2, 4], "gaps between elements;"),
    "conjugate": (lambda: nn.Parameter(conj()), COMPLEX, "the conjugate of others"),
    "conjugate and transposed": (lambda: conj().T, COMPLEX.T, "the conjugate of others"),
    "negative": (lambda: conj().imag, COMPLEX.imag, "the negative of others"),
    "half complex": (lambda: torch.ones(2, dtype=torch.float16).view(torch.complex32), [1 + 1j], "complex32"),
    "int3": (lambda: torch.tensor([1, 2], dtype=torch.uint8).view(torch.int3), [1, 2], "int3"),
}


@pytest.mark.parametrize("kind", ADVICE)
def test_what_is_refused_can_be_adopted_after_the_advice_with_the_same_values(kind: str) -> None:
    make, values, got = ADVICE[kind]
    module = beside(make())
    trains = module.odd.requires_grad
    with pytest.raises(ValueError) as error:
        fs.adopt(module)
    says(error, "'odd': expected", got)
    follow(module, str(error.value))
    if kind == "conjugate and transposed":  # one obstacle after the other
        with pytest.raises(ValueError, match="expected contiguous memory, got strides") as error:
            fs.adopt(module)
        follow(module, str(error.value))
    store = fs.adopt(module)
    assert np.array_equal(store["odd"], np.asarray(values)) and np.array_equal(store["fine"], np.ones(3))
    assert module.odd.data_ptr() == store["odd"].ctypes.data and module.odd.requires_grad == trains
    verify(module, store)


def test_modules_without_data_and_views_of_one_another_can_be_adopted_after_the_advice() -> None:
    for module in (nn.Linear(2, 2, device="meta"), overlapping(), frozen_twin(), parts()):
        before = {} if module.__class__ is nn.Linear else {k: x.tolist() for k, x in everything(module).items()}
        with pytest.raises(ValueError) as error:
            fs.adopt(module)
        follow(module, str(error.value))
        store = fs.adopt(module)
        assert before in ({}, {path: array.tolist() for path, array in store.items()})
    lazy = nn.LazyLinear(3)
    lazy(torch.ones(1, 2))
    assert fs.adopt(lazy)["weight"].shape == (3, 2)


def test_everything_that_is_in_the_way_is_listed() -> None:
    with pytest.raises(ValueError, match="2 leaves of the module that cannot be a view of a store") as error:
        fs.adopt(beside(torch.ones(1).expand(3), other=torch.ones(3, device="meta")))
    says(error, "'odd'", "'other'")


@pytest.mark.parametrize("thing", [{"w": np.ones(3)}, torch.ones(3), None, nn.Linear])
def test_only_modules_are_adopted(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got .*; fix: Store.from_tree") as error:
        fs.adopt(thing)
    says(error, type(thing).__name__)


def test_only_stores_are_adopted_into() -> None:
    module = nn.Linear(2, 2)
    for call in (fs.adopt, verify):
        with pytest.raises(TypeError) as error:
            call(module, fs.Population.zeros(fs.adopt(module).layout, 2))
        says(error, "expected a Store, got Population", "adopt(module) makes one")


def test_a_lent_store_is_not_adopted_into() -> None:
    module = nn.Linear(2, 2)
    store = fs.adopt(module)
    module.weight.data = torch.zeros(2, 2)
    before = places(module), store.to_vector()
    with store.lend(), pytest.raises(fs.LentError):
        fs.adopt(module, store)
    assert places(module) == before[0] and (store.to_vector() == before[1]).all()
    fs.adopt(module, store)
    assert not store["weight"].any()


def test_a_module_tied_otherwise_or_frozen_since_is_unlike_its_store() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    store = fs.adopt(module)
    before = store.to_vector()
    module[1].weight = module[0].weight
    with pytest.raises(fs.StructureError) as error:
        fs.adopt(module, store)
    says(error, "'1.weight': expected float32[2,2], got float32[2,2], tied to '0.weight'")
    module[1].weight = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    with pytest.raises(fs.StructureError) as error:
        fs.adopt(module, store)
    says(error, "'1.weight': expected float32[2,2], got float32[2,2], frozen", "adopt(module) makes a new store")
    assert (store.to_vector() == before).all()


def test_a_module_may_live_in_a_member_of_a_population_but_not_write_what_all_share() -> None:
    module = nn.Linear(2, 3)
    pop = fs.Population.zeros(fs.adopt(module).layout, 4)
    fs.adopt(module, pop[2])
    assert (pop["weight"][2] == module.weight.detach().numpy()).all() and not pop["weight"][1].any()
    norm = nn.BatchNorm1d(3)
    pop = fs.Population.zeros(fs.adopt(norm).layout, 4)
    before = places(norm)
    with pytest.raises(fs.StructureError) as error:
        fs.adopt(norm, pop[2])
    says(error, "'running_mean'", "'num_batches_tracked'", "one that all members share", "member.copy()")
    assert places(norm) == before and not pop.to_vector().any()


class Stubborn(nn.Parameter):
    """A parameter that takes no other data."""

    @property
    def data(self) -> torch.Tensor:
        return super().data

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        raise RuntimeError("these data stay")


@pytest.mark.parametrize("again", [False, True])
def test_a_tensor_that_refuses_leaves_the_module_and_the_store_as_they_were(again: bool) -> None:
    module = tied_pair()
    module["c"] = nn.Linear(2, 2, bias=False)
    store = fs.adopt(module) if again else None
    module["a"].weight.data = torch.ones(2, 2)  # tied: moved twice
    module["c"].weight = Stubborn(torch.ones(2, 2))
    before = places(module), store and store.to_vector().tolist()
    with pytest.raises(RuntimeError, match="these data stay"):
        fs.adopt(module, store)
    assert (places(module), store and store.to_vector().tolist()) == before


@pytest.mark.parametrize("align", ["a", 64.0, None])
def test_an_align_that_is_no_number_of_bytes_is_refused(align: Any) -> None:
    module = nn.Linear(2, 2)
    before = places(module)
    with pytest.raises(TypeError) as error:
        fs.adopt(module, align=align)
    says(
        error,
        f"align: expected a power of two in bytes, got {align!r}",
        "fix: pass 64 to lend every leaf to JAX, or 1 to pack",
    )
    assert places(module) == before


@pytest.mark.parametrize("thing", [[1], 1.0, None, torch.ones(1)])
def test_only_numpy_arrays_are_viewed(thing: Any) -> None:
    with pytest.raises(TypeError) as error:
        from_numpy(thing)
    says(error, f"expected a NumPy array, got {type(thing).__name__}", "np.asarray")


ARRAYS = {
    "read-only": (np.broadcast_to(F4(1), 3), "read-only"),
    "backwards": (np.arange(3, dtype=F4)[::-1], "strides >= 0"),
    "no such dtype": (np.zeros(3, "longdouble"), "longdouble" if np.dtype("longdouble").itemsize == 8 else "float128"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_torch_would_misread_are_refused(kind: str) -> None:
    array, words = ARRAYS[kind]
    with pytest.raises(ValueError) as error:
        from_numpy(array)
    says(error, words)


def test_flatstore_does_not_import_torch_unless_a_module_is_adopted() -> None:
    program = "import sys, flatstore as fs; assert 'torch' not in sys.modules; sys.modules['torch'] = None\nfs.adopt(1)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (
        run.returncode and "expected the library 'torch', got none; fix: pip install 'flatstore[torch]'" in run.stderr
    )
