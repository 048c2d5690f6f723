"""What functions and tensor methods do with channel numbers.

Element-wise operations unite them, what moves entries is run on them (`views.py`). Any other
operation may mix channels, so what it reads stays at full width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from slimming.graph import views
from slimming.graph.labels import NONE, along, spread, varying_dims

if TYPE_CHECKING:
    from slimming.graph.walk import Walk

POINTWISE = {
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("sigmoid", "tanh", "hardtanh", "hardsigmoid", "hardswish", "softplus", "softsign", "dropout"),
    *("neg", "abs", "sqrt", "rsqrt", "exp", "log", "log1p", "square", "erf", "sin", "cos"),
    *("clamp", "clamp_", "clip", "sigmoid_", "tanh_", "logsigmoid", "contiguous", "clone"),
    *("float", "double", "half", "bfloat16", "to", "detach", "stochastic_depth"),
}
BINARY = {"add", "iadd", "add_", "sub", "isub", "sub_", "mul", "imul", "mul_", "where"}
BINARY |= {"truediv", "itruediv", "div", "div_", "maximum", "minimum", "max", "min", "pow"}
BINARY |= {"gt", "ge", "lt", "le", "masked_fill", "expand_as"}
JOINING = {"add", "iadd", "add_", "sub", "isub", "sub_"}  # make one stream
JOINING |= {"maximum", "minimum", "max", "min", "where"}
PER_CHANNEL = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"}
PER_CHANNEL |= {"max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d"}
PER_CHANNEL |= {"max_pool3d", "avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d"}
PER_CHANNEL |= {"interpolate", "dropout1d", "dropout2d", "dropout3d"}
ALONG = {"softmax", "log_softmax", "cumsum"}  # mix the entries of one dimension
REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "prod", "std", "var", "logsumexp"}
VIEWS = {"view", "reshape", "expand"}
MOVES = {"flatten", "permute", "transpose", "squeeze", "unsqueeze", "cat", "concat", "stack"}
MOVES |= {"movedim", "moveaxis", "swapaxes", "swapdims", "repeat", "tile", "flip"}
SPLITS = {"chunk", "split", "unbind"}
SHUFFLES = {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle"}


def label(walk: Walk, node: fx.Node, inputs: list[Tensor], value: Any) -> Any:
    """The labels of what a function or tensor method returns."""
    name = getattr(node.target, "__name__", str(node.target))
    one, tensor = len(inputs) == 1, isinstance(value, Tensor)
    if name in ("getitem", "getattr") and not isinstance(walk.env[node.args[0]], Tensor):
        return node.target(walk.of[node.args[0]], node.args[1])  # one of several outputs
    if tensor and name in VIEWS:
        return views.view(walk, node, name, inputs, value)
    if name in SPLITS:
        return views.split(walk, node, name, inputs, value)
    if tensor and one and name == "getitem":
        return views.index(walk, node, inputs, value)
    if walk.follows_channels(node):
        return walk.refuse(inputs, value, f"'{node.name}' computes with the number of channels")
    if tensor and name in MOVES:
        return views.move(walk, node, inputs, value)
    if one and name in REDUCTIONS:
        return _reduce(walk, node, name, inputs, value)
    if tensor and name in BINARY:
        return _binary(walk, node, name, inputs, value)
    if tensor and one and name in POINTWISE:
        return inputs[0]
    if tensor and one and name in PER_CHANNEL:
        return per_channel(walk, name, inputs[0], value)
    if tensor and one:
        option = _option(walk, node)
        if name in ALONG:
            return along_dim(walk, name, option, inputs[0], value)
        if name in SHUFFLES:
            return views.shuffle(walk, name, option, inputs[0], value)
        if name == "glu":
            return glu(walk, name, -1 if option is None else option, inputs[0])
        if name == "pad":
            return views.pad(walk, node, option, inputs, value)
    return walk.refuse(inputs, value, f"the operation '{name}' may mix its channels")


def _option(walk: Walk, node: fx.Node) -> Any:
    """The operation's first argument after the tensor, by place or by name."""
    args, kwargs = walk.arguments(node)
    names = ("dim", "axis", "pad", "groups", "upscale_factor", "downscale_factor")
    return args[1] if len(args) > 1 else next((kwargs[k] for k in names if k in kwargs), None)


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


def _reduce(walk: Walk, node: fx.Node, name: str, inputs: list[Tensor], value: Any) -> Any:
    """Run on the smallest and the largest number: where they differ, channels are mixed."""
    (labels,), dims = inputs, _option(walk, node)
    mixes = f"'{name}' mixes its channels"
    if dims is None or isinstance(dims, bool):  # of everything
        return walk.refuse(inputs, value, mixes)
    keepdim = tree_leaves(value)[0].dim() == labels.dim()
    low, high = labels.amin(dims, keepdim), labels.amax(dims, keepdim)
    if not torch.equal(low, high):
        return walk.refuse(inputs, value, mixes)
    return tree_map(lambda _: low, value)  # `max` also tells where


def along_dim(walk: Walk, name: str, dim: Any, labels: Tensor, value: Tensor) -> Tensor:
    """An operation along one dimension, or None if it isn't said which."""
    if dim is None or dim % labels.dim() in varying_dims(labels):
        return walk.refuse([labels], value, f"'{name}' mixes its channels")
    return labels


def glu(walk: Walk, name: str, dim: int, labels: Tensor) -> Tensor:
    """One half gates the other."""
    first, second = labels.chunk(2, dim)
    walk.labels.unite(first, second, f"'{name}' gates it with values of a fixed size")
    return first
