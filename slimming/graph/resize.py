"""Cutting tensors, and making the modules that hold them agree."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slimming.graph.channel_graph import ChannelGraph
from slimming.graph.slices import Keep, alive, read_streams, slices
from slimming.graph.twin import stored
from slimming.modules.bypass import bypass
from slimming.modules.layers import agree_at
from slimming.modules.selection import select, selects
from slimming.modules.widths import follow


def cut(network: nn.Module, graph: ChannelGraph, keep: Keep) -> None:
    """Make a network physically smaller, in place: same device, dtype, memory layout.

    Layers change in place, so whoever holds one (a plain list, another parent) holds the cut one.
    """
    stays = alive(graph, keep)
    widths = {gate: network.get_submodule(gate).num_features for gate in graph.selecting}
    resize(network, slices(graph, keep))
    follow(network, graph.widths, stored(network))
    for gate, width in widths.items():
        norm, here = network.get_submodule(gate), stays[graph.gates[gate]]
        if not here.all() and not selects(norm):
            select(norm, here.nonzero().flatten().to(norm.weight.device), width)
    for branch in graph.branches:
        if not any(stays[graph.gates[gate]].any() for gate in branch.gates):
            bypass(network, branch.modules, branch.last)
    _renumber(network, graph, read_streams(graph, keep))


def _renumber(thin: nn.Module, graph: ChannelGraph, read: Tensor) -> None:
    """Where unread channels of a stream went, the selections find theirs at new places."""
    for gate, inputs in graph.streams.inputs.items():
        here = (inputs < 0) | read[inputs]
        norm = thin.get_submodule(gate)
        if selects(norm) and not here.all():
            norm.index = (here.cumsum(0) - 1).to(norm.index.device)[norm.index]
            norm.width = int(here.sum())


def resize(model: nn.Module, cuts: Mapping[str, list[tuple[int, Tensor]]]) -> None:
    """Cut tensors in place, whoever holds them, and make the modules' attributes agree.

    Args:
        cuts: {name of any parameter or buffer: [(dim, indices that stay)]}; a tensor that has
            several names is cut once.
    """
    cut: set[Tensor] = set()
    for name, dims in cuts.items():
        path, _, attribute = name.rpartition(".")
        tensor = getattr(model.get_submodule(path), attribute)
        if tensor in cut:
            continue
        cut.add(tensor)
        smaller = tensor.detach()
        for dim, index in dims:
            smaller = smaller.index_select(dim, index.to(tensor.device))
        tensor.data = _laid_out_like(tensor, smaller)
        # A buffer that its class makes anew has its size there no more: from now on it is saved.
        model.get_submodule(path)._non_persistent_buffers_set.discard(attribute)
    for path in {name.rpartition(".")[0] for name in cuts}:
        agree_at(model, path)


def _laid_out_like(old: Tensor, new: Tensor) -> Tensor:
    """`new` in the memory layout of `old`: index_select knows but one."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for layout in (torch.contiguous_format, formats.get(old.dim(), torch.contiguous_format)):
        like = torch.empty_like(old, memory_format=layout, device="meta")
        if old.stride() == like.stride():
            return torch.empty_like(new, memory_format=layout).copy_(new)
    return new
