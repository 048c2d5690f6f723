"""What is planned, and what it will cost."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from slimming.graph import ChannelGraph
from slimming.graph.slices import UNREAD
from slimming.planning.choice import Removed
from slimming.planning.counting import Counter
from slimming.planning.ranking import Ranking

Unread = Literal["keep", "remove"]


@dataclass(frozen=True)
class Plan(Mapping[str, Tensor]):
    """{gate: indices of the channels that stay, sorted}, and what it will cost.

    With unread="remove" it says so under UNREAD, so that a plain copy does, too.
    """

    keep: dict[str, Tensor]
    kept: int  # channels of all gates together
    total: int
    params: int  # predicted, exact
    macs: int  # predicted, of the convolutions and linear layers, for one image
    shortfalls: tuple[str, ...] = field(default=())  # what was asked for and isn't met, and why
    fingerprint: str = ""  # of the graph it was made for
    safe_ratio: float = 1.0  # the highest at which the ranking empties no layer; 1: all of them
    free: int = 0  # channels that might go: all but what `exclude` and `only` hold back
    latency: float | None = None  # measured, if it was a target: share of the dense network's time

    @property
    def ratio(self) -> float:
        """The share removed of the channels that might go."""
        return 1 - (self.free - (self.total - self.kept)) / self.free if self.free else 0.0

    def __getitem__(self, gate: str) -> Tensor:
        return self.keep[gate]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keep)

    def __len__(self) -> int:
        return len(self.keep)


class Drafts:
    """Plans, and what they cost, from how many channels each layer loses."""

    def __init__(self, graph: ChannelGraph, ranking: Ranking, unread: Unread):
        self._graph, self._ranking, self._unread = graph, ranking, unread
        self._count, self._fingerprint = Counter(graph, unread == "remove"), graph.fingerprint

    def plan(self, removed: Removed, **more: Any) -> Plan:
        stays = self._ranking.stays(removed)
        keep = {gate: stays[ids].nonzero().flatten() for gate, ids in self._graph.gates.items()}
        keep |= {UNREAD: torch.zeros(0, dtype=torch.long)} if self._unread == "remove" else {}
        kept, (params, macs) = int(stays.sum()), self._count(stays)
        known = {"fingerprint": self._fingerprint, "free": len(self._ranking.sequence)}
        return Plan(keep, kept, len(stays), params, macs, **known, **more)

    def costs(self, removed: Removed) -> dict[str, float]:
        params, macs = self._count(self._ranking.stays(removed))
        return {"params": params, "macs": macs}
