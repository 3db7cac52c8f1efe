"""A torch module that is adopted where it is: no byte moves, no address changes, and verbs know when one has."""

import ctypes
import gc
import re
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import flatstore as fs
from flatstore import es
from flatstore.interop.torch import verify
from tests.example_trees import same_bits, says
from tests.interop.modules import Tied, everything, net, pair, shows, tied_pair

F4 = np.float32
NOISE = fs.Normal(0.05)


def addresses(module: nn.Module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in everything(module).items()}


def sharing(layers: nn.Sequential) -> nn.Sequential:
    """Two parameters over the same memory: they are not the same object."""
    layers[1].weight.data = layers[0].weight.data
    return layers


MODULES: dict[str, Callable[[], nn.Module]] = {
    "a net with a batch norm": net,
    "tied weights": Tied,
    "two parameters over one memory": lambda: sharing(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))),
    "bfloat16": lambda: net().to(torch.bfloat16),
    "attention": lambda: nn.TransformerEncoderLayer(16, 4, 32),
    "convolutions": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ConvTranspose2d(8, 1, 3)),
    "lists and dicts of parameters": lambda: nn.ModuleDict(
        {"l": nn.ParameterList([torch.ones(3), torch.ones(2)]), "d": nn.ParameterDict({"x": torch.ones(4)})}
    ),
    "parametrised": lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)),
}


