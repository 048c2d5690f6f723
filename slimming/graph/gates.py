"""From channel numbers to gates: what belongs together, what selects, and what has to stay."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from slimming.graph.labels import NONE, Labels
from slimming.graph.selection import SELECTING, selects


def fix_tensors_used_elsewhere(model: nn.Module, labels: Labels, outside: set[str]) -> None:
    """A tensor that is no layer's own can't be cut with that layer alone."""
    tied = _tied(model)
    stored = model.state_dict()
    norms = {name for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    for (name, dim), numbers in labels.dims.items():
        if name in outside:
            labels.fix(numbers, f"'{name}' is also used outside its layer")
        elif name in tied and not _cut_together(model, labels, tied[name], dim):
            labels.fix(numbers, f"{' and '.join(map(repr, tied[name]))} are one tensor")
        elif name not in stored and name not in norms:
            labels.fix(numbers, f"'{name}' is computed from other tensors")


def join_tied_weights(model: nn.Module, labels: Labels) -> None:
    """Layers that share one weight are cut alike."""
    tied = _tied(model)
    for name, dim in list(labels.dims):
        if name in tied and _cut_together(model, labels, tied[name], dim):
            labels.unite(labels.dims[tied[name][0], dim], labels.dims[name, dim])


def _tied(model: nn.Module) -> dict[str, list[str]]:
    """{parameter: its names}, for those that several layers share."""
    users: dict[int, dict[int, str]] = {}  # parameter -> its layers
    for name, parameter in model.named_parameters(remove_duplicate=False):
        layer = model.get_submodule(name.rpartition(".")[0])
        users.setdefault(id(parameter), {}).setdefault(id(layer), name)
    return {name: list(of.values()) for of in users.values() for name in of.values() if len(of) > 1}


def _cut_together(model: nn.Module, labels: Labels, names: list[str], dim: int) -> bool:
    """Whether it is the weight of convolutions or linear layers that are all followed."""
    layers = [model.get_submodule(name.rpartition(".")[0]) for name in names]
    plain = all(isinstance(layer, (_ConvNd, nn.Linear)) for layer in layers)
    weights = all(name.endswith(".weight") for name in names)
    return plain and weights and all((name, dim) in labels.dims for name in names)


def join_private_norms(
    model: nn.Module, labels: Labels, norm_inputs: dict[str, list[Tensor]], readers: list
) -> dict[str, list[Tensor]]:
    """Unite each BatchNorm with what it reads, where nobody else reads it.

    Returns the others, {BatchNorm: the channels it can select among, call by call}.
    """
    classes = labels.classes()
    fixed = set(labels.fixed_reasons(classes))
    read_by: dict[int, set[str]] = {}
    for channels, reader in readers:
        for root in classes[channels[channels != NONE]].unique().tolist():
            read_by.setdefault(root, set()).add(reader)
    selecting: dict[str, list[Tensor]] = {}
    behind_groups = [
        labels.dims[f"{name}.weight", 0]
        for name, module in model.named_modules()
        if getattr(module, "groups", 1) > 1 and (f"{name}.weight", 0) in labels.dims
    ]
    grouped = torch.cat([*behind_groups, torch.tensor([], dtype=torch.long)])
    carried = {}
    for norm, inputs in norm_inputs.items():
        own = labels.dims[norm, 0]
        module = model.get_submodule(norm)
        can_select = module.affine and type(module) in SELECTING
        private = all(
            NONE not in channels
            and all(
                read_by[root] == {norm} and root not in fixed
                for root in classes[channels].unique().tolist()
            )
            for channels in inputs
        )
        if selects(module) or (not private and can_select):
            by_groups = all(torch.isin(channels, grouped).all() for channels in inputs)
            (carried if by_groups and not selects(module) else selecting)[norm] = inputs
            continue
        for channels in inputs:
            labels.unite(own, channels, f"BatchNorm '{norm}' reads values of a fixed size")
    # A grouped convolution only carries a stream on: its norm goes with the stream, if that can go.
    stays = fixed | {int(root) for c in _flat(selecting) for root in classes[c].tolist()}
    for norm, inputs in carried.items():
        roots = {root for c in inputs for root in classes[c].tolist()}
        if len(roots) > 1 and stays.isdisjoint(roots):  # 1: all tied, so none of it can go
            for channels in inputs:
                labels.unite(labels.dims[norm, 0], channels)
        else:
            selecting[norm] = inputs
    return selecting


def _flat(selecting: dict[str, list[Tensor]]) -> list[Tensor]:
    return [channels[channels != NONE] for inputs in selecting.values() for channels in inputs]


def find_gates(
    model: nn.Module, labels: Labels, classes: Tensor, reasons: dict[int, str], norms: dict
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """{BatchNorm: class of each gamma} for those that can be cut, and {BatchNorm: reason}.

    A BatchNorm is cut as a whole or not at all; so what is tied to one that stays, stays.
    """
    own = {
        norm: classes[labels.dims[norm, 0]]
        for norm in sorted(norms, key=[n for n, _ in model.named_modules()].index)
    }
    called = dict.fromkeys(own, "it has no gamma to score by")
    fixed = {
        name: called.get(name, "forward never calls it")
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and (name not in own or not module.affine)
    }
    for ids in own.values():
        if len(ids) > 1 and len(ids.unique()) == 1:
            reasons.setdefault(int(ids[0]), "all of its channels are tied together")
    while True:
        new = {
            norm: next(reasons[root] for root in ids.tolist() if root in reasons)
            for norm, ids in own.items()
            if norm not in fixed and any(root in reasons for root in ids.tolist())
        }
        if not new:
            return {n: ids for n, ids in own.items() if n not in fixed}, fixed
        fixed |= new
        for norm in new:
            for root in own[norm].tolist():
                reasons.setdefault(root, f"it is tied to '{norm}': {new[norm]}")
