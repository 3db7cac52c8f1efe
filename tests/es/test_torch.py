"""The verbs work on memory that torch shares: it sees the noise, and the exact bits after it is taken back."""

import numpy as np
import pytest
import torch

import flatstore as fs
from flatstore import es

NOISE = fs.Normal(0.1)


def of_numpy():
    """A store, and a tensor over its flat vector."""
    store = fs.Store.from_tree({"b": np.ones(3, "f4"), "w": np.linspace(-1, 1, 20, dtype="f4").reshape(5, 4)}, align=1)
    return store, torch.from_numpy(store.flat)


def of_torch():
    """The parameters of a torch module, and a store that wraps their memory."""
    layout = fs.Layout.from_tree({"b": np.zeros(3, "f4"), "w": np.zeros((5, 4), "f4")}, align=1)
    tensor = torch.linspace(-1, 1, layout.size)
    return fs.Store.wrap(tensor, layout), tensor


@pytest.mark.parametrize("make", [of_numpy, of_torch])
def test_torch_sees_the_noise_and_the_exact_bits_after_it_is_taken_back(make):
    store, tensor = make()
    es.snap(store, NOISE)
    before, address = tensor.clone(), tensor.data_ptr()
    plain = fs.Store.from_tree({path: store[path].copy() for path in store}, align=1)
    with es.perturbed(store, NOISE, 7):
        es.perturb(plain, NOISE, 7)
        assert (tensor != before).all()
        assert tensor.numpy().tobytes() == plain.flat.tobytes()
    assert tensor.numpy().tobytes() == before.numpy().tobytes()
    assert tensor.data_ptr() == address


def test_a_module_is_evaluated_perturbed_and_moved_where_it_is():
    store, tensor = of_torch()
    es.snap(store, NOISE)
    start = tensor.clone()
    layer = torch.nn.Linear(4, 5, bias=False)
    layer.weight.data = tensor[3:].view(5, 4)
    x = torch.eye(4)
    fitness = {}
    with torch.no_grad():
        for sign in (1, -1):
            with es.perturbed(store, NOISE, 3, sign=sign):
                fitness[sign] = -float(layer(x).square().sum())
        assert torch.equal(tensor, start)
        before = -float(layer(x).square().sum())
        es.update(store, NOISE, [3], [0.5 * (fitness[1] - fitness[-1]) / 2])
        assert -float(layer(x).square().sum()) > before
    assert layer.weight.data_ptr() == tensor.data_ptr() + 12


def test_adam_moves_what_torch_holds_as_torch_does():
    store, tensor = of_torch()
    theirs = tensor.clone().requires_grad_()
    adam, its = es.Adam(store), torch.optim.Adam([theirs], lr=0.01, maximize=True)
    for step in range(20):
        slope = torch.sin(torch.arange(23.0) + step)
        theirs.grad = slope
        its.step()
        adam.step(fs.Store.wrap(slope.clone(), store.layout), 0.01)
    assert torch.allclose(tensor, theirs, rtol=1e-4, atol=1e-6)
