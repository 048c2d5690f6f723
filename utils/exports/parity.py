"""Whether a written network computes what its source does."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

BATCHES = (1, 3, 16)  # images at a time
# Allowed differences, relative to the largest output.
ROUNDING = 1e-4  # where operations are put together in another way; or, if that is more,
TIMES = 10  # as many times what float32 costs the source itself
HALF = 1e-2  # for weights as float16, and the most in any case

Function = Callable[[Tensor], Any]


class Check:
    """Compares networks with one source.

    Args:
        exact: nothing is rounded in another way, so that every bit has to be the same.
        half: the weights were rounded to float16.
    """

    def __init__(self, source: nn.Module, input_shape: Sequence[int], exact: bool, half: bool):
        self.source, self.input_shape, self.half = source, input_shape, half
        self.allowed = HALF if half else 0.0 if exact else self._rounding()

    def __call__(self, written: Function, to: Path) -> dict[str, Any]:
        """What was found.

        Raises:
            RuntimeError: too large a difference.
        """
        found = difference(self.source, written, self.input_shape)
        if not found <= self.allowed:
            advice = ""
            if self.half:
                advice = "; try half=false"
            elif to.suffix in (".onnx", ".py"):
                advice = ": a trace doesn't see everything, such as x += y where x has two names"
            raise RuntimeError(
                f"{to} was not written, its outputs would differ by {found:.1e} (relative){advice}"
            )
        return {"largest_relative_difference": found, "allowed": self.allowed, "batches": BATCHES}

    def _rounding(self) -> float:
        twin = copy.deepcopy(self.source).double()
        try:
            own = difference(self.source, lambda x: twin(x.double()), self.input_shape)
        except RuntimeError:  # its code makes tensors of float32, which don't go with float64
            own = 0.0
        return min(max(ROUNDING, TIMES * own), HALF)


def difference(source: Function, written: Function, input_shape: Sequence[int]) -> float:
    """The largest one between their outputs, relative to the source's largest; NaN if there is."""
    worst = 0.0
    for size in BATCHES:
        batch = images(input_shape, size)
        with torch.no_grad():
            expected, got = (
                [leaf for leaf in tree_leaves(network(batch.clone())) if isinstance(leaf, Tensor)]
                for network in (source, written)
            )
        for a, b in zip(expected, got, strict=True):
            largest = a.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
            gap = ((a - b).abs().max() / largest).item()
            worst = gap if not gap <= worst else worst  # NaN is worse than any number
    return worst


def images(input_shape: Sequence[int], size: int) -> Tensor:
    return torch.randn(size, *input_shape, generator=torch.Generator().manual_seed(size))
