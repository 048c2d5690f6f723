"""A network as it is deployed: what needs no computing when the weights no longer change.

In eval mode a BatchNorm is a scale and a shift per channel. Where it alone reads what a convolution
or linear layer makes, both go into that layer's weight and bias, and nothing is left to compute.

A channel selection that drops few channels costs more than it saves. There the BatchNorm reads the
whole stream again, and zeros in the weights behind it take the place of the selection.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slimming.graph import ChannelGraph, trace
from slimming.modules.layers import agree
from slimming.modules.selection import Edited, Selecting, become, selects
from slimming.surgery.compare import agrees, comparable, outputs

# Multiplications that take as long as to read and normalise one more value; selecting one takes as
# long as both. Break-even on a CPU, channels_last, batch 64: see docs/decisions.md.
MULTIPLICATIONS = 36

Step = Callable[[nn.Module], None]  # changes a copy of the network in place


class Folded(Edited, nn.Identity):
    """Where a BatchNorm was that went into the layer before it."""

    kind = "folded"


def fold(model: nn.Module, example: Any) -> nn.Module:
    """A copy of `model` for inference, in eval mode, that computes the same up to rounding.

    A BatchNorm that alone reads the output of a convolution or linear layer becomes an Identity.
    Others stay, such as those of a stream that is read by others too, or those of a layer that is
    called twice. Selections go where they don't pay, so a layer may be wider than in `model`.

    Both are run on the example and compared, in float64 where the network allows it; what would
    make a difference is left as it is.

    Args:
        model: any network that can be traced, thin or not. It isn't changed.
        example: an input (or a tuple of inputs), batch first. Where its numbers don't differ (as
            of zeros, or on the meta device) random ones take their place.

    Raises:
        ValueError: as `trace`; or its outputs can't be compared.
    """
    graph = trace(model, example)
    folded = copy.deepcopy(model).eval()
    for step in _harmless(model, _steps(model, graph), example):
        step(folded)
    return folded


def _steps(model: nn.Module, graph: ChannelGraph) -> list[Step]:
    """All that could be done, in an order in which one doesn't disturb the other."""
    steps: list[Step] = [
        partial(_fold_pair, name=name, norm_name=norm)
        for name, norm in graph.folds.items()
        if _foldable(graph, name, model.get_submodule(name), model.get_submodule(norm))
    ]
    for gate, module in model.named_modules():
        if selects(module) and (readers := _readers(model, graph, gate, module)):
            steps.append(partial(_widen, gate=gate, readers=readers))
    return steps


@torch.no_grad()
def _harmless(model: nn.Module, steps: Sequence[Step], example: Any) -> Sequence[Step]:
    """The steps after which the network still computes the same on the example."""
    twin, inputs = comparable(model, example)
    expected = outputs(twin, inputs)
    if not expected or not agrees(expected, expected):
        what = "NaN or infinity" if expected else "no tensor"
        raise ValueError(f"{type(model).__name__} returns {what}: nothing can be compared")

    def right(some: Sequence[Step]) -> bool:
        trial = copy.deepcopy(twin)
        try:
            for step in some:
                step(trial)
            return agrees(outputs(trial, inputs), expected)
        except Exception:  # the network's own code may look at what was changed
            return False

    if right(steps):
        return steps
    kept: list[Step] = []
    for step in steps:
        if right([*kept, step]):
            kept.append(step)
    return kept


def _foldable(graph: ChannelGraph, name: str, layer: nn.Module, norm: nn.Module) -> bool:
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        return False  # a selection is in front; or its statistics are those of the batch
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (layer, norm))
    if hooked or not type(norm).forward.__module__.startswith("torch.nn."):
        return False
    uses = graph.uses.get(f"{name}.weight")
    if isinstance(layer, nn.Linear):  # (N, L, C): a BatchNorm would read L as the channels
        return uses == 1 and layer.out_features == norm.num_features
    return uses is not None and isinstance(layer, _ConvNd)


def _fold_pair(network: nn.Module, name: str, norm_name: str) -> None:
    norm = network.get_submodule(norm_name)
    _fold_into(network.get_submodule(name), *_affine(norm))
    become(norm, Folded())


def _readers(model: nn.Module, graph: ChannelGraph, gate: str, module: Selecting) -> dict[str, int]:
    """{layer: dim of its weight} that read what the norm gives, if zeros in them are faster."""
    ids = graph.gates.get(gate)
    if ids is None or module.norm.running_mean is None:
        return {}
    members = {
        key: channels
        for key, channels in graph.dims.items()
        if torch.isin(channels, ids).any() and not key[0].startswith(f"{gate}.")
    }
    if not all(key in graph.reads and torch.equal(c, ids) for key, c in members.items()):
        return {}  # others pass these channels on, or have them at other places
    readers = {weight.rpartition(".")[0]: dim for weight, dim in members}
    layers = {model.get_submodule(path) for path in readers}
    multiplied = sum(layer.weight.numel() // len(ids) for layer in layers)  # with each channel
    more = module.width - len(ids)
    return {} if more * (1 + multiplied / MULTIPLICATIONS) > len(ids) else readers


def _widen(network: nn.Module, gate: str, readers: dict[str, int]) -> None:
    """Let the norm read the whole stream; zeros take the place of the selection."""
    selecting = network.get_submodule(gate)
    index, width, norm = selecting.index, selecting.width, selecting.norm
    for layer, dim in {network.get_submodule(path): dim for path, dim in readers.items()}.items():
        wide = _spread(layer.weight, dim, index, width)
        layer.weight = nn.Parameter(wide, requires_grad=layer.weight.requires_grad)
        agree(layer)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data = _spread(tensor, 0, index, width)
    norm.num_features = width
    become(selecting, norm)


def _spread(tensor: Tensor, dim: int, index: Tensor, width: int) -> Tensor:
    """Zeros, with `tensor` at the places `index` of dimension `dim`."""
    shape = [*tensor.shape]
    shape[dim] = width
    return tensor.detach().new_zeros(shape).index_copy_(dim, index, tensor.detach())


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
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
