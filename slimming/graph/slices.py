"""What a plan says of every tensor: cutting, hiding and counting all follow from `slices`."""

from collections.abc import Mapping

import torch
from torch import Tensor

from slimming.graph.channel_graph import ChannelGraph

Keep = Mapping[str, Tensor]  # {gate: indices of the channels that stay}; and UNREAD, perhaps
UNREAD = "(unread)"  # which channels of shared streams stay though nobody reads them: none


def alive(graph: ChannelGraph, keep: Keep) -> Tensor:
    """(num_channels,) bool: which channels stay under {gate: indices of kept channels}.

    What `keep` has under UNREAD is of streams, see `read_streams`.

    Raises:
        ValueError: an unknown gate, an index out of range, gates that are cut together but keep
            different channels, or an empty layer that isn't a whole branch of `graph.branches`;
            also of a convolution that writes a part only of what its BatchNorm reads.
    """
    stays = torch.ones(graph.num_channels, dtype=torch.bool)
    may_go = {
        gate
        for branch in graph.branches
        if all(gate in keep and not len(keep[gate]) for gate in branch.gates)
        for gate in branch.gates
    }
    for gate, kept in keep.items():
        if gate == UNREAD:
            continue
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
    some = torch.cat([stays, torch.ones(1, dtype=torch.bool)])  # the last one: of -1
    for gate in may_go:
        some[graph.gates[gate]] = True
    for (name, dim), ids in graph.dims.items():
        if len(ids) and not some[ids].any():
            raise ValueError(f"{name} would lose every channel along dimension {dim}: keep one")
    return stays


def slices(graph: ChannelGraph, keep: Keep) -> dict[str, list[tuple[int, Tensor]]]:
    """{tensor name: [(dim, indices that stay)]} for every parameter and buffer that shrinks.

    Everything else follows from this: cutting, hiding, predicting the costs.
    """
    stays, read = alive(graph, keep), read_streams(graph, keep)
    kept: dict[tuple[str, int], Tensor] = {}
    for dims, present in ((graph.dims, stays), (graph.streams.dims, read)):
        present = torch.cat([present, torch.ones(1, dtype=torch.bool)])  # the last one: of -1
        for key, ids in dims.items():
            here = present[ids]
            kept[key] = kept[key] & here if key in kept else here
    cuts: dict[str, list[tuple[int, Tensor]]] = {}
    for (name, dim), here in kept.items():
        if not here.all():
            cuts.setdefault(name, []).append((dim, here.nonzero().flatten()))
    return cuts


def read_streams(graph: ChannelGraph, keep: Keep) -> Tensor:
    """(streams.size,) bool: which stream channels stay: all, unless the plan has UNREAD in it."""
    if UNREAD not in keep:
        return torch.ones(graph.streams.size, dtype=torch.bool)
    stays = alive(graph, keep)
    return graph.streams.read({gate: stays[ids] for gate, ids in graph.gates.items()})
