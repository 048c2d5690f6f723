"""How many channels have to go until a network costs no more than was asked for."""

import heapq
import math
from collections.abc import Callable, Mapping
from decimal import Decimal

from slimming.planning.choice import Choice, Removed

WORDS = {"macs": "MACs", "params": "parameters", "latency": "time"}
CLOSE = 0.99  # of a budget: it is met

Costs = dict[str, float]  # {"params": ..., "macs": ..., "latency": share of the dense network's}


def check_target(target: Mapping[str, float]) -> None:
    """Raise ValueError unless this is {"macs" | "params" | "latency": a number above 0}."""
    if not isinstance(target, Mapping) or not target or not target.keys() <= WORDS.keys():
        raise ValueError(f"target is {{name: number}} with {', '.join(WORDS)}; got {target!r}")
    for name, value in target.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ValueError(
                f"target.{name} is a share of the dense network's {WORDS[name]}, 0 < share <= 1, "
                f"or their number; got {value!r}"
            )
    if target.get("latency", 0) > 1:
        raise ValueError(
            f"target.latency is a share of the dense network's time, 0 < share <= 1: milliseconds "
            f"belong to one machine; got {target['latency']!r}"
        )


class Budget:
    """Limits on the costs of a network, and what a choice of channels comes to.

    Args:
        target: as checked by `check_target`.
        dense: costs of the network before the cut.
        count: what each layer loses -> parameters and MACs.
        measure: the same -> share of the dense network's time; used for target.latency only.
    """

    def __init__(
        self,
        target: Mapping[str, float],
        dense: Costs,
        count: Callable[[Removed], Costs],
        measure: Callable[[Removed], float],
    ):
        self.target, self._dense = target, {**dense, "latency": 1.0}
        self._limits = {name: self._limit(name, value) for name, value in target.items()}
        self._count, self._measure = count, measure
        self._times: dict[tuple[int, ...], float] = {}

    def costs(self, removed: Removed) -> Costs:
        """{target: cost}. Time is taken only where the rest holds, and once for each choice."""
        counted = self._count(removed)
        costs = {name: counted[name] for name in self.target if name in counted}
        if "latency" in self.target and self._hold(costs):
            costs["latency"] = self._time(removed)
        return costs

    def met(self, removed: Removed) -> bool:
        return self._hold(self.costs(removed))

    def close(self, removed: Removed) -> list[str]:
        """The targets that are met to within 1 %."""
        costs = self.costs(removed)
        return [name for name in costs if costs[name] >= CLOSE * self._limits[name]]

    def meet(self, choice: Choice) -> tuple[int, Removed, list[int]]:
        """As few channels along the ranking as it takes.

        Returns:
            Their number, what each layer loses, and the rest of what `Choice.along` gives.

        Raises:
            ValueError: all that may go is too little.
        """
        goal = self._search(lambda count: choice.along(count)[0], len(choice.ranking.sequence))
        removed, saved = choice.along(goal)
        if "latency" not in self.target:
            removed = self._put_back(removed, choice)
        return goal, removed, saved

    def gaps(self, removed: Removed) -> list[str]:
        """One sentence per target that is met, but not to within 1 %, and why."""
        costs, close = self.costs(removed), self.close(removed)
        nearest = "was timed nearer" if "latency" in self.target else "that may stay still fits"
        why = f"target.{close[0]} binds" if close else f"nothing {nearest}"
        return [
            f"{self._say(name, cost)} stay although target.{name}={self.target[name]:g}: "
            f"{why if any(removed) else 'nothing has to go'}"
            for name, cost in costs.items()
            if name not in close
        ]

    def _search(self, choose: Callable[[int], Removed], most: int) -> int:
        """A number of channels that meets the limits while one less doesn't."""
        if self.met(choose(0)):
            return 0
        if not self.met(choose(most)):
            raise ValueError(self._out_of_reach(choose(most)))
        few, enough = 0, most
        while enough - few > 1:
            middle = (few + enough) // 2
            if not self.met(choose(middle)):
                few = middle
                continue
            enough = middle
            if "latency" in self.target and self.close(choose(enough)):
                break  # timing is slow, and what is finer than this is noise
        return enough

    def _put_back(self, removed: Removed, choice: Choice) -> Removed:
        """Give channels back, the strongest first, until the limits are met to within 1 %."""
        sizes, removed = choice.ranking.sizes, list(removed)
        positions: list[list[int]] = [[] for _ in sizes]
        for position, layer in enumerate(choice.ranking.sequence):
            positions[layer].append(position)
        queue = [
            (-positions[layer][gone - 1], layer)
            for layer, (gone, size) in enumerate(zip(removed, sizes))
            if 0 < gone < size  # a branch that went stays away
        ]
        heapq.heapify(queue)
        while queue and not self.close(removed):
            _, layer = heapq.heappop(queue)
            kept = sizes[layer] - removed[layer]
            more = min((k for k in choice.options[layer] if k > kept), default=kept)
            trial = [*removed[:layer], sizes[layer] - more, *removed[layer + 1 :]]
            if more > kept and self.met(trial):  # else it never will, with more channels elsewhere
                removed = trial
                if removed[layer]:
                    heapq.heappush(queue, (-positions[layer][removed[layer] - 1], layer))
        return removed

    def _limit(self, name: str, value: float) -> float:
        if name == "latency":
            return value
        return int(Decimal(str(value)) * self._dense[name]) if value <= 1 else math.floor(value)

    def _hold(self, costs: Costs) -> bool:
        return all(value <= self._limits[name] for name, value in costs.items())

    def _time(self, removed: Removed) -> float:
        if not any(removed):
            return 1.0
        key = tuple(removed)
        if key not in self._times:
            share = self._measure(removed)
            if not 0 < share < math.inf:
                raise ValueError(f"measure says the thin network takes {share!r} of the time")
            self._times[key] = share
        return self._times[key]

    def _out_of_reach(self, removed: Removed) -> str:
        costs = self.costs(removed)
        over = [name for name, value in costs.items() if value > self._limits[name]]
        asked = " and ".join(f"target.{name}={self.target[name]:g}" for name in over)
        least = " and ".join(self._say(name, costs[name]) for name in over)
        return f"{asked} can't be reached: with every layer at its least, {least} stay"

    def _say(self, name: str, cost: float) -> str:
        share = f"{100 * cost / self._dense[name]:.4g} % of the {WORDS[name]}"
        return share if name == "latency" else f"{share} ({cost:,})"
