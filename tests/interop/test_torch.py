"""A torch module that is adopted: its parameters and buffers are views of one store, for whoever trains it."""

import copy
import gc
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import flatstore as fs
from flatstore.interop.torch import from_numpy, verify
from tests.example_trees import arrays, bits, gap_bytes, same_bits
from tests.interop.modules import Tied, everything, net, shows

F4 = np.float32


def step(module: nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
    """One step of training."""
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(8, 3)).astype(F4))
    optimiser.zero_grad()
    module(x).square().sum().backward()
    optimiser.step()


def test_an_adopted_module_keeps_its_values_names_and_objects() -> None:
    module = net()
    before = {name: tensor.detach().clone() for name, tensor in everything(module).items()}
    objects = {name: id(tensor) for name, tensor in everything(module).items()}
    store = fs.adopt(module)
    assert list(store) == [*dict(module.named_parameters()), *dict(module.named_buffers())] == list(store.tree)
    assert {name: id(tensor) for name, tensor in everything(module).items()} == objects
    assert shows(store, module) and verify(module, store) is None
    for name, value in before.items():
        assert same_bits(store[name], value.numpy()) and same_bits(everything(module)[name].detach().numpy(), value)


@given(st.lists(arrays(), min_size=1, max_size=5), st.sampled_from([1, 64]))
def test_tensors_of_any_shape_and_dtype_move_in_to_the_bit(values: list[np.ndarray], align: int) -> None:
    module = nn.Module()
    for i, value in enumerate(values):
        module.register_buffer(f"b{i}", from_numpy(value.copy(order="C")))
    store = fs.adopt(module, align=align)
    verify(module, store)
    assert all(same_bits(store[f"b{i}"], value) for i, value in enumerate(values))
    assert not gap_bytes(store.layout, store.buffer).any()
    assert all(tensor.data_ptr() % align == 0 for tensor in module.buffers())


def test_what_the_store_writes_the_module_computes_with_and_the_other_way_round() -> None:
    module = net().eval()
    store = fs.adopt(module)
    store["3.weight"][:] = 0
    store["3.bias"] = np.array([1, 2])
    assert (module(torch.randn(4, 3)) == torch.tensor([1.0, 2.0])).all()
    store.flat[:] = 0
    assert not any(parameter.any() for parameter in module.parameters())
    with torch.no_grad():
        module[0].weight.fill_(7)
    assert (store["0.weight"] == 7).all()


def test_packed_it_is_the_vector_of_parameters_to_vector() -> None:
    module = net()
    expected = nn.utils.parameters_to_vector(module.parameters()).detach().numpy()
    store = fs.adopt(module, align=1)
    assert same_bits(store.flat, expected)
    assert store.to_vector()[: expected.size].astype(F4).tolist() == expected.tolist()  # buffers come after them


def test_tied_weights_have_one_home_and_stay_one_parameter() -> None:
    module = Tied()
    store = fs.adopt(module)
    assert store.layout.by_path["head.weight"].tied == "embed.weight" and store["head.weight"] is store["embed.weight"]
    assert module.head.weight is module.embed.weight and shows(store, module)
    store["embed.weight"][:] = 3
    assert (module.head.weight == 3).all()


def test_two_parameters_over_the_same_memory_are_tied_too() -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    module["b"].weight.data = module["a"].weight.data
    store = fs.adopt(module)
    assert store.layout.size == 4 and shows(store, module)


def test_requires_grad_says_what_trains() -> None:
    layout = fs.adopt(Tied()).layout
    assert [leaf.path for leaf in layout.leaves if leaf.trainable] == ["embed.weight", "head.weight"]
    assert [leaf.path for leaf in layout.leaves if not leaf.trainable] == ["norm.weight", "norm.bias", "scale"]


OPTIMISERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 0.05),
    "Adam in a loop": lambda parameters: torch.optim.Adam(parameters, 0.05, foreach=False),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_made_before_writes_the_store_as_it_would_have_written_the_module(name: str) -> None:
    alone, adopted = net(), net()
    optimisers = [OPTIMISERS[name](module.parameters()) for module in (alone, adopted)]
    step(alone, optimisers[0], 0)
    step(adopted, optimisers[1], 0)
    store = fs.adopt(adopted)
    for seed in range(1, 5):
        before = store.to_vector()
        step(alone, optimisers[0], seed)
        step(adopted, optimisers[1], seed)
        assert (store.to_vector() != before).any() and shows(store, adopted)
    for key, value in everything(alone).items():
        assert same_bits(store[key], value.detach().numpy()), key


def test_values_that_lie_crosswise_in_the_store_are_not_torn() -> None:
    module = nn.ModuleList([nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)])
    store = fs.adopt(module)
    a, b = (layer.weight.detach().clone() for layer in module)
    module[0].weight.data, module[1].weight.data = module[1].weight.data, module[0].weight.data
    fs.adopt(module, store)
    assert same_bits(store["0.weight"], b.numpy()) and same_bits(store["1.weight"], a.numpy())


def test_a_state_dict_loads_into_the_store_and_is_saved_from_it() -> None:
    module, other = Tied(), Tied()
    store = fs.adopt(module)
    module.load_state_dict(other.state_dict())
    assert shows(store, module) and same_bits(store["embed.weight"], other.embed.weight.detach().numpy())
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in loaded.items())
    module.load_state_dict({name: torch.from_numpy(store[name] * 0) for name in module.state_dict()})
    assert not store["head.weight"].any()


