"""Which branches of a network can go as a whole, because the rest still reaches the output."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slimming.modules.layers import SCORED
from slimming.modules.selection import gate_of, name_in
from slimming.rules.channel_ids import NONE, parted
from slimming.rules.dims import SPATIAL
from slimming.rules.pointwise import ALSO_POINTWISE

if TYPE_CHECKING:
    from slimming.graph.assemble import Run


@dataclass(frozen=True)
class Branch:
    """A branch of which the plan may take every channel; it then gives a constant."""

    gates: tuple[str, ...]  # inside it; they lose all of their channels together
    last: str  # the layer that reads the last of them; its bias is the constant
    modules: tuple[str, ...]  # those that need not run any more


class _Flow:
    """The operations of a run on values that depend on the input, and who needs whose values."""

    def __init__(self, model: nn.Module, run: "Run"):
        modules, found = dict(model.named_modules()), run.found
        self.model = model
        self.calls = [record.call for record in run.records]
        self.sources: list[set[int]] = []
        self.users: list[set[int]] = [set() for _ in self.calls]
        made_by: dict[int, int] = {}
        for k, call in enumerate(self.calls):
            live = [found.picked.get(id(t), (t,))[0] for t in call.inputs if found.is_live(t)]
            self.sources.append({made_by.get(id(t), -1) for t in live})
            for source in self.sources[k] - {-1}:
                self.users[source].add(k)
            made_by.update({id(t): k for t in call.outputs})
        self.outputs = {made_by[id(t)] for t in run.outputs if id(t) in made_by}
        self.layer = [self._layer(call, modules) for call in self.calls]
        times = Counter(layer for layer in self.layer if layer)
        self.once = {layer for layer, number in times.items() if number == 1}

    @staticmethod
    def _layer(call, modules: Mapping[str, nn.Module]) -> str:
        """The layer of torch's own that this operation is all of, or nothing."""
        module = modules.get(call.layer)
        own = isinstance(module, SCORED) and type(module).__module__.startswith("torch.nn.")
        whole = call.name in ("convolution", "mm", "addmm") or "batch_norm" in call.name
        return gate_of(modules[""], call.layer) if own and whole else ""

    def inside(self, last: int) -> list[int]:
        """What can go with `last`: nobody else, directly or not, needs what it gives."""
        inside: dict[int, None] = {}
        waiting = list(self.sources[last])
        while waiting:
            k = waiting.pop()
            if k < 0 or k in inside or k in self.outputs or not self._harmless(k):
                continue
            if all(user == last or user in inside for user in self.users[k]):
                inside[k] = None
                waiting += self.sources[k]
        return list(inside)

    def _harmless(self, k: int) -> bool:
        """Whether it is a layer that can go, or also runs on the small maps of such layers."""
        if self.layer[k]:
            return self.layer[k] in self.once
        call = self.calls[k]
        passes = torch.Tag.pointwise in call.tags or call.name in {*SPATIAL, *ALSO_POINTWISE}
        return passes and len(call.inputs) == 1 and call.name != "glu"

    def reaches_output(self, without: Collection[int]) -> bool:
        """Whether values, not only their sizes, get from the input past these operations."""
        reached = {-1}
        for k, sources in enumerate(self.sources):
            if k not in without and sources & reached:
                reached.add(k)
        return bool(self.outputs & reached)


def find_branches(
    model: nn.Module,
    runs: Iterable["Run"],
    gates: Mapping[str, Tensor],
    dims: Mapping[tuple[str, int], Tensor],
) -> tuple[Branch, ...]:
    """The largest branches that don't overlap, while some way to the output remains.

    Args:
        runs: of the network in all of its modes; a branch has to be one in each of them.
        gates, dims: of the ChannelGraph.
    """
    held: dict[str, list[Tensor]] = {}
    for (name, _), ids in dims.items():
        held.setdefault(gate_of(model, name.rpartition(".")[0]), []).append(ids[ids != NONE])
    size = 1 + max((int(ids.max()) for ids in dims.values()), default=NONE)
    part, found = parted([torch.cat(ids) for ids in held.values()], size)
    names = list(held)
    # The part of each channel, and of each part the layers that hold something of it.
    holders = part, [{names[i] for i in own} for own in found]
    found = [_branches(model, _Flow(model, run), gates, dims, holders) for run in runs]
    order = list(gates)
    common = [branch for branch in found[0] if all(branch in other for other in found)]
    return tuple(sorted(common, key=lambda branch: order.index(branch.gates[0])))


def _branches(model, flow: _Flow, gates, dims, holders) -> list[Branch]:
    found = []
    for k, layer in enumerate(flow.layer):
        if layer in flow.once and _reads_whole(model.get_submodule(layer)):
            branch = _branch(flow, k, gates, dims, holders)
            if branch is not None:
                found.append((branch, k))
    chosen: list[Branch] = []
    without: set[int] = set()
    for branch, k in sorted(found, key=lambda pair: -len(pair[0].modules)):
        apart = all(set(branch.gates).isdisjoint(other.gates) for other in chosen)
        if apart and flow.reaches_output(without | {k}):
            chosen.append(branch)
            without.add(k)
    return chosen


def _reads_whole(module: nn.Module) -> bool:
    conv = isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)
    return isinstance(module, nn.Linear) or (conv and module.groups == 1)


def _branch(flow: _Flow, last: int, gates, dims, holders) -> Branch | None:
    """The branch that ends with `last`, if all of it goes with its own gates and nothing else."""
    name = flow.layer[last]
    gone = [flow.layer[k] for k in reversed(flow.inside(last)) if flow.layer[k]]
    own = [layer for layer in gone if layer in gates]
    if not own:
        return None
    channels = torch.cat([gates[layer] for layer in own]).unique()
    part, layers = holders
    tied = set().union(*(layers[i] for i in part[channels].unique().tolist()))
    inside = torch.zeros(len(part) + 1, dtype=torch.bool)  # the last one: of -1
    inside[channels] = True
    all_of = [(f"{name}.weight", 1)]
    all_of += [(name_in(flow.model, f"{layer}.weight"), 0) for layer in gone]
    whole = all(key in dims and inside[dims[key]].all() for key in all_of)
    if not whole or not tied <= {*gone, name}:
        return None
    return Branch(tuple(own), name, tuple(gone))
