"""Operations that give entries another place: views, parts, padding, shuffles.

They are run on the channel numbers themselves. Where channels then share their fate, as the equal
halves of a split do, their numbers are united.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from slimming.graph.labels import NONE, along, spread, varying_dims

if TYPE_CHECKING:
    from slimming.graph.walk import Walk


def move(walk: Walk, node: fx.Node, inputs: list[Tensor], value: Tensor) -> Tensor:
    """Entries change their place: do the same to their numbers."""
    args, kwargs = walk.arguments(node)
    if node.target in ("squeeze", torch.squeeze):
        (labels,) = inputs
        dims = _sizes(args, kwargs) or range(labels.dim())
        if {dim % labels.dim() for dim in dims} & set(varying_dims(labels)):
            reason = f"'{node.name}' would remove the dimension of channels if one were left"
            return walk.refuse(inputs, value, reason)
    return _run(walk, node, args, kwargs)


def view(walk: Walk, node: fx.Node, name: str, inputs: list[Tensor], value: Tensor) -> Tensor:
    """A view keeps channels along one dimension, whose size has to follow their number.

    Where it splits them over further dimensions of a fixed size (groups), equal positions of the
    groups are cut together.
    """
    sizes, doubled = _sizes(*walk.arguments(node)), _sizes(*walk.doubled_arguments(node))
    if not len(sizes) == len(doubled) == value.dim():
        return walk.refuse(inputs, value, f"'{node.name}' reshapes it in a way not known")
    labels = getattr(inputs[0], "expand" if name == "expand" else "reshape")(value.shape)
    varying = varying_dims(labels)
    if not varying and (name != "expand" or doubled == sizes):
        return labels  # a single channel, or all of them tied together
    if not varying:
        return walk.refuse(inputs, value, f"'{node.name}' stretches it over other channels")
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
        walk.labels.unite(first, labels, f"'{node.name}' groups it with values of a fixed size")
        labels = first
    return labels


def _sizes(args: tuple, kwargs: dict) -> list[Any]:
    """The sizes given to view or reshape, one by one or as a tuple."""
    sizes = [*args[1:], *kwargs.values()]
    return list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes


def split(walk: Walk, node: fx.Node, name: str, inputs: list[Tensor], value: Any) -> Any:
    """Equal parts of the channels, of which equal positions are cut together."""
    args, kwargs = walk.arguments(node)
    doubled, _ = walk.doubled_arguments(node)
    pieces = _run(walk, node, args, kwargs)
    place = 1 if name == "unbind" else 2
    dim = kwargs.get("dim", args[place] if len(args) > place else 0)
    if dim % inputs[0].dim() not in varying_dims(inputs[0]):
        return pieces
    if name == "unbind":
        return walk.refuse(inputs, value, f"'{node.name}' takes its channels apart")
    if name == "split" and (len(args) < 2 or doubled[1] == args[1]):
        return walk.refuse(inputs, value, f"a size is written as a number in '{node.name}'")
    if any(piece.shape != pieces[0].shape for piece in pieces):
        return walk.refuse(inputs, value, f"'{node.name}' splits its channels unequally")
    for piece in pieces[1:]:
        walk.labels.unite(pieces[0], piece, f"'{node.name}' splits it with values of a fixed size")
    return pieces


def index(walk: Walk, node: fx.Node, inputs: list[Tensor], value: Tensor) -> Tensor:
    """Positions are picked freely, channels only in parts that follow their number.

    The largest parts that all cuts respect are cut at equal positions, so that half stays half.
    """
    (labels,) = inputs
    picked = _per_dim(walk.arguments(node)[0][1], labels.dim())
    grown = _per_dim(walk.doubled_arguments(node)[0][1], labels.dim())
    varying = varying_dims(labels)
    for dim, (part, other) in enumerate(zip(picked, grown)):
        if dim not in varying:
            if part != other:
                reason = f"'{node.name}' picks positions by the number of channels"
                return walk.refuse(inputs, value, reason)
            continue
        if not _follows(part, other, labels.shape[dim]):
            reason = f"'{node.name}' picks channels by numbers written in the code"
            return walk.refuse(inputs, value, reason)
        start, stop, _ = part.indices(labels.shape[dim])
        parts = labels.split(math.gcd(start, stop, labels.shape[dim]), dim)
        for piece in parts[1:]:
            walk.labels.unite(
                parts[0], piece, f"'{node.name}' parts it from values of a fixed size"
            )
    return _run(walk, node, *walk.arguments(node))


def _per_dim(index: Any, dims: int) -> list[Any]:
    """What an index says about each dimension of the tensor: a slice, a number, something else."""
    parts = [part for part in (index if isinstance(index, tuple) else (index,)) if part is not None]
    at = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    rest = parts[at + 1 :]
    return parts[:at] + [slice(None)] * (dims - at - len(rest)) + rest


def _follows(part: Any, doubled: Any, size: int) -> bool:
    """Whether a slice of `size` channels starts and ends twice as far in twice as many."""
    if not isinstance(part, slice) or not isinstance(doubled, slice):
        return False
    if (part.start is None, part.stop is None) != (doubled.start is None, doubled.stop is None):
        return False
    start, stop, step = part.indices(size)
    return step == 1 and start < stop and doubled.indices(2 * size) == (2 * start, 2 * stop, 1)


def pad(walk: Walk, node: fx.Node, widths: Any, inputs: list[Tensor], value: Tensor) -> Tensor:
    """Around positions anything may be put; constants beside channels are of a fixed number."""
    (labels,) = inputs
    padded = {labels.dim() - 1 - i // 2 for i, width in enumerate(widths) if width}
    if padded & set(varying_dims(labels)):
        mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
        if mode != "constant" or min(widths) < 0:
            return walk.refuse(inputs, value, f"'{node.name}' pads its channels")
        return F.pad(labels, widths, value=NONE)
    for dim in padded:
        labels = labels.narrow(dim, 0, 1)
    return labels.expand(value.shape)


def shuffle(walk: Walk, name: str, factor: int, labels: Tensor, value: Tensor) -> Tensor:
    """Channels that become positions of one channel, or change places in turn, go together.

    Args:
        factor: the scale of a pixel shuffle, or the number of groups of a channel shuffle.
    """
    channels, pixels = along(labels, 1), name != "channel_shuffle"
    if channels is None or (pixels and labels.dim() != 4):
        return walk.refuse([labels], value, f"'{name}' runs over a dimension of channels")
    if name == "pixel_unshuffle":
        return spread(channels.repeat_interleave(factor**2), 1, value.shape)
    together = channels.view(-1, factor**2).T if pixels else channels.view(factor, -1)
    reason = f"'{name}' groups it with values of a fixed size"
    walk.labels.unite(together[:1].expand_as(together), together, reason)
    return spread(together[0] if pixels else together.T.reshape(-1), 1, value.shape)


def _run(walk: Walk, node: fx.Node, args: tuple, kwargs: dict) -> Any:
    """The node's own function, on other arguments."""
    return getattr(walk, node.op)(node.target, args, kwargs)
