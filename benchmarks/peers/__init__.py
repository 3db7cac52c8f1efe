"""All that is compared, by question and by name."""

from __future__ import annotations

from typing import Any

from . import genetic, holding, noise, sixteen, stored, strategies, whole
from .peer import Peer as Peer


def _named(**kinds: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}, {kind}": peer for kind, peers in kinds.items() for name, peer in peers.items()}


PEERS: dict[str, dict[str, Any]] = {
    "access": holding.PEERS,
    "conversion": holding.PEERS,
    "lending": {name: x for name, x in holding.PEERS.items() if name != "destructure"} | {"dlpack": holding.Dlpack},
    "small_models": genetic.PEERS,
    "generation": _named(ga=genetic.PEERS, es=strategies.PEERS),
    "perturbation": noise.PEERS,
    "sixteen_bits": sixteen.PEERS,
    "evaluation": _named(ga=whole.GENETIC, es=whole.STRATEGIES),
    "planned": {name: holding.PEERS[name] for name in ("flatstore", "ravel_pytree")},
    "files": stored.PEERS,
}
"""A class for each; one that is not installed is there, too."""


def named(question: str, kind: str = "") -> dict[str, Any]:
    """The peers of a question, or those of a kind ("ga", "es") by the rest of their names."""
    last = f", {kind}" if kind else ""
    return {name.removesuffix(last): x for name, x in PEERS[question].items() if name.endswith(last)}


def installed(peers: dict[str, Any]) -> dict[str, Any]:
    """Those whose library is there."""
    return {name: peer for name, peer in peers.items() if peer.installed()}
