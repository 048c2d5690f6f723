"""From channel ids to gates: what belongs together, what selects, and what has to stay."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slimming.rules.channel_ids import NONE, SCORED, Ids, numbered


@dataclass
class Norm:
    """A BatchNorm that was called."""

    name: str
    tensors: dict[str, str]  # role -> tensor name
    own: Tensor  # ids of its gammas
    inputs: list[Tensor]  # ids that it read, call by call
    scores: bool  # whether it has gammas
    can_select: bool  # whether a channel selection can be put in front of it
    selects: bool  # whether there is one, since an earlier cut
    places: Tensor = field(default_factory=lambda: torch.zeros(0))  # which of them its gammas read


def join_private(
    ids: Ids, norms: Mapping[str, Norm], readers: list[tuple[Tensor, str]], grouped: Tensor
) -> dict[str, list[Tensor]]:
    """Tie each BatchNorm to what it reads, where nobody else reads it.

    Returns the others, {BatchNorm: the channels it can select among, call by call}.

    Where a grouped convolution only carries a stream on, or BatchNorms score all of it, a norm goes
    with the stream, if that can go.

    Args:
        grouped: ids that grouped convolutions make.
    """
    classes = ids.classes()
    fixed = torch.zeros(len(classes), dtype=torch.bool)
    fixed[list(ids.reasons(classes))] = True
    number = {reader: i for i, reader in enumerate({*norms, *(reader for _, reader in readers)})}
    only = torch.full((len(classes),), NONE)  # the reader of each class, or that there are several
    for channels, reader in readers:
        roots = classes[channels[channels != NONE]]
        alone = (only[roots] == NONE) | (only[roots] == number[reader])
        only[roots] = torch.where(alone, number[reader], len(number))
    selecting: dict[str, list[Tensor]] = {}
    carried: dict[str, list[Tensor]] = {}
    for name, norm in norms.items():
        private = all(
            NONE not in channels
            and (only[classes[channels]] == number[name]).all()
            and not fixed[classes[channels]].any()
            for channels in norm.inputs
        )
        if norm.selects or (not private and norm.can_select):
            carries = all(_carries(ids, channels, grouped) for channels in norm.inputs)
            (carried if carries and not norm.selects else selecting)[name] = norm.inputs
            continue
        for channels in norm.inputs:
            ids.tie(norm.own, channels, f"BatchNorm '{name}' reads values of a fixed size")
    for channels in _flat(selecting):
        fixed[classes[channels]] = True
    for name, inputs in carried.items():
        roots = classes[torch.cat(inputs)].unique()
        if len(roots) > 1 and not fixed[roots].any():  # 1: all tied, so none of it can go
            for channels in inputs:
                ids.tie(norms[name].own, channels, f"BatchNorm '{name}' goes with what it reads")
        else:
            selecting[name] = inputs
    return {name: selecting[name] for name in norms if name in selecting}


def _carries(ids: Ids, channels: Tensor, grouped: Tensor) -> bool:
    scored = NONE not in channels and bool((ids.origin[channels] == SCORED).all())
    return scored or bool(torch.isin(channels, grouped).all())


def _flat(selecting: dict[str, list[Tensor]]) -> list[Tensor]:
    return [channels[channels != NONE] for inputs in selecting.values() for channels in inputs]


def find_gates(
    norms: Mapping[str, Norm], classes: Tensor, reasons: dict[int, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """{BatchNorm: class of each gamma} for those that can be cut, and {BatchNorm: reason}.

    A BatchNorm is cut as a whole or not at all; so what is tied to one that stays, stays.
    """
    own = {name: classes[norm.own] for name, norm in norms.items()}
    fixed = {name: "it has no gamma to score by" for name, n in norms.items() if not n.scores}
    for channels in own.values():
        if len(channels) > 1 and len(channels.unique()) == 1:
            reasons.setdefault(int(channels[0]), "all of its channels are tied together")
    while True:
        new = {
            name: next(reasons[root] for root in channels.tolist() if root in reasons)
            for name, channels in own.items()
            if name not in fixed and any(root in reasons for root in channels.tolist())
        }
        if not new:
            return {n: channels for n, channels in own.items() if n not in fixed}, fixed
        fixed |= new
        for name in new:
            for root in own[name].tolist():
                reasons.setdefault(root, f"it is tied to '{name}': {new[name]}")


def number_streams(
    classes: Tensor,
    taboo: set[int],
    selecting: Mapping[str, list[Tensor]],
    readers: list[tuple[Tensor, str]],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Which channels are a stream's.

    Args:
        taboo: classes that stay for other reasons.
        selecting: gate with a channel selection -> the channels it selects among, call by call.
        readers: channels and who reads them.

    Returns:
        (classes,) the number of the stream channel or -1; and {gate: its stream}.
    """
    inputs = {
        gate: calls[0]
        for gate, calls in selecting.items()
        if all(torch.equal(calls[0], other) for other in calls)
    }
    taboo = set(taboo)
    for channels, reader in readers:
        if reader not in inputs:
            taboo |= set(classes[channels[channels != NONE]].tolist())
    roots = dict.fromkeys(
        root
        for channels in inputs.values()
        for root in classes[channels[channels != NONE]].tolist()
        if root not in taboo
    )
    return numbered(roots, len(classes)), inputs
