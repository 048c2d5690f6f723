"""Consumers of cut channels are estimated anew, so that they give what they gave before the cut.

Layer by layer in the order of execution: from what a consumer now reads - the layers before it
are refitted already - its original output is predicted by least squares (as in He et al., Channel
Pruning, ICCV 2017, section 3.2). Closed form; no labels, no gradients.
"""

import copy
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slimming.graph import ChannelGraph
from slimming.graph.slices import Keep
from slimming.repair.batches import NotFinite, examples, explained
from slimming.repair.consumers import (
    Cut,
    add_constant,
    as_matrix,
    as_weight,
    channel_dim,
    cut_consumers,
    inputs_at,
    outputs_at,
    the_input,
)
from slimming.repair.leastsquares import LeastSquares, times_larger
from slimming.repair.survey import BLOCK, Survey

DAMPING = 1e-2
GROWTH = 2.0  # keeps nearly all of the gain of a network that is used as it is
GROWTH_BEFORE_TUNING = 1.5  # larger weights recover worse from the first large steps
UNEXPLAINED = 0.9  # a layer of which more is left than this has lost what it computed from


@dataclass(frozen=True)
class Refitted:
    """What became of one consumer. Errors are shares of its original output's deviation."""

    layer: str
    before: float  # root mean square error on the images, the layers before it refitted already
    after: float
    rows: int  # output positions it was fitted on
    damping: float  # more than asked for where the equations were singular, or weights too large
    growth: float  # how many times as large as before its weights are

    @property
    def shortfall(self) -> str | None:
        """In words, if what the layer still reads hardly explains what it ought to give."""
        if self.after <= UNEXPLAINED:
            return None
        return (
            f"'{self.layer}' reads too little to give what it gave before the cut: refit leaves "
            f"{self.after:.0%} of its deviation unexplained"
        )


@torch.no_grad()
def refit(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Keep,
    thin: nn.Module,
    images: Iterable[Any],
    damping: float = DAMPING,
    growth: float = math.inf,
) -> list[Refitted]:
    """Estimate anew each layer of `thin` that read a cut channel, in place.

    Args:
        model, graph, keep, thin: as given to and returned by `slim`.
        images: batches of training images without augmentation, or whatever else the network is
            called with: see `slimming.repair.batches.examples`. Labels may come along.
        damping: how strongly the present weights are held on to: a ridge on the difference, as a
            share of the inputs' mean variance. More where they would grow too much.
        growth: how many times as large a layer's weights may become (Frobenius norm), 1 or more.

    Each of the two networks runs once. Images whose feature maps don't fit into 2 GiB together run
    again, up to it, for each layer.

    A layer that is called several times is fitted on what the original network gives it. Layers
    that read nothing that was cut stay as they are, and so do those that only run in training mode
    (auxiliary heads), those that share their weight with others, and those with a forward of
    their own.

    Raises:
        ValueError: no images, NaN or infinity in a layer on them, or growth below 1. Whatever is
            raised, `thin` is as before.
    """
    check_growth(growth)
    source, work = copy.deepcopy(model).eval(), copy.deepcopy(thin).eval()
    consumers = cut_consumers(graph, keep, thin)
    owners = Counter(id(module.weight) for module in thin.modules() if hasattr(module, "weight"))
    consumers = {  # a weight that layers share can't suit them one by one
        name: cut for name, cut in consumers.items() if owners[_weight_id(thin, name)] <= 1
    }
    survey = Survey(source, consumers, list(examples(model, images)))
    fitting = _Refitting(graph, consumers, work, survey, damping, growth)
    fitting.listen(model, source)
    fitting.walk(thin)
    for layer, (change, shift) in fitting.changes.items():
        _install(thin, graph, layer, change, shift)
    return [fitting.rows[layer] for layer in survey.calls]


def check_growth(growth: float) -> None:
    """
    Raises:
        ValueError: weights can't be bounded by this.
    """
    if not growth >= 1:
        raise ValueError(f"growth is a factor of 1 or more; got {growth:g}")


def _weight_id(model: nn.Module, layer: str) -> int:
    return id(getattr(model.get_submodule(layer), "weight", None))


def _install(
    model: nn.Module, graph: ChannelGraph, layer: str, change: Tensor, shift: Tensor
) -> None:
    module = model.get_submodule(layer)
    if len(change):
        module.weight.add_(as_weight(module, change).to(module.weight))
    add_constant(model, graph, layer, shift)


