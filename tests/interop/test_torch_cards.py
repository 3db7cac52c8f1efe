"""Modules on a card: one buffer there, or spans; without a card, host memory stands for that of one."""

import ctypes
import threading
from collections import OrderedDict
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

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


def an_aligned_module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16)).to(DEVICE)


def as_it_was_made(module):
    return module, adopt(module, move=False)


def in_a_buffer(module):
    return module, adopt(module)


@pytest.mark.parametrize("make", [as_it_was_made, in_a_buffer])
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_two_stores_over_the_same_memory_of_a_card_are_readers_and_writers_of_the_same_bytes(make, library):
    module, whole = make(an_aligned_module())
    part, beside = adopt(module[1], move=False), adopt(module[0], move=False)
    es.snap(whole, NOISE)
    before = whole.to_vector()
    with part.lend(library) as params:
        assert tuple(params["weight"].shape) == (16, 32)
        for write in (
            lambda: es.perturb(whole, NOISE, 1),
            lambda: whole.assign(before),
            lambda: whole.__setitem__("1.bias", torch.ones(16, device=DEVICE)),
            lambda: es.snap(whole, NOISE),
        ):
            with pytest.raises(fs.LentError, match="one that is lent: 1 lend"):
                write()
        es.snap(beside, NOISE)  # no byte of it is lent
    with whole.lend(library), pytest.raises(fs.LentError, match="one that is lent: 1 lend"):
        es.perturb(part, NOISE, 1)
    assert np.array_equal(whole.to_vector(), before)
    es.perturb(part, NOISE, 1)
    assert torch.equal(whole["1.weight"], part["weight"])


def test_what_another_store_of_the_same_memory_writes_is_not_copied_meanwhile():
    module = an_aligned_module()
    whole, part = adopt(module), adopt(module[1], move=False)
    other = fs.Store.from_tree(part.tree, device=DEVICE)
    refused = []

    def read():
        for use in (whole.to_vector, whole.copy, lambda: other.assign(dict(module[1].named_parameters()))):
            with pytest.raises(fs.LentError) as error:
                use()
            refused.append(error)

    thread = threading.Thread(target=read)
    part.write(lambda: (thread.start(), thread.join(60)))
    assert len(refused) == 3


def test_leaves_that_change_places_are_assigned_as_they_were():
    store = fs.Store.from_tree({"a": np.zeros(3, "f4"), "b": np.ones(3, "f4")}, device=DEVICE)
    for tree in ({"a": store["b"], "b": store["a"]}, {"a": store["b"].cpu(), "b": store["a"].cpu()}):
        before = store.to_vector()
        store.assign(tree)
        assert store.to_vector().tolist() == [*before[3:], *before[:3]]


def test_of_a_span_that_has_moved_nothing_is_read(tmp_path):
    module = an_aligned_module()
    store = adopt(module, move=False)
    es.snap(store, NOISE)
    zeros = OrderedDict((path, torch.zeros_like(x)) for path, x in store.items())
    members = fs.Population.from_tree(zeros, 2, device=DEVICE)
    module[0].bias.data = module[0].bias.data.clone()
    for read in (
        store.to_vector,
        store.copy,
        store.lend().__enter__,
        lambda: fs.save(tmp_path / "x.safetensors", store),
        lambda: es.sample(members, store, NOISE, [1, 2]),
        lambda: members[0].assign(store),
        lambda: es.Momentum(members[0].copy()).step(store, 0.1),
    ):
        with pytest.raises(fs.StructureError, match="elsewhere than where the store was made") as error:
            read()
        says(error, "'0.bias': expected address", "adopt(module, store) brings it back there")
    assert not [*tmp_path.iterdir()] and not members.to_vector().any()
    assert adopt(module, store) is store and store.to_vector().size


class Stuck(nn.Parameter):
    """A parameter that takes no data that lie elsewhere."""

    @property
    def data(self):
        return super().data

    @data.setter
    def data(self, value):
        if value.data_ptr() != self.data_ptr():
            raise RuntimeError("these data stay")


def places_of(module):
    return {name: x.data_ptr() for name, x in [*module.named_parameters(), *module.named_buffers()]}


def test_a_tensor_that_refuses_in_the_middle_leaves_the_module_and_the_store_as_they_were():
    module = a_module()
    store = adopt(module)
    before, there = bits_of(module), store.to_vector() + 0
    module.a.weight.data, module.n.weight.data = module.a.weight.data + 1, module.n.weight.data + 1
    module.tied.weight.data = module.a.weight.data
    module.n.bias = Stuck(module.n.bias.data + 1)
    places, now = places_of(module), bits_of(module)
    with pytest.raises(RuntimeError, match="these data stay"):
        adopt(module, store)
    assert places_of(module) == places and bits_of(module) == now != before
    assert np.array_equal(store.to_vector(), there)
    with pytest.raises(RuntimeError, match="these data stay"):
        adopt(module)
    assert bits_of(module) == now and module.n.bias.data_ptr() == places["n.bias"]
    assert module.a.weight.data_ptr() == module.tied.weight.data_ptr()


def test_what_all_members_share_is_not_written_by_a_module_of_one():
    modules = [a_module(), a_module()]
    plan = adopt(a_module())
    pop = fs.Population.from_tree(OrderedDict(plan.items()), 2, trainable=["a.*", "tied.*"], device=DEVICE)
    with torch.no_grad():
        modules[1].b.weight.add_(1)
    trained = {path for path, leaf in pop.layout.by_path.items() if leaf.trainable}
    for name, x in [*modules[1].named_parameters(), *modules[1].named_buffers()]:
        if x.is_floating_point():
            x.requires_grad_(name in trained)
    before, places = pop.to_vector(), places_of(modules[1])
    with pytest.raises(fs.StructureError, match="that torch must not write") as error:
        adopt(modules[1], pop[1])
    says(error, "'b.weight': expected a leaf of its own, got one that all members share", "member.copy()")
    assert np.array_equal(pop.to_vector(), before) and places_of(modules[1]) == places
    store = adopt(modules[1], pop[1].copy())
    assert torch.equal(store["b.weight"], modules[1].b.weight)


