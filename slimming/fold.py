"""A network as it is deployed: BatchNorm folded into the layers in front of it.

In eval mode a BatchNorm is a scale and a shift per channel. Where it alone reads what a convolution
or linear layer makes, both go into that layer's weight and bias, and nothing is left to compute.
"""

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slimming.graph import ChannelGraph, trace
from slimming.surgery import replace_module


def fold(model: nn.Module, example: Any) -> nn.Module:
    """A copy of `model` for inference, in eval mode, that computes the same up to rounding.

    A BatchNorm that alone reads the output of a convolution or linear layer becomes an Identity.
    Others stay, such as those of a stream that is read by others too, or those of a layer that is
    called twice.

    Args:
        model: any network that can be traced, thin or not. It isn't changed.
        example: an input (or a tuple of inputs), batch first; only its shape and type matter.

    Raises:
        ValueError: as `trace`.
    """
    graph = trace(model, example)
    folded = copy.deepcopy(model).eval()
    for name, norm_name in graph.folds.items():
        layer, norm = folded.get_submodule(name), folded.get_submodule(norm_name)
        if _foldable(graph, name, layer, norm):
            _fold_into(layer, *affine(norm))
            replace_module(folded, norm_name, nn.Identity().eval())
    return folded


def _foldable(graph: ChannelGraph, name: str, layer: nn.Module, norm: _BatchNorm) -> bool:
    if norm.running_mean is None:  # its statistics are those of the batch, in eval mode too
        return False
    uses = graph.uses.get(f"{name}.weight")  # of layers with a weight and torch's own forward
    if isinstance(layer, nn.Linear):  # (N, L, C): a BatchNorm would read L as the channels
        return uses == 1 and layer.out_features == norm.num_features
    return uses is not None and isinstance(layer, _ConvNd)


def affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """(scale, shift) of a BatchNorm in eval mode, each (channels,), in float64 on the CPU."""
    mean, variance = norm.running_mean.cpu().double(), norm.running_var.cpu().double()
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().cpu().double()
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().cpu().double()
    return scale, shift


def _fold_into(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Make `layer` return scale * y + shift for every y (N, channels, ...) it returned before."""
    old = layer.weight
    weight = old.detach().cpu().double()
    if isinstance(layer, _ConvTransposeNd):  # (in, out per group, ...)
        blocks = weight.unflatten(0, (layer.groups, -1))
        weight = (blocks * _along(scale.view(layer.groups, 1, -1), blocks)).flatten(0, 1)
    else:
        weight = weight * _along(scale, weight)
    if layer.bias is not None:
        shift = shift + scale * layer.bias.detach().cpu().double()
    # New parameters: the old ones may be another layer's too.
    layer.weight = nn.Parameter(weight.to(old), requires_grad=old.requires_grad)
    layer.bias = nn.Parameter(shift.to(old), requires_grad=old.requires_grad)


def _along(values: Tensor, weight: Tensor) -> Tensor:
    """`values` with as many dimensions as `weight`: its first ones are there, the others follow."""
    return values.view(*values.shape, *[1] * (weight.dim() - values.dim()))
