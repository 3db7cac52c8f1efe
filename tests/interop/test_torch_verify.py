"""A torch module that changed after it was adopted: `verify` names what did, and its advice works."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import flatstore as fs
from flatstore.interop.torch import verify
from tests.example_trees import same_bits, says
from tests.interop.modules import everything, net, pair, shows, tied_pair

LEAVES: dict[str, Any] = {
    "half and back": lambda module: module.half().float(),
    "data": lambda module: setattr(module[0].weight, "data", torch.zeros(4, 3)),
    "a new parameter": lambda module: setattr(module[0], "weight", nn.Parameter(torch.zeros(4, 3))),
    "load_state_dict(assign=True)": lambda module: module.load_state_dict(net(1).state_dict(), assign=True),
    "a buffer": lambda module: setattr(module[1], "running_mean", torch.zeros(4)),
}


@pytest.mark.parametrize("how", LEAVES)
def test_a_tensor_that_left_is_named_and_adopting_again_brings_it_back(how: str) -> None:
    module = net()
    store = fs.adopt(module)
    LEAVES[how](module)
    away = [name for name, tensor in everything(module).items() if tensor.data_ptr() != store[name].ctypes.data]
    values = {name: tensor.detach().clone().numpy() for name, tensor in everything(module).items()}
    with pytest.raises(fs.StructureError, match="of the module not in the store any more") as error:
        verify(module, store)
    assert sorted(difference.path for difference in error.value.differences) == sorted(away) != []
    says(error, *away, "adopt(module, store) brings it back")
    assert fs.adopt(module, store) is store
    verify(module, store)
    assert shows(store, module) and all(same_bits(store[name], value) for name, value in values.items())


def test_a_module_that_changed_its_kind_gets_a_new_store() -> None:
    module = net()
    old = fs.adopt(module)
    module.half()
    with pytest.raises(fs.StructureError, match=r"float32\[4,3\], got float16\[4,3\] elsewhere"):
        verify(module, old)
    with pytest.raises(fs.StructureError, match="of the module unlike the store") as error:
        fs.adopt(module, old)
    assert len(error.value.differences) == 8  # all but the counter
    says(error, "'0.weight': expected float32[4,3], got float16[4,3]", "adopt(module) makes a new store")
    store = fs.adopt(module)
    assert shows(store, module) and store.flat.dtype == np.float16


def test_what_was_added_or_removed_is_named() -> None:
    module = net()
    store = fs.adopt(module)
    module[0].bias = None
    module.register_buffer("mask", torch.ones(2))
    for check in (lambda: verify(module, store), lambda: fs.adopt(module, store)):
        with pytest.raises(fs.StructureError) as error:
            check()
        assert [difference.path for difference in error.value.differences] == ["0.bias", "mask"]
        says(error, "got nothing", "expected nothing")


STUCK: dict[str, tuple[Callable[[nn.Module], Any], Callable[[nn.Module], Any], tuple[str, ...]]] = {
    "meta": (
        lambda module: setattr(module[0], "weight", nn.Parameter(torch.empty(2, 2, device="meta"))),
        lambda module: module.to_empty(device="cpu"),
        ("'0.weight': expected a tensor in memory, got one on meta", "module.to_empty(device='cpu')"),
    ),
    "transposed": (
        lambda module: setattr(module[0].weight, "data", module[0].weight.data.T),
        lambda module: setattr(module[0].weight, "data", module[0].weight.data.contiguous()),
        ("'0.weight': expected contiguous memory, got strides (1, 2)", "param.data = param.data.", ".contiguous()"),
    ),
    "a part of another": (
        lambda module: setattr(module[1].weight, "data", module[0].weight.data[:1]),
        lambda module: setattr(module[1].weight, "data", module[1].weight.data.clone()),
        ("'1.weight': expected memory of its own, got bytes of '0.weight'", "param.data = param.data.clone()"),
    ),
}


@pytest.mark.parametrize("how", STUCK)
def test_verify_says_what_lets_a_tensor_be_a_view_again(how: str) -> None:
    leave, mend, words = STUCK[how]
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    store = fs.adopt(module)
    leave(module)
    with pytest.raises(fs.StructureError, match="1 leaf of the module") as error:
        verify(module, store)
    says(error, *words)
    mend(module)
    with pytest.raises(fs.StructureError, match=r"adopt\(module, store\) brings it back"):
        verify(module, store)
    verify(module, fs.adopt(module, store))


def test_a_module_that_was_put_into_channels_last_is_named_and_the_advice_brings_it_back() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(2, 3))
    store = fs.adopt(module)
    values = {path: array.copy() for path, array in store.items()}
    module.to(memory_format=torch.channels_last)
    with pytest.raises(fs.StructureError, match="1 leaf of the module not in the store any more") as error:
        verify(module, store)
    says(
        error,
        "'0.weight': expected contiguous memory, got the order of torch.channels_last",
        "fix: module.to(memory_format=torch.contiguous_format)",
    )
    module.to(memory_format=torch.contiguous_format)
    with pytest.raises(fs.StructureError, match=r"'0.weight'.* elsewhere; fix: adopt\(module, store\) brings it back"):
        verify(module, store)
    verify(module, fs.adopt(module, store))
    assert all(same_bits(store[path], value) for path, value in values.items())


F22, TIED = "expected a view of float32[2,2]", "tied to 'a.weight'"
CHANGES: dict[str, tuple[Callable[[], nn.ModuleDict], Callable[[nn.ModuleDict], Any], tuple[str, ...]]] = {
    "frozen": (
        pair,
        lambda module: module["b"].weight.requires_grad_(False),
        (f"'b.weight': {F22}, got float32[2,2], frozen;",),
    ),
    "unfrozen": (
        lambda: pair().requires_grad_(False),
        lambda module: module["b"].weight.requires_grad_(True),
        (f"'b.weight': {F22}, frozen, got float32[2,2];",),
    ),
    "untied": (
        tied_pair,
        lambda module: setattr(module["b"], "weight", nn.Parameter(torch.ones(2, 2))),
        (f"'b.weight': {F22}, {TIED}, got float32[2,2] elsewhere;",),
    ),
    "untied at home": (
        tied_pair,
        lambda module: setattr(module["a"], "weight", nn.Parameter(torch.ones(2, 2))),
        (f"'a.weight': {F22}, got float32[2,2] elsewhere;", f"'b.weight': {F22}, {TIED}, got float32[2,2];"),
    ),
    "tied": (
        pair,
        lambda module: setattr(module["b"], "weight", module["a"].weight),
        (f"'b.weight': {F22}, got float32[2,2] elsewhere, {TIED};",),
    ),
    "another dtype beside one that only left": (
        pair,
        lambda module: (module["a"].half(), setattr(module["b"].weight, "data", torch.ones(2, 2))),
        ("'a.weight'", f"'b.weight': {F22}, got float32[2,2] elsewhere;"),
    ),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_module_that_changed_more_than_its_memory_is_named_and_the_advice_works(how: str) -> None:
    make, change, words = CHANGES[how]
    module = make()
    store = fs.adopt(module)
    change(module)
    with pytest.raises(fs.StructureError, match=f"{len(words)} lea.* of the module unlike the store") as error:
        verify(module, store)
    says(error, *words)
    assert [difference.fix for difference in error.value.differences] == ["adopt(module) makes a new store"] * len(
        words
    )
    with pytest.raises(fs.StructureError, match="of the module unlike the store"):
        fs.adopt(module, store)
    verify(module, fs.adopt(module))
