"""What a signal handler raises is raised, whatever its class: it is not taken for an error that the verb expects.

Handlers are called as a function is entered, and after a call of a function of C. What `sys.setprofile` calls at these
instants raises in their place: at each of them in turn that lies in this package, or where the standard library looks
for files, since it takes any error of an operating system for an answer.
"""

import gc
import sys
from inspect import CO_GENERATOR
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

import flatstore as fs
from flatstore import es, ga
from flatstore.files import MAGIC, UNDER_WAY

OWN = str(Path(fs.__file__).parent)
LOOKING = "realpath", "_joinrealpath", "isdir", "exists", "lexists"


class Strike:
    """Raises an error once, at the instant of this number."""

    def __init__(self, instant, error):
        self.left, self.error, self.has_come = instant, error, False

    def __call__(self, frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_flags & CO_GENERATOR:  # it may be closed, and no handler is called then
            return
        if event in ("call", "c_return") and (code.co_filename.startswith(OWN) or code.co_name in LOOKING):
            self.left -= 1
            if self.left == -1:
                self.has_come = True
                raise self.error


@pytest.fixture(autouse=True)
def without_collector():
    """What is collected by chance is not struck."""
    gc.disable()
    yield
    gc.enable()


def errors_of(error):
    """An error, and those that have led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def refuse_lost(make, work, kind):
    """Strike at each instant of the work in turn, and require that what was raised comes out."""
    for instant in count():
        given, strike, raised = make(), Strike(instant, kind("struck")), None
        sys.setprofile(strike)
        try:
            work(given)
        except Exception as error:
            raised = error
        finally:
            sys.setprofile(None)
        if not strike.has_come:
            assert instant > 3
            return
        assert strike.error in errors_of(raised), f"lost at the instant {instant}: {raised!r} came out"


def a_store():
    return fs.Store.from_tree({"a": np.zeros(40, "f4"), "b": np.ones((3, 5), "f4")})


def in_place():
    return fs.adopt(torch.nn.ParameterDict({"a": torch.zeros(40)}), move=False)


STORE, NOISE = a_store(), fs.Rademacher(0.25)
VERBS = {
    "a noise": (bool, lambda _: fs.Normal(0.25), (ValueError, TypeError)),
    "seeds": (bool, lambda _: fs.seeds((1, 2), 4), (TypeError,)),
    "a template": (bool, lambda _: fs.from_template(fs.to_template(STORE.layout)), (ValueError, TypeError)),
    "a name": (bool, lambda _: fs.unflatten_dict({"a~1b/~2(1,)": 1}, "/", escape=True), (ValueError, TypeError)),
    "perturb": (a_store, lambda store: es.perturb(store, NOISE, 3), (TypeError, MemoryError)),
    "perturb in place": (in_place, lambda store: es.perturb(store, NOISE, 3), (RuntimeError, AttributeError)),
    "to_vector": (a_store, lambda store: store.to_vector(), (MemoryError,)),
    "Adam": (lambda: es.Adam(a_store()), lambda adam: adam.step(STORE, 0.5), (StopIteration,)),
    "ga.step": (
        lambda: fs.Population.zeros(STORE.layout, 4),
        lambda pop: ga.step(pop, [1.0, 2.0, 3.0, 4.0], seed=1, mutate=NOISE),
        (TypeError,),
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_raises_what_a_handler_has_raised(verb):
    make, work, kinds = VERBS[verb]
    work(make())  # so that all is compiled
    for kind in kinds:
        refuse_lost(make, work, kind)


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_views_are_writable_again_though_what_ends_their_lend_is_struck(kind, monkeypatch):
    monkeypatch.setattr(gc, "collect", int)  # it would take nearly all of the time
    views = []

    def lent():
        store = a_store()
        views[:] = store["a"], store["b"]
        with pytest.raises(fs.LentError), store.lend(patience=0) as params:
            held = np.asarray(params["a"])
        del params, held
        return store

    def settle(store):
        assert not views[0].flags.writeable
        try:
            store["a"]
        finally:
            sys.setprofile(None)
            store["a"]
            views[0][:] = views[1][:] = 7

    refuse_lost(lent, settle, kind)


@pytest.mark.filterwarnings("ignore:unclosed file")  # one that was opened is dropped, which closes it
@pytest.mark.parametrize("kind", [TimeoutError, ValueError])
def test_files_are_saved_and_read_or_what_a_handler_has_raised_comes_out(tmp_path, kind):
    path = tmp_path / "store.safetensors"
    refuse_lost(bool, lambda _: fs.save(path, STORE), kind)
    refuse_lost(bool, lambda _: fs.load(path, like=STORE), kind)


def test_a_half_way_population_is_not_read_though_the_look_for_its_log_is_struck(tmp_path):
    path = tmp_path / "pop.safetensors"
    fs.Population.create(path, STORE.layout, 4)
    Path(f"{path}.generation").write_bytes(MAGIC + UNDER_WAY)

    def load(_):
        with pytest.raises(ValueError, match="whose generation is not over"):
            fs.load(path)

    refuse_lost(bool, load, TimeoutError)
