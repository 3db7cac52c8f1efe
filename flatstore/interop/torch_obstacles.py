"""Which tensors of a torch module cannot be views of a store, and why; which of the others are tied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flatstore.extras import require
from flatstore.layout import torch_dtype
from flatstore.trees import Difference


def read_tensors(tensors: Mapping[str, Any]) -> tuple[list[Difference], dict[str, str]]:
    """The tensors that cannot be views of a store, and which of the others are tied: {path: home}."""
    first = next((x.device for x in tensors.values() if not x.is_meta), None)
    obstacles = [Difference(path, *found) for path, tensor in tensors.items() if (found := _obstacle(tensor, first))]
    stuck = {difference.path for difference in obstacles}
    homes: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for path, tensor in tensors.items():
        if path not in stuck:
            place = tensor.data_ptr() if tensor.nbytes else id(tensor)
            home = homes.setdefault((place, tensor.shape, tensor.dtype, tensor.requires_grad), path)
            if home != path:
                tied[path] = home
    return obstacles + _overlaps({path: tensors[path] for path in homes.values()}), tied


def _obstacle(tensor: Any, device: Any) -> tuple[str, str, str] | None:
    """The reason why a tensor cannot be a view of memory of a device, as (expected, got, fix), or None."""
    torch = require("torch", "torch")
    name = str(tensor.dtype).removeprefix("torch.")
    if torch.nn.parameter.is_lazy(tensor):
        return "an initialised tensor", "a lazy one without a shape", "call the module once with an example"
    if tensor.is_meta:
        return "a tensor in memory", "one on meta", "module.to_empty(device='cpu'), then load its values"
    if tensor.device != device:
        return f"a tensor on {device}, as the first", f"one on {tensor.device}", f"module.to({str(device)!r})"
    parameter = isinstance(tensor, torch.nn.Parameter)
    instead = "replace it by torch.nn.Parameter(param{})" if parameter else "replace it by buffer{}"
    if tensor.is_nested:
        return "a plain tensor", "one of several shapes", instead.format(".to_padded_tensor(0)")
    if tensor.layout is not torch.strided:
        return "a dense tensor", f"one of {tensor.layout}", instead.format(".to_dense()")
    if tensor.is_quantized:
        fix = f"adopt the module before it is quantised, or {instead.format('.dequantize()')}"
        return "a plain tensor", f"one of {name}", fix
    if type(tensor.data) is not torch.Tensor:
        return "a plain tensor", f"one of {type(tensor.data).__name__}", "adopt the module before it is wrapped"
    if torch_dtype(tensor) is None:  # what torch cannot convert either, it can view
        fix = ".to(torch.complex64)" if tensor.is_complex() else ".view(torch.uint8)"
        return "a dtype that NumPy has", name, f"param.data = param.data{fix}"
    return _disorder(tensor)


def _disorder(tensor: Any) -> tuple[str, str, str] | None:
    """The reason why the elements of a tensor do not lie one after the other, as (expected, got, fix), or None."""
    torch = require("torch", "torch")
    for lazy, what in (("conj", "conjugate"), ("neg", "negative")):
        if getattr(tensor, f"is_{lazy}")():
            got = f"the {what} of others, worked out as it is read"
            return "numbers as they are stored", got, f"param.data = param.data.resolve_{lazy}()"
    if tensor.is_contiguous():
        return None
    for order in ("channels_last", "channels_last_3d"):
        if tensor.is_contiguous(memory_format=getattr(torch, order)):
            fix = "module.to(memory_format=torch.contiguous_format)"
            return "contiguous memory", f"the order of torch.{order}", fix
    got = f"strides {tuple(tensor.stride())} over shape {tuple(tensor.shape)}{_spread(tensor)}"
    return "contiguous memory", got, "param.data = param.data.contiguous()"


def _spread(tensor: Any) -> str:
    """How the elements of a tensor lie, where the strides show it."""
    axes = sorted((stride, n) for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)
    reach, apart = 1, True  # the elements along the axes so far lie within so many places
    for stride, n in axes:
        apart = apart and stride >= reach
        reach += (n - 1) * stride
    if apart:
        return ", gaps between elements" if reach > tensor.numel() else ""
    return ", elements that share memory" if axes[0][0] == 0 or reach < tensor.numel() else ""


def _overlaps(homes: Mapping[str, Any]) -> list[Difference]:
    """Tensors that are neither the same memory nor apart: views of one another."""
    differences: list[Difference] = []
    end, owner = 0, ""
    spans = [(x.data_ptr(), x.data_ptr() + x.nbytes, path) for path, x in homes.items() if x.nbytes]
    for start, stop, path in sorted(spans, key=lambda span: (span[0], -span[1])):  # the whole before its parts
        if start < end:
            fix = "give one of the two its own: param.data = param.data.clone()"
            differences.append(Difference(path, "memory of its own", f"bytes of {owner!r}", fix))
        if stop > end:
            end, owner = stop, path
    return differences
