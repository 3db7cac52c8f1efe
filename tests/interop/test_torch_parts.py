"""Fused and sharded parameters of an engine keep the indices of the whole model: both agree on every bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import flatstore as fs
from flatstore import es
from tests.example_trees import says

F4 = np.float32
HIDDEN, HEADS, FEWER, INNER, VOCABULARY = 48, 64, 32, 96, 100
NOISE = fs.Normal({"*norm.weight": 0.01, "*": 0.02})


class Block(nn.Module):
    """A layer of the trained model, each matrix by its own name."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.q, self.k, self.v = (nn.Linear(HIDDEN, size) for size in (HEADS, FEWER, FEWER))
        self.o = nn.Linear(HEADS, HIDDEN, bias=False)
        self.gate, self.up = (nn.Linear(HIDDEN, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, HIDDEN, bias=False)


def trained(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Module()
    model.embed = nn.Embedding(VOCABULARY, HIDDEN)
    model.layers = nn.ModuleList([Block(), Block()])
    model.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    model.head.weight = model.embed.weight
    return model.to(dtype)


class Fused(nn.Module):
    """The same layer as an engine has it in one of `ranks` processes: fused by rows, rows or columns of the whole."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.qkv = nn.Linear(HIDDEN, (HEADS + 2 * FEWER) // ranks)
        self.o = nn.Linear(HEADS // ranks, HIDDEN, bias=False)
        self.gate_up = nn.Linear(HIDDEN, 2 * INNER // ranks, bias=False)
        self.down = nn.Linear(INNER // ranks, HIDDEN, bias=False)


def engine(ranks: int = 1, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The whole engine in one process. Its vocabulary is padded to a multiple of 64 rows."""
    model = nn.Module()
    model.embed = nn.Embedding(128 // ranks, HIDDEN)
    model.layers = nn.ModuleList([Fused(ranks), Fused(ranks)])
    model.register_buffer("cosines", torch.ones(7))
    return model.requires_grad_(False).to(dtype)


def parts_of(model: nn.Module, rank: int = 0, ranks: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a process has of the whole model: slices of its tensors, and where in the leaves of the whole they begin."""
    rows = 128 // ranks
    parts: dict[str, Any] = {"embed.weight": model.embed.weight[: min(rows, VOCABULARY - rank * rows)]}
    at: dict[str, Any] = {"embed.weight": rank * rows, "head.weight": rank * rows}
    for i, layer in enumerate(model.layers):
        for fused, names, sizes in (
            (layer.qkv, "qkv", (HEADS, FEWER, FEWER)),
            (layer.gate_up, ("gate", "up"), (INNER, INNER)),
        ):
            start = 0
            for name, size in zip(names, sizes, strict=True):
                for x, tensor in fused.named_parameters():
                    parts[f"layers.{i}.{name}.{x}"] = tensor[start : start + size // ranks]
                    at[f"layers.{i}.{name}.{x}"] = rank * size // ranks
                start += size // ranks
        at[f"layers.{i}.o.weight"] = 0, rank * HEADS // ranks
        at[f"layers.{i}.down.weight"] = 0, rank * INNER // ranks
    return parts, at


def adopted(whole: Any, model: nn.Module, rank: int, ranks: int) -> fs.Store:
    parts, at = parts_of(model, rank, ranks)
    return fs.adopt_parts(model, whole, parts, at=at)


def block(view: np.ndarray, part: np.ndarray, at: Any) -> np.ndarray:
    start = at if isinstance(at, tuple) else (at,)
    starts = (*start, *[0] * (part.ndim - len(start)))
    return view[tuple(slice(a, a + n) for a, n in zip(starts, part.shape, strict=True))]


def fill(part: fs.Store, whole: fs.Store, at: dict[str, Any]) -> None:
    part.assign({path: block(whole[path], view, at.get(path, 0)) for path, view in part.items()})


def agree(part: fs.Store, whole: fs.Store, at: dict[str, Any]) -> bool:
    return all(view.tobytes() == block(whole[path], view, at.get(path, 0)).tobytes() for path, view in part.items())


def side(store: fs.Store) -> None:
    es.perturb(store, NOISE, 7)


def there_and_back(store: fs.Store) -> None:
    before = [view.tobytes() for view in store.values()]
    log = es.perturb(store, NOISE, 7)
    log = es.perturb(store, NOISE, 7, sign=-2, undo=log)
    es.perturb(store, NOISE, 7, sign=1, undo=log)
    assert [view.tobytes() for view in store.values()] == before


def update(store: fs.Store) -> None:
    es.update(store, NOISE, fs.seeds(1, 9), np.linspace(-0.3, 0.5, 9))


def update_from_the_side(store: fs.Store) -> None:
    log = es.perturb(store, NOISE, 3)
    es.update(store, NOISE, [3], [0.7], perturbed=1, undo=log)


def update_and_back(store: fs.Store) -> None:
    before = [view.tobytes() for view in store.values()]
    log = es.update(store, NOISE, fs.seeds(1, 3), [0.5, 0.1, -1], keep=True)
    es.update(store, NOISE, fs.seeds(1, 3), [0.5, 0.1, -1], sign=-1, undo=log)
    assert [view.tobytes() for view in store.values()] == before


def replay(store: fs.Store) -> None:
    es.replay(store, NOISE, [(fs.seeds(i, 4), np.linspace(-1, 1, 4)) for i in range(3)])


def replay_by_adam(store: fs.Store) -> None:
    moves = [(fs.seeds(i, 4), np.linspace(-1, 1, 4), 0.01) for i in range(3)]
    es.replay(store, NOISE, moves, optimiser=es.Momentum(store))


def sample(store: fs.Store) -> None:
    centre = store.copy()
    es.sample(store, centre, NOISE, [11], sign=-1)


VERBS = [side, there_and_back, update, update_from_the_side, update_and_back, replay, sample]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_every_process_of_an_engine_does_to_its_parts_what_is_done_to_the_whole(
    verb: Callable[[fs.Store], None], ranks: int, dtype: torch.dtype
) -> None:
    whole = fs.adopt(trained(dtype))
    es.snap(whole, NOISE)
    processes = [engine(ranks, dtype) for _ in range(ranks)]
    stores = [adopted(whole, model, rank, ranks) for rank, model in enumerate(processes)]
    places = [parts_of(model, rank, ranks)[1] for rank, model in enumerate(processes)]
    for store, at in zip(stores, places, strict=True):
        fill(store, whole, at)
    start = [view.tobytes() for view in whole.values()]
    verb(whole)
    assert "back" in verb.__name__ or [view.tobytes() for view in whole.values()] != start
    covered = 0
    for store, at, model in zip(stores, places, processes, strict=True):
        pointers = [tensor.data_ptr() for tensor in model.parameters()]
        verb(store)
        assert agree(store, whole, at)
        assert pointers == [tensor.data_ptr() for tensor in model.parameters()]
        covered += store["layers.0.q.weight"].size + store["layers.1.down.weight"].size
    assert covered == HEADS * HIDDEN + INNER * HIDDEN


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_optimiser_moves_the_parts_as_it_moves_the_whole(ranks: int) -> None:
    whole = fs.adopt(trained())
    model = engine(ranks)
    store, at = adopted(whole, model, ranks - 1, ranks), parts_of(model, ranks - 1, ranks)[1]
    fill(store, whole, at)
    replay_by_adam(whole)
    replay_by_adam(store)
    assert agree(store, whole, at)


def test_if_all_is_there_it_has_the_layout_of_the_whole_and_takes_its_files(tmp_path: Any) -> None:
    whole = fs.adopt(trained())
    model = engine()
    parts, _ = parts_of(model)
    store = fs.adopt_parts(model, whole.layout, parts)
    assert store.layout is whole.layout and store["head.weight"] is store["embed.weight"]
    store.assign(whole)
    assert [view.tobytes() for view in store.values()] == [view.tobytes() for view in whole.values()]
    fs.save(tmp_path / "engine.safetensors", store)
    fs.save(tmp_path / "whole.safetensors", whole)
    assert (tmp_path / "engine.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert torch.equal(model.layers[1].qkv.weight[HEADS : HEADS + FEWER], torch.from_numpy(whole["layers.1.k.weight"]))


def test_what_is_of_no_leaf_is_not_touched() -> None:
    model = engine()
    with torch.no_grad():
        model.embed.weight[VOCABULARY:] = 7
    store = adopted(fs.adopt(trained()), model, 0, 1)
    es.snap(store, NOISE)
    side(store)
    assert (model.embed.weight[VOCABULARY:] == 7).all() and (model.cosines == 1).all()


def test_a_process_may_have_some_of_the_layers() -> None:
    whole = fs.adopt(trained())
    es.snap(whole, NOISE)
    model = engine()
    model.layers = nn.ModuleList([nn.Identity(), model.layers[1]])
    del model.embed
    elsewhere = {path: None for path in whole if not path.startswith("layers.1.")}
    layer = model.layers[1]
    here = {
        f"layers.1.{name}.{x}": tensor[start : start + size]
        for name, start, size in (("q", 0, HEADS), ("k", HEADS, FEWER), ("v", HEADS + FEWER, FEWER))
        for x, tensor in layer.qkv.named_parameters()
    } | {"layers.1.gate.weight": layer.gate_up.weight[:INNER], "layers.1.up.weight": layer.gate_up.weight[INNER:]}
    store = fs.adopt_parts(model, whole, elsewhere | here)
    assert list(store) == [path for path in whole if path.startswith("layers.1.")]
    assert store.whole is whole.layout and store.layout.size < whole.layout.size
    fill(store, whole, {})
    for verb in VERBS:
        verb(whole)
        verb(store)
        assert agree(store, whole, {})


@given(st.data())
def test_any_block_of_an_array_has_the_indices_that_numpy_counts(data: Any) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), max_size=4)))
    at = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    size = tuple(data.draw(st.integers(1, n - a)) for n, a in zip(shape, at, strict=True))
    layout = fs.Layout.from_tree({"a": np.zeros(3, F4), "b": np.zeros(shape, F4)})
    module = nn.ParameterDict({"b": torch.zeros(size)})
    store = fs.adopt_parts(module, layout, {"a": None}, at={"b": at})
    (leaf,) = store.layout.homes
    counted = np.arange(3, 3 + layout.by_path["b"].size).reshape(shape)[tuple(map(slice, at, np.add(at, size)))]
    got = [(x.begin, x.end, x.at) for x in store.stretches(leaf, 0, layout.size)]
    assert [i + 3 for begin, end, first in got for i in range(first, first + end - begin)] == counted.ravel().tolist()
    assert [i for begin, end, _ in got for i in range(begin, end)] == list(range(leaf.size))
    firsts, length = store.firsts(leaf)
    assert len(firsts) * length == leaf.size and (firsts == counted.ravel()[::length]).all()


def test_the_errors_of_moves_name_the_leaf_of_the_part_that_is_in_the_way() -> None:
    whole = fs.adopt(trained())
    model = engine(2)
    store, at = adopted(whole, model, 1, 2), parts_of(model, 1, 2)[1]
    es.snap(whole, NOISE)
    fill(store, whole, at)
    before = store.to_vector()
    for value, words in (
        (0.1, "'layers.1.o.weight': expected parameters on the grid"),
        (np.nan, "'layers.1.o.weight': expected finite parameters, got nan at 785"),
        (31.999, "'layers.1.o.weight': expected parameters below the bound 32 after the move, got a largest magnitude"),
        (33, "'layers.1.o.weight': expected parameters below the bound 32, got a largest magnitude of 33"),
    ):
        store["layers.1.o.weight"][24, 17] = np.rint(value * 2**19) / 2**19 if value > 1 else value
        for sign in (1, -1):
            with pytest.raises(ValueError, match="expected") as error:
                for seed in range(20):
                    es.perturb(store, NOISE, seed, sign=sign)
                    es.perturb(store, NOISE, seed, sign=-sign)
            says(error, words)
        store["layers.1.o.weight"][24, 17] = 0
    assert np.count_nonzero(store.to_vector() != before) <= 1


def test_a_16_bit_move_that_would_not_stay_finite_names_the_leaf_and_a_changed_store_is_noticed() -> None:
    whole = fs.adopt(trained(torch.float16))
    store = adopted(whole, engine(2, torch.float16), 0, 2)
    noise = fs.Normal({"*o.weight": 2000.0, "*": 0}, bound=65504)
    store["layers.0.o.weight"][3, 5] = 65504
    with pytest.raises(ValueError, match=r"'layers\.0\.o\.weight': expected parameters that stay finite"):
        for seed in range(20):
            es.perturb(store, noise, seed, undo=None)
            store["layers.0.o.weight"][...] = 0
            store["layers.0.o.weight"][3, 5] = 65504
    log = es.perturb(store, NOISE, 1)
    store["layers.1.down.weight"][0, 0] += 1
    with pytest.raises(ValueError, match=r"'layers\.1\.down\.weight'.*as the undo log left them"):
        es.perturb(store, NOISE, 1, sign=-1, undo=log)


REFUSED: dict[str, tuple[Callable[[nn.Module, dict[str, Any], dict[str, Any]], Any], tuple[str, ...]]] = {
    "a leaf that nothing is said of": (
        lambda model, parts, at: parts.pop("layers.0.k.bias"),
        ("1 leaf", "'layers.0.k.bias': expected float32[32], got nothing", "or None if it is not here"),
    ),
    "an unknown path": (
        lambda model, parts, at: parts.update({"layers.7.k.bias": None}),
        ("'layers.7.k.bias': expected a path of the whole model",),
    ),
    "another shape without a place": (
        lambda model, parts, at: at.pop("layers.0.o.weight"),
        ("'layers.0.o.weight': expected float32[48,64], got float32[48,32]", "at="),
    ),
    "outside of the whole": (
        lambda model, parts, at: at.update({"layers.0.o.weight": (0, 33)}),
        ("'layers.0.o.weight': expected a block of float32[48,64], got float32[48,32] at (0, 33)",),
    ),
    "too many coordinates": (
        lambda model, parts, at: at.update({"layers.0.o.weight": (0, 0, 0)}),
        ("'layers.0.o.weight': expected a block",),
    ),
    "another dtype": (
        lambda model, parts, at: model.layers[1].half(),
        ("'layers.1.o.weight': expected float32[48,64], got float16[48,32]", "plan the whole in float16"),
    ),
    "a copy": (
        lambda model, parts, at: parts.update({"layers.0.q.bias": parts["layers.0.q.bias"].clone()}),
        ("'layers.0.q.bias': expected memory of a tensor of the module, got memory elsewhere", "not a copy"),
    ),
    "columns of a fused tensor": (
        lambda model, parts, at: parts.update({"layers.0.q.weight": model.layers[0].qkv.weight[:32].T[:32].T}),
        ("'layers.0.q.weight': expected",),
    ),
    "one slice for two leaves": (
        lambda model, parts, at: parts.update({"layers.0.k.weight": parts["layers.0.v.weight"]}),
        ("'layers.0.v.weight': expected memory of its own, got that of 'layers.0.k.weight'",),
    ),
    "slices that overlap": (
        lambda model, parts, at: parts.update({"layers.0.k.weight": model.layers[0].qkv.weight[20:28]}),
        ("expected memory of its own, got bytes of 'layers.0.",),
    ),
    "tied apart": (
        lambda model, parts, at: (
            setattr(model, "head", nn.Linear(HIDDEN, 64, bias=False)),
            at.update({"head.weight": 0}) or parts.update({"head.weight": model.head.weight}),
        ),
        ("'head.weight': expected the memory of 'embed.weight', got memory of its own", "tied=False"),
    ),
    "a parameter that is no part": (
        lambda model, parts, at: setattr(model, "adapter", nn.Linear(2, 2)),
        ("2 leaves", "'adapter.weight': expected a part of the whole model", "ignore="),
    ),
    "meta": (
        lambda model, parts, at: setattr(
            model.layers[0].norm, "bias", nn.Parameter(torch.zeros(HIDDEN, device="meta"))
        ),
        ("'layers.0.norm.bias': expected a tensor in memory",),
    ),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_does_not_fit_into_the_whole_is_named(how: str) -> None:
    change, words = REFUSED[how]
    model = engine(2)
    parts, at = parts_of(model, 0, 2)
    change(model, parts, at)
    with pytest.raises(fs.StructureError, match="of the module unlike the whole model") as error:
        fs.adopt_parts(model, fs.adopt(trained()), parts, at=at)
    says(error, *words)


def test_parameters_that_are_no_part_are_left_out_by_name() -> None:
    model = engine()
    model.adapter = nn.Linear(2, 2)
    parts, _ = parts_of(model)
    whole = fs.adopt(trained())
    store = fs.adopt_parts(model, whole, parts, ignore="adapter.*")
    assert not any("adapter" in path for path in store)
    with pytest.raises(ValueError, match="ignore: expected globs that match a parameter, got 'scale"):
        fs.adopt_parts(model, whole, parts, ignore="scale*")


def test_what_is_no_layout_and_no_tensor_is_refused() -> None:
    model, whole = engine(2), fs.adopt(trained())
    store = adopted(whole, model, 0, 2)
    parts, at = parts_of(model, 0, 2)
    for wrong, words in (
        (trained(), "the layout of the whole model, got Module"),
        (store, "got a store of parts of one; fix: pass its layout, store.whole"),
    ):
        with pytest.raises(TypeError, match=words):
            fs.adopt_parts(model, wrong, parts, at=at)
    with pytest.raises(TypeError, match="'embed.weight': expected a slice of a tensor of the module, got ndarray"):
        fs.adopt_parts(model, whole, parts | {"embed.weight": np.zeros((64, HIDDEN), F4)}, at=at)
    assert fs.adopt_parts(model, store.whole, parts, at=at).layout == store.layout


def test_verbs_that_would_lose_the_indices_of_the_whole_refuse_parts_and_a_copy_keeps_them(tmp_path: Any) -> None:
    whole = fs.adopt(trained())
    model = engine(2)
    store, at = adopted(whole, model, 1, 2), parts_of(model, 1, 2)[1]
    fill(store, whole, at)
    es.snap(whole, NOISE)
    es.snap(store, NOISE)
    with pytest.raises(fs.StructureError, match="1 leaf of out whose indices are not the store's") as error:
        es.sample(fs.Population.zeros(store.layout, 4), store, NOISE, fs.seeds(0, 4))
    says(error, "expected parts of a model, got a whole model", "a copy() of the store")
    quarters = [adopted(whole, engine(4), rank, 4) for rank in (1, 2)]
    assert quarters[0].layout == quarters[1].layout
    with pytest.raises(fs.StructureError, match="expected parts of a model, got others of it"):
        es.sample(*quarters, NOISE, [1])
    with pytest.raises(fs.StructureError, match="of the gradient"):
        es.Adam(store).step(fs.Store.zeros(store.layout), 0.1)
    with pytest.raises(fs.StructureError, match="of members"):
        run: dict[str, Any] = {"seed": 0, "noise": NOISE, "rate": 1.0}
        es.evolve(store, lambda *_: 0, members=fs.Population.zeros(store.layout, 4), **run)
    with pytest.raises(ValueError, match="whose indices a file does not keep") as refused:
        fs.save(tmp_path / "part.safetensors", store)
    says(refused, "fs.Store.from_tree(dict(store))")
    fs.save(tmp_path / "part.safetensors", fs.Store.from_tree(dict(store)))
    with pytest.raises(ValueError, match="parts of one") as refused:
        next(store.modules())
    says(refused, "select()")
    with pytest.raises(ValueError, match="store of parts of a model") as refused:
        es.virtual(store, NOISE, 7)
    says(refused, "layout=store.whole")
    copied = store.copy()
    es.perturb(copied, NOISE, 7)
    es.perturb(whole, NOISE, 7)
    assert agree(copied, whole, at) and copied.flat.size


def test_a_run_of_parts_is_not_kept_in_a_folder(tmp_path: Any) -> None:
    store = adopted(fs.adopt(trained()), engine(2), 1, 2)
    es.snap(store, NOISE)
    with pytest.raises(ValueError, match="run: expected a whole model to keep in a folder") as error:
        es.mezo(store, lambda *_: 0.0, seed=0, noise=NOISE, rate=1.0, steps=1, run=tmp_path / "run")
    says(error, "es.replay")
    assert not [*tmp_path.iterdir()]


def test_evolve_and_mezo_move_parts_and_their_journals_move_the_whole() -> None:
    whole = fs.adopt(trained())
    model = engine(2)
    store, at = adopted(whole, model, 1, 2), parts_of(model, 1, 2)[1]
    es.snap(whole, NOISE)
    fill(store, whole, at)

    def rated(stacked: Any, generation: int) -> Any:
        return np.array(stacked["layers.0.o.weight"]).sum((1, 2))

    def score(params: Any, step: int) -> Any:
        return float(np.array(params["layers.1.q.weight"]).sum())

    evolved = es.evolve(store, rated, seed=0, noise=NOISE, members=8, rate=1.0, generations=2)
    moves = [*evolved, *es.mezo(store, score, seed=1, noise=NOISE, rate=0.1, steps=3)]
    es.replay(whole, NOISE, [move.entry for move in moves])
    assert agree(store, whole, at)
