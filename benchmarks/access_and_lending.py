"""Access (flat vector, tree, leaf) and lending to JAX, beside the peers.

Each timing is of 100 calls, a loop inside the benchmark: one call is too short to be told from the clock. Versions are
set by hand, because asv does not see what a peer does: raise them when one changes.
"""

from typing import Any

from .peers import PEERS, make_tree


class AccessAndLending:
    """Verbs of a tree whose leaves have 256 numbers each."""

    params: Any = (list(PEERS), ["flatten", "unflatten", "access", "lend"], [4, 100])
    param_names = ("peer", "verb", "leaves")
    version = "1"
    timeout = 300

    def setup(self, peer: str, verb: str, leaves: int) -> None:
        self.call = getattr(PEERS[peer](make_tree(leaves, 256)), verb)
        self.call()

    def time_100_calls(self, peer: str, verb: str, leaves: int) -> None:
        for _ in range(100):
            self.call()


class Evaluation:
    """What XLA adds to a population of 64 perceptrons, 4 x 64 wide, to evaluate them: a multiple of its bytes."""

    params: Any = (list(PEERS), [32, 128])
    param_names = ("peer", "batch")
    version = "1"
    unit = "populations"

    def setup(self, peer: str, batch: int) -> None:
        self.temporaries = PEERS[peer].temporaries(4, 64, 64, batch)

    def track_temporaries(self, peer: str, batch: int) -> float:
        return self.temporaries
