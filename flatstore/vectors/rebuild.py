"""Rebuild: from a flat vector back to the tree. A value that can be hashed, compared and pickled.

>>> from flatstore import destructure
>>> flat, rebuild = destructure({"b": jnp.zeros(2), "w": jnp.ones((2, 2))})
>>> rebuild.locate(5), rebuild(np.arange(6))["w"]
(('w', (1, 1)), Array([[2., 3.],
       [4., 5.]], dtype=float32))
>>> jax.tree.map(jnp.shape, rebuild(jnp.zeros((10, 6))))
{'b': (10, 2), 'w': (10, 2, 2)}
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from flatstore.layout import Layout, as_numpy, is_deleted, spec_of, stand_ins
from flatstore.memory import memories_of, reading, refuse_jax_at_the_end
from flatstore.store import memories_in
from flatstore.trees import Difference, StructureError, by_path, count, flatten, unflatten
from flatstore.vectors.packing import dtypes_of, pack, unpack, vector_dtype

_core: Any = jax.core
_dtypes: Any = jax.dtypes
_jax: Any = jax
_jnp: Any = jnp


@dataclass(frozen=True, slots=True, eq=False, repr=False, weakref_slot=True)
class Rebuild:
    """Makes trees from vectors. Made by `destructure`; frozen, hashable, picklable where the tree's own nodes are.

    Two are equal when their layouts, tree definitions and everything that rides along are equal: as a static argument
    of `jax.jit` one can replace the other, and nothing is compiled again. What rides along is part of the value, so an
    optimiser's step count that grows makes another `rebuild`.
    """

    layout: Layout | None
    """Where each number of the vector goes: `index` and `size` of its rows count in the vector, in JAX's leaf order.
    None if nothing enters."""
    treedef: Any
    """JAX's definition of the whole tree."""
    riders: tuple[tuple[int, Any], ...]
    """What rides along: (position among all leaves of the tree, the object)."""

    @property
    def size(self) -> int:
        """The length of the vector, in elements."""
        return self.layout.size if self.layout else 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the vector: the leaves' dtypes, promoted as JAX does; float32 if nothing enters."""
        return vector_dtype(self.layout)

    def __call__(self, vector: Any) -> Any:
        """The tree with the numbers of a vector: copies, each in its leaf's own dtype; the rest as it was.

        `vector` has shape (N,), or (P, N) for leaves of shape (P, *leaf); any real dtype, complex too where a leaf is
        complex (real leaves take the real part). NumPy, torch and JAX arrays will do; the leaves are `jax.Array`s on
        the device of a JAX one. Differentiable, and works in `jit`, `grad`, `vmap`, `scan`.

        Raises:
            StructureError: a wrong length, complex numbers for an all-real tree, or something that is not an array.
            ValueError: a vector, or something that rides along, was deleted or donated away; there are 64-bit leaves
                and JAX's 64-bit types are off.
            LentError: the vector is a view of a store that another thread writes.
        """
        array = self._checked(vector)
        if self.layout is None:
            return self._tree_of_riders()
        leaves = unpack(self.layout, array)
        if len(leaves) < len(self.layout.leaves):
            homes = {home.path: leaf for home, leaf in zip(self.layout.homes, leaves, strict=True)}
            leaves = [homes[row.tied or row.path] for row in self.layout.leaves]
        return self.layout.unflatten(leaves)

    def items(self, vector: Any) -> Iterator[tuple[str, jax.Array]]:
        """The (path, leaf) pairs that enter the vector, each home once: copies. Raises the same errors as a call.

        `store.assign(rebuild.items(vector))` writes a vector into a store in place, and leaves frozen leaves alone.
        """
        array = self._checked(vector)
        if self.layout is None:
            return iter(())
        return zip((home.path for home in self.layout.homes), unpack(self.layout, array), strict=True)

    def flatten(self, tree: Any) -> jax.Array:
        """The vector of another tree of this structure (other parameters, a gradient, a store): a copy, shape (N,).

        What rides along is not compared, and may be None. The names of a tied leaf must have the same values. Gradients
        have one value for each name: add them up first, or take the gradient by the flat vector, which adds them up.

        >>> from flatstore import destructure
        >>> _, rebuild = destructure({"n": 3, "w": jnp.zeros(2)})
        >>> rebuild.flatten({"n": None, "w": np.ones(2)})
        Array([1., 1.], dtype=float32)

        Raises `StructureError` with every leaf that differs, `ValueError` for leaves on several devices, `LentError`
        while another thread writes a store that is read.
        """
        with reading(*memories_in(tree)):
            return self._flattened(tree)

    def _flattened(self, tree: Any) -> jax.Array:
        self._check_64_bit()
        found = by_path(tree)
        differences: list[Difference] = []
        for row in self.layout.leaves if self.layout else ():
            spec = spec_of(found[row.path], row.path) if row.path in found else None
            if self.layout is None or spec is None:
                given = found.get(row.path)
                got = "nothing" if given is None else f"a {type(given).__name__}"
                differences.append(Difference(row.path, str(row.spec), got, "add this leaf"))
            elif difference := self.layout.difference(row.path, spec, "same_kind"):
                differences.append(difference)
            elif row.tied in found and not _same(found[row.tied], found[row.path]):
                fix = "give both the same, or destructure with tied=False"
                differences.append(Difference(row.path, f"the values of {row.tied!r}", "other values", fix))
        known = set(self._paths())
        for path, value in found.items():
            spec = spec_of(value, path) if path not in known else None
            if spec is not None:
                differences.append(Difference(path, "nothing", str(spec), "remove this leaf, or destructure anew"))
        if differences:
            raise StructureError(differences, "unlike the tree that was destructured")
        return pack(self.layout, found)

    def locate(self, index: int) -> tuple[str, tuple[int, ...]]:
        """The path, and the position inside that leaf, of number `index` of the vector. Raises `IndexError`."""
        if self.layout is None:
            raise IndexError(
                f"expected an index into a vector, got {index} for one of size 0; fix: nothing enters this vector"
            )
        return self.layout.locate(index)

    def _tree_of_riders(self) -> Any:
        return unflatten(self.treedef, [x for _, x in self.riders])

    def _paths(self) -> list[str]:
        tree = self.layout.unflatten(stand_ins(self.layout.leaves)) if self.layout else self._tree_of_riders()
        return list(by_path(tree))

    def _checked(self, vector: Any) -> Any:
        refuse_jax_at_the_end()
        for position, rider in self.riders:
            if isinstance(rider, jax.Array) and is_deleted(rider):
                raise ValueError(
                    f"{self._paths()[position]!r}: expected what rides along as it was, got a jax.Array that was "
                    "deleted or donated away; fix: destructure the current tree"
                )
        spec = spec_of(vector, "vector")
        if spec is None or spec.shape[-1:] != (self.size,):
            expected = f"shape ({self.size},) or (P, {self.size}), a number per parameter"
            fix = "pass what destructure gives for this structure, or rebuild.flatten(tree), which takes a store too"
            raise StructureError([Difference("vector", expected, str(spec or type(vector).__name__), fix)])
        if spec.dtype.kind == "c" and self.dtype.kind != "c":
            expected = f"real numbers like {self.dtype.name}, as all leaves are real"
            raise StructureError([Difference("vector", expected, str(spec), "pass its real part")])
        self._check_64_bit()
        if isinstance(vector, jax.Array):
            return vector
        with reading(*memories_of([vector])), np.errstate(all="ignore"):
            packed = as_numpy(vector, "vector").astype(self.dtype)  # too large ones become infinite, as in JAX
        return _jnp.array(packed)

    def _check_64_bit(self) -> None:
        for dtype in dtypes_of(self.layout):
            if _dtypes.canonicalize_dtype(dtype) != dtype:
                raise ValueError(
                    f"expected JAX's 64-bit types on, as when the tree was destructured, got them off for {dtype.name} "
                    "leaves; fix: jax.config.update('jax_enable_x64', True)"
                )

    def __reduce__(self) -> Any:
        """Pickles where the tree's own nodes and what rides along do."""
        return _unpickled, (self.layout, None if self.layout else self._tree_of_riders())

    def __eq__(self, other: object) -> bool:
        """Whether both make the same trees of the same vectors."""
        if self is other or not isinstance(other, Rebuild):
            return self is other
        if self.layout != other.layout or len(self.riders) != len(other.riders):
            return False
        if not all(i == j and _same(a, b) for (i, a), (j, b) in zip(self.riders, other.riders, strict=True)):
            return False
        try:
            return bool(self.treedef == other.treedef)
        except (TypeError, ValueError):  # nodes that hold arrays as static data cannot be compared
            return False

    def __hash__(self) -> int:
        """A hash that agrees with equality."""
        return hash((self.layout, len(self.riders)))

    def __repr__(self) -> str:
        """How much enters, and how much rides along."""
        leaves = count(self.treedef.num_leaves, "leaf", "leaves")
        return f"Rebuild: {self.dtype.name}[{self.size}] to {leaves} ({len(self.riders)} ride along)"


def _same(a: Any, b: Any) -> bool:
    """Whether two leaves are the same: objects, or numbers of one type that agree to the bit."""
    if a is b or type(a) is not type(b) or isinstance(a, _core.Tracer):
        return a is b
    if isinstance(a, jax.Array):
        if is_deleted(a) or is_deleted(b) or a.dtype != b.dtype or a.aval.weak_type != b.aval.weak_type:
            return False
        if _dtypes.issubdtype(a.dtype, _dtypes.prng_key):
            return np.array_equal(jax.random.key_data(a), jax.random.key_data(b))
    if hasattr(a, "dtype") and hasattr(a, "shape"):  # float0, too, whose numbers cannot be compared
        x, y = as_numpy(a, ""), as_numpy(b, "")
        return x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()
    if isinstance(a, (float, complex)):  # to the bit: 0.0 is not -0.0, and NaN is NaN
        return np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return (a == b) is True


def _unpickled(layout: Layout | None, tree: Any) -> Rebuild:
    if layout is not None:
        return Rebuild(layout, layout.treedef, layout.riders)
    pairs, treedef = flatten(tree)
    return Rebuild(None, treedef, tuple(enumerate(x for _, x in pairs)))
