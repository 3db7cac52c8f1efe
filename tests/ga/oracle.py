"""The next generation, built beside the population in plain NumPy: the oracle of `ga.step`.

Member by member and gene by gene, from the packed matrix and the published draws; nothing of the compiled code is used
but the definitions of the draws in `flatstore.noise`.
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from fractions import Fraction

import numpy as np

import flatstore as fs
from flatstore import ga
from flatstore.noise.kinds import CROSSOVER, MUTATION, SPARSE
from flatstore.noise.philox import numbers, words


def population(order, size=13, tree=None, seed=0, **keywords):
    """A population of random members over a tree."""
    pop = fs.Population.zeros(fs.Layout.from_tree(tree, **keywords), size, order=order)
    rng = np.random.default_rng(seed)
    for leaf in pop.layout.homes:
        if leaf.trainable:
            pop[leaf.path] = rng.standard_normal((size, *leaf.shape)).astype(leaf.dtype)
    return pop


def genes_of(pop):
    """{path: (members, genes)} of the leaves that train: a copy."""
    return {leaf.path: np.array(pop.leaf_matrix(leaf)) for leaf in pop.layout.homes if leaf.trainable}


def from_mother(crossover, layout, key, a, b, index):
    """A child's gene from two parents' genes `a` and `b` at `index`, as the crossover defines it."""
    real = a.dtype.type
    keys = np.array([key], np.uint64)

    def draw(width):
        return numbers(CROSSOVER, width, keys, 0, layout.size)[0][index]

    if crossover is None:
        return a
    if isinstance(crossover, ga.Uniform):
        return np.where(draw(1) == 1, a, b)
    if isinstance(crossover, ga.Blend):
        place = (1 + 2 * crossover.alpha) * ((draw(16).astype(float) + 0.5) / 2**16) - crossover.alpha
        return a + place.astype(real) * (b - a)
    if isinstance(crossover, ga.Points):
        where = np.concatenate([np.arange(x.index, x.index + x.size) for x in layout.homes if x.trainable])
        cuts = [places(key, j, len(where)) for j in range(crossover.k)]
        behind = sum((np.searchsorted(where, index) >= cut).astype(int) for cut in cuts)
        return np.where(behind % 2 == 0, a, b)
    if isinstance(crossover, ga.Exchange):
        return np.where(units_from_mother(crossover, layout, keys)[index], a, b)
    return crossover.oracle(a, b, draw(crossover.bits))


def places(key, j, genes):
    """Cut number j among so many genes."""
    high, low = words(CROSSOVER, np.array([key], np.uint64), j // 2, j // 2 + 1)[0, 0, 2 * (j % 2) : 2 * (j % 2) + 2]
    return 1 + int(Fraction((int(high) >> 5) * 2**26 + (int(low) >> 6), 2**53) * (genes - 1))


def units_from_mother(crossover, layout, keys):
    """For every index whether its unit comes from the mother."""
    seen, out = {}, np.ones(layout.size, bool)
    for leaf in layout.homes:
        parts = leaf.path.split("/")
        prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        unit = leaf.path if crossover.units is None else next((p for p in prefixes if p in crossover.oracle), None)
        if unit is not None and leaf.trainable:
            number = seen.setdefault(unit, len(seen))
            bit = numbers(CROSSOVER, 1, keys, number, number + 1)[0, 0]
            out[leaf.index : leaf.index + leaf.size] = bit
    return out


def mutated(mutate, leaf, key, genes, index):
    """A child's genes of a leaf after mutation."""
    real = genes.dtype.type
    keys = np.array([key], np.uint64)
    if mutate is None:
        return genes
    if isinstance(mutate, (ga.Sparse, ga.Reset)):
        return touched(mutate, leaf, keys, genes, index)
    scale = scale_of(mutate, leaf)
    if scale == 0:
        return genes
    if isinstance(mutate, ga.Mutate):
        draws = numbers(MUTATION, mutate.bits, keys, leaf.index, leaf.index + leaf.size)[0]
        return mutate.oracle(genes, real(scale), drawn(mutate, draws, real))
    places = numbers(mutate.kind, mutate.width, keys, leaf.index, leaf.index + leaf.size)[0]
    return genes + real(scale / mutate.parts) * (mutate.whole[places] + real(0.5))


def scale_of(mutate, leaf):
    """The strength of noise or of a function of one's own in a leaf."""
    return (fs.Normal(mutate.scale) if isinstance(mutate, ga.Mutate) else mutate).scale_of(leaf.path)


def drawn(mutate, draws, real):
    """What a function of one's own is called with."""
    return draws if mutate.table is None else np.asarray(mutate.table).astype(real)[draws]


