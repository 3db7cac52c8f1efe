"""Where the arrays of a tree inside `jit` stand in the index. They may be a whole layout, or blocks of its leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from flatstore.checks import whole
from flatstore.es.groups import NO_NOISE
from flatstore.kernels.cpu import refuse_other_dtypes
from flatstore.layout import Layout, Leaf, Spec, spec_of
from flatstore.noise import Noise, in_jax
from flatstore.store import Store
from flatstore.trees import Difference, StructureError, flatten, path_of

jnp: Any = jax.numpy
_lax: Any = jax.lax
_jax_dtypes: Any = jax.dtypes


@dataclass(frozen=True)
class Block:
    """A block of a leaf: from the element `at` on, `shape` elements along its last axes, one along those before."""

    leaf: Leaf
    at: tuple[Any, ...]
    """A coordinate for each axis of the leaf: integers, some perhaps traced."""
    shape: tuple[int, ...]

    def scale(self, noise: Noise) -> float:
        """The strength of the noise there."""
        return noise.scale_of(self.leaf.tied or self.leaf.path)

    @property
    def strides(self) -> list[int]:
        """The number of parameters from one element to the next along each axis of the leaf."""
        return [math.prod(self.leaf.shape[axis + 1 :]) for axis in range(len(self.leaf.shape))]

    def indices(self, zero: Any) -> in_jax.Words:
        """The index of each element, as words of the block's shape; `zero` is opaque, and enters every computation."""
        strides = self.strides[len(self.at) - len(self.shape) :]
        along = [_lax.broadcasted_iota(np.uint32, self.shape, axis) + zero for axis in range(len(strides))]
        low, high = self._sum(list(zip(along, strides, strict=True)))
        return jnp.broadcast_to(low, self.shape), jnp.broadcast_to(high, self.shape)

    def indices_of(self, positions: Any) -> in_jax.Words:
        """The index of the elements at flat positions in the block, uint32."""
        axes: list[tuple[Any, int]] = []
        dense: list[tuple[int, int]] = []  # axes whose elements follow each other are one, the last axis first
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=False):
            if dense and stride == math.prod(dense[-1]):
                inner, stride = dense.pop()
                size *= inner
            dense.append((size, stride))
        for size, stride in dense[:-1]:
            axes.append((positions % np.uint32(size), stride))
            positions = positions // np.uint32(size)
        return self._sum([*axes, (positions, dense[-1][1] if dense else 1)])

    def _sum(self, axes: Sequence[tuple[Any, int]]) -> in_jax.Words:
        """The index of the block's first element plus coordinates times strides."""
        at = list(zip(self.at, self.strides, strict=True))
        total = in_jax.as_words(self.leaf.index + sum(start * stride for start, stride in at if not is_array(start)))
        traced = [(start.astype(np.uint32), stride) for start, stride in at if is_array(start)]
        for coordinate, stride in (*traced, *axes):
            low, high = in_jax.as_words(stride)
            if self.leaf.index + self.leaf.size <= 1 << 32:
                total = total[0] + coordinate * low, total[1]
            else:
                carried = in_jax.high_word(coordinate, jnp.full_like(coordinate, low)) + coordinate * high
                total = in_jax.plus(total, (coordinate * low, carried))
        return total


def is_array(number: Any) -> bool:
    """Whether a number is an array of JAX, whose value may be known only when the computation runs."""
    return isinstance(number, jax.Array)


def map_blocks(
    move: Callable[[Any, Block], Any], params: Any, noise: Noise, layout: Layout | None, within: str, at: Any
) -> Any:
    """The tree with `move(array, block)` in place of each leaf that noise moves; other leaves are the same objects.

    Accepts the same arguments and raises the same errors as `es.virtual`.
    """
    if isinstance(params, Store) and params.parts is not None:
        raise ValueError(
            "expected a whole model, or a tree of arrays with layout=, got a store of parts of a model; "
            "fix: pass store.tree, layout=store.whole and, leaf by leaf, within= and at="
        )
    if layout is None:
        layout = params.layout if isinstance(params, Store) else Layout.from_tree(params)
    noise.check_grid(layout)
    refuse_other_dtypes([x for x in layout.homes if x.trainable and noise.scale_of(x.path)], "add noise to", NO_NOISE)
    flat, treedef = flatten(params)
    named = [("/".join(filter(None, (within, path_of(keys)))), value) for keys, value in flat]
    blocks = _blocks(named, layout, within, _coordinates(at))

    def moved(path: str, value: Any) -> Any:
        block = blocks.get(path)
        if block is None or not (block.leaf.trainable and math.prod(block.shape) and block.scale(noise)):
            return value
        if _jax_dtypes.canonicalize_dtype(block.leaf.dtype) != block.leaf.dtype:
            raise ValueError(
                f"{path!r}: expected a dtype that JAX has, got {block.leaf.dtype} with 64-bit types off; "
                "fix: jax.config.update('jax_enable_x64', True), or a float32 leaf"
            )
        return move(jnp.asarray(value), block)

    return treedef.unflatten([moved(path, value) for path, value in named])


def _coordinates(at: Any) -> tuple[Any, ...]:
    starts: tuple[Any, ...] = at if isinstance(at, tuple) else (at,)  # pyright: ignore[reportUnknownVariableType]
    for start in starts:
        if start.dtype.kind not in "iu" or start.ndim if is_array(start) else not isinstance(whole(start), int):
            raise TypeError(
                f"at: expected integers, got {start!r}; fix: pass one for each of the first axes, as in at=(layer,)"
            )
    return tuple(start if is_array(start) else whole(start) for start in starts)


def _blocks(named: list[tuple[str, Any]], layout: Layout, within: str, starts: tuple[Any, ...]) -> dict[str, Block]:
    """The block of the layout that each array is. Raises `StructureError`, which lists every array that is not one."""
    below = [path for path in layout.by_path if not within or f"{path}/".startswith(f"{within}/")]
    if not below:
        raise KeyError(layout.unknown(within))
    specs = {path: spec for path, value in named if (spec := spec_of(value, path)) is not None}
    differences = [
        Difference(path, str(layout.by_path[path].spec), "nothing", "add this leaf")
        for path in below
        if path not in specs
    ]
    blocks: dict[str, Block] = {}
    for path, spec in specs.items():
        leaf = layout.by_path.get(path)
        block = leaf and _block_of(leaf, spec, starts)
        if block is not None:
            blocks[path] = block
        elif leaf is None:
            fix = "remove this leaf, or pass the path of its node as within="
            differences.append(Difference(path, "nothing", str(spec), fix))
        else:
            fix = f"pass the whole leaf, or where in it this array begins as at= (at={starts} now)"
            differences.append(Difference(path, str(leaf.spec), str(spec), fix))
    if differences:
        raise StructureError(differences)
    return blocks


def _block_of(leaf: Leaf, spec: Spec, starts: tuple[Any, ...]) -> Block | None:
    """The block of a leaf that an array of this shape and dtype is, or None."""
    dropped, axes = len(leaf.shape) - len(spec.shape), len(leaf.shape)
    if spec.dtype != leaf.dtype or not 0 <= dropped <= len(starts) <= axes:
        return None
    at = starts + (0,) * (axes - len(starts))
    sizes = (1,) * dropped + spec.shape
    for axis, (start, size, end) in enumerate(zip(at, sizes, leaf.shape, strict=True)):
        first = 0 if is_array(start) else start
        if not 0 <= first <= first + size <= end or (axis >= len(starts) and size != end):
            return None
    return Block(leaf, at, spec.shape)
