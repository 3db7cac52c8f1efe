"""The network of every task: one hidden layer of rectified linear units."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from flatstore.layout import Layout
from flatstore.noise import Normal

_jax: Any = jax


def layout_of_network(inputs: int, hidden: int, outputs: int) -> Layout:
    """Where the parameters of the network live.

    Weights have shape (outputs, inputs). The first layer of a whole population is then one matrix product, in place:
    its rows, (members, outputs), times the columns of the inputs.
    """
    shapes = {
        "hidden": {"weight": (hidden, inputs), "bias": (hidden,)},
        "output": {"weight": (outputs, hidden), "bias": (outputs,)},
    }
    return Layout.from_tree(
        {
            layer: {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in leaves.items()}
            for layer, leaves in shapes.items()
        }
    )


def initial_noise(inputs: int, hidden: int) -> Normal:
    """The noise that a new network is drawn from: weights of variance 1 / inputs, biases of zero."""
    return Normal({"hidden/weight": inputs**-0.5, "output/weight": hidden**-0.5, "*": 0})


def logits(params: Any, x: Any) -> Any:
    """The network: (inputs, cases) to (outputs, cases)."""
    hidden = jax.nn.relu(params["hidden"]["weight"] @ x + params["hidden"]["bias"][:, None])
    return params["output"]["weight"] @ hidden + params["output"]["bias"][:, None]


class Program:
    """A function, compiled by JAX for the shapes of its first call."""

    def __init__(self, function: Any) -> None:
        self._function, self._compiled = _jax.jit(function), None
        self.temporaries = 0
        """Bytes that it takes beside its arguments, once it is compiled."""

    def __call__(self, *arguments: Any) -> Any:
        """Call the function, which is compiled first if this is the first call."""
        if self._compiled is None:
            self._compiled = self._function.lower(*arguments).compile()
            analysis: Any = self._compiled.memory_analysis()
            self.temporaries: int = int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)
        return self._compiled(*arguments)
