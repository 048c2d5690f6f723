"""What each kind of layer does with channel numbers.

Convolutions and linear layers read channels and make new ones, a BatchNorm scores them, activations
and pooling pass them on. Any other layer may mix them, so what it reads stays at full width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.padding import (
    _CircularPadNd,
    _ConstantPadNd,
    _ReflectionPadNd,
    _ReplicationPadNd,
)

from slimming.graph.bypass import Constant, stands_in
from slimming.graph.labels import NONE, along, spread
from slimming.graph.operations import along_dim, glu, per_channel
from slimming.graph.selection import selects
from slimming.graph.views import shuffle

if TYPE_CHECKING:
    from slimming.graph.walk import Walk

# Each output entry depends on one input entry, so channels pass through untouched.
POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign),
    *(nn.LogSigmoid, nn.Threshold, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.RReLU),
    *(nn.Identity, nn.Dropout, nn.AlphaDropout),
)
# Each channel is treated by itself; the other dimensions may shrink or grow.
PER_CHANNEL = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Upsample),
    *(_ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd, _CircularPadNd),
)
SCORED = (_ConvNd, nn.Linear, _BatchNorm)  # the layers that have channels of their own


def label(walk: Walk, node: fx.Node, inputs: list[Tensor], value: Any) -> Any:
    """The labels of what a layer returns."""
    module = walk.fetch_attr(node.target)
    kind, name = type(module).__name__, node.target
    if own_forward(module):
        reason = f"'{name}' computes something of its own ({kind} has its own forward)"
        return walk.refuse(inputs, value, reason)
    if stands_in(module):
        return _stand_in(walk, name, module, value)
    if len(inputs) == 1 and isinstance(value, Tensor):
        labels = inputs[0]
        if isinstance(module, _ConvNd) and labels.dim() == module.weight.dim():
            return _conv(walk, name, module, labels, value)
        if isinstance(module, nn.Linear):
            return _linear(walk, name, module, labels, value)
        if isinstance(module, _BatchNorm):
            return _norm(walk, node, module, labels, value)
        if isinstance(module, POINTWISE):
            return labels
        if isinstance(module, PER_CHANNEL):
            return per_channel(walk, kind, labels, value)
        if isinstance(module, nn.Flatten):
            return module(labels)
        if isinstance(module, nn.PReLU):
            return _slopes(walk, name, module, labels, value)
        if isinstance(module, (nn.Softmax, nn.LogSoftmax)):
            return along_dim(walk, name, module.dim, labels, value)
        if isinstance(module, nn.GLU):
            return glu(walk, name, module.dim, labels)
        if isinstance(module, nn.PixelShuffle):
            return shuffle(walk, "pixel_shuffle", module.upscale_factor, labels, value)
        if isinstance(module, nn.PixelUnshuffle):
            return shuffle(walk, "pixel_unshuffle", module.downscale_factor, labels, value)
        if isinstance(module, nn.ChannelShuffle):
            return shuffle(walk, "channel_shuffle", module.groups, labels, value)
    return walk.refuse(inputs, value, f"{kind} '{name}' may mix its channels")


def own_forward(module: nn.Module) -> bool:
    """Whether a subclass of a layer with channels computes something else than torch's layer."""
    return (
        isinstance(module, SCORED)
        and not selects(module)
        and any(
            not kind.__module__.startswith("torch.nn.")
            and ({"forward", "_conv_forward"} & vars(kind).keys())
            for kind in type(module).__mro__
        )
    )


def _read(walk: Walk, name: str, dim: int, channels: Tensor | None, labels: Tensor) -> None:
    """The layer's weight reads `channels` along its dimension `dim`."""
    weight = f"{name}.weight"
    own = walk.labels.number(weight, dim, walk.fetch_attr(name).weight.shape[dim])
    walk.reads[weight, dim] = None
    if channels is None:
        reason = f"'{name}' reads channels that are mixed over positions"
        walk.labels.fix(labels, reason)
        walk.labels.fix(own, reason)
        return
    walk.labels.unite(own, channels, f"'{name}' also reads values that are no channels")
    walk.readers.append((channels, name))


def _make(walk: Walk, name: str, module: nn.Module, dim: int) -> Tensor:
    numbers = walk.labels.number(f"{name}.weight", dim, module.weight.shape[dim])
    if module.bias is not None:
        walk.labels.dims[f"{name}.bias", 0] = numbers
    return numbers


