"""Torch modules that the tests adopt, and what to ask of them."""

import torch
from torch import nn

import flatstore as fs


class Tied(nn.Module):
    """A language model in small: the head's weight is the embedding's, a norm is frozen, a buffer is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm.requires_grad_(False)
        self.register_buffer("scale", torch.ones(4), persistent=False)

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(token) * self.scale))


def net(seed: int = 0) -> nn.Sequential:
    """Two layers with a batch norm between them."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


def everything(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by torch's names."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


def shows(store: fs.Store, module: nn.Module) -> bool:
    """Whether every tensor of the module lies where the store's view of its name lies."""
    return all(tensor.data_ptr() == store[(name,)].ctypes.data for name, tensor in everything(module).items())
