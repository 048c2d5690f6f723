"""Which channels of a network can be cut, and why the others can't.

A *gate* is a BatchNorm whose gammas score a set of channels (paper, section 3). Everything that has
to go together with a channel - the filter that makes it, its entries in the norm, the weights that
read it - is found by pushing channel numbers through the traced network (`walk.py`, `gates.py`).
"""

import copy
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from slimming.graph.branches import Branch, find_branches
from slimming.graph.bypass import stands_in
from slimming.graph.gates import (
    find_gates,
    fix_tensors_used_elsewhere,
    join_private_norms,
    join_tied_weights,
)
from slimming.graph.labels import NONE, Labels
from slimming.graph.layers import SCORED
from slimming.graph.streams import Streams, find_streams
from slimming.graph.walk import Coupled, Walk

BATCH = 2  # images in the traced example: BatchNorm in training mode refuses one


@dataclass(frozen=True)
class ChannelGraph:
    """The cuttable channels of one network: names, shapes and indices only.

    Channels that must be cut together share one number, from 0 to `num_channels` - 1.
    """

    shapes: dict[str, tuple[int, ...]]  # every parameter and buffer
    parameters: tuple[str, ...]  # those of them that are parameters, shared ones once
    dims: dict[tuple[str, int], Tensor]  # (tensor, dim) -> channel of each index; -1: it stays
    gates: dict[str, Tensor]  # BatchNorm -> channel of each gamma
    selecting: tuple[str, ...]  # gates that need a channel selection in front
    reads: tuple[tuple[str, int], ...]  # the weight dimensions that read channels
    uses: dict[str, int]  # conv or linear weight -> multiplications with each entry, per image
    folds: dict[str, str]  # layer -> the BatchNorm that alone reads its output
    fixed: dict[str, str]  # BatchNorm that can't be cut -> why
    other_macs: int = 0  # of layers whose weight is computed from other tensors, per image
    streams: Streams = field(default_factory=Streams)  # channels that may end up unread
    branches: tuple[Branch, ...] = ()  # that can go as a whole

    @property
    def num_channels(self) -> int:
        return 1 + max((int(ids.max()) for ids in self.gates.values()), default=-1)

    @property
    def fingerprint(self) -> str:
        """A short hash: equal for networks whose channels are laid out alike."""
        digest = hashlib.sha256(repr(sorted(self.shapes.items())).encode())
        for key in sorted(self.dims):
            digest.update(repr((key, self.dims[key].tolist())).encode())
        return digest.hexdigest()[:16]

    def explain(self) -> list[dict[str, Any]]:
        """One row per BatchNorm: channels, what is cut with it, or why it stays."""
        rows = []
        for gate, ids in self.gates.items():
            own = set(ids.tolist())
            members = [
                f"{name}[{dim}]"
                for (name, dim), channels in self.dims.items()
                if own & set(channels.tolist()) and not name.startswith(f"{gate}.")
            ]
            how = "through channel selection" if gate in self.selecting else "cut"
            rows.append({"gate": gate, "channels": len(ids), "how": how, "with": members})
        for norm, reason in self.fixed.items():
            channels = self.shapes[f"{norm}.weight"][0] if f"{norm}.weight" in self.shapes else 0
            rows.append({"gate": norm, "channels": channels, "how": f"stays: {reason}", "with": []})
        return rows


class _Tracer(fx.Tracer):
    """Layers with channels are leaves, also as subclasses from elsewhere."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return (
            isinstance(module, SCORED) or stands_in(module) or super().is_leaf_module(module, name)
        )

    def proxy(self, node: fx.Node) -> fx.Proxy:
        name = getattr(node.target, "__name__", node.target)
        number = node.kwargs.get("chunks", node.args[1] if len(node.args) > 1 else None)
        if name == "chunk" and isinstance(number, int):
            return _Parts(node, self, number)
        return super().proxy(node)


class _Parts(fx.Proxy):
    """What `chunk` returns: how many parts there are is written in the code."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, number: int):
        super().__init__(node, tracer)
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[fx.Proxy]:
        return iter(self[:])

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            return [self[i] for i in range(*which.indices(self.number))]
        return super().__getitem__(which)


def check_coupled(coupled: str) -> None:
    """
    Raises:
        ValueError: coupled channels can't be treated like this.
    """
    if coupled not in get_args(Coupled):
        raise ValueError(f"coupled is one of {', '.join(get_args(Coupled))}; got {coupled!r}")


def trace(model: nn.Module, example: Any, coupled: Coupled = "prune") -> ChannelGraph:
    """Find the channels of `model` that can be cut.

    Args:
        model: any network that torch.fx can trace. It isn't changed.
        example: an input (or a tuple of inputs), batch first; only its shape and type matter.
        coupled: channels that are added to others (residual streams) are cut together, or kept.

    Raises:
        ValueError: the network can't be traced, or can't take this input.
    """
    _refuse(model)
    check_coupled(coupled)
    inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    inputs = tree_map(_meta_batch, inputs)
    labels, walks = Labels(), []
    for training in (True, False):  # some heads exist in one mode only
        twin = _meta_copy(model, training)
        try:
            traced = fx.GraphModule(twin, _Tracer().trace(twin))
        except Exception as error:
            raise ValueError(
                f"{type(model).__name__} can't be traced: {_first_line(error)} Control flow that "
                f"depends on the data has to move into a function marked with torch.fx.wrap."
            ) from error
        walk = Walk(traced, labels, BATCH, coupled)
        try:
            _check_number(traced, inputs)
            walk.run(*inputs)
        except Exception as error:
            shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in inputs]
            raise ValueError(
                f"{type(model).__name__} can't take an input of shape {shapes}: "
                f"{_first_line(error)}"
            ) from error
        walks.append(walk)
    return _assemble(model, labels, walks)


