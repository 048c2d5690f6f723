"""Removing channels for real, hiding them, and proving that both compute the same."""

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves, tree_map

from slimming.graph import ChannelGraph
from slimming.selection import select, selects

Keep = Mapping[str, Tensor]


def alive(graph: ChannelGraph, keep: Keep) -> Tensor:
    """(num_channels,) bool: which channels stay under {gate: indices of kept channels}.

    Raises:
        ValueError: an unknown gate, an index out of range, an empty layer, or gates that are cut
            together but keep different channels.
    """
    stays = torch.ones(graph.num_channels, dtype=torch.bool)
    for gate, kept in keep.items():
        if gate not in graph.gates:
            raise ValueError(
                f"'{gate}' is not a gate of this network: plan it again from its graph"
            )
        ids, kept = graph.gates[gate], torch.as_tensor(kept, dtype=torch.long)
        if not len(kept) or kept.min() < 0 or kept.max() >= len(ids):
            raise ValueError(
                f"'{gate}' keeps {kept.tolist()}: need indices from 0 to {len(ids) - 1}"
            )
        goes = torch.ones(len(ids), dtype=torch.bool)
        goes[kept] = False
        stays[ids[goes]] = False
    for gate, ids in graph.gates.items():
        kept = torch.as_tensor(keep.get(gate, torch.arange(len(ids))), dtype=torch.long)
        if not torch.equal(stays[ids].nonzero().flatten(), kept):
            raise ValueError(f"'{gate}' keeps other channels than the layers it is tied to")
    return stays


def slices(graph: ChannelGraph, keep: Keep) -> dict[str, list[tuple[int, Tensor]]]:
    """{tensor name: [(dim, indices that stay)]} for every parameter and buffer that shrinks.

    Everything else follows from this: cutting, hiding, predicting the costs.
    """
    stays = alive(graph, keep)
    cuts: dict[str, list[tuple[int, Tensor]]] = {}
    for (name, dim), ids in graph.dims.items():
        kept = (ids < 0) | stays[ids]
        if not kept.all():
            cuts.setdefault(name, []).append((dim, kept.nonzero().flatten()))
    return cuts


def slim(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """A physically smaller copy of `model`: same device, dtype and train flags.

    Raises:
        ValueError: the graph or the plan belongs to another network.
    """
    check_graph(model, graph, keep)
    thin = copy.deepcopy(model)
    cuts = slices(graph, keep)
    for gate in graph.selecting:
        if f"{gate}.weight" in cuts:
            norm = thin.get_submodule(gate)
            if not selects(norm):
                everything = torch.arange(norm.num_features, device=norm.weight.device)
                replace_module(thin, gate, select(norm, everything))
            cuts[f"{gate}.index"] = cuts[f"{gate}.weight"]
    resize(thin, cuts)
    return thin


def resize(model: nn.Module, cuts: Mapping[str, list[tuple[int, Tensor]]]) -> None:
    """Cut tensors in place and make each module's attributes agree with them."""
    for name, dims in cuts.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, attribute)
        tensor = old.detach()
        for dim, index in dims:
            tensor = tensor.index_select(dim, index.to(tensor.device))
        if isinstance(old, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
        setattr(module, attribute, tensor)
    for path in {name.rpartition(".")[0] for name in cuts}:
        agree(model.get_submodule(path))


def agree(module: nn.Module) -> None:
    """Set a layer's sizes from its tensors."""
    if isinstance(module, _BatchNorm):
        module.num_features = len(module.running_mean if module.weight is None else module.weight)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _ConvTransposeNd):
        module.in_channels = module.weight.shape[0]
        module.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, _ConvNd):
        per_group = module.out_channels // module.groups
        module.out_channels = module.weight.shape[0]
        module.groups = module.groups if module.groups == 1 else module.out_channels // per_group
        module.in_channels = module.weight.shape[1] * module.groups


def mask(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """A full-size copy of `model` in which nobody reads the cut channels."""
    check_graph(model, graph, keep)
    masked = copy.deepcopy(model)
    stays = alive(graph, keep)
    with torch.no_grad():
        for name, dim in graph.reads:
            ids = graph.dims[name, dim]
            hidden = ((ids >= 0) & ~stays[ids]).nonzero().flatten()
            weight = masked.get_parameter(name)
            weight.index_fill_(dim, hidden.to(weight.device), 0.0)
    return masked


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
        if isinstance(module, (_ConvNd, nn.Linear, _BatchNorm)):
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


def check_graph(model: nn.Module, graph: ChannelGraph, keep: Keep) -> None:
    """Raise ValueError unless model, graph and plan belong together."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if shapes != graph.shapes:
        name = next(iter(set(shapes.items()) ^ set(graph.shapes.items())))[0]
        raise ValueError(f"the graph was traced from another network: '{name}' differs")
    fingerprint = getattr(keep, "fingerprint", None)
    if fingerprint is not None and fingerprint != graph.fingerprint:
        raise ValueError("the plan was made for another network: plan again from this graph")


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` where the one at `path` is, under all of its names."""
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = module
