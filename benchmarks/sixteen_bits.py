"""The figures of 16-bit models that are perturbed in place, measured side by side in one run and printed as a table.

    python benchmarks/sixteen_bits.py                      # about ten minutes, 3 GB
    python benchmarks/sixteen_bits.py --quick              # smaller sizes
    python benchmarks/sixteen_bits.py --only logs          # one part

How it is measured stands in `report.py`. The model of `step` is a Llama of the transformers library with random
weights, in bfloat16; beside flatstore stand MeZO's own loop (princeton-nlp/MeZO, `large_models/trainer.py`: a normal
tensor for each parameter, made again from the seed of torch) and that of es-at-scale (a generator and a tensor each).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

import flatstore as fs
from flatstore.bench import tidy

if __package__:  # asv imports this folder as a package
    from .report import MIB, Call, Row, at_least, at_most, beside, interleaved, ratio, report, resident
else:
    from report import MIB, Call, Row, at_least, at_most, beside, interleaved, ratio, report, resident

RMS, SCALE = 0.02, 1e-3
NOISE = fs.Normal(SCALE, bound=2)
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def normal(size: int, rms: float = RMS, seed: int = 0) -> Any:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(size, np.float32) * np.float32(rms)


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


def log_share(values: Any, noise: fs.Normal) -> float:
    """The bytes of a log as a share of those of the values."""
    store = fs.Store.from_tree({"w": values})
    log: Any = fs.es.perturb(store, noise, 1)
    return log.nbytes / values.nbytes


def logs(quick: bool) -> Iterator[Row]:
    """How much a log takes."""
    n = 1 << (18 if quick else 22)
    kinds = {
        f"normal, {RMS}, noise 0.001": (normal(n), 1e-3, 5.0),
        f"normal, {RMS}, noise 0.0001": (normal(n), 1e-4, 1.0),
        "around 1, noise 0.001": (1 + normal(n, 0.05), 1e-3, 0.5),
        "zeros, noise 0.001": (np.zeros(n, np.float32), 1e-3, 0.1),
        "1e-6, noise 0.1: all is lost": (normal(n, 1e-6), 0.1, 101.0),
    }
    for name, (values, scale, most) in kinds.items():
        half = values.astype(ml_dtypes.bfloat16)
        noise = fs.Normal(scale, bound=2)
        yield at_most(f"log, bfloat16, {name}", most, 100 * log_share(half, noise), "%", 3)
        others = ", ".join(f"{code} {100 * x:.2f} %" for code, x in other_codes(half, noise).items())
        yield beside("others", others)
        wide = 100 * log_share(half, fs.Normal(scale))
        float16 = 100 * log_share(values.astype(np.float16), noise)
        yield beside("with the bound 32; in float16", f"{wide:.2f} %; {float16:.2f} %")


def a_model(layers: int) -> Any:
    """A Llama with random weights in bfloat16: 109 million parameters with twelve layers."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        tie_word_embeddings=True,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def transformer(quick: bool) -> Iterator[Row]:
    """How much the log of a whole model takes, leaf by leaf."""
    store = fs.adopt(a_model(2 if quick else 12))
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
    yield beside("by leaf", ", ".join(f"{kind} {100 * np.mean(x):.2f} %" for kind, x in found.items()))


def cycles(quick: bool) -> Iterator[Row]:
    """What is left of the weights after many cycles of +1, -2, +1, each with an update that is taken back."""
    times, size = (200, 1 << 16) if quick else (10_000, 1 << 18)
    for name, dtype in DTYPES.items():
        store = fs.Store.from_tree({"w": normal(size).astype(dtype)})
        before = store["w"].copy()
        for seed in range(times):
            log = fs.es.perturb(store, NOISE, seed)
            log = fs.es.perturb(store, NOISE, seed, sign=-2, undo=log)
            fs.es.perturb(store, NOISE, seed, sign=1, undo=log)
            log = fs.es.update(store, NOISE, [seed], [0.01], keep=True)
            fs.es.update(store, NOISE, [seed], [0.01], sign=-1, undo=log)
        changed = int((store["w"].view(np.uint16) != before.view(np.uint16)).sum())
        yield at_most(f"weights that changed in {times:,} cycles, {name}", 0, changed, "", 0)
        for seed in range(300):
            for sign in (1, -2, 1):
                fs.es.perturb(store, NOISE, seed, sign=sign, exact=False)
        drift = (store["w"].astype(np.float64) - before.astype(np.float64)).std() / SCALE
        yield beside("plain addition, 300 cycles", f"moved by {drift:.2f} standard deviations of the noise")


def mezos(parameters: list[Any], sign: int, seed: int) -> None:
    """MeZO's own way to perturb a model."""
    import torch

    torch.manual_seed(seed)
    for parameter in parameters:
        z = torch.normal(mean=0, std=1, size=parameter.data.size(), dtype=parameter.data.dtype)
        parameter.data = parameter.data + sign * z * SCALE


def at_scales(parameters: list[Any], sign: int, seed: int) -> None:
    """The way of es-at-scale: a generator for each tensor, seeded alike."""
    import torch

    for parameter in parameters:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
        parameter.data.add_(sign * SCALE * noise)


