"""Populations that are evaluated: what XLA adds to them, and whole generations with their evaluation.

    python -m benchmarks.evaluation            # ten minutes, 5 GB
    python -m benchmarks.evaluation --quick    # whole generations without peers

How peers are measured stands in `race.py`. Networks of whole generations have one hidden layer, so four leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from flatstore import bench

from . import race, tracked
from .peers import PEERS, named
from .peers.whole import parameters
from .report import Call, Row, at_most, beside, report

WHOLE, PLANNED = PEERS["evaluation"], PEERS["planned"]


class Planned(bench.asv.XlaTemporaries):
    """What XLA adds to a population of 64 perceptrons, 4 x 64 wide (4,259,840 bytes), to evaluate them."""

    params: Any = (list(PLANNED), [32, 128])
    param_names = ("peer", "batch")

    @staticmethod
    def make(peer: str, batch: int) -> Any:
        return PLANNED[peer].evaluated(4, 64, 64, batch)


class Generations(tracked.Times):
    """Five generations of small networks, and of larger ones, evaluation included."""

    params: Any = (list(WHOLE), [(256, 2_410), (64, 50_000)])
    param_names = ("peer", "members and genes")

    @staticmethod
    def make(peer: str, size: tuple[int, int]) -> Call:
        return partial(WHOLE[peer](*size).run, 5)


class Peak(tracked.Peak):
    """What 128 x 100,000 float32 (51,200,000 bytes) and generations of them take at the peak, evaluation included."""

    question = "evaluation"
    params: Any = list(WHOLE)
    param_names = ("peer",)

    @staticmethod
    def make(peer: str) -> Any:
        return WHOLE[peer]

    @staticmethod
    def work(made: Any) -> None:
        race.two_generations(made, 128, 100_000)


def planned(quick: bool) -> Iterator[Row]:
    """What XLA adds to 256 perceptrons, 8 x 256 wide: the leaf order through a lend, and a (P, N) matrix."""
    nbytes = 4 * 256 * 8 * (256 * 256 + 256)
    for batch in (32, 128) if quick else (32, 128, 512):
        evaluated = {name: peer.evaluated(8, 256, 256, batch) for name, peer in PLANNED.items()}
        added = {name: bench.xla_memory(*x).extra / nbytes for name, x in evaluated.items()}
        if batch == 32:
            figure = "XLA's outputs and temporaries, leaf order through a lend, 32 inputs"
            yield at_most(figure, 0.15, added["flatstore"], "populations", 3)
        else:
            yield beside(f"{batch} inputs", f"{added['flatstore']:.3f} populations")
        yield beside("the same from a (P, N) matrix", f"{added['ravel_pytree']:.3f} populations")


def compare(kind: str, quick: bool) -> Iterator[Row]:
    """Milliseconds of a whole generation, and the peak, of each peer at each size."""
    peers = named("evaluation", kind)
    if quick:
        peers = {"flatstore": peers["flatstore"]}
    for members, genes, generations in (
        [(64, 50_000, 1)] if quick else [(256, 2_410, 20), (256, 50_000, 3), (64, 10**6, 1)]
    ):
        made = parameters(genes)
        smallest = {} if quick else {"smallest": 0}
        peaks = yield from race.rows(peers, members, genes, 3 if quick else 5, generations, made=made, **smallest)
        if genes == 10**6:
            yield at_most(f"{kind}: flatstore's peak", 1.5, peaks["flatstore"] / (4 * members * made), "populations")


def strategies(quick: bool) -> Iterator[Row]:
    """Whole generations of an evolution strategy."""
    yield from compare("es", quick)


def genetic(quick: bool) -> Iterator[Row]:
    """Whole generations of a genetic algorithm."""
    yield from compare("ga", quick)


MEASURES = planned, strategies, genetic

if __name__ == "__main__":
    report(__doc__ or "", *MEASURES)
