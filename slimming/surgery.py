"""Removing channels for real, and hiding them."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slimming.bypass import bypass, replace_module
from slimming.graph import ChannelGraph
from slimming.selection import select, selects

Keep = Mapping[str, Tensor]


def alive(graph: ChannelGraph, keep: Keep) -> Tensor:
    """(num_channels,) bool: which channels stay under {gate: indices of kept channels}.

    Raises:
        ValueError: an unknown gate, an index out of range, gates that are cut together but keep
            different channels, or an empty layer that isn't a whole branch of `graph.branches`.
    """
    stays = torch.ones(graph.num_channels, dtype=torch.bool)
    may_go = {
        gate
        for branch in graph.branches
        if all(gate in keep and not len(keep[gate]) for gate in branch.gates)
        for gate in branch.gates
    }
    for gate, kept in keep.items():
        if gate not in graph.gates:
            raise ValueError(
                f"'{gate}' is not a gate of this network: plan it again from its graph"
            )
        ids, kept = graph.gates[gate], torch.as_tensor(kept, dtype=torch.long)
        empty = not len(kept) and gate not in may_go
        if empty or (len(kept) and not 0 <= kept.min() <= kept.max() < len(ids)):
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
    stays, read = alive(graph, keep), read_streams(graph, keep)
    kept: dict[tuple[str, int], Tensor] = {}
    for dims, present in ((graph.dims, stays), (graph.streams.dims, read)):
        for key, ids in dims.items():
            here = torch.ones(len(ids), dtype=torch.bool)
            here[ids >= 0] = present[ids[ids >= 0]]
            kept[key] = kept[key] & here if key in kept else here
    cuts: dict[str, list[tuple[int, Tensor]]] = {}
    for (name, dim), here in kept.items():
        if not here.all():
            cuts.setdefault(name, []).append((dim, here.nonzero().flatten()))
    return cuts


def read_streams(graph: ChannelGraph, keep: Keep) -> Tensor:
    """(streams.size,) bool: which stream channels stay: all, unless the plan says unread=remove."""
    if getattr(keep, "unread", "keep") == "keep":
        return torch.ones(graph.streams.size, dtype=torch.bool)
    stays = alive(graph, keep)
    return graph.streams.read({gate: stays[ids] for gate, ids in graph.gates.items()})


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
    for branch in graph.branches:
        if all(f"{gate}.weight" in cuts and not len(keep[gate]) for gate in branch.gates):
            bypass(thin, branch.modules, branch.last)
    _renumber(thin, graph, read_streams(graph, keep))
    return thin


def _renumber(thin: nn.Module, graph: ChannelGraph, read: Tensor) -> None:
    """Where unread channels of a stream went, the selections find theirs at new places."""
    for gate, inputs in graph.streams.inputs.items():
        here = (inputs < 0) | read[inputs]
        norm = thin.get_submodule(gate)
        if selects(norm) and not here.all():
            norm.index = (here.cumsum(0) - 1).to(norm.index.device)[norm.index]


def resize(model: nn.Module, cuts: Mapping[str, list[tuple[int, Tensor]]]) -> None:
    """Cut tensors in place and make each module's attributes agree with them."""
    made: dict[nn.Parameter, nn.Parameter] = {}  # a weight that layers share stays one
    for name, dims in cuts.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, attribute)
        tensor = old.detach()
        for dim, index in dims:
            tensor = tensor.index_select(dim, index.to(tensor.device))
        if isinstance(old, nn.Parameter):
            tensor = made.setdefault(old, nn.Parameter(tensor, requires_grad=old.requires_grad))
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


def check_graph(model: nn.Module, graph: ChannelGraph, keep: Keep) -> None:
    """Raise ValueError unless model, graph and plan belong together."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if shapes != graph.shapes:
        name = next(iter(set(shapes.items()) ^ set(graph.shapes.items())))[0]
        raise ValueError(f"the graph was traced from another network: '{name}' differs")
    fingerprint = getattr(keep, "fingerprint", None)
    if fingerprint is not None and fingerprint != graph.fingerprint:
        raise ValueError("the plan was made for another network: plan again from this graph")
