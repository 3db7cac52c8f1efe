"""Torch modules that the tests adopt, and what to ask of them."""

import warnings

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

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


def pair() -> nn.ModuleDict:
    """Two layers."""
    return nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "ab"})


def tied_pair() -> nn.ModuleDict:
    """Two layers of one weight."""
    module = pair()
    module["b"].weight = module["a"].weight
    return module


def quantised() -> torch.Tensor:
    """A tensor of a type that NumPy does not have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to drop them
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def nested() -> torch.Tensor:
    """A tensor of several shapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a prototype
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def fake() -> torch.Tensor:
    """A tensor without data that says it lies in host memory."""
    with FakeTensorMode():
        return torch.ones(3)


def everything(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by torch's names."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


def shows(store: fs.Store, module: nn.Module) -> bool:
    """Whether every tensor of the module lies where the store's view of its name lies."""
    return all(tensor.data_ptr() == store[(name,)].ctypes.data for name, tensor in everything(module).items())
