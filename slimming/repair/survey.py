"""How many images run together, and at which output positions a layer is looked at."""

from collections.abc import Iterable
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from slimming.graph.twin import Example
from slimming.repair.consumers import channel_dim

ROWS = 2**14  # outputs, at most, that a layer is fitted on
BLOCK = 2**12  # of them at a time
HELD = 2**30  # bytes of original outputs
LIVE = 2**31  # bytes of feature maps of the images that run together


class Survey:
    """One batch through the original network: what is called, how often, how large it all is."""

    def __init__(self, source: nn.Module, consumers: Iterable[str], batches: list[Example]):
        """
        Raises:
            ValueError: no batches.
        """
        if not batches:
            raise ValueError("compensation needs at least one batch of training images")
        self.calls: dict[str, int] = {}  # consumer -> calls, in the order of execution
        self._positions: dict[str, int] = {}  # consumer -> rows in the first batch
        self._largest = 1  # bytes of the largest feature map
        modules = {name: source.get_submodule(name) for name in consumers}
        hooks = [m.register_forward_hook(partial(self._call, n)) for n, m in modules.items()]
        hooks += [module.register_forward_hook(self._size) for module in source.modules()]
        source(*batches[0].args, **batches[0].kwargs)
        for hook in hooks:
            hook.remove()
        first, total = batches[0].batch, sum(example.batch for example in batches)
        row = sum(4 * len(modules[name].weight) * calls for name, calls in self.calls.items())
        wanted = min(ROWS, HELD // max(row, 1))
        self._share = {n: wanted * first / (p * total) for n, p in self._positions.items()}
        # A few maps live at the same time.
        self.chunks = _chunks(batches, max(1, LIVE * first // (4 * self._largest)))

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


def _chunks(batches: list[Example], size: int) -> list[Example]:
    """The same images in batches of `size`; as they come, where they can't be put together."""
    if len({_shapes(example) for example in batches}) > 1:
        return batches
    tensors = [[x for x in example.tensors if _has_images(x, example)] for example in batches]
    whole = [torch.cat(parts).split(size) for parts in zip(*tensors)]

    def chunk(parts: tuple[Tensor, ...]) -> Example:
        left = iter(parts)
        return batches[0].map(lambda x: next(left) if _has_images(x, batches[0]) else x)

    return [chunk(parts) for parts in zip(*whole)]


def _has_images(x: Any, example: Example) -> bool:
    return isinstance(x, Tensor) and x.dim() > 0 and len(x) == example.batch


def _shapes(example: Example) -> str:
    """Equal for batches that differ in their number of images only."""
    return str(example.map(lambda x: (x.shape[1:], x.dtype) if _has_images(x, example) else "..."))
