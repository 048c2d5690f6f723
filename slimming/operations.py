"""What functions and tensor methods do with channel numbers.

Views and concatenations are run on the numbers themselves, element-wise operations unite them. Any
other operation may mix channels, so what it reads stays at full width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from slimming.labels import NONE, along, spread, varying_dims

if TYPE_CHECKING:
    from slimming.walk import Walk

POINTWISE = {
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "hardswish"),
    *("sigmoid", "tanh", "hardtanh", "hardsigmoid", "softplus", "dropout", "contiguous", "clone"),
    *("float", "to", "neg", "abs", "sqrt", "exp", "square", "clamp", "detach", "stochastic_depth"),
}
BINARY = {"add", "iadd", "add_", "sub", "isub", "sub_", "mul", "imul", "mul_"}
BINARY |= {"truediv", "itruediv", "div", "div_", "maximum", "minimum", "pow"}
JOINING = {"add", "iadd", "add_", "sub", "isub", "sub_", "maximum", "minimum"}  # make one stream
PER_CHANNEL = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"}
PER_CHANNEL |= {"max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "interpolate", "dropout2d"}
REDUCTIONS = {"mean", "sum", "amax", "amin"}
VIEWS = {"view", "reshape"}
MOVES = {"flatten", "permute", "transpose", "squeeze", "unsqueeze", "cat", "concat", "stack"}
SPLITS = {"chunk", "split"}


def label(walk: Walk, node: fx.Node, inputs: list[Tensor], value: Any) -> Any:
    """The labels of what a function or tensor method returns."""
    name = getattr(node.target, "__name__", str(node.target))
    one, tensor = len(inputs) == 1, isinstance(value, Tensor)
    if name == "getitem" and not isinstance(walk.env[node.args[0]], Tensor):
        return walk.of[node.args[0]][node.args[1]]  # one of several outputs
    if tensor and name in VIEWS:
        return _view(walk, node, inputs, value)
    if name in SPLITS:
        return _split(walk, node, name, inputs, value)
    if walk.follows_channels(node):
        return walk.refuse(inputs, value, f"'{node.name}' computes with the number of channels")
    if tensor and name in MOVES:
        return _move(walk, node, inputs, value)
    if tensor and name in BINARY:
        return _binary(walk, node, name, inputs, value)
    if tensor and one and name in POINTWISE:
        return inputs[0]
    if tensor and one and name in PER_CHANNEL:
        return per_channel(walk, name, inputs[0], value)
    if tensor and one and name in REDUCTIONS:
        return _reduce(walk, node, name, inputs, value)
    return walk.refuse(inputs, value, f"the operation '{name}' may mix its channels")


def per_channel(walk: Walk, name: str, labels: Tensor, value: Tensor) -> Tensor:
    """Pooling, resizing, padding: each channel by itself; `name` tells over how many dimensions."""
    channels = along(labels, 1)
    spatial = int(name[-2]) if name[-2].isdigit() else labels.dim() - 2
    if channels is None or labels.dim() != spatial + 2:
        return walk.refuse([labels], value, f"'{name}' runs over a dimension of channels")
    return spread(channels, 1, value.shape)


def _binary(walk: Walk, node: fx.Node, name: str, inputs: list[Tensor], value: Tensor) -> Tensor:
    aligned = [
        labels.reshape([1] * (value.dim() - labels.dim()) + list(labels.shape)) for labels in inputs
    ]
    kept: list[Tensor] = []
    for i, labels in enumerate(aligned):
        channel_dims = {d for j, o in enumerate(aligned) if j != i for d in varying_dims(o)}
        if any(labels.shape[d] == 1 and value.shape[d] > 1 for d in channel_dims):
            walk.labels.fix(labels, f"'{name}' stretches it over other channels")
        else:
            kept.append(labels.expand(value.shape))
    for labels in kept[1:]:
        reason = f"'{name}' combines it with a tensor of a fixed size"
        walk.labels.unite(kept[0], labels, reason)
        if walk.coupled == "keep" and name in JOINING and not torch.equal(kept[0], labels):
            for stream in (kept[0], labels):
                walk.labels.fix(stream, f"'{node.name}' joins it to others, and coupled=keep")
    if not kept:
        return torch.full(value.shape, NONE)
    return torch.stack(kept).amax(0) if len(kept) > 1 else kept[0]


def _reduce(walk: Walk, node: fx.Node, name: str, inputs: list[Tensor], value: Tensor) -> Tensor:
    """Run on the smallest and the largest number: where they differ, channels are mixed."""
    (labels,) = inputs
    args, kwargs = walk.arguments(node)
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    keepdim = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
    mixes = f"'{name}' mixes its channels"
    if dims is None:
        return walk.refuse(inputs, value, mixes)
    low, high = labels.amin(dims, keepdim), labels.amax(dims, keepdim)
    return low if torch.equal(low, high) else walk.refuse(inputs, value, mixes)


def _move(walk: Walk, node: fx.Node, inputs: list[Tensor], value: Tensor) -> Tensor:
    """Entries change their place: do the same to their numbers."""
    args, kwargs = walk.arguments(node)
    if node.target in ("squeeze", torch.squeeze):
        (labels,) = inputs
        dims = _sizes(args, kwargs) or range(labels.dim())
        if {dim % labels.dim() for dim in dims} & set(varying_dims(labels)):
            reason = f"'{node.name}' would remove the dimension of channels if one were left"
            return walk.refuse(inputs, value, reason)
    return _run(walk, node, args, kwargs)


def _view(walk: Walk, node: fx.Node, inputs: list[Tensor], value: Tensor) -> Tensor:
    """A view keeps channels along one dimension, whose size has to follow their number.

    Where it splits them over further dimensions of a fixed size (groups), equal positions of the
    groups are cut together.
    """
    sizes, doubled = _sizes(*walk.arguments(node)), _sizes(*walk.doubled_arguments(node))
    if not len(sizes) == len(doubled) == value.dim():
        return walk.refuse(inputs, value, f"'{node.name}' reshapes it in a way not known")
    labels = inputs[0].reshape(value.shape)
    varying = varying_dims(labels)
    if not varying:  # a single channel, or all of them tied together
        return labels
    follow = [d for d in varying if sizes[d] == -1 or doubled[d] == 2 * sizes[d]]
    groups = [d for d in varying if sizes[d] != -1 and doubled[d] == sizes[d]]
    if not follow:
        reason = f"its size {value.shape[varying[0]]} is written as a number in '{node.name}'"
        return walk.refuse(inputs, value, reason)
    others = [d for d in range(value.dim()) if d not in varying]
    if (
        len(follow) > 1
        or len(follow + groups) < len(varying)
        or any(doubled[d] != sizes[d] for d in others)
    ):
        return walk.refuse(inputs, value, f"'{node.name}' spreads its channels over dimensions")
    for dim in groups:
        first = labels.narrow(dim, 0, 1).expand_as(labels)
        walk.labels.unite(first, labels)
        labels = first
    return labels


def _sizes(args: tuple, kwargs: dict) -> list[Any]:
    """The sizes given to view or reshape, one by one or as a tuple."""
    sizes = [*args[1:], *kwargs.values()]
    return list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes


def _split(walk: Walk, node: fx.Node, name: str, inputs: list[Tensor], value: Any) -> Any:
    """Equal parts of the channels, of which equal positions are cut together."""
    args, kwargs = walk.arguments(node)
    doubled, _ = walk.doubled_arguments(node)
    pieces = _run(walk, node, args, kwargs)
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    if dim % inputs[0].dim() not in varying_dims(inputs[0]):
        return pieces
    if name == "split" and (len(args) < 2 or doubled[1] == args[1]):
        return walk.refuse(inputs, value, f"a size is written as a number in '{node.name}'")
    if any(piece.shape != pieces[0].shape for piece in pieces):
        return walk.refuse(inputs, value, f"'{node.name}' splits its channels unequally")
    for piece in pieces[1:]:
        walk.labels.unite(pieces[0], piece)
    return pieces


def _run(walk: Walk, node: fx.Node, args: tuple, kwargs: dict) -> Any:
    """The node's own function, on other arguments."""
    return getattr(walk, node.op)(node.target, args, kwargs)
