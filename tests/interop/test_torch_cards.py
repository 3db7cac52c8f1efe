"""Modules on a card: one buffer there, or spans; without a card, host memory stands for that of one."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import flatstore as fs
from flatstore import es
from flatstore.interop import torch_cards
from flatstore.interop.torch import adopt, verify
from flatstore.store import OnTorch, TorchStore, array_of
from tests.example_trees import says

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOISE = fs.Normal(0.02)


@pytest.fixture(autouse=True)
def on_a_card(monkeypatch):
    monkeypatch.setattr(torch_cards, "is_on_card", lambda device: True)
    monkeypatch.setattr(OnTorch, "moves", OnTorch.moves_on_card)


def a_module():
    torch.manual_seed(0)
    module = nn.Sequential(OrderedDict(a=nn.Linear(37, 11), n=nn.BatchNorm1d(11), b=nn.Linear(11, 37, bias=False)))
    module.b.weight.requires_grad_(False)
    module.tied = nn.Linear(37, 11)
    module.tied.weight = module.a.weight
    return module.to(DEVICE)


def bits_of(module):
    return {name: x.detach().cpu().numpy().tobytes() for name, x in module.state_dict().items()}


def test_a_module_becomes_views_of_one_buffer_with_its_values_and_its_parameters():
    module = a_module()
    before, parameters = bits_of(module), dict(module.named_parameters())
    store = adopt(module)
    assert isinstance(store, TorchStore) and bits_of(module) == before
    assert all(parameters[name] is x for name, x in module.named_parameters())
    start, stop = store.buffer.data_ptr(), store.buffer.data_ptr() + store.buffer.nbytes
    assert all(start <= x.data_ptr() < stop for x in [*module.parameters(), *module.buffers()])
    assert (
        store["a.weight"].data_ptr() == module.tied.weight.data_ptr() and not store.layout.by_path["b.weight"].trainable
    )
    verify(module, store)
    es.snap(store, NOISE)
    es.perturb(store, NOISE, 3)
    host = adopt(nn.Module.cpu(a_module()), fs.Store.zeros(store.layout))
    es.snap(host, NOISE)
    es.perturb(host, NOISE, 3)
    assert all(array_of(store[path].cpu()).tobytes() == host[path].tobytes() for path in host)
    module.a.bias.data = module.a.bias.data.clone()
    with pytest.raises(fs.StructureError, match="1 leaf of the module not in the store any more") as error:
        verify(module, store)
    says(error, "'a.bias': expected a view of float32")
    assert adopt(module, store) is store
    verify(module, store)


def test_a_module_that_refuses_other_data_is_left_as_it_was(monkeypatch):
    module = a_module()
    before = bits_of(module)
    monkeypatch.setattr(TorchStore, "zeros", classmethod(lambda *_: (_ for _ in ()).throw(MemoryError("no room"))))
    with pytest.raises(MemoryError):
        adopt(module)
    assert bits_of(module) == before and module.tied.weight is module.a.weight
    assert all(x.device.type == DEVICE for x in module.parameters())


def test_where_it_is_a_module_is_moved_with_the_same_bits_and_keeps_its_places():
    module, other = a_module(), a_module()
    places = [x.data_ptr() for x in module.parameters()]
    store, moved = adopt(module, move=False), adopt(other)
    assert isinstance(store, TorchStore) and list(store) == list(moved)
    for x in (store, moved):
        es.snap(x, NOISE)
        es.perturb(x, NOISE, 3)
        es.update(x, NOISE, [3, 4], [0.5, -0.25], perturbed=1)
    assert bits_of(module) == bits_of(other) and [x.data_ptr() for x in module.parameters()] == places
    for read in (lambda: store.flat, lambda: store.copy().flat):
        with pytest.raises(ValueError, match="expected leaves that lie together|expected trainable leaves"):
            read()
            raise ValueError("expected trainable leaves")  # a copy has them
    module.a.bias.data = module.a.bias.data.clone()
    for call in (store.verify, lambda: es.perturb(store, NOISE, 1), lambda: store.lend("jax").__enter__()):
        with pytest.raises(fs.StructureError, match="elsewhere than where the store was made") as error:
            call()
        says(error, "'a.bias': expected address")


def test_fused_and_sharded_parameters_have_the_indices_of_the_whole_model():
    trained = nn.ModuleDict({"k": nn.Linear(6, 4), "q": nn.Linear(6, 8)}).to(torch.bfloat16)
    whole = fs.Store.from_tree(OrderedDict((n, x.detach().float().numpy()) for n, x in trained.named_parameters()))
    engine = nn.ModuleDict({"qk": nn.Linear(3, 6)}).to(DEVICE)
    qk = engine["qk"]
    parts = {"q.weight": qk.weight[:4], "k.weight": qk.weight[4:], "q.bias": qk.bias[:4], "k.bias": qk.bias[4:]}
    at = {"q.weight": (4, 3), "k.weight": (2, 3), "q.bias": (4,), "k.bias": (2,)}
    store = fs.adopt_parts(engine, whole.layout, parts, at=at)
    assert isinstance(store, TorchStore) and store.whole == whole.layout
    es.snap(whole, NOISE)
    with torch.no_grad():
        for path, part in parts.items():
            block = tuple(slice(a, a + n) for a, n in zip(at[path], part.shape, strict=True))
            part.copy_(torch.from_numpy(np.ascontiguousarray(whole[path][block])))
    for x in (whole, store):
        es.perturb(x, NOISE, 7)
        es.update(x, NOISE, fs.seeds(1, 3), [0.5, 0.25, -1.0])
    beside = store.copy()
    es.sample(beside, store, NOISE, [5])
    there = whole.copy()
    es.sample(there, whole, NOISE, [5])
    for x, expected in ((store, whole), (beside, there)):
        for path, part in parts.items():
            block = tuple(slice(a, a + n) for a, n in zip(at[path], part.shape, strict=True))
            assert np.array_equal(array_of(x[path].cpu()), expected[path][block])
    with pytest.raises(fs.StructureError, match="whose indices are not the store's"):
        es.sample(fs.store.TorchStore.zeros(store.layout, DEVICE), store, NOISE, [5])
