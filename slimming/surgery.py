"""Removing channels for real, hiding them, and proving that both compute the same."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_flatten

from slimming.graph import ChannelGraph
from slimming.selection import select

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
            raise ValueError(f"'{gate}' is not a gate of this network: plan it again from its graph")
        ids, kept = graph.gates[gate], torch.as_tensor(kept, dtype=torch.long)
        if not len(kept) or kept.min() < 0 or kept.max() >= len(ids):
            raise ValueError(f"'{gate}' keeps {kept.tolist()}: need indices from 0 to {len(ids) - 1}")
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
    for gate in graph.selecting:
        norm = thin.get_submodule(gate)
        if not hasattr(norm, "index") and len(keep.get(gate, graph.gates[gate])) < len(
            graph.gates[gate]
        ):
            everything = torch.arange(norm.num_features, device=norm.weight.device)
            replace_module(thin, gate, select(norm, everything))
    cuts = slices(graph, keep)
    for gate in graph.selecting:
        kept = cuts.get(f"{gate}.weight")
        if kept is not None:
            cuts[f"{gate}.index"] = kept
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
    first_difference: str | None  # the first layer whose kept channels differ, if any

    @property
    def holds(self) -> bool:
        return self.relative <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def verify(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Keep,
    thin: nn.Module,
    x: Tensor,
    tolerance: float = 1e-9,
) -> Certificate:
    """Compare `thin` with `mask(model, graph, keep)` on the inputs `x` (N, ...).

    Both run in float64 and eval mode on copies; neither network is changed.
    """
    masked, small = mask(model, graph, keep).double().eval(), copy.deepcopy(thin).double().eval()
    kept = {name: dims for name, dims in slices(graph, keep).items() if name.endswith(".weight")}
    with torch.no_grad():
        expected, expected_layers = _outputs(masked, x.double())
        got, got_layers = _outputs(small, x.double())
    difference = max(
        ((a - b).abs().max().item() if a.shape == b.shape else float("inf"))
        for a, b in zip(expected, got, strict=True)
    )
    scale = max(a.abs().max().item() for a in expected)
    relative = difference / scale if scale > 0 else difference
    first = None
    for name, output in expected_layers.items():
        for dim, index in kept.get(f"{name}.weight", []):
            if dim == 0:
                channel_dim = -1 if isinstance(masked.get_submodule(name), nn.Linear) else 1
                output = output.index_select(channel_dim, index.to(output.device))
        if name not in got_layers or not _close(output, got_layers[name], tolerance):
            first = name
            break
    return Certificate(difference, relative, tolerance, first)


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    return bool((a - b).abs().max() <= tolerance * a.abs().max().clamp(min=1e-30))


def _outputs(model: nn.Module, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """All output tensors, and the first output of every layer with weights, in order."""
    layers: dict[str, Tensor] = {}

    def record(name: str):
        return lambda module, args, output: layers.setdefault(name, output.detach())

    hooks = [
        module.register_forward_hook(record(name))
        for name, module in model.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear, _BatchNorm))
    ]
    try:
        output = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)], layers


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
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
