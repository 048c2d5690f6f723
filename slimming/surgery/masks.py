"""Weights at zero, one by one or in blocks, where nothing is removed: {parameter: bool tensor}."""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Block = Literal["weight", "vector", "kernel", "filter"]
Masks = dict[str, Tensor]


def masks(
    model: nn.Module,
    share: float,
    block: Block = "weight",
    scores: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Which weights of each convolution and linear layer stay, when `share` of its blocks go: those
    of the smallest sum of scores. Exactly floor(share x blocks) go, in decimal arithmetic; of equal
    ones the first.

    Args:
        block: what goes together: a weight; a vector, the last dimension of a kernel; a kernel, all
            weights from one channel to another; a filter, all weights that make one channel. In
            a linear layer vector and kernel are single weights, a filter is a row.
        scores: {parameter: tensor of its shape}, higher stays; None: |weight|, by magnitude.

    Returns:
        {parameter: bool tensor of its shape, true where the weight stays}

    Raises:
        ValueError: share isn't one, an unknown block, no layer, or scores that don't fit.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is what goes of each layer, 0 <= share < 1; got {share}")
    if block not in get_args(Block):
        raise ValueError(f"block is one of {', '.join(get_args(Block))}; got {block!r}")
    layers = dict(_layers(model))
    if not layers:
        raise ValueError("the network has no convolution or linear layer with a weight of its own")
    found = {}
    for name, layer in layers.items():
        given = layer.weight.abs() if scores is None else scores.get(name)
        if given is None or given.shape != layer.weight.shape or not given.isfinite().all():
            raise ValueError(f"'{name}' needs finite scores of shape {tuple(layer.weight.shape)}")
        found[name] = _stay(layer, given.detach(), share, block)
    return found


def zeros(model: nn.Module) -> Masks:
    """The masks of a network that has them already: of its layers that hold exact zeros."""
    weights = {name: layer.weight.detach() for name, layer in _layers(model)}
    return {name: weight != 0 for name, weight in weights.items() if not weight.all()}


@torch.no_grad()
def apply(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Set the masked weights to zero, in place.

    Raises:
        ValueError: the masks are another network's; nothing has changed then.
    """
    named = dict(model.named_parameters())
    for name, mask in kept.items():
        if name not in named or named[name].shape != mask.shape:
            raise ValueError(f"the masks are another network's: '{name}' differs")
    for name, mask in kept.items():
        named[name].masked_fill_(~mask.to(named[name].device), 0.0)  # 0 * nan would be nan


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(parameter, layer); a weight that layers share comes once, and one that is computed never."""
    named = {parameter: name for name, parameter in model.named_parameters()}
    for layer in model.modules():
        if isinstance(layer, (_ConvNd, nn.Linear)) and (name := named.pop(layer.weight, None)):
            yield name, layer


def _stay(layer: nn.Module, scores: Tensor, share: float, block: Block) -> Tensor:
    groups = layer.groups if isinstance(layer, _ConvTransposeNd) else 1
    # (groups, filters, inputs, ...); a transposed convolution has filters and inputs swapped.
    whole = scores.double().unflatten(0, (groups, -1))
    other = 1 if isinstance(layer, _ConvTransposeNd) else 2
    inside = tuple(range(3, whole.dim()))
    together = {
        "weight": (),
        "vector": inside[-1:],
        "kernel": inside,
        "filter": (other, *inside),
    }[block]
    sums = whole.sum(together, keepdim=True) if together else whole
    goes = sums.flatten().argsort(stable=True)[: int(Decimal(str(share)) * sums.numel())]
    stays = torch.ones(sums.numel(), dtype=torch.bool, device=sums.device)
    stays[goes] = False
    return stays.view(sums.shape).expand_as(whole).flatten(0, 1).contiguous()
