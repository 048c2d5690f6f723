"""Importance Estimation for Neural Network Pruning (Molchanov et al. 2019): a Taylor expansion."""

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimming.graph import ChannelGraph
from slimming.graph.twin import stored
from slimming.methods.base import Batch, Method


class Taylor(Method):
    """Ordinary training; a channel is worth the square of what its removal changes of the loss, to
    first order: (gamma dL/dgamma + beta dL/dbeta)^2, which is the gate behind the BatchNorm of the
    paper (section 3.2, equation 8), averaged over batches.

    Of channels that several BatchNorms write, the terms are added before the square: they go
    together. The BatchNorms use their running statistics. L is the mean over a batch, and part of
    a gradient is noise that grows as batches shrink: compare scores of equal batches only (here
    of 256 images, from prune.py). Not for BatchNorms in functional form, whose beta isn't known.
    """

    def scores(
        self, model: nn.Module, graph: ChannelGraph, batches: Iterable[Batch] = ()
    ) -> dict[str, Tensor]:
        """{gate: mean over `batches` of the squared first-order change of the cross-entropy}.

        Raises:
            ValueError: there are no batches, or a BatchNorm that is no module.
        """
        model = copy.deepcopy(model).eval().requires_grad_(True)
        pairs = {gate: _affine(model, graph, gate) for gate in graph.gates}
        asked = [tensor for pair in pairs.values() for tensor in pair]
        total, count = torch.zeros(graph.num_channels, dtype=torch.float64), 0
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            gradients = iter(torch.autograd.grad(loss, asked, allow_unused=True))
            change = torch.zeros_like(total)
            for gate, pair in pairs.items():
                for value, gradient in zip(pair, gradients):
                    if gradient is not None:
                        change.index_add_(0, graph.gates[gate], _product(value, gradient))
            total += change.square()
            count += 1
        if not count:
            raise ValueError("taylor scores by the loss: it needs batches of images and labels")
        return {gate: total[channels] / count for gate, channels in graph.gates.items()}


def _affine(model: nn.Module, graph: ChannelGraph, gate: str) -> list[Tensor]:
    """Gamma, and beta where there is one."""
    named = dict(model.named_modules())
    if gate not in named or not hasattr(named[gate], "bias"):
        raise ValueError(f"taylor can't score '{gate}': which beta belongs to it isn't known")
    beta = named[gate].bias
    return [stored(model)[graph.gammas[gate]], *([] if beta is None else [beta])]


def _product(value: Tensor, gradient: Tensor) -> Tensor:
    return (value.detach() * gradient).double().cpu()
