"""Law 7 for all that reads: beside a writer it gets the old state or the new one, or a `LentError`; or it waits."""

import threading
import time

import jax
import numpy as np
import pytest
import torch

import flatstore as fs
from flatstore import es
from flatstore.interop.torch import from_numpy

NOISE = fs.Rademacher(0.5)
SIZE = 400_000


def a_store():
    return fs.Store.from_tree({"a": np.zeros(SIZE, "f4"), "b": {"c": np.zeros((3, 7), "f4")}})


def other_way(sign):
    return lambda store: es.perturb(store, NOISE, 1, sign=sign)


WRITERS = {
    "perturb": (other_way(1), other_way(-1)),
    "update": (
        lambda store: es.update(store, NOISE, [1, 2], [0.5, 0.25]),
        lambda store: es.update(store, NOISE, [1, 2], [0.5, 0.25], sign=-1),
    ),
    "assign": tuple(lambda store, k=k: store.assign(np.full(SIZE + 21, k, "f4")) for k in (1, 0)),
    "assign leaf by leaf": tuple(
        lambda store, k=k: store.assign(iter({path: np.full(store[path].shape, k, "f4") for path in store}.items()))
        for k in (1, 0)
    ),
    "sample into": tuple(lambda store, sign=sign: es.sample(store, CENTRE, NOISE, 3, sign=sign) for sign in (1, -1)),
}
CENTRE = a_store()
REBUILD = fs.destructure(CENTRE)[1]


def saved(store, folder):
    fs.save(folder / "a", store)
    return fs.load(folder / "a").to_vector()


def stepped(store, folder):
    rule = es.Momentum(a_store())
    rule.step(store, 1.0)
    return rule.velocity.to_vector()


def sampled(store, folder):
    out = fs.Population.zeros(store.layout, 2)
    es.sample(out, store, fs.Rademacher({"b/*": 2**-10, "*": 0}), [1, 2])
    return np.concatenate([out[0]["a"], np.zeros(21, "f4")])


def assigned(store, folder):
    other = a_store()
    other.assign(store)
    return other.to_vector()


def put_back(store, folder):
    other = a_store()
    fs.put_back(other, {"a": store["a"], "b": {"c": store["b/c"]}})
    return other.to_vector()


def flattened_again(store, folder):
    return np.array(REBUILD.flatten(store))


def rebuilt(store, folder):
    return np.concatenate([np.array(x).ravel() for x in jax.tree.leaves(REBUILD(store.flat))])


def assigned_tensors(store, folder):
    other = a_store()
    other.assign({path: from_numpy(view) for path, view in store.items()})
    return other.to_vector()


def adopted_again(store, folder):
    module = torch.nn.Module()
    module.a, module.b = (torch.nn.Parameter(from_numpy(view)) for view in store.values())
    return fs.adopt(module).to_vector()


def lent(store, folder):
    with store.lend() as params:
        return np.concatenate([np.array(x).ravel() for x in jax.tree.leaves(params)])


READERS = {
    "to_vector": lambda store, folder: store.to_vector(),
    "copy": lambda store, folder: store.copy().to_vector(),
    "save": saved,
    "destructure": lambda store, folder: np.array(fs.destructure(store)[0]),
    "destructure a tree with it": lambda store, folder: np.array(fs.destructure({"m": store})[0]),
    "sample's centre": sampled,
    "step's gradient": stepped,
    "assign from it": assigned,
    "assign its vector": lambda store, folder: fs.Store.from_tree({"m": store}).to_vector(),
    "a population of it": lambda store, folder: fs.Population.from_tree({"m": store}, 2)[1].to_vector(),
    "transfer": lambda store, folder: fs.transfer(store, store.layout).to_vector(),
    "put_back its views": put_back,
    "flatten": flattened_again,
    "rebuild its vector": rebuilt,
    "assign torch tensors of it": assigned_tensors,
    "adopt what lies in it": adopted_again,
    "lend": lent,
}


@pytest.mark.parametrize("patience", [0.0, 30.0])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_reader_beside_a_writer_gets_a_whole_state_or_an_error_or_waits(writer, reader, patience, tmp_path):
    store, there_and_back, read = a_store(), WRITERS[writer], READERS[reader]
    states, stop, refused, failed = [], threading.Event(), [], []
    for write in there_and_back:
        write(store)
        states.append(read(store, tmp_path).tobytes())
    assert states[0] != states[1] or reader == "sample's centre"

    def keep_writing():
        try:
            with fs.waiting(patience):
                while not stop.is_set():
                    for write in there_and_back:
                        while True:
                            try:
                                write(store)
                                break
                            except fs.LentError as error:
                                refused.append(error)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=keep_writing)
    thread.start()
    whole, deadline = 0, time.monotonic() + 60
    try:
        while whole < 6 and time.monotonic() < deadline and not failed:
            try:
                with fs.waiting(patience):
                    found = read(store, tmp_path).tobytes()
            except fs.LentError as error:
                refused.append(error)
                continue
            assert found in states, f"torn after {whole} whole ones"
            whole += 1
    finally:
        stop.set()
        thread.join()
    assert not failed
    assert whole == 6
    assert not refused or not patience
