"""Removing channels for real, and hiding them."""

import copy

import torch
from torch import nn

from slimming.graph import ChannelGraph
from slimming.graph.resize import cut
from slimming.graph.slices import Keep, alive
from slimming.graph.twin import stored, uncollected


@uncollected()
def slim(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """A physically smaller copy of `model`: same device, dtype, memory layout and train flags.

    Layers change in place, so whoever holds one (a plain list, another parent) holds the cut one.

    Raises:
        ValueError: the graph or the plan belongs to another network.
    """
    check_graph(model, graph, keep)
    thin = copy.deepcopy(model)
    for old, new in zip(model.parameters(), thin.parameters()):
        vars(new).update(vars(old))  # such as the marks of an optimizer; deepcopy forgets them
    cut(thin, graph, keep)
    return thin


def mask(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """A full-size copy of `model` in which nobody reads the cut channels."""
    check_graph(model, graph, keep)
    masked = copy.deepcopy(model)
    stays, tensors = alive(graph, keep), stored(masked)
    with torch.no_grad():
        for name, dim in graph.reads:
            ids = graph.dims[name, dim]
            hidden = ((ids >= 0) & ~stays[ids]).nonzero().flatten()
            tensors[name].index_fill_(dim, hidden.to(tensors[name].device), 0.0)
    return masked


def check_graph(model: nn.Module, graph: ChannelGraph, keep: Keep) -> None:
    """Raise ValueError unless model, graph and plan belong together."""
    shapes = {name: tuple(tensor.shape) for name, tensor in stored(model).items()}
    if shapes != graph.shapes:
        name = next(iter(set(shapes.items()) ^ set(graph.shapes.items())))[0]
        raise ValueError(f"the graph was traced from another network: '{name}' differs")
    fingerprint = getattr(keep, "fingerprint", None)
    if fingerprint is not None and fingerprint != graph.fingerprint:
        raise ValueError("the plan was made for another network: plan again from this graph")
