"""The proof that removing channels and hiding them compute the same."""

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from slimming.graph import ChannelGraph
from slimming.graph.bypass import stands_in
from slimming.graph.layers import SCORED
from slimming.planning.slices import Keep, slices
from slimming.surgery.cut import mask


@dataclass(frozen=True)
class Certificate:
    """How far the thin network is from the masked one, in float64 and eval mode."""

    absolute: float  # largest difference between their outputs
    relative: float  # the same as a share of the masked output's largest magnitude
    tolerance: float  # the largest relative difference that counts as equal
    first_difference: str | None  # if it doesn't hold: the first layer whose kept channels differ

    @property
    def holds(self) -> bool:
        return self.relative <= self.tolerance  # False for NaN

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


@torch.no_grad()
def verify(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Keep,
    thin: nn.Module,
    x: Any,
    tolerance: float = 1e-9,
) -> Certificate:
    """Compare `thin` with `mask(model, graph, keep)` on the inputs `x` (N, ...).

    Both run in float64 and eval mode on the CPU, as copies; neither network is changed.
    """
    masked = mask(model, graph, keep).cpu().double().eval()
    small = copy.deepcopy(thin).cpu().double().eval()
    inputs = tree_map(_exact, tuple(x) if isinstance(x, (tuple, list)) else (x,))
    expected, got = _tensors(masked(*inputs)), _tensors(small(*inputs))
    difference = torch.stack([_distance(a, b) for a, b in zip(expected, got, strict=True)]).max()
    scale = torch.stack([a.abs().max() for a in expected]).max()
    relative = (difference / scale if scale > 0 else difference).item()
    proof = Certificate(difference.item(), relative, tolerance, None)
    if proof.holds:
        return proof
    made = {
        name: index
        for name, dims in slices(graph, keep).items()
        for dim, index in dims
        if (name, dim) not in graph.reads
    }
    return replace(proof, first_difference=_first_difference(masked, small, made, inputs))


def _first_difference(
    masked: nn.Module, small: nn.Module, made: Mapping[str, Tensor], inputs: tuple
) -> str | None:
    """The first layer that gives something else; on one image, as all outputs are held at once.

    Args:
        made: {tensor name: channels that its layer still makes}.
    """
    one = tree_map(lambda x: x[:1] if isinstance(x, Tensor) else x, inputs)
    got = _layers(small, one)
    for name, output in _layers(masked, one).items():
        if stands_in(small.get_submodule(name)):
            continue
        if f"{name}.weight" in made:
            dim = -1 if isinstance(masked.get_submodule(name), nn.Linear) else 1
            output = output.index_select(dim, made[f"{name}.weight"])
        if name not in got or not _distance(output, got[name]) <= 1e-9 * output.abs().max():
            return name
    return None


def _layers(model: nn.Module, inputs: tuple) -> dict[str, Tensor]:
    """The first output of every layer with weights, in the order of the calls."""
    outputs: dict[str, Tensor] = {}

    def listen(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            outputs.setdefault(name, output.clone())  # what follows may work in place

        module.register_forward_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, SCORED):
            listen(name, module)
    model(*inputs)
    return outputs


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().max() if a.shape == b.shape else torch.tensor(math.inf).to(a)


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _exact(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.cpu().double() if x.is_floating_point() else x.cpu()
