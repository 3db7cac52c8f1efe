"""Perturbed parameters inside `jit`: made where they are used, never stored."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from flatstore.es.groups import IN_NOISE, SIGNS_ACROSS, check_sign
from flatstore.es.in_jit.blocks import Block, is_array, map_blocks
from flatstore.es.perturbing import key_of
from flatstore.kernels.xla import added, loaded, rounded
from flatstore.layout import Layout, spec_of
from flatstore.noise import Noise, in_jax

jnp: Any = jax.numpy
_jax: Any = jax


def virtual(
    params: Any,
    noise: Noise,
    seed: Any,
    *,
    sign: Any = 1,
    layout: Layout | None = None,
    within: str = "",
    at: Any = (),
    after: Any = None,
) -> Any:
    """The tree whose leaves are `params + sign * noise(seed)`: for use inside `jit`, with the bits of `es.sample`.

    The leaves are new arrays; frozen leaves, leaves of scale 0 and whatever rides along are the same objects as in
    `params`. With `params` donated it perturbs in place: on the noise's grid with the bits of `es.perturb`, and the
    opposite sign takes it back. The bound and the grid are not checked here, but by `es.on_grid`. Gradients pass as if
    the noise were a constant.

    >>> import jax, flatstore as fs
    >>> params, noise = {"w": jnp.zeros(3)}, fs.Normal(0.02)
    >>> trial = fs.Store.from_tree(params)
    >>> fs.es.sample(trial, trial, noise, [7])
    >>> bool((jax.jit(lambda p: virtual(p, noise, 7))(params)["w"] == trial["w"]).all())
    True

    Temporaries on CPU, by `compiled.memory_analysis().temp_size_in_bytes`, for 64 seeds of a perceptron of six layers,
    256 wide, with 16 inputs. A *leaf* is one layer's kernel, a *model* six of them:

    ```
                                                          as it is        with after=
    perturbing in place, donated                          0
    one member                                            1 model         1.1 leaves
    one member, lax.scan over stacked layers              1.1 leaves
    lax.map over seeds                                    1 model         1.1 leaves
    lax.map over seeds, with a scan over layers           1.1 leaves
    lax.map(batch_size=16)                                16 models       16 * 1.2 leaves
    vmap over seeds                                       64 models       64 * 1.2 leaves
    vmap over seeds of a scan over layers                 64 * 1.1 leaves
    ```

    A matrix product reads its operands from memory, so one leaf per member that is computed at a time is the minimum.
    XLA on CPU begins by making all leaves, unless they depend on something that comes before: `after` is for that. Make
    the leaves layer by layer, each after the activations that enter it:

    ```
    for name in ("in", "hidden", "out"):
        layer = es.virtual(params[name], noise, seed, layout=layout, within=name, after=x)
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    ```

    In a scan over layers that are stacked along their first axis, `at` is the number of the layer:

    ```
    def step(x, layer):
        i, stacked = layer
        layer = es.virtual(stacked, noise, seed, layout=layout, within="layers", at=i)
        return jnp.tanh(x @ layer["kernel"] + layer["bias"]), None

    x, _ = jax.lax.scan(step, x, (jnp.arange(depth), params["layers"]))
    ```

    16-bit leaves are rounded, and inside `jit` there is no undo log: the opposite sign does not give them back, so keep
    the tree.

    Args:
        params: a tree of arrays, such as a lent one. Tied leaves inside `jit` are separate arrays: give the layout.
        noise: `fs.Normal` or `fs.Rademacher`.
        seed: as in `es.perturb`, or a row of `es.words(seeds)`, which may be traced and mapped over.
        sign: 1 or -1; 2 or -2 to go from one side of the centre to the other. A traced number is not checked.
        layout: where the leaves stand in the index; by default that of `params`, with floating leaves trainable.
        within: the path of the node of the layout that `params` is; by default the root.
        at: where in each leaf of the layout the arrays begin: integers that may be traced, one for each of the first
            axes. An array that lacks those axes lies at one place along them. For a shard:
            `at=jax.lax.axis_index("rows") * x.shape[0]`.
        after: an array that is computed before the leaves are made.

    Raises `ValueError` for a seed or a sign out of range, for float64 leaves while 64-bit types are off, and for noise
    that `es.sample` refuses; `StructureError` for arrays that are not blocks of the layout, `KeyError` if it has no
    node `within`.
    """
    if not (is_array(sign) and sign.ndim == 0):
        check_sign(sign, IN_NOISE, SIGNS_ACROSS)
    key, times = key_words(seed), jnp.asarray(sign, np.float32)
    begun = () if after is None else (jnp.ravel(after)[0],)

    def move(x: Any, block: Block) -> Any:
        zero = in_jax.opaque_zero(*filter(is_array, (key[0], *begun, *block.at)))
        steps = in_jax.steps(noise, block.scale(noise), key, block.indices(zero))
        return _perturbed(x, times * (steps.astype(np.float32) * np.float32(noise.step)), zero)

    return map_blocks(move, params, noise, layout, within, at)


@_jax.custom_jvp
def _perturbed(x: Any, delta: Any, zero: Any) -> Any:
    real = loaded(x, zero)
    return rounded(added(real, delta.astype(real.dtype)), x.dtype)


def _tangent(tangent: Any, out: Any, x: Any, delta: Any, zero: Any) -> Any:
    """The noise is a constant, and rounding in integers has no derivative of its own."""
    return tangent


_perturbed.defjvps(_tangent, None, None)


def key_words(seed: Any) -> in_jax.Words:
    """The two words of a seed: an integer or several, as in `es.perturb`, or two words, which may be traced."""
    if not isinstance(seed, (np.ndarray, jax.Array)):
        return in_jax.as_words(int(key_of(seed)[0]))
    if np.shape(seed) != (2,) or seed.dtype != np.uint32:  # pyright: ignore[reportUnknownArgumentType,reportUnknownMemberType]
        raise ValueError(
            "expected a seed as an integer, or as two words, uint32 of shape (2,), got "
            f"{spec_of(seed, 'seed')}; fix: call es.words(seeds) outside of jit, and pass one row of it"
        )
    return seed[0], seed[1]


def snapped(params: Any, noise: Noise, *, layout: Layout | None = None, within: str = "", at: Any = ()) -> Any:
    """The tree rounded to the noise's grid, for use inside `jit`, as `es.snap` rounds a store. New arrays.

    Accepts the same arguments and raises the same errors as `virtual`, and `ValueError` for 16-bit leaves. `on_grid`
    tells whether all are finite and below the bound; that is not checked here.
    """
    return map_blocks(lambda x, block: _snapped(x, block, noise), params, noise, layout, within, at)


def on_grid(params: Any, noise: Noise, *, layout: Layout | None = None, within: str = "", at: Any = ()) -> Any:
    """Whether all parameters lie on the noise's grid, below its bound: a boolean array of shape (), inside `jit` too.

    `es.perturb` and `es.update` check the same of a store. Accepts the same arguments and raises the same errors as
    `snapped`.

    >>> import flatstore as fs
    >>> noise, x = fs.Normal(0.02), {"w": jnp.array([0.1, 0.7])}
    >>> bool(on_grid(x, noise)), bool(on_grid(snapped(x, noise), noise))
    (False, True)
    """
    good: list[Any] = []

    def look(x: Any, block: Block) -> Any:
        same = jnp.all(_bits(_snapped(x, block, noise)) == _bits(x))
        good.append(same & jnp.all(jnp.abs(x) < noise.bound))
        return x

    map_blocks(look, params, noise, layout, within, at)
    return jnp.all(jnp.stack(good)) if good else jnp.asarray(True)


def _bits(x: Any) -> Any:
    return _jax.lax.bitcast_convert_type(x, np.dtype(f"u{x.dtype.itemsize}"))


def _snapped(x: Any, block: Block, noise: Noise) -> Any:
    if x.dtype.itemsize == 2:
        raise ValueError(
            f"{block.leaf.path!r}: expected a float32 or float64 leaf, which has a grid, got {block.leaf.spec}; "
            "fix: leave it as it is: 16-bit leaves need no snap"
        )
    grid = x.dtype.type(noise.grid(x.dtype))
    multiple = jnp.rint(x / grid) * grid
    return jnp.where(multiple == 0, x.dtype.type(0), multiple)