def test_an_adopted_module_goes_through_safetensors_by_its_own_names(tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    module = net()
    store = fs.adopt(module)
    fs.save(tmp_path / "ours.safetensors", store)
    save_file(module.state_dict(), tmp_path / "theirs.safetensors")
    ours, theirs = load_file(tmp_path / "ours.safetensors"), load_file(tmp_path / "theirs.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    store.assign(net(1).state_dict())
    store.assign(fs.load(tmp_path / "theirs.safetensors"))
    assert all(torch.equal(value, theirs[name]) for name, value in module.state_dict().items())


def test_the_store_is_lent_to_jax_without_a_copy_and_without_the_counter() -> None:
    module = net().eval()
    store = fs.adopt(module)
    with pytest.raises(BufferError, match="'1.num_batches_tracked': expected a dtype of at most 32 bits"), store.lend():
        pass
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(F4)
    with store.lend("jax", only=["*.weight", "*.bias", "*.running_*"]) as p:
        for name in ("0.weight", "1.running_var", "3.bias"):
            assert p[name].unsafe_buffer_pointer() == dict(everything(module))[name].data_ptr()

        @jax.jit
        def forward(p: Any, x: Any) -> Any:
            x = x @ p["0.weight"].T + p["0.bias"]
            x = (x - p["1.running_mean"]) / jax.numpy.sqrt(p["1.running_var"] + 1e-5) * p["1.weight"] + p["1.bias"]
            return jax.numpy.tanh(x) @ p["3.weight"].T + p["3.bias"]

        got = np.array(forward(p, x))
    np.testing.assert_allclose(got, module(torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_module_is_perturbed_in_place_and_given_back_to_the_bit() -> None:
    module = net()
    store, noise = fs.adopt(module), fs.Normal(0.02)
    fs.es.snap(store, noise)
    before = {name: tensor.detach().clone().numpy() for name, tensor in everything(module).items()}
    fs.es.perturb(store, noise, 7)
    assert not same_bits(module[0].weight.detach().numpy(), before["0.weight"]) and shows(store, module)
    fs.es.perturb(store, noise, 7, sign=-1)
    for name, value in before.items():
        assert same_bits(everything(module)[name].detach().numpy(), value), name


def test_the_memory_lives_as_long_as_the_module() -> None:
    module = nn.Linear(700, 700, bias=False)  # on pages of its own, which would be unmapped
    weight = module.weight.detach().clone()
    fs.adopt(module)
    gc.collect()
    assert torch.equal(module.weight, weight)


def test_a_module_adopted_without_autograd_can_be_trained_after() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.inference_mode():
        store = fs.adopt(module)
    module(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    verify(module, store)


def test_a_deep_copy_is_a_module_of_its_own() -> None:
    module = Tied()
    store = fs.adopt(module)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.embed.weight.fill_(9)
    assert not (store["embed.weight"] == 9).any() and other.head.weight is other.embed.weight


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64", "complex64", "float8_e4m3fn", "float8_e5m2"])
def test_modules_of_any_dtype_are_views(name: str) -> None:
    values = bits((3, 2), name, 1)
    module = nn.ParameterDict({"w": nn.Parameter(from_numpy(values.copy())), "scalar": nn.Parameter(torch.ones(()))})
    store = fs.adopt(module)
    assert same_bits(store["w"], values) and module["w"].dtype == getattr(torch, name) and shows(store, module)
    store["w"][0] = 1
    assert (module["w"][0].to(torch.complex64) == 1).all()
    module["w"].data[1] = 0
    assert not store["w"][1].astype(np.complex64).any()


@pytest.mark.parametrize(
    "make",
    [lambda: nn.LSTM(3, 4, 2), lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda: nn.LayerNorm(0)],
)
def test_modules_that_hold_on_to_their_weights_see_the_store(make: Any) -> None:
    module = make().eval()
    x = torch.randn(2, 5, {nn.LSTM: 3, nn.LayerNorm: 0}.get(type(module), 8))
    first = lambda y: y[0] if isinstance(y, tuple) else y  # noqa: E731
    before = first(module(x)).detach()
    store = fs.adopt(module)
    verify(module, store)
    assert torch.equal(first(module(x)), before)
    store.assign(store.to_vector() * 0)
    assert not x.numel() or not torch.equal(first(module(x)), before)


ADOPTED = """
import sys, torch, flatstore as fs
MIB, side, layers = 1 << 20, int(sys.argv[1]), int(sys.argv[2])
def memory(what):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(what))
model = torch.nn.Sequential(*(torch.nn.Linear(side, side, bias=False, dtype=torch.bfloat16) for _ in range(layers)))
expected = [parameter.detach().float().sum().item() for parameter in model.parameters()]
fs.adopt(torch.nn.Linear(2, 2))
open("/proc/self/clear_refs", "w").write("5")  # the peak is measured from here on
before = memory("VmRSS")
store = fs.adopt(model)
assert store.layout.size == 24 << 22
assert expected == [parameter.detach().float().sum().item() for parameter in model.parameters()]
print((memory("VmHWM") - before) // MIB)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory cannot be reset here")
@pytest.mark.parametrize(("side", "layers"), [(2048, 24), (512, 384)])  # small ones lie in the heap of the C library
def test_a_module_is_adopted_leaf_by_leaf_and_never_held_twice(side, layers):
    done = subprocess.run(
        [sys.executable, "-c", ADOPTED, str(side), str(layers)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 8 + 32  # MiB: the largest leaf, and what the allocator keeps; the model has 192
