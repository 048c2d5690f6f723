"""Whether two networks compute the same, on numbers that can tell."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


def comparable(model: nn.Module, example: Any) -> tuple[nn.Module, tuple]:
    """(a copy in eval mode, inputs for it): in float64 on the CPU, if it runs there.

    Raises:
        ValueError: it runs neither there nor as it is.
    """
    inputs = _numbers(tuple(example) if isinstance(example, (tuple, list)) else (example,))
    own = next((t for t in model.parameters() if t.is_floating_point()), torch.empty(0))
    for kind, device in ((torch.float64, torch.device("cpu")), (own.dtype, own.device)):
        twin = copy.deepcopy(model).eval().to(device, kind)
        moved = tree_map(partial(_moved, kind=kind, device=device), inputs)
        try:
            outputs(twin, moved)
        except Exception as error:
            problem = error  # such as constants of one type or on one device
            continue
        return twin, moved
    raise ValueError(f"{type(model).__name__} can't run on the example: {problem}") from problem


def _numbers(inputs: tuple) -> tuple:
    """The inputs, but normal random numbers where they have none that differ."""
    generator = torch.Generator().manual_seed(0)

    def drawn(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        alike = x.is_meta or x.numel() < 2 or bool((x == x.flatten()[0]).all())
        return torch.randn(x.shape, generator=generator) if alike else x

    return tree_map(drawn, inputs)


def _moved(x: Any, kind: torch.dtype, device: torch.device) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.to(device, kind if x.is_floating_point() else x.dtype)


def outputs(model: nn.Module, inputs: tuple) -> list[Tensor]:
    """The tensors that it returns."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a network that draws draws the same each time
        return [leaf for leaf in tree_leaves(model(*inputs)) if isinstance(leaf, Tensor)]


def agrees(got: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether they are the same up to rounding: the root of the type's precision, as a share of
    each tensor's largest magnitude. What isn't finite agrees with nothing."""
    for a, b in zip(got, expected, strict=True):
        if a.shape != b.shape:
            return False
        exact = not b.is_floating_point() or not b.numel()
        slack = 0 if exact else torch.finfo(b.dtype).eps ** 0.5 * b.abs().max()
        if not (torch.equal(a, b) if exact else (a - b).abs().max() <= slack):
            return False
    return True
