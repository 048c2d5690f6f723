"""What a network is called with, from batches as a data loader gives them."""

import copy
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slimming.graph.twin import Example


def examples(model: nn.Module, batches: Iterable[Any]) -> Iterator[Example]:
    """What `model` is called with, batch by batch; batches without an image are left out.

    A batch is what `trace` takes: a tensor (N, ...), a tuple or list of the network's positional
    inputs, or {"args": (...), "kwargs": {...}}. Labels may follow as the last entry of a tuple or
    list, as a DataLoader gives them. They are the entry beyond all that `forward` takes; where it
    takes more than it needs (`forward(x, mask=None)`, `forward(*inputs)`), whole numbers (N,). Who
    means an optional input by those writes {"args": ...}.

    Raises:
        ValueError: `batches` is one batch, or one of them has too few or too many entries.
    """
    if isinstance(batches, (Tensor, Mapping)):
        raise ValueError("images come in batches: give a list of them, such as [images]")
    least, most = _takes(model)
    for batch in batches:
        if isinstance(batch, (tuple, list)):
            batch = _inputs(batch, least, most)
        example = Example.of(batch)
        if example.batch:
            yield example


def _takes(model: nn.Module) -> tuple[int, float]:
    """How many positional inputs `forward` needs, and how many it takes."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    needed = sum(p.default is p.empty for p in named)
    return needed, math.inf if any_number else len(named)


def _inputs(batch: Sequence[Any], least: int, most: float) -> Sequence[Any]:
    spare = len(batch) > max(least, 1)
    inputs = batch[:-1] if len(batch) > most or (spare and _are_labels(batch)) else batch
    if not least <= len(inputs) <= most:
        takes = f"{least}" if least == most else f"{least} to {most}"
        raise ValueError(
            f"a batch has {len(batch)} entries, but forward takes {takes}, and labels may follow"
        )
    return inputs


def _are_labels(batch: Sequence[Any]) -> bool:
    first, last = batch[0], batch[-1]
    if not isinstance(first, Tensor) or not isinstance(last, Tensor) or last.dtype == torch.bool:
        return False
    whole = not last.is_floating_point() and not last.is_complex()
    return whole and last.shape == first.shape[:1]


class NotFinite(Exception):
    """A layer, by name, meets NaN or infinity."""


@contextmanager
def explained(model: nn.Module, example: Example, number: int, consequence: str) -> Iterator[None]:
    """A `NotFinite` raised within becomes a ValueError that says where it comes from.

    Args:
        model: what runs within, without hooks that raise.
        example, number: the batch it runs on, and which one that is, from 1 on.
    """
    try:
        yield
    except NotFinite as layer:
        raise ValueError(
            f"'{layer}' meets NaN or infinity on the images: {consequence}; "
            f"{_cause(copy.deepcopy(model).eval(), example, number)}"
        ) from None


def _cause(model: nn.Module, example: Example, number: int) -> str:
    """Where NaN or infinity comes from, in words. Hooks stay on `model`."""
    for x in example.tensors:
        if x.is_floating_point() and not x.isfinite().all():
            if not x.dim():
                return f"an input of batch {number} is {x.item()}"
            image = x.isfinite().flatten(1).all(1).logical_not().nonzero()[0].item()
            return f"image {image + 1} of batch {number} holds it"
    first: list[str] = []

    def hook(name: str):
        def look(module: nn.Module, args: tuple, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and not first:
                first.extend([] if output.isfinite().all() else [name])

        return look

    for name, module in model.named_modules():
        if not any(module.children()):
            module.register_forward_hook(hook(name))
    model(*example.args, **example.kwargs)
    where = f"'{first[0]}' is the first layer that gives it" if first else "the network makes it"
    return f"the images of batch {number} are finite, {where}"
