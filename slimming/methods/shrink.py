"""Cutting while training: the network, and what its optimiser remembers of every weight."""

from typing import Any

import torch
from torch import Tensor, nn

from slimming.graph import ChannelGraph
from slimming.graph.slices import Keep, slices
from slimming.methods.base import Training
from slimming.modules.selection import name_in
from slimming.surgery.cut import slim

Slices = list[tuple[int, Tensor]]  # (dim, indices that stay)


def shrink(t: Training, graph: ChannelGraph, keep: Keep) -> None:
    """Replace `t.model` by the thin network, and cut momentum and the like of `t.optimizer`, which
    stays the same object, by the same slices: the next step is that of the masked network.

    Raises:
        ValueError: as `slim`; or the optimiser keeps something that has not the shape of the weight
            it belongs to, and so can't be cut with it. Nothing has changed then.
    """
    cuts, named = slices(graph, keep), dict(t.model.named_parameters())
    names = {parameter: name for name, parameter in named.items()}
    thin = slim(t.model, graph, keep)
    smaller = dict(thin.named_parameters())
    new = {p: smaller.get(name_in(thin, name)) for name, p in named.items()}  # None: it is gone
    state = {}
    for old, memory in t.optimizer.state.items():
        if new[old] is not None:
            mine = cuts.get(names[old], [])
            state[new[old]] = {key: _cut(key, v, old, mine) for key, v in memory.items()}
    groups = [[new[p] for p in group["params"]] for group in t.optimizer.param_groups]
    # From here on nothing can fail.
    for group, parameters in zip(t.optimizer.param_groups, groups, strict=True):
        group["params"] = [parameter for parameter in parameters if parameter is not None]
    t.optimizer.state.clear()
    t.optimizer.state.update(state)
    for gate in (gate for gate in graph.gates if gate in keep):
        kept, before = keep[gate], t.keep.get(gate)
        t.keep[gate] = torch.as_tensor(kept) if before is None else before[kept]
    t.model = thin


def _cut(key: str, value: Any, weight: nn.Parameter, cuts: Slices) -> Any:
    """One thing that an optimiser remembers of a weight, as it is of the smaller one."""
    if not cuts or not isinstance(value, Tensor) or value.numel() == 1 != weight.numel():
        return value
    if value.shape != weight.shape:
        raise ValueError(
            f"the optimiser keeps '{key}' of shape {tuple(value.shape)} for weights of shape "
            f"{tuple(weight.shape)}, which can't be cut along: train with SGD or Adam"
        )
    for dim, index in cuts:
        value = value.index_select(dim, index.to(value.device))
    return value
