"""A generation inside `jit`, in the memory of the arrays that are donated to it.

The genes of a child depend on the same genes of its parents, and on nothing else. So a leaf is gone over by columns of
genes: those of all members are read, and the children's are written over the members that they replace.

```
leaf (members, genes)    |  done  | <-> now |         |        a loop over blocks of columns, in place
```
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from flatstore.ga.bounds import Bounds
from flatstore.ga.breeding import check_operators
from flatstore.ga.crossover import Crossover, Exchange, Points, Uniform, units_of
from flatstore.ga.in_jit.bounding import bounded
from flatstore.ga.in_jit.changing import change_of, changed
from flatstore.ga.in_jit.crossing import crossed, from_one
from flatstore.ga.in_jit.parentage import Births
from flatstore.ga.mutation import Mutation
from flatstore.ga.selection import Tournament
from flatstore.kernels.cpu import STORAGE, refuse_other_dtypes
from flatstore.kernels.xla import cast, held, rounded
from flatstore.layout import Layout, Leaf, Spec, is_trainable_dtype, spec_of
from flatstore.noise import in_jax
from flatstore.trees import Difference, StructureError, flatten, path_of

jnp: Any = jax.numpy
_jax: Any = jax
_lax: Any = jax.lax
_jax_dtypes: Any = jax.dtypes
_U = np.uint32

GENES, GENES_ON_DEVICE = 1 << 17, 1 << 21
"""Genes of all members in a block: few enough for a cache, or enough to keep an accelerator busy."""


def stepped(
    stacked: Any,
    births: Births,
    *,
    mutate: Mutation | None,
    crossover: Crossover | None = Uniform(),  # noqa: B008 (a frozen value)
    bounds: Bounds | None = None,
    layout: Layout | None = None,
) -> Any:
    """The next generation of a stacked tree, for use inside `jit`, with the bits of `ga.step`.

    Leaves that train have the axis of the members first, as those of a lent population; others are the same objects
    afterwards. The leaves are new arrays, or the donated ones in place. Temporaries: some arrays of a block of columns,
    131,072 genes of all members (2 million on an accelerator), however large the population is. On a CPU, a leaf of
    bfloat16 is copied.

    >>> import jax, flatstore as fs
    >>> from flatstore import ga
    >>> pop = fs.Population.from_tree({"w": np.zeros(3, "f4")}, 4)
    >>> born = ga.births(pop, [0.0, 3.0, 1.0, 2.0], seed=(7, 0))
    >>> step = jax.jit(lambda stacked, born: stepped(stacked, born, mutate=fs.Normal(0.1)), donate_argnums=0)
    >>> after = step({"w": jnp.zeros((4, 3))}, born)
    >>> parents, kept = ga.step(pop, [0.0, 3.0, 1.0, 2.0], seed=(7, 0), mutate=fs.Normal(0.1))
    >>> np.asarray(after["w"]).tobytes() == pop["w"].tobytes()
    True

    A function of your own, in `PerGene` and `Mutate`, is called with arrays of JAX and traced: it chooses by
    `jnp.where`, not by `if`. XLA may fuse its products and sums, so that its last bits can differ from those of the
    compiled loop; and on a CPU XLA takes numbers below 2 ** -126 for zero where it computes with them.

    Args:
        stacked: a tree of arrays.
        births: what `ga.births` has decided, passed in as an argument, for the same layout and crossover.
        mutate: as in `ga.step`.
        crossover: as in `ga.step`.
        bounds: as in `ga.step`.
        layout: that of one member; by default that of the tree without the axis of the members, of which floating and
            complex leaves train.

    Raises `StructureError` for a tree unlike the layout; `ValueError` for operators that do not suit it, cuts of
    another number of points, float64 leaves while 64-bit types are off, and noise below 2 ** -100; `TypeError` for what
    is no operator or was not made by `births`.
    """
    check_operators(mutate, Tournament(), crossover, bounds)
    if not isinstance(births, Births):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected births, got {type(births).__name__}; fix: ga.births(...), outside of jit")
    cuts = crossover.k if isinstance(crossover, Points) else 0
    if births.cuts.shape[1] != cuts:
        raise ValueError(
            f"expected births by {crossover!r}, with {cuts} cuts for each child, got {births.cuts.shape[1]}; "
            "fix: pass the same crossover= to ga.births"
        )
    flat, treedef = flatten(stacked)
    named = [(path_of(keys), value) for keys, value in flat]
    layout = _layout_of(stacked) if layout is None else layout
    refuse_other_dtypes([x for x in layout.homes if x.trainable and x.size], "evolve")
    _check(layout, named)
    before: list[Any] = []  # one leaf after the other, in the same memory

    def move(path: str, value: Any) -> Any:
        leaf = layout.by_path.get(path)
        if leaf is None or not leaf.trainable or not leaf.size:
            return value
        leaf = layout.by_path[leaf.tied or path]
        zero = in_jax.opaque_zero(births.keys[0, 0], *before)
        moved = _moved(jnp.asarray(value), births, mutate, crossover, bounds, layout, leaf, zero)
        before[:] = [moved.reshape(-1)[0]]
        return moved

    return treedef.unflatten([move(path, value) for path, value in named])


def _moved(
    x: Any,
    births: Births,
    mutate: Mutation | None,
    crossover: Crossover | None,
    bounds: Bounds | None,
    layout: Layout,
    leaf: Leaf,
    zero: Any,
) -> Any:
    """The members of one leaf, some of them replaced by children: block by block."""
    members, genes = x.shape[0], leaf.size
    block = GENES if _jax.default_backend() == "cpu" else GENES_ON_DEVICE
    size = min(genes, max(16, block // members))
    change = change_of(mutate, layout, leaf, STORAGE[leaf.dtype.name][1])
    unit = units_of(layout, crossover)[leaf.path] if isinstance(crossover, Exchange) else -1

    def replace(i: Any, flat: Any) -> Any:
        start = i * size
        # The last block begins earlier, so that it ends where the leaf does: what was replaced before stays.
        begin = jnp.minimum(start, genes - size)
        first = in_jax.plus(tuple(map(jnp.asarray, in_jax.as_words(leaf.index))), (begin.astype(_U) + zero, _U(0)))
        index = from_one(first, size)
        old = cast(_lax.dynamic_slice(flat, (0, begin), (members, size)), x.dtype)
        child = crossed(crossover, births, old[births.mothers], old[births.fathers], leaf, unit, index, zero)
        child = changed(change, births.keys, child, first, index, zero)
        child = bounded(bounds, layout, leaf, child, zero)
        new = old.at[births.slots].set(rounded(child, x.dtype), indices_are_sorted=True, unique_indices=True)
        new = jnp.where(begin + _lax.iota(np.int32, size) >= start, new, old)
        return _lax.dynamic_update_slice(flat, cast(new, flat.dtype), (0, begin))

    flat = held(x.reshape(members, genes), zero)
    return cast(_lax.fori_loop(0, -(-genes // size), replace, flat), x.dtype).reshape(x.shape)


def _layout_of(stacked: Any) -> Layout:
    """The layout of a member: floating and complex leaves lose their first axis."""

    def of_one(value: Any) -> Any:
        spec = spec_of(value, "")
        if spec is None or not is_trainable_dtype(spec.dtype) or not spec.shape:
            return value
        return _jax.ShapeDtypeStruct(spec.shape[1:], spec.dtype)

    return Layout.from_tree(_jax.tree.map(of_one, stacked))


def _check(layout: Layout, named: list[tuple[str, Any]]) -> None:
    """Raise unless the arrays are the members of a layout, all of the same number."""
    specs = {path: spec for path, value in named if (spec := spec_of(value, path)) is not None}
    trains = {path for path, leaf in layout.by_path.items() if leaf.trainable}
    members = max((spec.shape[:1] for path, spec in specs.items() if path in trains), default=())
    before = {path: members if path in trains else () for path in {**specs, **layout.by_path}}
    differences = [
        Difference(path, str(Spec(before[path] + leaf.shape, leaf.dtype)), "nothing", "add this leaf")
        for path, leaf in layout.by_path.items()
        if path not in specs
    ]
    for path, spec in specs.items():
        leaf = layout.by_path.get(path)
        found = layout.difference(path, spec, "no", before[path])
        differences += [found] if found else []
        if leaf is not None and leaf.trainable and _jax_dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            raise ValueError(
                f"{path!r}: expected a dtype that JAX has, got {leaf.dtype} with 64-bit types off; "
                "fix: jax.config.update('jax_enable_x64', True), or a float32 leaf"
            )
        if leaf is not None and math.prod(leaf.shape) >= 1 << 31:
            raise ValueError(f"{path!r}: expected fewer than 2**31 genes, got {leaf.spec}; fix: split the leaf")
    if differences:
        raise StructureError(differences, "unlike the members of the layout")
