"""16-bit models that are perturbed in place: what a log takes, what is left when noise is taken back, and the time.

    python -m benchmarks.sixteen_bits                      # about ten minutes, 3 GB
    python -m benchmarks.sixteen_bits --quick
    python -m benchmarks.sixteen_bits --only logs          # one part

The model of `transformer`, `perturb` and `step` is a Llama with random weights in bfloat16; the peers are those of
`peers/sixteen.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

import flatstore as fs
from flatstore import bench

from . import tracked
from .peers import PEERS
from .peers.sixteen import NOISE, SCALE, llama, normal, vector
from .report import MIB, Call, Row, at_least, at_most, beside, interleaved, ratio, report

SIXTEEN = PEERS["sixteen_bits"]
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
WEIGHTS: dict[str, tuple[Any, float, float]] = {
    "normal, 0.02, noise 0.001": (normal, 1e-3, 5.0),
    "normal, 0.02, noise 0.0001": (normal, 1e-4, 1.0),
    "around 1, noise 0.001": (lambda n: 1 + normal(n, 0.05), 1e-3, 0.5),
    "zeros, noise 0.001": (lambda n: np.zeros(n, np.float32), 1e-3, 0.1),
    "1e-6, noise 0.1: all is lost": (lambda n: normal(n, 1e-6), 0.1, 101.0),
}
"""What makes weights, the noise, and how many percent of their bytes a log may take in bfloat16."""


class ThereAndBack(tracked.Times):
    """Ten times noise added to 1,000,000 parameters in bfloat16, and taken back."""

    question = "sixteen_bits"
    params: Any = list(SIXTEEN)
    param_names = ("peer",)
    loops = 10

    @staticmethod
    def make(peer: str) -> Call:
        made = SIXTEEN[peer](vector(1_000_000))
        return lambda: (made.perturb(), made.undo())


class Logs:
    """The bytes of a log of 1,000,000 parameters (2,000,000 bytes), and of what is not as it was after an undo."""

    params: Any = (list(WEIGHTS), list(DTYPES))
    param_names = ("weights", "dtype")
    unit = "bytes"

    def setup(self, weights: str, dtype: str) -> None:
        make, self.scale, _ = WEIGHTS[weights]
        self.values = make(1_000_000).astype(DTYPES[dtype])

    def track_log(self, weights: str, dtype: str) -> int:
        return log_bytes(self.values, fs.Normal(self.scale, bound=2))

    def track_changed(self, weights: str, dtype: str) -> int:
        return changed(self.values, 1)


class Peak(tracked.Peak):
    """What a perturbation of 10,000,000 parameters in bfloat16 (20,000,000 bytes) takes beyond them."""

    question = "sixteen_bits"
    params: Any = list(SIXTEEN)
    param_names = ("peer",)

    @staticmethod
    def make(peer: str) -> Any:
        return SIXTEEN[peer](vector(10_000_000))

    @staticmethod
    def work(made: Any) -> None:
        made.perturb()


def ordered(values: Any) -> Any:
    """The place of each 16-bit float among all of them."""
    bits = values.view(np.int16).astype(np.int32)
    return np.where(bits < 0, bits ^ 0x7FFF, bits)


def other_codes(values: Any, noise: fs.Normal) -> dict[str, float]:
    """What other logs of the same loss would take, as shares of the bytes of the values; without checksums."""
    (leaf,) = fs.Layout.from_tree({"w": values}).leaves
    delta = noise.delta(leaf, np.array([1], np.uint64), 0, values.size)[0]
    moved = (values.astype(np.float32) + delta).astype(values.dtype)
    far = ordered(values) - ordered((moved.astype(np.float32) - delta).astype(values.dtype))
    lost = np.flatnonzero(far)
    share = lost.size / values.size
    if not lost.size:
        return {"entropy": 0.0, "16-bit entries": 0.0, "bitmap and values": 1 / 16}
    counts = np.array(list(Counter(far[lost].tolist()).values())) / lost.size
    entropy = -(counts * np.log2(counts)).sum() * share
    entropy -= share * np.log2(share) + (1 - share) * np.log2(max(1 - share, 1e-12))
    beyond = (np.abs(far[lost]) > 7).mean()  # twelve bits of place and four of difference; the rest takes another entry
    return {"entropy": entropy / 16, "16-bit entries": share * (1 + beyond), "bitmap and values": 1 / 16 + share}


def log_bytes(values: Any, noise: fs.Normal) -> int:
    """The bytes of a log."""
    log: Any = fs.es.perturb(fs.Store.from_tree({"w": values}), noise, 1)
    return log.nbytes


def log_share(values: Any, noise: fs.Normal) -> float:
    """The same, in percent of those of the values."""
    return 100 * log_bytes(values, noise) / values.nbytes


def changed(values: Any, cycles: int) -> int:
    """How many weights change in so many cycles of +1, -2, +1, each with an update that is taken back."""
    store = fs.Store.from_tree({"w": values})
    for seed in range(cycles):
        log = fs.es.perturb(store, NOISE, seed)
        log = fs.es.perturb(store, NOISE, seed, sign=-2, undo=log)
        fs.es.perturb(store, NOISE, seed, sign=1, undo=log)
        log = fs.es.update(store, NOISE, [seed], [0.01], keep=True)
        fs.es.update(store, NOISE, [seed], [0.01], sign=-1, undo=log)
    return int((store["w"].view(np.uint16) != values.view(np.uint16)).sum())


def logs(quick: bool) -> Iterator[Row]:
    """How much a log takes."""
    n = 1 << (18 if quick else 22)
    for name, (make, scale, most) in WEIGHTS.items():
        values = make(n)
        half = values.astype(ml_dtypes.bfloat16)
        noise = fs.Normal(scale, bound=2)
        yield at_most(f"log, bfloat16, {name}", most, log_share(half, noise), "%", 3)
        others = ", ".join(f"{code} {100 * x:.2f} %" for code, x in other_codes(half, noise).items())
        yield beside("others", others)
        wide = log_share(half, fs.Normal(scale))
        float16 = log_share(values.astype(np.float16), noise)
        yield beside("with the bound 32; in float16", f"{wide:.2f} %; {float16:.2f} %")


def transformer(quick: bool) -> Iterator[Row]:
    """How much the log of a whole model takes, leaf by leaf."""
    store = fs.adopt(llama(2 if quick else 12))
    found: dict[str, list[float]] = {}
    for leaf in store.layout.homes:
        if leaf.trainable:
            kind = leaf.path.removesuffix(".weight").rpartition(".")[2]
            found.setdefault(kind, []).append(log_share(store[leaf.path].copy(), NOISE))
    fs.es.snap(store, NOISE)
    log: Any = fs.es.perturb(store, NOISE, 1)
    nbytes = sum(leaf.nbytes for leaf in store.layout.homes if leaf.trainable)
    size = sum(leaf.size for leaf in store.layout.homes if leaf.trainable)
    yield at_most(f"log of a model of {size / 1e6:.0f} M parameters", 5, 100 * log.nbytes / nbytes, "%", 3)
    fs.es.perturb(store, NOISE, 1, sign=-1, undo=log)
    yield beside("by leaf", ", ".join(f"{kind} {np.mean(x):.2f} %" for kind, x in found.items()))


def cycles(quick: bool) -> Iterator[Row]:
    """What is left of the weights after many cycles of +1, -2, +1, each with an update that is taken back."""
    times, size = (200, 1 << 16) if quick else (10_000, 1 << 18)
    for name, dtype in DTYPES.items():
        values = normal(size).astype(dtype)
        yield at_most(f"weights that changed in {times:,} cycles, {name}", 0, changed(values, times), "", 0)
        store = fs.Store.from_tree({"w": values})
        for seed in range(300):
            for sign in (1, -2, 1):
                fs.es.perturb(store, NOISE, seed, sign=sign, exact=False)
        drift = (store["w"].astype(np.float64) - values.astype(np.float64)).std() / SCALE
        yield beside("plain addition, 300 cycles", f"moved by {drift:.2f} standard deviations of the noise")


def perturb(quick: bool) -> Iterator[Row]:
    """The time of a perturbation with its log, and of taking it back; that of a model, beside the peers."""
    size = 1 << (22 if quick else 26)
    for name in DTYPES:
        plain, ours, roof = (SIXTEEN[x](vector(size, name)) for x in ("flatstore, exact=False", "flatstore", "roof"))
        calls: dict[str, Call] = {
            "exact=False": plain.perturb,
            "back, exact=False": plain.undo,
            "with a log": ours.perturb,
            "undo": ours.undo,
            "roof": roof.perturb,
        }
        taken = interleaved(calls, 3 if quick else 9)
        figure = f"perturb with its log / exact=False, {name}"
        yield at_most(figure, 1.5, ratio(taken, "with a log", "exact=False"), "x")
        yield at_most(f"undo / exact=False, {name}", 1.2, ratio(taken, "undo", "exact=False"), "x")
        shares = ", ".join(f"{x} {100 * ratio(taken, 'roof', x):.0f} %" for x in ("exact=False", "with a log", "undo"))
        yield beside("of np.multiply on the same bytes, all threads", shares)
    layers = 2 if quick else 12
    names = ("flatstore", "MeZO", "es-at-scale")
    peers = {name: SIXTEEN[name](llama(layers)) for name in names}
    taken = interleaved({name: peer.perturb for name, peer in peers.items()}, 3)
    figure = f"a model of {peers['flatstore'].nbytes / MIB:.0f} MiB perturbed, MeZO's loop / flatstore"
    del peers
    yield at_least(figure, 1, ratio(taken, "MeZO", "flatstore"), "x", 1)
    yield beside("es-at-scale's loop / flatstore", f"{ratio(taken, 'es-at-scale', 'flatstore'):.1f} x")
    peaks = (
        f"{x} {bench.peak_memory(Peak.work, x, layers, setup=of_llama) / MIB:.0f} MiB"
        for x in names[: 1 if quick else None]
    )
    yield beside("memory at the peak", ", ".join(peaks))


def of_llama(peer: str, layers: int) -> Any:
    """A peer that works on a model."""
    return SIXTEEN[peer](llama(layers))


def step(quick: bool) -> Iterator[Row]:
    """The share of a MeZO step that is not its two forward passes."""
    import torch

    model = llama(2 if quick else 12)
    mezo = SIXTEEN["MeZO"](model)
    batch = torch.randint(0, 32_000, (2, 128), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def loss() -> float:
        return model(input_ids=batch, labels=batch, use_cache=False).loss.item()

    def mezo_step() -> None:
        mezo.add(1, 7)
        plus = loss()
        mezo.add(-2, 7)
        minus = loss()
        mezo.add(1, 7)
        mezo.add(-1e-6 * (plus - minus) / (2 * SCALE) / SCALE, 7)

    def shares(calls: dict[str, Call]) -> Any:
        taken = interleaved(calls, 3 if quick else 7)
        return np.median(1 - 2 * taken["forward"] / taken["step"]), np.median(taken["step"])

    theirs, their_step = shares({"forward": loss, "step": mezo_step})
    store = fs.adopt(model)
    fs.es.snap(store, NOISE)
    moves = fs.es.mezo(store, lambda _params, _n: -loss(), seed=1, noise=NOISE, rate=1e-6 / SCALE**2, steps=None)
    ours, our_step = shares({"forward": loss, "step": lambda: next(moves)})
    size = sum(x.numel() for x in mezo.parameters)
    yield at_most(f"share of a step not in forward passes, {size / 1e6:.0f} M", round(100 * theirs), 100 * ours, "%", 1)
    yield beside("a step", f"{1e3 * our_step:.0f} ms, MeZO's own {1e3 * their_step:.0f} ms")


MEASURES = logs, transformer, cycles, perturb, step

if __name__ == "__main__":
    report(__doc__ or "", *MEASURES)
