"""The ways to add noise to a model of 16-bit floats in place, and to take it back.

A peer is made from a torch module. Beside flatstore stand MeZO's own loop (princeton-nlp/MeZO,
`large_models/trainer.py`: a normal tensor for each parameter, made again from the seed of torch) and that of
es-at-scale (a generator and a tensor each).
"""

from __future__ import annotations

from typing import Any

import numpy as np

import flatstore as fs
from flatstore import bench

from .peer import Peer

RMS, SCALE = 0.02, 1e-3
NOISE = fs.Normal(SCALE, bound=2)


def normal(size: int, rms: float = RMS, seed: int = 0) -> Any:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(size, np.float32) * np.float32(rms)


def vector(size: int, dtype: str = "bfloat16") -> Any:
    """A module of one parameter, random numbers."""
    import torch

    return torch.nn.ParameterDict({"w": torch.from_numpy(normal(size)).to(getattr(torch, dtype))})


def llama(layers: int) -> Any:
    """A Llama of the transformers library with random weights in bfloat16: 109 million with twelve layers."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        tie_word_embeddings=True,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


class Sixteen(Peer):
    """The verbs. They are called in turn: what is added is taken back."""

    library = "torch"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.parameters = [x for x in model.parameters() if x.requires_grad]
        self.nbytes = sum(x.nbytes for x in self.parameters)

    def perturb(self) -> None:
        """Add the noise of a seed."""
        self.add(1)

    def undo(self) -> None:
        """Take it back, as well as it goes."""
        self.add(-1)

    def add(self, sign: float, seed: int = 1) -> None:
        """Add the noise of a seed so many times."""
        raise NotImplementedError


class Plain(Sixteen):
    """`fs.es.perturb(..., exact=False)`: plain addition, so what is taken back differs in the last bits."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.store = fs.adopt(model)
        fs.es.snap(self.store, NOISE)

    def add(self, sign: float, seed: int = 1) -> None:
        fs.es.perturb(self.store, NOISE, seed, sign=sign, exact=False)


class Flatstore(Plain):
    """`fs.es.perturb` with its log, by which it is taken back to the bit."""

    def perturb(self) -> None:
        self.log = fs.es.perturb(self.store, NOISE, 1)

    def undo(self) -> None:
        fs.es.perturb(self.store, NOISE, 1, sign=-1, undo=self.log)


class Mezo(Sixteen):
    """MeZO's own loop."""

    def add(self, sign: float, seed: int = 1) -> None:
        import torch

        torch.manual_seed(seed)
        for parameter in self.parameters:
            z = torch.normal(mean=0, std=1, size=parameter.data.size(), dtype=parameter.data.dtype)
            parameter.data = parameter.data + sign * z * SCALE


class AtScale(Sixteen):
    """The loop of es-at-scale: a generator for each tensor, seeded alike."""

    def add(self, sign: float, seed: int = 1) -> None:
        import torch

        for parameter in self.parameters:
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
            parameter.data.add_(sign * SCALE * noise)


class Roof(Sixteen):
    """What memory gives: a multiplication in place of as many bytes, a part for each core."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.scale = bench.scaled(np.zeros(self.nbytes // 4, np.float32))

    def add(self, sign: float, seed: int = 1) -> None:
        self.scale()


PEERS: dict[str, type[Sixteen]] = {
    "flatstore": Flatstore,
    "flatstore, exact=False": Plain,
    "MeZO": Mezo,
    "es-at-scale": AtScale,
    "roof": Roof,
}
