"""Consumers of cut channels are estimated anew, so that they give what they gave before the cut.

Layer by layer in the order of execution: from what a consumer now reads - the layers before it
are refitted already - its original output is predicted by least squares (as in He et al., Channel
Pruning, ICCV 2017, section 3.2). Closed form; no labels, no gradients.
"""

import copy
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import ceil

import torch
from torch import Tensor, nn

from slimming.graph import ChannelGraph
from slimming.planning.slices import Keep
from slimming.repair.consumers import (
    Cut,
    add_constant,
    as_weight,
    channel_dim,
    cut_consumers,
    inputs_at,
    outputs_at,
    the_input,
)
from slimming.repair.leastsquares import LeastSquares

DAMPING = 1e-2
ROWS = 2**14  # outputs, at most, that a layer is fitted on
BLOCK = 2**12  # of them at a time
HELD = 2**30  # bytes of original outputs
LIVE = 2**31  # bytes of feature maps of the images that run together
ROUNDS = 8  # for a layer that is called several times: a new fit changes what it reads


@dataclass(frozen=True)
class Refitted:
    """What became of one consumer. Errors are shares of its original output's deviation."""

    layer: str
    before: float  # root mean square error on the images, the layers before it refitted already
    after: float
    rows: int  # output positions it was fitted on
    damping: float  # more than asked for where the equations were singular


@torch.no_grad()
def refit(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Keep,
    thin: nn.Module,
    images: Iterable[Tensor],
    damping: float = DAMPING,
) -> list[Refitted]:
    """Estimate anew each layer of `thin` that read a cut channel, in place.

    Args:
        model, graph, keep, thin: as given to and returned by `slim`.
        images: batches (N, ...) of training images, without augmentation.
        damping: how strongly the present weights are held on to: a ridge on the difference, as a
            share of the inputs' mean variance.

    Images whose feature maps don't fit into 2 GiB together run again, up to it, for each layer:
    with fewer images that takes one run in all.

    Layers that read nothing that was cut stay as they are, and so do those that only run in
    training mode (auxiliary heads) and those that share their weight with others.

    Raises:
        ValueError: no images, or NaN or infinity in a layer on them; `thin` is as before.
    """
    source, work = copy.deepcopy(model).eval(), copy.deepcopy(thin).eval()
    consumers = cut_consumers(graph, keep, thin)
    owners = Counter(id(module.weight) for module in thin.modules() if hasattr(module, "weight"))
    consumers = {  # a weight that layers share can't suit them one by one
        name: cut for name, cut in consumers.items() if owners[_weight_id(thin, name)] <= 1
    }
    survey = _Survey(source, consumers, [batch for batch in images if len(batch)])
    originals = _originals(source, consumers, survey)
    fits = _Refitting(graph, work, survey, originals, damping).run()
    for layer, change, shift, _ in fits:
        _install(thin, graph, layer, change, shift)
    return [row for *_, row in fits]


def _weight_id(model: nn.Module, layer: str) -> int:
    return id(getattr(model.get_submodule(layer), "weight", None))


def _install(
    model: nn.Module, graph: ChannelGraph, layer: str, change: Tensor, shift: Tensor
) -> None:
    module = model.get_submodule(layer)
    if len(change):
        module.weight.add_(as_weight(module, change).to(module.weight))
    add_constant(model, graph, layer, shift)


