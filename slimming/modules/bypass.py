"""A residual branch without channels: its layers are gone, what is left of it is a constant.

Where a plan takes every channel of a branch, its last layer reads nothing and gives its bias. So it
becomes a `Constant` and the layers before it `Removed`: they only say how large the map would be.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from slimming.modules.selection import Edited, become, norm_of


class _StandIn(Edited):
    """Knows the size of what a layer gives, not the values."""

    steps: list[tuple[int, int, int]]

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.was, self.linear = type(norm_of(layer)).__name__, isinstance(layer, nn.Linear)
        self.steps = _steps(layer) if isinstance(layer, _ConvNd) else []

    def extra_repr(self) -> str:
        return f"instead of {self.was}"


def _steps(conv: _ConvNd) -> list[tuple[int, int, int]]:
    """(padding on both sides, extent of the kernel, stride) along each spatial dimension."""
    reach = [dilation * (kernel - 1) for dilation, kernel in zip(conv.dilation, conv.kernel_size)]
    both = {"same": reach, "valid": [0] * len(reach)}
    if isinstance(conv.padding, str):
        padding = both[conv.padding]
    else:
        padding = [2 * size for size in conv.padding]
    return [(pad, span + 1, by) for pad, span, by in zip(padding, reach, conv.stride)]


@fx.wrap
def blank(x: Tensor, channels: int, linear: bool, steps: list[tuple[int, int, int]]) -> Tensor:
    """Zeros in the shape of what a layer makes of `x`, with this many channels."""
    shape = list(x.shape)
    shape[-1 if linear else 1] = channels
    for dim, (pad, span, by) in enumerate(steps):
        shape[dim + 2] = (shape[dim + 2] + pad - span) // by + 1
    return x.new_zeros(shape)


@fx.wrap
def filled(x: Tensor, value: Tensor, linear: bool, steps: list[tuple[int, int, int]]) -> Tensor:
    """`value` (channels,), all over the map that a layer makes of `x`."""
    zeros = blank(x, len(value), linear, steps)
    shape = [1 for _ in zeros.shape]
    shape[-1 if linear else 1] = len(value)
    return zeros + value.view(shape)


class Removed(_StandIn):
    """Where a layer of the branch was."""

    kind = "removed"

    def forward(self, x: Tensor) -> Tensor:
        # One channel, and never x itself: what follows may work in place.
        return blank(x, 1, self.linear, self.steps)


class Constant(_StandIn):
    """(N, any, ...) -> (N, channels, ...): what the branch's last layer gives without inputs."""

    kind = "constant"

    def __init__(self, layer: nn.Module, value: Tensor):
        super().__init__(layer)
        if layer.bias is None:
            self.register_buffer("constant", value)
        else:
            self.constant = nn.Parameter(value)

    @property
    @torch.jit.unused
    def bias(self) -> Tensor:
        return self.constant

    def arguments(self) -> dict[str, Any]:
        return {"bias": isinstance(self.constant, nn.Parameter)}

    def forward(self, x: Tensor) -> Tensor:
        return filled(x, self.constant, self.linear, self.steps)


def bypass(model: nn.Module, modules: Iterable[str], last: str) -> None:
    """Turn the branch's layers into stand-ins, in place."""
    for name in modules:
        layer = model.get_submodule(name)
        become(layer, Removed(layer))
    become_constant(model.get_submodule(last))


def become_constant(layer: nn.Module) -> None:
    """Turn a layer that reads nothing any more into its bias, in place."""
    value = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
    become(layer, Constant(layer, value.detach()))


def stands_in(module: nn.Module) -> bool:
    return isinstance(module, _StandIn)