def made_alike(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize("name", MODULES)
def test_it_has_the_layout_and_the_bits_that_moving_gives_and_no_address_changes(name: str) -> None:
    module, twin = made_alike(MODULES[name]), made_alike(MODULES[name])
    before = addresses(module)
    objects = {path: id(tensor) for path, tensor in everything(module).items()}
    store, moved = fs.adopt(module, move=False), fs.adopt(twin)
    assert store.layout == moved.layout and list(store) == list(moved)
    for x in (store, moved):
        es.snap(x, NOISE)
        es.perturb(x, NOISE, 7)
        es.update(x, NOISE, fs.seeds(1, 3), [0.5, -0.25, 0.125], exact=False)
    assert shows(store, module) and addresses(module) == before
    assert {path: id(tensor) for path, tensor in everything(module).items()} == objects
    for path, tensor in everything(module).items():
        assert same_bits(store[path], moved[path]), path
        assert torch.equal(tensor, everything(twin)[path])
    store.verify()
    verify(module, store)


def test_nothing_of_the_size_of_the_module_is_allocated() -> None:
    module = nn.Sequential(*[nn.Linear(512, 512) for _ in range(8)])
    es.snap(fs.adopt(module, move=False), NOISE)
    es.perturb(fs.adopt(nn.Linear(512, 512), move=False), NOISE, 1, exact=False)  # compiled, and threads started
    tracemalloc.start()
    try:
        store = fs.adopt(module, move=False)
        es.perturb(store, NOISE, 7)
        es.perturb(store, NOISE, 7, sign=-1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < store.layout.nbytes / 8


def test_tied_weights_are_perturbed_once() -> None:
    module = Tied()
    store = fs.adopt(module, move=False)
    es.snap(store, NOISE)
    plain = store.copy()
    es.perturb(store, NOISE, 3)
    es.perturb(plain, NOISE, 3)
    assert store.layout.by_path["head.weight"].tied == "embed.weight" and store["head.weight"] is store["embed.weight"]
    assert same_bits(module.head.weight.detach().numpy(), plain["embed.weight"])


def test_what_holds_addresses_sees_each_move() -> None:
    """A captured graph's stand-in: it read the addresses once, and computes from what is there."""
    module = net().eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
    pinned = {
        name: np.ctypeslib.as_array((ctypes.c_float * tensor.numel()).from_address(tensor.data_ptr()))
        for name, tensor in module.named_parameters()
    }

    def replay(x: np.ndarray) -> np.ndarray:
        return x @ pinned["3.weight"].reshape(shapes["3.weight"]).T + pinned["3.bias"]

    x = np.random.default_rng(0).normal(size=(5, 4)).astype(F4)
    store = fs.adopt(module, move=False)
    es.snap(store, NOISE)
    centre = replay(x)
    with es.perturbed(store, NOISE, 5):
        moved = replay(x)
        with torch.no_grad():
            assert np.allclose(module[3](torch.from_numpy(x)).numpy(), moved, atol=1e-6)
    assert not np.array_equal(moved, centre) and same_bits(replay(x), centre)


def test_torch_trains_it_where_it_is() -> None:
    module, alone = net(), net()
    store = fs.adopt(module, move=False)
    for one in (module, alone):
        optimiser = torch.optim.Adam(one.parameters(), 0.05)
        one(torch.ones(8, 3)).square().sum().backward()
        optimiser.step()
    store.verify()
    assert all(same_bits(store[name], tensor.detach().numpy()) for name, tensor in everything(alone).items())


def test_parameters_of_inference_mode_are_perturbed_too() -> None:
    with torch.inference_mode():
        module = nn.Linear(4, 3)
        store = fs.adopt(module.requires_grad_(True), move=False)
        before = module.weight.clone()
        es.snap(store, NOISE)
        es.perturb(store, NOISE, 5)
        assert not torch.equal(module.weight, before) and shows(store, module)


CHANGES: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "data": (lambda module: setattr(module[0].weight, "data", torch.zeros(4, 3)), ("0.weight",)),
    "a new parameter": (lambda module: setattr(module[3], "bias", nn.Parameter(torch.zeros(2))), ("3.bias",)),
    "a new buffer": (lambda module: setattr(module[1], "running_mean", torch.zeros(4)), ("1.running_mean",)),
    "half and back": (
        lambda module: module[3].half().float(),
        ("3.weight", "3.bias"),
    ),
    "load_state_dict(assign=True)": (
        lambda module: module[0].load_state_dict(nn.Linear(3, 4).state_dict(), assign=True),
        ("0.weight", "0.bias"),
    ),
    "meta": (lambda module: setattr(module[3], "bias", nn.Parameter(torch.zeros(2, device="meta"))), ("3.bias",)),
    "taken away": (lambda module: setattr(module[3], "bias", None), ("3.bias",)),
    "deleted": (lambda module: delattr(module[3], "bias"), ("3.bias",)),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_tensor_that_lies_elsewhere_is_named_and_nothing_is_written_or_read(how: str) -> None:
    change, paths = CHANGES[how]
    module = net()
    store = fs.adopt(module, move=False)
    es.snap(store, NOISE)
    kept = [torch.from_numpy(view) for view in store.values()]
    before = [tensor.clone() for tensor in kept]
    change(module)
    now = {name: tensor.clone() for name, tensor in everything(module).items() if not tensor.is_meta}
    for use in (
        store.verify,
        store.to_vector,
        lambda: es.perturb(store, NOISE, 1),
        lambda: store.assign(np.zeros(store.layout.size)),
        lambda: fs.Store.zeros(store.layout).assign(store),
        lambda: fs.save("/nowhere/x.safetensors", store),
    ):
        with pytest.raises(fs.StructureError, match="elsewhere than where the store was made") as error:
            use()
        assert tuple(difference.path for difference in error.value.differences) == paths
        says(error, *map(repr, paths), "adopt(module, store) brings it back there", "adopt(module, move=False)")
    assert all(map(torch.equal, kept, before))
    assert all(torch.equal(tensor, now[name]) for name, tensor in everything(module).items() if not tensor.is_meta)


@pytest.mark.parametrize("verb", ["set a leaf", "assign", "perturb"])
def test_a_tensor_that_has_moved_as_a_verb_waited_is_named_too(verb: str) -> None:
    module = nn.Sequential(nn.Linear(3, 4))
    store = fs.adopt(module, move=False)
    is_lent = threading.Event()
    path, zeros = "0.weight", {path: np.zeros(view.shape, view.dtype) for path, view in store.items()}
    verbs: dict[str, Callable[[], object]] = {
        "set a leaf": lambda: store.__setitem__(path, zeros[path]),
        "assign": lambda: store.assign(zeros),
        "perturb": lambda: es.perturb(store, NOISE, 1),
    }

    def move() -> None:
        with store.lend():
            is_lent.set()
            time.sleep(0.2)  # the verb waits by then, or finds at once that it has moved
            module.get_parameter(path).data = torch.ones(module.get_parameter(path).shape)

    mover = threading.Thread(target=move)
    mover.start()
    is_lent.wait()
    with fs.waiting(60.0), pytest.raises(fs.StructureError, match=f"'{path}': expected address .*, got address"):
        verbs[verb]()
    mover.join()


@pytest.mark.parametrize("how", ["data", "a new parameter", "a new buffer", "load_state_dict(assign=True)"])
def test_adopting_it_into_its_store_again_brings_it_back_to_its_addresses_with_its_values(how: str) -> None:
    module = net()
    before = addresses(module)
    store = fs.adopt(module, move=False)
    CHANGES[how][0](module)
    values = {name: tensor.detach().clone().numpy() for name, tensor in everything(module).items()}
    assert fs.adopt(module, store) is store
    store.verify()
    assert addresses(module) == before and all(same_bits(store[name], value) for name, value in values.items())
    es.snap(store, NOISE)


def test_a_new_store_takes_it_where_it_is_now() -> None:
    module = net()
    old = fs.adopt(module, move=False)
    module[0].weight.data = torch.ones(4, 3)
    store = fs.adopt(module, move=False)
    assert shows(store, module) and not shows(old, module) and (store["0.weight"] == 1).all()


def test_two_stores_over_one_module_are_readers_and_writers_of_the_same_bytes() -> None:
    module = net()
    one, other = fs.adopt(module, move=False), fs.adopt(module[3], move=False)
    with other.lend() as params:
        assert params["weight"].unsafe_buffer_pointer() == module[3].weight.data_ptr()
        with pytest.raises(fs.LentError, match="one that is lent: 1 lend"):
            es.snap(one, NOISE)
        assert not one["3.weight"].flags.writeable and one["0.weight"].flags.writeable
    es.snap(one, NOISE)
    one["3.bias"] = np.ones(2)
    assert (other["bias"] == 1).all()


def test_an_adopted_module_can_be_adopted_where_it_is() -> None:
    module = net()
    home = fs.adopt(module)
    store = fs.adopt(module, move=False)
    assert same_bits(store["0.weight"], home["0.weight"]) and shows(home, module) and shows(store, module)
    with home.lend(only="0.weight"), pytest.raises(fs.LentError):
        store["3.bias"] = np.zeros(2)


def test_the_module_lives_as_long_as_its_store_and_no_longer() -> None:
    module = pair()
    alive = weakref.ref(module["a"])
    store = fs.adopt(module, move=False)
    del module
    gc.collect()
    assert alive() is not None and store["a.weight"].sum() is not None
    es.snap(store, NOISE)
    del store
    gc.collect()
    assert alive() is None


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "channels last": (
        lambda: nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last),
        "'weight': expected contiguous memory",
    ),
    "a part of another": (
        lambda: nn.ParameterList([whole := nn.Parameter(torch.zeros(4)), nn.Parameter(whole.data[1:])]),
        "'1': expected memory of its own, got bytes of '0'",
    ),
    "meta": (lambda: nn.Linear(2, 2, device="meta"), "'weight': expected a tensor in memory"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_a_view_where_it_is_is_named_as_when_it_is_moved(what: str) -> None:
    make, words = REFUSED[what]
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        fs.adopt(make(), move=False)
    says(error)


def test_numbers_that_do_not_start_at_a_multiple_of_their_size_are_refused() -> None:
    module = nn.Linear(2, 2)
    buffer = bytearray(64)
    shift = 1 - ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % 4
    module.weight.data = torch.frombuffer(buffer, dtype=torch.float32, count=4, offset=shift % 4).view(2, 2)
    with pytest.raises(ValueError, match="'weight': expected a start at a multiple of 4 bytes") as error:
        fs.adopt(module, move=False)
    says(error, "param.data = param.data.clone()")
    module.weight.data = module.weight.data.clone()
    assert shows(fs.adopt(module, move=False), module)


def test_a_store_to_move_into_is_not_taken_together_with_move_false() -> None:
    module = tied_pair()
    with pytest.raises(ValueError, match="got both") as error:
        fs.adopt(module, fs.adopt(module), move=False)
    says(error, "adopt(module, move=False) makes a new store")


def test_a_module_whose_parameters_are_all_empty_is_a_store_of_nothing():
    module = torch.nn.Module()
    module.register_parameter("e", torch.nn.Parameter(torch.zeros(0, 3)))
    store = fs.adopt(module, move=False)
    assert store["e"].shape == (0, 3) and store.layout.size == 0
    es.update(store, fs.Normal(0.1), [1], [1.0])
