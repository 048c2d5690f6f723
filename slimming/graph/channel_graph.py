"""Which channels of a network can be cut, and why the others can't.

A *gate* is a BatchNorm whose gammas score a set of channels (paper, section 3). Everything that has
to go together with a channel - the filter that makes it, its entries in the norm, the weights that
read it - carries the same number.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from slimming.graph.branches import Branch
from slimming.modules.widths import Widths
from slimming.rules.channel_ids import NONE


@dataclass(frozen=True)
class Streams:
    """Shared streams: channels that stay because others may read them, until nobody does.

    Where every BatchNorm that reads a stream (pre-activation ResNet, DenseNet) has dropped one of
    its channels, the channel itself can go: exact and free. The paper doesn't do it. Numbered here
    from 0 are the channels that only channel selections read.
    """

    size: int = 0
    dims: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # as in ChannelGraph
    inputs: dict[str, Tensor] = field(default_factory=dict)  # gate -> channel at each input place
    index: dict[str, Tensor] = field(default_factory=dict)  # gate -> place that each gamma reads

    def read(self, alive: Mapping[str, Tensor]) -> Tensor:
        """(size,) bool: the channels that somebody still reads, and one of each layer at least.

        Args:
            alive: {gate: (gammas,) bool}.
        """
        read = torch.zeros(self.size, dtype=torch.bool)
        for gate, inputs in self.inputs.items():
            channels = inputs[self.index[gate]][alive[gate]]
            read[channels[channels != NONE]] = True
        for ids in self.dims.values():
            if (ids != NONE).all() and not read[ids].any():
                read[ids[0]] = True
        return read


@dataclass(frozen=True)
class Product:
    """Multiplications of one operation: `times` for each choice of one channel per factor.

    A factor is (channels, stream channels) at each of its places; -1: what is there stays.
    """

    times: float  # per image
    factors: tuple[tuple[Tensor, Tensor], ...]


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
    uses: dict[str, int]  # weight of a layer -> how often it is called
    folds: dict[str, str]  # layer -> the BatchNorm that alone reads its output
    fixed: dict[str, str]  # BatchNorm that can't be cut -> why
    gammas: dict[str, str] = field(default_factory=dict)  # gate -> the tensor of its gammas
    writes: tuple[tuple[str, int], ...] = ()  # the weight dimensions that make channels
    products: tuple[Product, ...] = ()  # all multiplications
    streams: Streams = field(default_factory=Streams)  # channels that may end up unread
    branches: tuple[Branch, ...] = ()  # that can go as a whole
    widths: Widths = field(default_factory=dict)  # numbers in the network's attributes
    notes: tuple[str, ...] = ()  # what limits all of this

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

    def explain(self) -> "Explanation":
        """One row per BatchNorm: channels, what is cut with it, or why it stays."""
        members: dict[int, dict[str, None]] = {}
        for (name, dim), channels in self.dims.items():
            for channel in channels.unique().tolist():
                members.setdefault(channel, {})[f"{name}[{dim}]"] = None
        rows = []
        for gate, ids in self.gates.items():
            mine = {f"{name}[{dim}]" for name, dim in self.dims if name.startswith(f"{gate}.")}
            together = dict.fromkeys(m for i in ids.unique().tolist() for m in members[i])
            how = "through channel selection" if gate in self.selecting else "cut"
            others = [member for member in together if member not in mine]
            rows.append({"gate": gate, "channels": len(ids), "how": how, "with": others})
        for norm, reason in self.fixed.items():
            channels = self.shapes.get(f"{norm}.weight", (0,))[0]
            rows.append({"gate": norm, "channels": channels, "how": f"stays: {reason}", "with": []})
        return Explanation(rows, self.notes)


class Explanation(list):
    """Rows as data; printed, a table."""

    def __init__(self, rows: Sequence[dict[str, Any]], notes: Sequence[str] = ()):
        super().__init__(rows)
        self.notes = tuple(notes)

    def __str__(self) -> str:
        if not self:
            return "\n".join(["no BatchNorm with channels of its own", *self.notes])
        widths = [max(len(str(row[key])) for row in self) for key in ("gate", "channels")]
        lines = []
        for row in self:
            line = f"{row['gate']:<{widths[0]}}  {row['channels']:>{widths[1]}}  {row['how']}"
            if row["with"]:
                shown = ", ".join(row["with"][:4])
                more = len(row["with"]) - 4
                line += f" with {shown}" + (f" and {more} more" if more > 0 else "")
            lines.append(line)
        return "\n".join([*lines, *self.notes])
