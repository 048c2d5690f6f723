"""Does a thin network compute what the original computes without the removed channels?

The answer uses no tool's graph. What was removed is read from the weights: the rows of each layer
that are found again in the thin network are those that stayed. In the original network all others
are set to zero (filters and biases; gamma and beta), and the outputs are compared in float64.

This holds where every activation on the way has act(0) = 0 (ReLU, ReLU6, SiLU, Hardswish, GELU) or
multiplies something that is 0 (the sigmoid of squeeze-excitation); `coverage.py` lists no others.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

TOLERANCE = 1e-9
ENOUGH = 64  # entries of a row by which it is recognised


class CannotTell(Exception):
    """Why there is no answer."""


@torch.no_grad()
def difference(dense: nn.Module, thin: nn.Module, x: Tensor) -> float:
    """Largest difference from `zeroed(dense, thin)`, as a share of its largest output.

    Args:
        x: (N, ...) images.

    Raises:
        CannotTell: what was removed can't be read from the weights, or doesn't change the output.
    """
    x = x.double()
    dense = copy.deepcopy(dense).double().eval()
    small = copy.deepcopy(thin).double().eval()
    before, expected = _outputs(dense, x), _outputs(zeroed(dense, small), x)
    if not _distance(before, expected) > 1e-6:
        raise CannotTell("the removed channels don't show in the output")
    return _distance(expected, _outputs(small, x))


@torch.no_grad()
def zeroed(dense: nn.Module, thin: nn.Module) -> nn.Module:
    """`dense` with everything at 0 that `thin` doesn't make any more."""
    masked, small, seen = copy.deepcopy(dense), dict(thin.named_modules()), set()
    for name, module in dense.named_modules():
        if isinstance(module, (_BatchNorm, _ConvNd, nn.Linear)):
            if name not in small:
                raise CannotTell(f"'{name}' is gone")
            gone, twin = _gone(name, module, small[name]), masked.get_submodule(name)
            for own, tensor in module.named_parameters(recurse=False):
                seen.add(f"{name}.{own}")
                if len(gone):  # as a tensor of its own: what was one weight may be cut in two ways
                    zeros = tensor.index_fill(_made(module, tensor), gone, 0.0)
                    setattr(twin, own, nn.Parameter(zeros))
    others = {k: p.shape for k, p in thin.named_parameters() if k not in seen}
    for name, parameter in dense.named_parameters():
        if name in others and others[name] != parameter.shape:
            raise CannotTell(f"'{name}' shrank, which zeros in its place don't imitate")
    return masked


def _made(module: nn.Module, tensor: Tensor) -> int:
    """The dimension of a layer's tensor that its outputs have."""
    return 1 if isinstance(module, _ConvTransposeNd) and tensor.ndim > 1 else 0


def _gone(name: str, module: nn.Module, small: nn.Module) -> Tensor:
    if module.weight is None:
        return torch.tensor([], dtype=torch.long)
    dim = _made(module, module.weight)
    large, little = module.weight, small.weight
    if large.shape[dim] == little.shape[dim]:
        return torch.tensor([], dtype=torch.long)
    kept = _recognise(*(w.transpose(0, dim).reshape(w.shape[dim], -1) for w in (large, little)))
    if kept is None:
        raise CannotTell(f"the rows of '{name}' are not the original's")
    return torch.tensor(sorted(set(range(large.shape[dim])) - set(kept.tolist())))


def _recognise(large: Tensor, little: Tensor) -> Tensor | None:
    """For each row of `little` the row of `large` (R, K) that most of its entries are from."""
    values, places = large.flatten().sort()
    some = little[:, :ENOUGH].contiguous()
    at = torch.searchsorted(values, some).clamp(max=len(values) - 1)
    rows = torch.where(values[at] == some, places[at] // large.shape[1], -1)
    kept = rows.mode(1).values
    unlike = (kept < 0) | ((rows == kept[:, None]).sum(1) * 2 <= some.shape[1])
    return None if unlike.any() or len(kept.unique()) < len(kept) else kept


def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    output: Any = model(x)
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _distance(expected: list[Tensor], got: list[Tensor]) -> float:
    if [a.shape for a in expected] != [b.shape for b in got]:
        return float("inf")
    largest = torch.stack([(a - b).abs().max() for a, b in zip(expected, got)]).max()
    return (largest / torch.stack([a.abs().max() for a in expected]).max()).item()
