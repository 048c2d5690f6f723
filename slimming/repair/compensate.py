"""What a cut channel still contributed, handed on to the layers that read it.

A channel whose gamma is 0 isn't silent: behind the activation it is act(beta), a constant. Peers
throw it away and fall from 93 % to 10 %. Here each consumer's mean input from the cut channels is
folded into the BatchNorm behind it, or into its bias; or its weights are estimated anew.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from slimming.graph import ChannelGraph
from slimming.graph.slices import Keep, alive
from slimming.graph.twin import Example, stored
from slimming.repair.batches import NotFinite, examples, explained
from slimming.repair.consumers import Cut, add_constant, channel_dim, cut_consumers, the_input
from slimming.repair.refit import GROWTH, Refitted, refit
from slimming.surgery.cut import check_graph

Compensation = Literal["none", "bias", "expected", "refit"]
COMPENSATIONS: tuple[str, ...] = get_args(Compensation)


@dataclass(frozen=True)
class Folded:
    """What was handed on to one consumer."""

    layer: str
    shift: float  # root mean square, over its outputs, of the constant that was folded
    left: float  # root mean square of what a constant can't express: borders, and (for `expected`)
    # everything that varies from image to image
    shortfall = None  # as `Refitted` has one


def check_compensation(mode: str) -> None:
    """
    Raises:
        ValueError: there is no such compensation.
    """
    if mode not in COMPENSATIONS:
        raise ValueError(f"compensate is one of {', '.join(COMPENSATIONS)}; got {mode!r}")


@torch.no_grad()
def compensate(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Keep,
    thin: nn.Module,
    images: Iterable[Any],
    mode: Compensation,
    growth: float = GROWTH,
) -> list[Folded] | list[Refitted]:
    """Let `thin` make up for the cut channels, in place.

    Args:
        model, graph, keep, thin: as given to and returned by `slim`.
        images: batches of training images without augmentation, or whatever else the network is
            called with: see `slimming.repair.batches.examples`. Labels may come along.
        mode: `none`; or fold the cut channels' mean contribution: what they give when gamma is 0,
            act(beta) (`bias`), or on these images, E[act(gamma z + beta)] (`expected`); or estimate
            the weights of their consumers anew (`refit`, see there).
        growth: of `refit`: how much larger than now their weights may become.

    Zero padding makes a constant inexact at the borders of a map: `bias` and `expected` fold the
    mean over all positions and report the rest in `Folded.left`. `refit` sees the borders.

    Raises:
        ValueError: unknown mode, no images, or NaN or infinity on them. Whatever is raised, `thin`
            is as before.
    """
    check_compensation(mode)
    if mode == "none":
        return []
    check_graph(model, graph, keep)
    if mode == "refit":
        return refit(model, graph, keep, thin, images, growth=growth)
    stays = alive(graph, keep)
    source = copy.deepcopy(model).eval()
    if mode == "bias":
        tensors = stored(source)
        for gate, ids in graph.gates.items():
            tensors[graph.gammas[gate]][~stays[ids]] = 0.0
    cuts, constants, folded = cut_consumers(graph, keep, thin), {}, []
    for layer, (mean, square) in _measure(model, source, cuts, examples(model, images)).items():
        if (kept := cuts[layer].outputs) is not None:
            mean, square = mean[kept], square[kept]
        constants[layer] = mean
        left = (square - mean.square()).clamp(min=0).mean().sqrt()
        folded.append(Folded(layer, mean.square().mean().sqrt().item(), left.item()))
    trial = copy.deepcopy(thin)
    for network in (trial, thin):  # what fails, fails on the copy
        for layer, constant in constants.items():
            add_constant(network, graph, layer, constant)
    return folded


def _measure(
    model: nn.Module, source: nn.Module, cuts: dict[str, Cut], batches: Iterable[Example]
) -> dict[str, tuple[Tensor, Tensor]]:
    """{consumer: (mean, mean square) of what the cut channels give it, over images and positions}.

    `source` is the network as it is measured, a copy of `model`. Both are (outputs,), in float64.
    """
    sums: dict[str, list[Any]] = {}

    def listen(name: str, only_cut: nn.Module):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            given = (
                only_cut(the_input(args, kwargs))
                .double()
                .movedim(channel_dim(module), 0)
                .flatten(1)
            )
            if not given.isfinite().all():
                raise NotFinite(name)
            total = sums.setdefault(name, [0.0, 0.0, 0])
            total[0] = total[0] + given.sum(1)
            total[1] = total[1] + given.square().sum(1)
            total[2] += given.shape[1]

        return hook

    for name, cut in cuts.items():
        layer = source.get_submodule(name)
        only_cut = copy.deepcopy(layer)
        only_cut.weight.index_fill_(cut.dim, cut.inputs.to(layer.weight.device), 0.0)
        only_cut.bias = None
        layer.register_forward_pre_hook(listen(name, only_cut), with_kwargs=True)
    number = 0
    for number, example in enumerate(batches, 1):
        with explained(model, example, number, "nothing was folded"):
            source(*example.args, **example.kwargs)
    if not number:
        raise ValueError("compensation needs at least one batch of training images")
    return {name: (total / n, square / n) for name, (total, square, n) in sums.items()}
