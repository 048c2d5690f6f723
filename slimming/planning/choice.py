"""How many channels each layer loses when so many go: floors, branches and widths respected."""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal

from slimming.graph import ChannelGraph
from slimming.planning.names import named
from slimming.planning.ranking import Ranking
from slimming.planning.rounding import Rounding, rounded, settle, widths

Floor = float | Mapping[str, float]
Removed = list[int]  # channels that each layer loses, the weakest first


class Choice:
    """A ranking under constraints.

    Args:
        floor, refill, round_to, rounding: as in `plan`.
        bypass: branches may go as a whole; else no layer goes.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        ranking: Ranking,
        floor: Floor,
        refill: bool,
        round_to: int,
        rounding: Rounding,
        bypass: bool,
    ):
        self.ranking, self.refill = ranking, refill
        self.multiple, self.rounding = round_to, rounding
        self.floors = [_floor(ranking, layer, floor) for layer in range(len(ranking.layers))]
        self.options: list[Sequence[int]] = [
            widths(size, low, round_to, rounding) if round_to > 1 else range(low, size + 1)
            for size, low in zip(ranking.sizes, self.floors)
        ]
        self.branches = _branches(graph, ranking) if bypass else None

    def along(self, goal: int) -> tuple[Removed, list[int]]:
        """Take `goal` channels, then round each layer by itself.

        Returns:
            What each layer loses; and the layers that only their floor has saved although branches
            may go.
        """
        removed, saved = self._take(goal)
        if self.multiple > 1 and goal:
            removed = rounded(removed, self.ranking.sizes, self.options, self.rounding)
        return removed, saved

    def exactly(self, goal: int) -> tuple[Removed, list[int]]:
        """As near to `goal` channels as it gets.

        Rounding up or down, this is the place along the ranking where no more (no fewer) go.
        """
        if self.multiple == 1 or not goal:
            return self._take(goal)
        if self.rounding == "nearest":
            removed, saved = self._take(goal)
            total = goal if self.refill else sum(removed)
            sizes = self.ranking.sizes
            return settle(removed, sizes, self.options, self.multiple, total), saved
        if not self.refill:
            return self.along(goal)
        few, many = 0, len(self.ranking.sequence)  # few: not too many go
        least = goal + 1 if self.rounding == "up" else goal
        if sum(self.along(many)[0]) < least:
            return self.along(many)
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if sum(self.along(middle)[0]) >= least else (middle, many)
        return self.along(few if self.rounding == "up" else many)

    def _take(self, goal: int) -> tuple[Removed, list[int]]:
        """Go along the ranking until `goal` channels are taken."""
        sizes, removed, seen = self.ranking.sizes, [0] * len(self.floors), [0] * len(self.floors)
        taken, saved = 0, []
        for position, layer in enumerate(self.ranking.sequence):
            if taken == goal or (not self.refill and position == goal):
                break
            seen[layer] += 1
            if self.branches is not None and seen[layer] == sizes[layer] != removed[layer]:
                branch = self.branches.get(layer, [])
                rest = sum(sizes[member] - removed[member] for member in branch)
                if branch and taken + rest <= goal:
                    for member in branch:
                        removed[member] = sizes[member]
                    taken += rest
                else:
                    saved.append(layer)
            if sizes[layer] - removed[layer] > self.floors[layer]:
                removed[layer] += 1
                taken += 1
        return removed, saved


def _floor(ranking: Ranking, layer: int, floor: Floor) -> int:
    """The least this layer keeps."""
    own = ranking.layers[layer]
    if layer in ranking.stay:
        return own.size
    if not isinstance(floor, Mapping):
        return _least(own.size, floor)
    fits = [low for glob, low in floor.items() if any(named(glob, name) for name in own.names)]
    return max([1, *(_least(own.size, low) for low in fits)])


def _least(size: int, floor: float) -> int:
    low = math.ceil(Decimal(str(floor)) * size) if floor < 1 else int(floor)
    return min(size, max(1, low))


def _branches(graph: ChannelGraph, ranking: Ranking) -> dict[int, list[int]]:
    """{layer: all layers of the branch it is in}, of branches that may go."""
    found: dict[int, list[int]] = {}
    for branch in graph.branches:
        inside = set(branch.gates)
        layers = [layer for layer, own in enumerate(ranking.layers) if inside & set(own.gates)]
        if not ranking.stay & set(layers):
            found.update(dict.fromkeys(layers, layers))
    return found
