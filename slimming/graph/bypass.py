"""A residual branch without channels: its layers are gone, what is left of it is a constant.

Where a plan takes every channel of a branch, its last layer reads nothing and gives its bias. So it
becomes a `Constant` and the layers before it `Removed`: they only say how large the map would be.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


class _StandIn(nn.Module):
    """Knows the size of what a layer gives, not the values."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.kind, self.linear = type(layer).__name__, isinstance(layer, nn.Linear)
        self.steps = _steps(layer) if isinstance(layer, _ConvNd) else None

    def extra_repr(self) -> str:
        return f"instead of {self.kind}"

    def blank(self, x: Tensor, channels: int) -> Tensor:
        """Zeros in the shape of the layer's output."""
        if self.linear:
            return x.new_zeros([*x.shape[:-1], channels])
        sizes = list(x.shape[2:])
        if self.steps is not None:
            sizes = [(n + pad - span) // by + 1 for n, (pad, span, by) in zip(sizes, self.steps)]
        return x.new_zeros([x.shape[0], channels, *sizes])


def _steps(conv: _ConvNd) -> list[tuple[int, int, int]]:
    """(padding on both sides, extent of the kernel, stride) along each spatial dimension."""
    reach = [dilation * (kernel - 1) for dilation, kernel in zip(conv.dilation, conv.kernel_size)]
    both = {"same": reach, "valid": [0] * len(reach)}
    if isinstance(conv.padding, str):
        padding = both[conv.padding]
    else:
        padding = [2 * size for size in conv.padding]
    return [(pad, span + 1, by) for pad, span, by in zip(padding, reach, conv.stride)]


class Removed(_StandIn):
    """Where a layer of the branch was. Its empty buffer tells so in the saved weights."""

    def __init__(self, layer: nn.Module):
        super().__init__(layer)
        self.register_buffer("removed", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.blank(x, 1)  # never x itself: what follows may work in place


class Constant(_StandIn):
    """(N, any, ...) -> (N, channels, ...): what the branch's last layer gives without inputs."""

    def __init__(self, layer: nn.Module, value: Tensor):
        super().__init__(layer)
        if layer.bias is None:
            self.register_buffer("constant", value)
        else:
            self.constant = nn.Parameter(value)

    @property
    def bias(self) -> Tensor:
        return self.constant

    def forward(self, x: Tensor) -> Tensor:
        zeros = self.blank(x, len(self.constant))
        dims = zeros.dim() - 2 if not self.linear else 0
        return zeros + self.constant.view(-1, *[1] * dims)


def bypass(model: nn.Module, modules: Iterable[str], last: str) -> None:
    """Put stand-ins where the branch's layers are, in place."""
    for name in modules:
        replace_module(model, name, Removed(model.get_submodule(name)))
    layer = model.get_submodule(last)
    value = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
    replace_module(model, last, Constant(layer, value.detach()))


def stands_in(module: nn.Module) -> bool:
    return isinstance(module, _StandIn)


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` where the one at `path` is, under all of its names."""
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = module
