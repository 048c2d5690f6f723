"""Removing channels for real, and hiding them."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slimming.graph import ChannelGraph
from slimming.graph.bypass import bypass, replace_module
from slimming.graph.selection import select, selects
from slimming.planning.slices import Keep, alive, read_streams, slices


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
