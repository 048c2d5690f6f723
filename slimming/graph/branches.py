"""Which branches of a network can go as a whole, because the rest still reaches the output."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from slimming.graph import layers, operations
from slimming.graph.walk import Walk


@dataclass(frozen=True)
class Branch:
    """A branch of which the plan may take every channel; it then gives a constant."""

    gates: tuple[str, ...]  # inside it; they lose all of their channels together
    last: str  # the layer that reads the last of them; its bias is the constant
    modules: tuple[str, ...]  # those that need not run any more


def find_branches(
    walks: Iterable[Walk], gates: Mapping[str, Tensor], dims: Mapping[tuple[str, int], Tensor]
) -> tuple[Branch, ...]:
    """The largest branches that don't overlap, while some way to the output remains.

    Args:
        walks: of the network in all of its modes; a branch has to be one in each of them.
        gates, dims: of the ChannelGraph.
    """
    holders: dict[int, set[str]] = {}  # channel -> the layers that hold something of it
    for (name, _), ids in dims.items():
        for channel in set(ids.tolist()):
            holders.setdefault(channel, set()).add(name.rpartition(".")[0])
    found = [_branches(walk, gates, dims, holders) for walk in walks]
    order = list(gates)
    common = [branch for branch in found[0] if all(branch in other for other in found)]
    return tuple(sorted(common, key=lambda branch: order.index(branch.gates[0])))


def _branches(
    walk: Walk,
    gates: Mapping[str, Tensor],
    dims: Mapping[tuple[str, int], Tensor],
    holders: Mapping[int, set[str]],
) -> list[Branch]:
    nodes = list(walk.module.graph.nodes)
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    once = {name for name, number in calls.items() if number == 1}
    found = []
    for node in nodes:
        if node.op == "call_module" and node.target in once and _reads(walk, node):
            inside = _only_for(walk, node, once)
            branch = _branch(walk, node, inside, gates, dims, holders)
            if branch is not None:
                found.append((branch, node))
    chosen: list[Branch] = []
    without: set[fx.Node] = set()
    for branch, node in sorted(found, key=lambda pair: -len(pair[0].modules)):
        apart = all(set(branch.gates).isdisjoint(other.gates) for other in chosen)
        if apart and _output_still_depends(walk, without | {node}):
            chosen.append(branch)
            without.add(node)
    return chosen


def _reads(walk: Walk, node: fx.Node) -> bool:
    module = walk.fetch_attr(node.target)
    whole = isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and module.groups == 1)
    return whole and _plain(module)


def _plain(module: nn.Module) -> bool:
    return not isinstance(module, _ConvTransposeNd) and not layers.own_forward(module)


def _only_for(walk: Walk, last: fx.Node, once: Collection[str]) -> list[fx.Node]:
    """The nodes that can go with `last`: nobody else, directly or not, needs what they give."""
    inside: dict[fx.Node, None] = {}
    waiting = list(last.all_input_nodes)
    while waiting:
        node = waiting.pop()
        alone = all(user is last or user in inside for user in node.users)
        if node not in inside and alone and _harmless(walk, node, once):
            inside[node] = None
            waiting += node.all_input_nodes
    return list(inside)


def _branch(
    walk: Walk,
    last: fx.Node,
    inside: list[fx.Node],
    gates: Mapping[str, Tensor],
    dims: Mapping[tuple[str, int], Tensor],
    holders: Mapping[int, set[str]],
) -> Branch | None:
    """The branch that ends with `last`, if all of it goes with its own gates and nothing else."""
    called = [node.target for node in reversed(inside) if node.op == "call_module"]
    own = [name for name in called if name in gates]
    if not own:
        return None
    channels = torch.cat([gates[name] for name in own]).unique()
    gone = [name for name in called if isinstance(walk.fetch_attr(name), layers.SCORED)]
    tied = set().union(*(holders[channel] for channel in channels.tolist()))
    all_of = [(f"{last.target}.weight", 1), *((f"{name}.weight", 0) for name in gone)]
    whole = all(key in dims and torch.isin(dims[key], channels).all() for key in all_of)
    if not whole or not tied <= {*gone, last.target}:
        return None
    return Branch(tuple(own), last.target, tuple(gone))


def _harmless(walk: Walk, node: fx.Node, once: Collection[str]) -> bool:
    """Whether a node is a layer that can go, or also runs on the small maps of such layers."""
    if node.op == "call_module":
        module = walk.fetch_attr(node.target)
        if isinstance(module, layers.SCORED):
            return node.target in once and _plain(module)
        passes = isinstance(module, (*layers.POINTWISE, *layers.PER_CHANNEL))
        return passes and not list(module.parameters())
    name = getattr(node.target, "__name__", str(node.target))
    passes = name in operations.POINTWISE | operations.PER_CHANNEL
    return node.op in ("call_function", "call_method") and passes and len(node.all_input_nodes) == 1


def _output_still_depends(walk: Walk, without: set[fx.Node]) -> bool:
    """Whether values, not only their sizes, reach the output from an input past these nodes."""
    reached: set[fx.Node] = set()
    for node in walk.module.graph.nodes:
        if node.op == "output":
            return any(source in reached for source in node.all_input_nodes)
        carries = any(isinstance(leaf, Tensor) for leaf in tree_leaves(walk.of[node]))
        fed = node.op == "placeholder" or any(s in reached for s in node.all_input_nodes)
        if carries and fed and node not in without:
            reached.add(node)
    return False