def peak_beyond(call: Call) -> float:
    """How many MiB the resident memory grows while a call is made, at the peak."""
    before = tidy()
    call()
    return max(0, resident("VmHWM") - before) / MIB


def perturb(quick: bool) -> Iterator[Row]:
    """The time of a perturbation with its log, and of taking it back."""
    size = 1 << (22 if quick else 26)
    for name, dtype in DTYPES.items():
        store = fs.Store.from_tree({"w": normal(size).astype(dtype)})
        roof, logs_kept = np.zeros(size // 2, np.float32), []

        def add(store: fs.Store = store, kept: list[Any] = logs_kept) -> None:
            kept.append(fs.es.perturb(store, NOISE, 1))

        def take_back(store: fs.Store = store, kept: list[Any] = logs_kept) -> None:
            fs.es.perturb(store, NOISE, 1, sign=-1, undo=kept.pop())

        signs = itertools.cycle((1, -1))
        calls: dict[str, Call] = {
            "exact=False": lambda store=store, signs=signs: fs.es.perturb(
                store, NOISE, 1, sign=next(signs), exact=False
            ),
            "back, exact=False": lambda store=store, signs=signs: fs.es.perturb(
                store, NOISE, 1, sign=next(signs), exact=False
            ),
            "with a log": add,
            "undo": take_back,
            "roof": lambda roof=roof: np.multiply(roof, np.float32(1.5), out=roof),
        }
        taken = interleaved(calls, 3 if quick else 9)
        yield at_most(
            f"perturb with its log / exact=False, {name}", 1.5, ratio(taken, "with a log", "exact=False"), "x"
        )
        yield at_most(f"undo / exact=False, {name}", 1.2, ratio(taken, "undo", "exact=False"), "x")
        shares = ", ".join(f"{x} {100 * ratio(taken, 'roof', x):.0f} %" for x in ("exact=False", "with a log", "undo"))
        yield beside("of np.multiply on the same bytes, one thread", shares)
    model = a_model(2 if quick else 12)
    parameters = [x for x in model.parameters() if x.requires_grad]
    mezo = interleaved({"MeZO": lambda: mezos(parameters, 1, 1)}, 3)["MeZO"]
    mezo_peak = peak_beyond(lambda: mezos(parameters, 1, 2))
    scale = interleaved({"at scale": lambda: at_scales(parameters, 1, 1)}, 3)["at scale"]
    scale_peak = peak_beyond(lambda: at_scales(parameters, 1, 2))
    store = fs.adopt(model)
    fs.es.snap(store, NOISE)
    logs_kept = []
    ours = interleaved({"add": lambda: logs_kept.append(fs.es.perturb(store, NOISE, 1))}, 3)["add"]
    peak = peak_beyond(lambda: logs_kept.append(fs.es.perturb(store, NOISE, 2)))
    model_mib = sum(x.nbytes for x in parameters) / MIB
    faster = float(np.median(mezo) / np.median(ours))
    yield at_least(f"a model of {model_mib:.0f} MiB perturbed, MeZO's loop / flatstore", 1, faster, "x", 1)
    yield beside("es-at-scale's loop / flatstore", f"{np.median(scale) / np.median(ours):.1f} x")
    yield beside("memory at the peak", f"{peak:.0f} MiB, MeZO {mezo_peak:.0f}, es-at-scale {scale_peak:.0f}")


def step(quick: bool) -> Iterator[Row]:
    """The share of a MeZO step that is not its two forward passes."""
    import torch

    model = a_model(2 if quick else 12)
    parameters = [x for x in model.parameters() if x.requires_grad]
    batch = torch.randint(0, 32_000, (2, 128), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def loss() -> float:
        return model(input_ids=batch, labels=batch, use_cache=False).loss.item()

    def mezo_step() -> None:
        mezos(parameters, 1, 7)
        plus = loss()
        mezos(parameters, -2, 7)
        minus = loss()
        mezos(parameters, 1, 7)
        torch.manual_seed(7)
        for parameter in parameters:
            z = torch.normal(mean=0, std=1, size=parameter.data.size(), dtype=parameter.data.dtype)
            parameter.data = parameter.data - 1e-6 * (plus - minus) / (2 * SCALE) * z

    def shares(calls: dict[str, Call]) -> Any:
        taken = interleaved(calls, 3 if quick else 7)
        return np.median(1 - 2 * taken["forward"] / taken["step"]), np.median(taken["step"])

    theirs, their_step = shares({"forward": loss, "step": mezo_step})
    store = fs.adopt(model)
    fs.es.snap(store, NOISE)
    moves = fs.es.mezo(store, lambda _params, _n: -loss(), seed=1, noise=NOISE, rate=1e-6 / SCALE**2, steps=None)
    ours, our_step = shares({"forward": loss, "step": lambda: next(moves)})
    size = sum(x.numel() for x in parameters)
    yield at_most(f"share of a step not in forward passes, {size / 1e6:.0f} M", round(100 * theirs), 100 * ours, "%", 1)
    yield beside("a step", f"{1e3 * our_step:.0f} ms, MeZO's own {1e3 * their_step:.0f} ms")


if __name__ == "__main__":
    report(__doc__ or "", logs, transformer, cycles, perturb, step)