class _Refitting:
    """The original network runs and is listened to; the thin one runs and is refitted on the way.

    Where the images are too many to run together, all chunks of them run up to a consumer first.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        consumers: dict[str, Cut],
        work: nn.Module,
        survey: Survey,
        damping: float,
        growth: float,
    ):
        self.graph, self.consumers, self.work, self.survey = graph, consumers, work, survey
        self.damping, self.growth = damping, growth
        self.equations = {layer: LeastSquares() for layer in survey.calls}
        self.targets: dict[str, list[Tensor]] = {layer: [] for layer in survey.calls}  # by chunk
        self.changes: dict[str, tuple[Tensor, Tensor]] = {}
        self.rows: dict[str, Refitted] = {}

    def listen(self, model: nn.Module, source: nn.Module) -> None:
        """What every consumer gave before the cut; those called several times are fitted on it."""
        for layer in self.survey.calls:
            hook = partial(self._heard, layer)
            source.get_submodule(layer).register_forward_hook(hook, with_kwargs=True)
        for number, chunk in enumerate(self.survey.chunks, 1):
            with explained(model, chunk, number, "nothing was refitted"):
                source(*chunk.args, **chunk.kwargs)
        for layer, calls in self.survey.calls.items():
            if calls > 1:
                self._solve(layer)

    def _heard(self, layer: str, module: nn.Module, args: tuple, kwargs: dict, output: Tensor):
        rows, kept = self.survey.rows(layer, module, output), self.consumers[layer].outputs
        target = outputs_at(module, output, rows)
        target = target if kept is None else target[:, kept.to(target.device)]
        if not target.isfinite().all():
            raise NotFinite(layer)
        if self.survey.calls[layer] == 1:
            self.targets[layer].append(target)
            return
        thin, x = self.work.get_submodule(layer), the_input(args, kwargs)
        kept = self.consumers[layer].inputs.to(x.device)
        x = x.index_select(channel_dim(module), kept)
        self._add(layer, thin, x, thin(x), rows, target)

    def walk(self, thin: nn.Module) -> None:
        """The thin network runs; each consumer it reaches is refitted before it goes on."""
        self.queue = [layer for layer, calls in self.survey.calls.items() if calls == 1]
        self.seen: set[int] = set()  # the chunks that have reached the first of the queue
        for layer in self.queue:
            module = self.work.get_submodule(layer)
            module.register_forward_hook(partial(self._reached, layer), with_kwargs=True)
        while self.queue:
            for number, chunk in enumerate(self.survey.chunks):
                if not self.queue or number in self.seen:
                    continue
                self.chunk = number
                with explained(thin, chunk, number + 1, "nothing was refitted"):
                    self.work(*chunk.args, **chunk.kwargs)
                if self.queue and number not in self.seen:
                    raise ValueError(
                        f"the thin network never calls '{self.queue[0]}': cut the model again"
                    )

    def _reached(self, layer: str, module: nn.Module, args: tuple, kwargs: dict, output: Tensor):
        if not self.queue or layer != self.queue[0] or self.chunk in self.seen:
            return None
        rows = self.survey.rows(layer, module, output)
        x, target = the_input(args, kwargs), self.targets[layer][self.chunk]
        self._add(layer, module, x, output, rows, target)
        self.seen.add(self.chunk)
        if len(self.seen) < len(self.survey.chunks):
            return None
        self._solve(layer)
        self.queue.pop(0)
        self.seen = set()
        return module.forward(*args, **kwargs)

    def _add(self, layer: str, module: nn.Module, x: Tensor, output: Tensor, rows, target) -> None:
        inputs = inputs_at(module, x, output)
        for some, wanted in zip(rows.split(BLOCK), target.split(BLOCK)):
            given = outputs_at(module, output, some)
            if not given.isfinite().all():
                raise NotFinite(layer)
            self.equations[layer].add(inputs(some).double(), given.double(), wanted.double())

    def _solve(self, layer: str) -> None:
        weights = as_matrix(self.work.get_submodule(layer)).double()
        equations = self.equations.pop(layer)
        change, shift, before, after, damping = equations.solve(self.damping, weights, self.growth)
        larger = times_larger(weights, change)
        self.rows[layer] = Refitted(layer, before, after, equations.rows, damping, larger)
        self.changes[layer] = change, shift
        self.targets[layer].clear()
        _install(self.work, self.graph, layer, change, shift)
