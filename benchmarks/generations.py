"""Generations beside the peers: seconds, and bytes at the peak.

The peers are those of `ga_peers.py` (ga, a genetic algorithm), `es_peers.py` (es, an evolution strategy) and
`whole_peers.py`, which evaluate as well. Versions are set by hand, because asv does not see what a peer does: raise
them when one changes.
"""

from typing import Any

from . import es_peers, ga_peers, whole_peers
from .race import Resident

PEERS = {f"{name}, ga": ga_peers.PEERS[name] for name in ("flatstore", "numpy", "evosax (scan)", "evotorch")} | {
    f"{name}, es": es_peers.PEERS[name] for name in ("flatstore", "numpy", "evosax", "evotorch")
}
for kind, whole in {"ga": whole_peers.GENETIC, "es": whole_peers.STRATEGIES}.items():
    PEERS |= {f"{name}, {kind} with its evaluation": peer for name, peer in whole.items()}


class Generations:
    """Five generations of small networks, and of larger ones."""

    params: Any = (list(PEERS), [(320, 2_410), (64, 50_000)])
    param_names = ("peer", "members and genes")
    version = "2"
    timeout = 300

    def setup(self, peer: str, size: tuple[int, int]) -> None:
        self.peer = PEERS[peer](*size)
        self.peer.run(5)

    def time_5_generations(self, peer: str, size: tuple[int, int]) -> None:
        self.peer.run(5)


class Peak:
    """What 128 x 100,000 float32 (51,200,000 bytes) and a generation add to the bytes of the process, at most."""

    params: Any = (list(PEERS),)
    param_names = ("peer",)
    version = "2"
    unit = "bytes"
    timeout = 300

    def setup(self, peer: str) -> None:
        PEERS[peer].require()

    def track_peak(self, peer: str) -> int:
        return Resident(PEERS[peer], 128, 100_000, 1).peak()