def test_members_of_a_population_are_modules():
    modules = [nn.Linear(4, 3).to(DEVICE) for _ in range(3)]
    pop = fs.Population.from_tree(modules[0].state_dict(), 3, device=DEVICE)
    values = [bits_of(module) for module in modules]
    for i, module in enumerate(modules):
        assert adopt(module, pop[i])["weight"].data_ptr() == pop["weight"][i].data_ptr() == module.weight.data_ptr()
    assert [bits_of(module) for module in modules] == values
    adopt(modules[0], pop[1])  # it lies in the same memory, elsewhere
    assert bits_of(modules[0]) == bits_of(modules[1]) == values[0]


def test_tensors_that_change_places_in_a_store_keep_their_values():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to(DEVICE)
    store, values = adopt(module), [x.detach().clone() for x in module.parameters()]
    module[0].weight.data, module[1].weight.data = module[1].weight.data, module[0].weight.data
    adopt(module, store)
    expected = [values[2], values[1], values[0], values[3]]
    assert all(map(torch.equal, module.parameters(), expected)) and torch.equal(store["0.weight"], values[2])


def test_a_store_on_another_device_is_refused_before_anything_is_written():
    module, other = nn.Linear(4, 3).to(DEVICE), nn.Linear(4, 3).to(DEVICE)
    store = adopt(other)
    before, places = bits_of(module), places_of(module)
    store.device = torch.device("cuda:7")
    with pytest.raises(ValueError, match=f"expected a module on cuda:7, as the store, got one on {DEVICE}") as error:
        adopt(module, store)
    says(error, "module.to('cuda:7')", "adopt(module) makes a new store")
    with pytest.raises(fs.StructureError, match="2 leaves of the module") as error:
        verify(other, store)
    says(error, f"'bias': expected a view of float32[3], got float32[3] on {DEVICE}")
    assert bits_of(module) == before and places_of(module) == places


def test_where_there_is_no_memory_to_go_back_the_error_says_what_waits_in_host_memory(monkeypatch):
    module, full = a_module(), torch.OutOfMemoryError("the card is full")
    before = bits_of(module)

    def no_room(*_, **__):
        raise full

    monkeypatch.setattr(TorchStore, "zeros", classmethod(no_room))
    monkeypatch.setattr(torch.Tensor, "to", no_room)
    with pytest.raises(torch.OutOfMemoryError) as error:
        adopt(module)
    monkeypatch.undo()
    assert bits_of(module) == before
    assert "still in host memory: 'a.weight'" in error.value.__notes__[0] and "module.to(" in error.value.__notes__[0]


@pytest.mark.parametrize("move", [True, False])
@pytest.mark.parametrize("adopted_inside", [True, False])
def test_a_module_of_inference_mode_is_perturbed_too(move, adopted_inside):
    with torch.inference_mode():
        module = an_aligned_module()
        store = adopt(module, move=move) if adopted_inside else None
    store = store or adopt(module, move=move)
    es.snap(store, NOISE)
    before = bits_of(module)
    es.perturb(store, NOISE, 5)
    assert bits_of(module) != before
    es.perturb(store, NOISE, 5, sign=-1)
    assert bits_of(module) == before
    verify(module, store)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_worker_of_the_example_perturbs_an_engine_on_a_card(dtype):
    spec = spec_from_file_location("engine", Path(__file__).parents[2] / "examples" / "engine.py")
    engine = module_from_spec(spec)
    spec.loader.exec_module(engine)
    worker = engine.Worker(1)
    worker.model.to(DEVICE, getattr(torch, dtype))
    shapes = {"gate.weight": (64, 16), "head.weight": (8, 64), "up.weight": (64, 16)}
    trainer = fs.Store.from_tree({path: np.full(shape, 0.25, dtype) for path, shape in shapes.items()})
    worker.adopt(trainer.layout, 0, 1)
    assert isinstance(worker.store, TorchStore)
    worker.store.assign(dict(trainer.items()))
    before = worker.digest()
    worker.perturb(7)
    assert all(now != before[name] for name, now in worker.digest().items())
    worker.perturb(7, sign=-1)
    assert worker.digest() == before
    worker.update([3, 4], [0.5, -0.25])
    es.update(trainer, engine.NOISE, [3, 4], [0.5, -0.25])
    assert all(array_of(worker.store[path].cpu()).tobytes() == trainer[path].tobytes() for path in shapes)
    worker.model.head.weight.data = worker.model.head.weight.data.clone()
    with pytest.raises(fs.StructureError, match="elsewhere"):
        worker.perturb(7)


def test_numbers_that_do_not_start_at_a_multiple_of_their_size_are_refused_where_they_are():
    module = nn.Linear(2, 2)
    buffer = bytearray(64)
    shift = (1 - ctypes.addressof(ctypes.c_char.from_buffer(buffer))) % 4
    module.weight.data = torch.frombuffer(buffer, dtype=torch.float32, count=4, offset=shift).view(2, 2)
    with pytest.raises(ValueError, match="'weight': expected a start at a multiple of 4 bytes") as error:
        adopt(module, move=False)
    says(error, "param.data = param.data.clone()")