def touched(mutate, leaf, keys, genes, index):
    """The same for a mutation of a few genes: jump from one to the next in each segment of 256 indices."""
    real = genes.dtype.type
    out = genes.copy()
    own = mutate.noise if isinstance(mutate, ga.Sparse) and isinstance(mutate.noise, ga.Mutate) else None
    if own is not None:
        scale = scale_of(own, leaf)
    elif isinstance(mutate, ga.Sparse):
        values = mutate.noise.whole + 0.5
        scale = mutate.noise.scale_of(leaf.path) / mutate.noise.parts
    else:
        values = mutate.low + (mutate.high - mutate.low) * (np.arange(65536) + 0.5) / 65536
        scale = 1.0
    if scale == 0:
        return out
    passed = [round(2.0**32 * (1 - (1 - mutate.rate) ** (g + 1))) for g in range(256)]
    for segment in range(leaf.index // 256, (leaf.index + leaf.size - 1) // 256 + 1):
        stream = np.concatenate([words(SPARSE, keys, segment, segment + 1, sub)[0, 0] for sub in range(130)])
        at = 256 * segment - 1
        for jump, draw in stream.reshape(-1, 2).tolist():
            at += 1 + sum(p <= jump for p in passed)
            if at >= 256 * (segment + 1):
                break
            if leaf.index <= at < leaf.index + leaf.size and own is not None:
                gene, number = out[at - leaf.index], draw % (1 << own.bits)
                out[at - leaf.index] = own.oracle(gene, real(scale), drawn(own, number, real))
            elif leaf.index <= at < leaf.index + leaf.size:
                value = real(scale) * real(values[draw % len(values)])
                out[at - leaf.index] = value if isinstance(mutate, ga.Reset) else out[at - leaf.index] + value
    return out


def bounded(bounds, leaf, genes):
    """A child's genes of a leaf after they are brought back within their bounds."""
    pair = next((pair for glob, pair in bounds.pairs if fnmatchcase(leaf.path, glob)), None) if bounds else None
    if pair is None:
        return genes
    real = genes.dtype.type
    low, high = (real(bound) for bound in inward(pair, leaf.dtype))
    if bounds.outside == "clip":
        return np.where(genes < low, low, np.where(genes > high, high, genes))
    return np.array([reflected(gene, low, high) for gene in genes], genes.dtype)


def inward(pair, dtype):
    """The outermost numbers of a dtype between two bounds: of 16 bits there are few enough to look at all."""
    if dtype.itemsize == 2:
        with np.errstate(invalid="ignore"):  # of some NaN
            every = np.arange(1 << 16).astype(np.uint16).view(dtype).astype(np.float64)
        inside = every[(every >= pair[0]) & (every <= pair[1])]
        return inside.min(), inside.max()
    with np.errstate(over="ignore"):
        low, high = np.array(pair).astype(dtype)
    return (
        np.nextafter(low, dtype.type(np.inf)) if float(low) < pair[0] else low,
        np.nextafter(high, dtype.type(-np.inf)) if float(high) > pair[1] else high,
    )


def reflected(gene, low, high):
    """One gene, reflected in its own dtype where once is enough, else in float64."""
    with np.errstate(all="ignore"):
        if not (gene < low or gene > high):
            return gene
        bound, other = (low, high) if gene < low else (high, low)
        once = bound + (bound - gene)
        if low <= once <= high:
            return once
        distance, width = abs(np.float64(gene) - np.float64(bound)), np.float64(high) - np.float64(low)
    if math.isinf(distance) or width == 0:
        return bound
    turn = math.fmod(distance, 2 * float(width))
    back = turn if turn <= width else float(width) - (turn - float(width))
    place = float(bound) + math.copysign(back, float(other) - float(bound))
    return gene.dtype.type(min(max(place, float(low)), float(high)))


def beside(pop, fitness, seed, *, mutate, select, crossover, elite, bounds=None):
    """{path: (members, genes)} of the next generation."""
    before = genes_of(pop)
    unknown = [bool(np.isnan(f)) for f in fitness]
    order = sorted(range(pop.size), key=lambda i: (unknown[i], 0 if unknown[i] else -fitness[i], i))
    slots = sorted(order[elite:])
    keys = fs.seeds(seed, pop.size + 1)
    chosen = select(np.asarray(fitness, float), 2 * len(slots), int(keys[-1]))
    after = {path: genes.copy() for path, genes in before.items()}
    for leaf in pop.layout.homes:
        if not leaf.trainable or not leaf.size:
            continue
        real = np.float64 if leaf.dtype == np.float64 else np.float32
        index = np.arange(leaf.index, leaf.index + leaf.size)
        for row, slot in enumerate(slots):
            a, b = (before[leaf.path][chosen[row + half * len(slots)]].astype(real) for half in (0, 1))
            child = from_mother(crossover, pop.layout, keys[slot], a, b, index)
            child = bounded(bounds, leaf, mutated(mutate, leaf, keys[slot], child, index))
            after[leaf.path][slot] = child.astype(leaf.dtype)
    return after