def _assemble(model: nn.Module, labels: Labels, walks: list[Walk]) -> ChannelGraph:
    norm_inputs: dict[str, list[Tensor]] = {}
    for walk in walks:
        for norm, channels in walk.norm_inputs.items():
            norm_inputs.setdefault(norm, []).extend(channels)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    outside = set().union(*(walk.outside for walk in walks))
    fix_tensors_used_elsewhere(model, labels, outside)
    readers = [pair for walk in walks for pair in walk.readers]
    selecting = join_private_norms(model, labels, norm_inputs, readers)
    join_tied_weights(model, labels)

    classes = labels.classes()
    fixed_roots = set(labels.fixed_reasons(classes))
    for norm, inputs in selecting.items():
        for channels in inputs:
            labels.fix(channels, f"'{norm}' selects among channels that others read too")
    reasons = labels.fixed_reasons(classes)
    gates, fixed = find_gates(model, labels, classes, reasons, norm_inputs)
    selecting = {norm: inputs for norm, inputs in selecting.items() if norm in gates}
    roots = torch.cat([*gates.values(), torch.tensor([], dtype=torch.long)])
    number = {root: i for i, root in enumerate(dict.fromkeys(roots.tolist()))}
    lookup = torch.full((len(classes) + 1,), NONE)
    for root, i in number.items():
        lookup[root] = i
    dims = {key: lookup[classes[ids]] for key, ids in labels.dims.items() if key[0] in shapes}
    dims = {key: channels for key, channels in dims.items() if (channels != NONE).any()}
    reads = dict.fromkeys(key for walk in walks for key in walk.reads)
    gates = {gate: lookup[ids] for gate, ids in gates.items()}
    return ChannelGraph(
        shapes=shapes,
        parameters=tuple(name for name, _ in model.named_parameters()),
        dims=dims,
        gates=gates,
        selecting=tuple(gate for gate in gates if gate in selecting),
        streams=find_streams(model, labels, classes, fixed_roots, selecting, readers),
        reads=tuple(key for key in reads if key in dims),
        uses={weight: uses for weight, uses in walks[-1].uses.items() if weight in shapes},
        folds={
            layer: norm
            for layer, norm in walks[-1].folds.items()
            if outside.isdisjoint((f"{layer}.weight", f"{layer}.bias"))
        },
        fixed=fixed,
        branches=find_branches(walks, gates, dims),
        other_macs=_other_macs(model, walks[-1].uses, shapes),
    )


def _other_macs(model: nn.Module, uses: dict[str, int], stored: Collection[str]) -> int:
    computed = {name: number for name, number in uses.items() if name not in stored}
    layers = {name: model.get_submodule(name.rpartition(".")[0]) for name in computed}
    return sum(layers[name].weight.numel() * number for name, number in computed.items())


def _refuse(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"give a network, an nn.Module; got {type(model).__name__}")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(f"give the network inside: {type(model).__name__}(...).module")
    if hasattr(model, "_orig_mod"):
        raise ValueError("give the network that was compiled: compiled._orig_mod")
    for name, module in model.named_modules():
        mine = vars(module).get("forward")
        if mine is None or isinstance(module, torch.jit.ScriptModule):
            continue
        if getattr(mine, "__func__", None) is type(module).forward:
            continue  # what accelerate leaves when it is unwrapped: the class's own again
        whose, way_out = "", "define it in a class"
        if "_original_forward" in vars(module):
            whose = " by accelerate"
            way_out = "give accelerator.unwrap_model(model, keep_fp32_wrapper=False)"
        # Its code isn't seen, and copies of the network may run that of the original.
        raise ValueError(
            f"the forward of '{name or type(model).__name__}' was replaced on the object{whose}: "
            f"{way_out}"
        )


def _meta_copy(model: nn.Module, training: bool) -> nn.Module:
    """The network without its numbers, in float32."""
    try:
        twin = copy.deepcopy(model).to("meta").float().train(training)
    except Exception as error:
        raise ValueError(f"{type(model).__name__} can't be copied: {_first_line(error)}") from error
    for module in twin.modules():
        if isinstance(module, _BatchNorm):
            module.eval()  # SyncBatchNorm would wait for other processes
    return twin


def _check_number(traced: fx.GraphModule, inputs: tuple) -> None:
    takes = sum(node.op == "placeholder" for node in traced.graph.nodes)
    if len(inputs) > takes:
        raise TypeError(f"it takes {takes} and not {len(inputs)} tensors")


def _meta_batch(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    dtype = torch.float32 if x.is_floating_point() else x.dtype
    return torch.empty((BATCH, *x.shape[1:]), dtype=dtype, device="meta")


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
    return line if line.endswith(".") else f"{line}."