class _Survey:
    """One batch through the original network: what is called, how often, how large it all is."""

    def __init__(self, source: nn.Module, consumers: Iterable[str], batches: list[Tensor]):
        if not batches:
            raise ValueError("compensation needs at least one batch of training images")
        self.calls: dict[str, int] = {}  # consumer -> calls, in the order of execution
        self._positions: dict[str, int] = {}  # consumer -> rows in the first batch
        self._largest = 1  # bytes of the largest feature map
        modules = {name: source.get_submodule(name) for name in consumers}
        hooks = [m.register_forward_hook(partial(self._call, n)) for n, m in modules.items()]
        hooks += [module.register_forward_hook(self._size) for module in source.modules()]
        source(batches[0])
        for hook in hooks:
            hook.remove()
        first, total = len(batches[0]), sum(map(len, batches))
        row = sum(4 * len(modules[name].weight) * calls for name, calls in self.calls.items())
        wanted = min(ROWS, HELD // max(row, 1))
        self._share = {n: wanted * first / (p * total) for n, p in self._positions.items()}
        # A few maps live at the same time.
        self.chunks = torch.cat(batches).split(max(1, LIVE * first // (4 * self._largest)))

    def _call(self, layer: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.calls[layer] = self.calls.get(layer, 0) + 1
        self._positions[layer] = self._positions.get(layer, 0) + _num_rows(module, output)

    def _size(self, module: nn.Module, args: tuple, output) -> None:
        if isinstance(output, Tensor):
            self._largest = max(self._largest, output.numel() * output.element_size())

    def rows(self, layer: str, module: nn.Module, output: Tensor) -> Tensor:
        """Which rows of this output to look at: evenly spread, at random within each interval."""
        total = _num_rows(module, output)
        taken = min(total, ceil(total * self._share[layer]))
        if taken == total:
            return torch.arange(total, device=output.device)
        place = torch.rand(taken, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return ((torch.arange(taken) + place) * (total / taken)).long().to(output.device)


def _num_rows(module: nn.Module, output: Tensor) -> int:
    return output.numel() // output.shape[channel_dim(module)]


def _originals(
    source: nn.Module, consumers: dict[str, Cut], survey: _Survey
) -> dict[str, list[list[Tensor]]]:
    """{consumer: [chunk][call] of (rows, surviving outputs)}: what it gave before the cut."""
    found: dict[str, list[list[Tensor]]] = {name: [] for name in survey.calls}

    def listen(layer: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        rows = outputs_at(module, output, survey.rows(layer, module, output))
        kept = consumers[layer].outputs
        rows = rows if kept is None else rows[:, kept.to(rows.device)]
        _check(layer, rows)
        found[layer][-1].append(rows)

    for layer in survey.calls:
        source.get_submodule(layer).register_forward_hook(partial(listen, layer))
    for chunk in survey.chunks:
        for calls in found.values():
            calls.append([])
        source(chunk)
    return found


def _check(layer: str, rows: Tensor) -> None:
    if not rows.isfinite().all():
        raise ValueError(f"'{layer}' gives NaN or infinity on the images: nothing was refitted")


class _Enough(Exception):
    """The rest of this forward pass isn't needed."""


class _Refitting:
    """The thin network runs, and each consumer it reaches is refitted before it goes on.

    Where the images are too many to run together, all chunks of them run up to that consumer
    first. A consumer that is called several times is fitted on all of its calls.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        work: nn.Module,
        survey: _Survey,
        originals: dict[str, list[list[Tensor]]],
        damping: float,
    ):
        self.graph, self.work, self.survey, self.originals = graph, work, survey, originals
        self.damping = damping
        self.queue = list(survey.calls)
        self.tried: list[tuple[Tensor, Tensor, float]] = []  # change, constant, error
        self.fits: list[tuple[str, Tensor, Tensor, Refitted]] = []
        self._start()

    def _start(self) -> None:
        """The next consumer, or another round of the same one."""
        self.equations, self.seen, self.called = LeastSquares(), set(), 0

    def run(self) -> list[tuple[str, Tensor, Tensor, Refitted]]:
        """[(layer, change of its weights, constant, report)]."""
        for layer in self.queue:
            module = self.work.get_submodule(layer)
            module.register_forward_hook(partial(self._reached, layer), with_kwargs=True)
        while self.queue:
            for chunk, images in enumerate(self.survey.chunks):
                if self.queue and chunk not in self.seen:
                    self.chunk, self.called = chunk, 0
                    with suppress(_Enough):
                        self.work(images)
                        self._check_all_done()
        return self.fits

    def _check_all_done(self) -> None:
        if self.queue:
            raise ValueError(f"the thin network never calls '{self.queue[0]}': cut the model again")

    def _reached(self, layer: str, module: nn.Module, args: tuple, kwargs: dict, output: Tensor):
        if not self.queue or layer != self.queue[0]:
            return None
        self._look(layer, module, the_input(args, kwargs), output)
        self.called += 1
        if self.called < self.survey.calls[layer]:
            return None
        self.seen.add(self.chunk)
        if len(self.seen) < len(self.survey.chunks):
            raise _Enough
        if self.survey.calls[layer] > 1:
            self._round(layer)
            raise _Enough  # its first call still had the old weights
        change, shift, *numbers = self.equations.solve(self.damping)
        _install(self.work, self.graph, layer, change, shift)
        self._finish(layer, change, shift, *numbers)
        return module.forward(*args, **kwargs)

    def _look(self, layer: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
        rows = self.survey.rows(layer, module, output)
        inputs, original = inputs_at(module, x, output), self.originals[layer][self.chunk]
        for some, target in zip(rows.split(BLOCK), original[self.called].split(BLOCK)):
            given = outputs_at(module, output, some)
            _check(layer, given)
            self.equations.add(inputs(some).double(), given.double(), target.double())

    def _round(self, layer: str) -> None:
        """Fit once more as long as that lowers the error which is then measured."""
        change, shift, error, _, damping = self.equations.solve(self.damping)
        if not self.tried:
            self.now = 0 * change, 0 * shift
        self.tried.append((*self.now, error))
        best = min(self.tried, key=lambda fit: fit[2])
        if best is self.tried[-1] and len(self.tried) <= ROUNDS:
            self._move(layer, change, shift)
            self._start()
            return
        self._move(layer, best[0] - self.now[0], best[1] - self.now[1])
        self._finish(layer, *best[:2], self.tried[0][2], best[2], damping)

    def _move(self, layer: str, change: Tensor, shift: Tensor) -> None:
        _install(self.work, self.graph, layer, change, shift)
        self.now = self.now[0] + change, self.now[1] + shift

    def _finish(self, layer: str, change: Tensor, shift: Tensor, *numbers: float) -> None:
        before, after, damping = numbers
        row = Refitted(layer, before, after, self.equations.rows, damping)
        self.fits.append((layer, change, shift, row))
        self.queue.pop(0)
        del self.originals[layer]
        self.tried = []
        self._start()
