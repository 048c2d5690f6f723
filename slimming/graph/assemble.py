"""From what the operations told to the channels that can be cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimming.graph.branches import find_branches
from slimming.graph.channel_graph import ChannelGraph, Product, Streams
from slimming.graph.folds import find_folds
from slimming.graph.gates import Norm, find_gates, join_private, number_streams
from slimming.graph.record import Record
from slimming.graph.twin import stored
from slimming.modules.selection import selects
from slimming.rules.call import Found
from slimming.rules.channel_ids import NONE, Ids, numbered


@dataclass(frozen=True)
class Run:
    """A network has run once."""

    training: bool
    found: Found
    records: list[Record]
    outputs: list[Tensor]
    made: tuple[int, int]  # the first and last of the ids of nothing that it handed out

    def alike(self, other: "Run") -> bool:
        """Whether both did the same operations."""
        mine, yours = ([(r.call.name, r.call.where) for r in run.records] for run in (self, other))
        return mine == yours


@dataclass(frozen=True)
class Discovery:
    """A graph, and the ids that it was made of."""

    graph: ChannelGraph
    runs: list[Run]
    classes: Tensor  # of every id
    channel: Tensor  # of every class: its number in the graph; -1
    stream: Tensor  # of every class: its number among the streams; -1

    def numbers(self, ids: Tensor) -> Tensor:
        """The channel of each id."""
        return torch.where(ids == NONE, NONE, self.channel[self.classes[ids]])


def assemble(model: nn.Module, ids: Ids, runs: Sequence[Run], notes: Sequence[str]) -> Discovery:
    """Put together what was found in all modes of the network, and name what stays."""
    tensors = stored(model)
    norms = _norms(model, ids, runs)
    readers = [pair for run in runs for pair in run.found.readers]
    grouped = [g for run in runs for g in run.found.grouped]
    selecting = join_private(ids, norms, readers, torch.cat([*grouped, torch.tensor([]).long()]))

    classes = ids.classes()
    taboo = set(ids.reasons(classes))
    for name, inputs in selecting.items():
        for channels in inputs:
            ids.pin(channels, f"'{name}' selects among channels that others read too")
    gates, fixed = find_gates(norms, classes, ids.reasons(classes))
    for name in selecting.keys() - gates.keys():  # it goes neither with its stream nor by itself
        taboo |= set(classes[norms[name].own].tolist())
    selecting = {name: inputs for name, inputs in selecting.items() if name in gates}
    roots = torch.cat([*gates.values(), torch.tensor([], dtype=torch.long)])
    channel = numbered(dict.fromkeys(roots.tolist()), len(classes))
    stream, inputs = number_streams(classes, taboo, selecting, readers)

    none = torch.full((1,), NONE)  # what id -1 leads to
    of_channels = torch.cat([channel[classes], none])
    of_streams = torch.cat([stream[classes], none])
    names = _names(model, ids)
    dims = {key: of_channels[own] for key, own in names.items()}
    dims = {key: own for key, own in dims.items() if (own != NONE).any()}
    places = {gate: of_streams[own] for gate, own in inputs.items()}
    places = {gate: own for gate, own in places.items() if (own != NONE).any()}
    unread = {key: of_streams[own] for key, own in names.items()}
    reads = _under_all_names(model, [key for run in runs for key in run.found.reads])
    writes = _under_all_names(model, [key for run in runs for key in run.found.writes])
    gates = {gate: channel[own] for gate, own in gates.items()}
    last = runs[-1].found
    graph = ChannelGraph(
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        parameters=tuple(name for name, _ in model.named_parameters()),
        dims=dims,
        gates=gates,
        selecting=tuple(gate for gate in gates if gate in selecting),
        reads=tuple(key for key in reads if key in dims),
        writes=tuple(key for key in writes if key in dims),
        uses=dict(last.uses),
        folds=find_folds(model, runs[-1]),
        fixed={**_never_called(model, norms), **fixed},
        gammas={gate: norms[gate].tensors["weight"] for gate in gates},
        products=tuple(
            Product(p.times, tuple((of_channels[f], of_streams[f]) for f in p.factors))
            for p in last.products
        ),
        streams=Streams(
            int(stream.max()) + 1,
            {key: own for key, own in unread.items() if (own != NONE).any()},
            places,
            {gate: norms[gate].places for gate in places},
        ),
        branches=find_branches(model, runs, gates, dims),
        notes=tuple(notes),
    )
    return Discovery(graph, list(runs), classes, channel, stream)


def _norms(model: nn.Module, ids: Ids, runs: Sequence[Run]) -> dict[str, Norm]:
    """Every BatchNorm that was called, in the order of the network."""
    order = list(stored(model))
    modules = dict(model.named_modules())
    found: dict[str, Norm] = {}
    for run in runs:
        for path, tensors in run.found.norms.items():
            main = tensors.get("weight", tensors.get("running_mean"))
            parent = modules.get(path.rpartition(".")[0])
            chosen = parent is not None and selects(parent)
            name = path.rpartition(".")[0] if chosen else path
            own = ids.dims[main, 0]
            norm = found.setdefault(
                name,
                Norm(
                    name=name,
                    tensors=tensors,
                    own=own,
                    inputs=[],
                    scores="weight" in tensors,
                    can_select="weight" in tensors and isinstance(modules.get(path), _BatchNorm),
                    selects=chosen,
                    places=parent.index.cpu() if chosen else torch.arange(len(own)),
                ),
            )
            norm.inputs += run.found.norm_inputs[path]
            if chosen:
                ids.dims[f"{name}.index", 0] = own
    for run in runs:  # readers are called by what they are called here
        run.found.readers[:] = [(c, _shorter(r, modules)) for c, r in run.found.readers]
    return dict(sorted(found.items(), key=lambda n: order.index(next(iter(n[1].tensors.values())))))


def _shorter(reader: str, modules: Mapping[str, nn.Module]) -> str:
    parent = reader.rpartition(".")[0]
    return parent if parent in modules and selects(modules[parent]) else reader


def _names(model: nn.Module, ids: Ids) -> dict[tuple[str, int], Tensor]:
    """The ids of every stored tensor that a cut has to touch: of one that two modules share, under
    both names; of one module that has two names, under the first."""
    first: dict[tuple[int, str], str] = {}
    of_tensor: dict[int, str] = {}
    names: dict[tuple[str, int], Tensor] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, tensor in stored(model).items():
        path, _, attribute = name.rpartition(".")
        if first.setdefault((id(modules[path]), attribute), name) != name:
            continue
        known = of_tensor.setdefault(id(tensor), name)
        for dim in range(tensor.dim()):
            if (known, dim) in ids.dims:
                names[name, dim] = ids.dims[known, dim]
    return names


def _under_all_names(model: nn.Module, keys: list[tuple[str, int]]) -> dict[tuple[str, int], None]:
    """The same dimensions of every tensor that is one of these under another name."""
    same: dict[int, list[str]] = {}
    tensors = stored(model)
    for name, tensor in tensors.items():
        same.setdefault(id(tensor), []).append(name)
    return {(other, dim): None for name, dim in keys for other in same[id(tensors[name])]}


def _never_called(model: nn.Module, norms: Mapping[str, Norm]) -> dict[str, str]:
    inner = {id(m.norm) for m in model.modules() if selects(m)}
    return {
        name: "forward never calls it"
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and name not in norms and id(module) not in inner
    }
