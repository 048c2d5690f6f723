"""The layers that read cut channels: which they are, what they read, and where a constant goes.

A row is one output position of one image. Linear, convolutional and transposed layers are all the
same here: outputs = inputs @ weights + bias, with as many rows as there are positions.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slimming.graph import ChannelGraph
from slimming.graph.slices import Keep, slices
from slimming.modules.bypass import Constant, Removed, stands_in
from slimming.modules.layers import own_forward
from slimming.modules.selection import selects


class Cut(NamedTuple):
    """What a consumer lost."""

    dim: int  # of its weight, along which it reads channels
    inputs: Tensor  # indices along `dim` that stay
    outputs: Tensor | None  # its outputs that stay; None: all


def cut_consumers(graph: ChannelGraph, keep: Keep, thin: nn.Module) -> dict[str, Cut]:
    """{layer: what it lost} for each layer of `thin` that reads fewer channels than before.

    Linear and convolutional layers as torch has them, and what is left of a branch. Weights that
    are used otherwise (recurrent layers, functions, a forward of one's own) can't take a constant.
    """
    cuts, found = slices(graph, keep), {}
    for weight, dim in graph.reads:
        layer, _, attribute = weight.rpartition(".")
        kept = dict(cuts.get(weight, []))
        inputs = kept.pop(dim, None)
        if inputs is not None and attribute == "weight" and _is_plain(thin.get_submodule(layer)):
            found[layer] = Cut(dim, inputs, next(iter(kept.values()), None))
    return found


def out_of_reach(graph: ChannelGraph, keep: Keep, thin: nn.Module) -> list[str]:
    """The weights that read fewer channels than before and can't be compensated."""
    cuts, within = slices(graph, keep), cut_consumers(graph, keep, thin)
    read = [weight for weight, dim in graph.reads if dim in dict(cuts.get(weight, []))]
    removed = {name for name, module in thin.named_modules() if isinstance(module, Removed)}
    return [w for w in read if w.rpartition(".")[0] not in within.keys() | removed]


def _is_plain(module: nn.Module) -> bool:
    layer = isinstance(module, (nn.Linear, _ConvNd)) and not own_forward(module)
    return layer or isinstance(module, Constant)


def add_constant(model: nn.Module, graph: ChannelGraph, layer: str, constant: Tensor) -> None:
    """Let `layer` give `constant` (outputs,) more, in place.

    Where a BatchNorm alone reads it, its mean takes it: BN(x + c) is BN with running_mean - c. So
    nothing changes in training mode, where it would be normalised away. Elsewhere the bias does.
    """
    module = dict(model.named_modules()).get(graph.folds.get(layer, ""))
    if isinstance(getattr(module, "running_mean", None), Tensor):
        seen = constant[module.index] if selects(module) else constant
        module.running_mean.sub_(seen.to(module.running_mean))
        return
    module = model.get_submodule(layer)
    if module.bias is None:
        module.bias = nn.Parameter(torch.zeros_like(constant).to(module.weight))
    module.bias.add_(constant.to(module.bias))


def the_input(args: tuple, kwargs: dict) -> Tensor:
    """What a conv or linear layer was called with."""
    return args[0] if args else kwargs["input"]


def channel_dim(layer: nn.Module) -> int:
    """The dimension of its outputs that holds the channels."""
    return -1 if isinstance(layer, nn.Linear) or getattr(layer, "linear", False) else 1


def outputs_at(layer: nn.Module, output: Tensor, rows: Tensor) -> Tensor:
    """(rows,) of a layer's output -> (rows, outputs)."""
    output = output.movedim(channel_dim(layer), -1)
    return output[torch.unravel_index(rows, output.shape[:-1])]


def as_matrix(layer: nn.Module) -> Tensor:
    """A layer's weight as (inputs, outputs), inputs in the order of `inputs_at`."""
    if stands_in(layer):
        return layer.bias.new_zeros(0, len(layer.bias))
    weight = layer.weight
    if isinstance(layer, _ConvTransposeNd):
        weight = weight.flip(list(range(2, weight.dim()))).transpose(0, 1)
    return weight.flatten(1).T


def inputs_at(layer: nn.Module, x: Tensor, output: Tensor) -> Callable[[Tensor], Tensor]:
    """A function (rows,) -> (rows, inputs): what they are computed from, in the weight's order."""
    if stands_in(layer):
        return lambda rows: x.new_zeros(len(rows), 0)
    if isinstance(layer, nn.Linear):
        return lambda rows: x[torch.unravel_index(rows, x.shape[:-1])]
    sizes = output.shape[2:]
    if isinstance(layer, _ConvTransposeNd):
        wide, stride = _stuffed(layer, x, sizes), [1] * len(sizes)
    else:
        wide, stride = _padded(layer, x), layer.stride

    def patches(rows: Tensor) -> Tensor:
        corner = torch.unravel_index(rows % prod(sizes), sizes)
        place = torch.zeros(len(rows), 1, dtype=torch.long, device=rows.device)
        for dim, size in enumerate(wide.shape[2:]):
            reach = torch.arange(layer.kernel_size[dim], device=rows.device) * layer.dilation[dim]
            here = corner[dim][:, None] * stride[dim] + reach
            place = (place[:, :, None] * size + here[:, None, :]).flatten(1)
        image = (rows // prod(sizes))[:, None]
        return wide.flatten(2)[image, :, place].transpose(1, 2).flatten(1)

    return patches


def as_weight(layer: nn.Module, matrix: Tensor) -> Tensor:
    """The other way: (inputs, outputs) -> the shape of the layer's weight."""
    if not isinstance(layer, _ConvTransposeNd):
        return matrix.T.reshape(layer.weight.shape)
    channels, made, *kernel = layer.weight.shape
    flipped = matrix.T.reshape(made, channels, *kernel).transpose(0, 1)
    return flipped.flip(list(range(2, flipped.dim())))


def _padded(conv: _ConvNd, x: Tensor) -> Tensor:
    both: list[int] = []  # F.pad starts at the last dimension
    for dim in reversed(range(len(conv.kernel_size))):
        reach = conv.dilation[dim] * (conv.kernel_size[dim] - 1)
        if isinstance(conv.padding, str):
            left = reach // 2 if conv.padding == "same" else 0
            both += [left, reach - left if conv.padding == "same" else 0]
        else:
            both += [conv.padding[dim]] * 2
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, both, mode) if any(both) else x


def _stuffed(conv: _ConvTransposeNd, x: Tensor, sizes: torch.Size) -> Tensor:
    """Zeros between and around the inputs: on that, the flipped kernel is a plain convolution."""
    apart = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], conv.stride)]
    wide = x.new_zeros(*x.shape[:2], *apart)
    wide[(..., *(slice(None, None, step) for step in conv.stride))] = x
    both: list[int] = []
    for dim in reversed(range(len(sizes))):
        reach = conv.dilation[dim] * (conv.kernel_size[dim] - 1)
        left = reach - conv.padding[dim]
        both += [left, sizes[dim] + reach - left - apart[dim]]
    return F.pad(wide, both)
