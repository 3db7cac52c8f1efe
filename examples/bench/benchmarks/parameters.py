"""What it takes to scale the parameters of a network: bytes at the peak, bytes of XLA, and time beside one another."""

import jax

from flatstore import bench

from .model import by_a_flat_vector, in_place, params_of, store_of

WIDTHS = [64, 4096]


class PeakByAFlatVector(bench.asv.PeakMemory):
    """Bytes, by way of a flat vector."""

    params = WIDTHS
    make, work = staticmethod(params_of), staticmethod(by_a_flat_vector)


class PeakInPlace(bench.asv.PeakMemory):
    """Bytes, in the memory of a store."""

    params = WIDTHS
    make, work = staticmethod(store_of), staticmethod(in_place)


class OfXla(bench.asv.XlaTemporaries):
    """Bytes that XLA takes, with the parameters donated."""

    params = WIDTHS

    @staticmethod
    def make(width):
        """The function, and what it is given."""
        step = jax.jit(lambda p: jax.tree.map(lambda x: 0.9 * x, p), donate_argnums=0)
        return step, params_of(width)


class Times(bench.asv.Ratio):
    """In place as a multiple of by way of a flat vector."""

    params = WIDTHS

    @staticmethod
    def make(width):
        """The two ways."""
        params, store = params_of(width), store_of(width)
        return lambda: in_place(store), lambda: by_a_flat_vector(params)


def track_moved_leaves():
    """How many leaves lie elsewhere after they were scaled in place: none."""
    store = store_of(64)
    where = bench.addresses(store)
    return len(bench.moved(where, in_place(store)))