def _conv(walk: Walk, name: str, module: _ConvNd, labels: Tensor, value: Tensor) -> Tensor:
    transposed = isinstance(module, _ConvTransposeNd)
    _count_uses(walk, name, labels if transposed else value, 1)
    if module.groups > 1:
        return _grouped(walk, name, module, labels, value)
    _read(walk, name, 0 if transposed else 1, along(labels, 1), labels)
    return spread(_make(walk, name, module, 1 if transposed else 0), 1, value.shape)


def _grouped(walk: Walk, name: str, module: _ConvNd, labels: Tensor, value: Tensor) -> Tensor:
    """A group of a grouped convolution goes as a whole: what it reads and what it writes."""
    channels = along(labels, 1)
    if isinstance(module, _ConvTransposeNd):
        reason = f"'{name}' is a transposed convolution with groups, which are left alone"
        return walk.refuse([labels], value, reason)
    if channels is None:
        reason = f"'{name}' reads channels that are mixed over positions"
        return walk.refuse([labels], value, reason)
    made = _make(walk, name, module, 0)
    if (channels == NONE).any():
        walk.labels.fix(torch.cat([channels, made]), f"'{name}' reads values of a fixed size")
    else:
        blocks = torch.cat([channels.view(module.groups, -1), made.view(module.groups, -1)], 1)
        walk.labels.unite(blocks[:, :1].expand_as(blocks), blocks)
    return spread(made, 1, value.shape)


def _linear(walk: Walk, name: str, module: nn.Linear, labels: Tensor, value: Tensor) -> Tensor:
    _count_uses(walk, name, value, -1)
    _read(walk, name, 1, along(labels, -1), labels)
    return spread(_make(walk, name, module, 0), -1, value.shape)


def _norm(walk: Walk, node: fx.Node, module: _BatchNorm, labels: Tensor, value: Tensor) -> Tensor:
    name, channels = node.target, along(labels, 1)
    if channels is None:
        walk.labels.fix(labels, f"BatchNorm '{name}' reads channels mixed over positions")
        channels = torch.full((labels.shape[1],), NONE)
    numbers = walk.labels.number(name, 0, module.num_features)
    for tensor in ("weight", "bias", "running_mean", "running_var", "index"):
        if getattr(module, tensor, None) is not None:  # `index`: it selects since an earlier cut
            walk.labels.dims[f"{name}.{tensor}", 0] = numbers
    walk.norm_inputs.setdefault(name, []).append(channels)
    walk.readers.append((channels, name))
    (source,) = node.all_input_nodes
    alone = len(source.users) == 1 and _called_once(source) and _called_once(node)
    if alone and not selects(module):
        walk.folds[source.target] = name
    return spread(numbers, 1, value.shape)


def _stand_in(walk: Walk, name: str, module: nn.Module, value: Tensor) -> Tensor:
    """What is left of a removed branch: a constant whose entries go with the stream's channels."""
    if not isinstance(module, Constant):
        return torch.full(value.shape, NONE)
    numbers = walk.labels.number(f"{name}.constant", 0, len(module.constant))
    return spread(numbers, -1 if module.linear else 1, value.shape)


def _slopes(walk: Walk, name: str, module: nn.PReLU, labels: Tensor, value: Tensor) -> Tensor:
    """PReLU has one slope for all channels, or one for each."""
    channels = along(labels, 1)
    if len(module.weight) > 1:
        if channels is None:
            return walk.refuse([labels], value, f"'{name}' reads channels mixed over positions")
        own = walk.labels.number(f"{name}.weight", 0, len(module.weight))
        walk.labels.unite(own, channels, f"'{name}' also reads values that are no channels")
    return labels


def _called_once(node: fx.Node) -> bool:
    calls = [n for n in node.graph.nodes if n.op == "call_module" and n.target == node.target]
    return node.op == "call_module" and len(calls) == 1


def _count_uses(walk: Walk, name: str, value: Tensor, channel_dim: int) -> None:
    weight, positions = f"{name}.weight", value.numel() // value.shape[channel_dim]
    walk.uses[weight] = walk.uses.get(weight, 0) + positions // walk.batch
