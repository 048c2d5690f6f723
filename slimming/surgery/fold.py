"""A network as it is deployed: what needs no computing when the weights no longer change.

In eval mode a BatchNorm is a scale and a shift per channel. Where it alone reads what a convolution
or linear layer makes, both go into that layer's weight and bias, and nothing is left to compute.

A channel selection that drops few channels costs more than it saves. There the BatchNorm reads the
whole stream again, and zeros in the weights behind it take the place of the selection.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_map

from slimming.graph import ChannelGraph, trace
from slimming.graph.selection import SELECTING, selects
from slimming.surgery.cut import agree, replace_module

# Multiplications that take as long as to read and normalise one more value; selecting one takes as
# long as both. Break-even on a CPU, channels_last, batch 64: see docs/decisions.md.
MULTIPLICATIONS = 36


def fold(model: nn.Module, example: Any) -> nn.Module:
    """A copy of `model` for inference, in eval mode, that computes the same up to rounding.

    A BatchNorm that alone reads the output of a convolution or linear layer becomes an Identity.
    Others stay, such as those of a stream that is read by others too, or those of a layer that is
    called twice. Selections go where they don't pay, so a layer may be wider than in `model`.

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
    for name, width in _selected_from(model, example).items():
        _widen(folded, graph, name, width)
    return folded


def _foldable(graph: ChannelGraph, name: str, layer: nn.Module, norm: _BatchNorm) -> bool:
    if norm.running_mean is None:  # its statistics are those of the batch, in eval mode too
        return False
    uses = graph.uses.get(f"{name}.weight")  # of layers with a weight and torch's own forward
    if isinstance(layer, nn.Linear):  # (N, L, C): a BatchNorm would read L as the channels
        return uses == 1 and layer.out_features == norm.num_features
    return uses is not None and isinstance(layer, _ConvNd)


def _selected_from(model: nn.Module, example: Any) -> dict[str, int]:
    """{BatchNorm with a channel selection: channels that it selects among}."""
    widths: dict[str, set[int]] = {}

    def listen(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            widths.setdefault(name, set()).add(args[0].shape[1])

        module.register_forward_pre_hook(hook)

    twin = copy.deepcopy(model).to("meta").float().eval()
    for name, module in twin.named_modules():
        if selects(module):
            listen(name, module)
    if any(selects(module) for module in twin.modules()):
        inputs = example if isinstance(example, (tuple, list)) else (example,)
        twin(*tree_map(_on_meta, tuple(inputs)))
    return {name: of.pop() for name, of in widths.items() if len(of) == 1}


def _on_meta(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.to("meta", torch.float32 if x.is_floating_point() else x.dtype)


def _widen(folded: nn.Module, graph: ChannelGraph, name: str, width: int) -> None:
    """Replace a selection by zeros in the weights behind it, where that is faster."""
    norm, ids = folded.get_submodule(name), graph.gates.get(name)
    if ids is None or norm.running_mean is None:
        return
    members = {
        key: channels
        for key, channels in graph.dims.items()
        if torch.isin(channels, ids).any() and key[0].rpartition(".")[0] != name
    }
    if not all(key in graph.reads and torch.equal(c, ids) for key, c in members.items()):
        return  # others pass these channels on, or have them at other places
    layers = {folded.get_submodule(weight.rpartition(".")[0]): dim for weight, dim in members}
    multiplied = sum(layer.weight.numel() // len(ids) for layer in layers)  # with each channel
    if (width - len(ids)) * (1 + multiplied / MULTIPLICATIONS) > len(ids):
        return
    replace_module(folded, name, _without_selection(norm, width))
    for layer, dim in layers.items():
        layer.weight = nn.Parameter(_spread(layer.weight, dim, norm.index, width))
        agree(layer)


def _without_selection(norm: _BatchNorm, width: int) -> nn.Module:
    """A BatchNorm of the whole stream that gives 0 for the channels that weren't selected."""
    plain = {selecting: kind for kind, selecting in SELECTING.items()}[type(norm)]
    scale, shift = (_spread(x.to(norm.running_mean), 0, norm.index, width) for x in affine(norm))
    wide = plain(width, eps=0.0, device=scale.device, dtype=scale.dtype)  # mean 0, variance 1
    wide.weight, wide.bias = nn.Parameter(scale), nn.Parameter(shift)
    return wide.eval()


def _spread(tensor: Tensor, dim: int, index: Tensor, width: int) -> Tensor:
    """Zeros, with `tensor` at the places `index` of dimension `dim`."""
    shape = [*tensor.shape]
    shape[dim] = width
    return tensor.detach().new_zeros(shape).index_copy_(dim, index, tensor.detach())


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
