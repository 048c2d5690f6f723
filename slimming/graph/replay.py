"""The second run: the network once more, thinner, to see that nothing else depends on a width.

Same operations, same numbers, same order, and every value holds just the channels that stay: then
the code counts on no size that a cut changes. What differs is named, with its line.
"""

import math
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slimming.graph.assemble import Discovery, Run
from slimming.graph.channel_graph import ChannelGraph
from slimming.graph.record import OURS, TORCH, Record, Recorder
from slimming.graph.twin import Twin, stored
from slimming.rules.call import Call, Found, Planes
from slimming.rules.channel_ids import NONE, Ids, varying


class Differs(Exception):
    """The thin network does something else, from operation number `at` on."""

    def __init__(self, run: Run, at: int, reason: str, where: str = ""):
        super().__init__(reason)
        self.run, self.at, self.reason = run, at, reason
        at = min(at, len(run.records) - 1)
        self.where = where or run.records[at].call.where

    def met(self, found: Discovery) -> dict[str, list[Tensor]]:
        """{module that runs the line which differs: channels that meet there}."""
        met: dict[str, list[Tensor]] = {}
        for record in self._near(alike=True):
            planes = [p for of in (*record.before, *record.after) for p in of]
            for plane in planes:
                if len(varying(plane)) == 1:
                    met.setdefault(record.call.layer, []).append(found.numbers(plane.flatten()))
        return met

    def _near(self, alike: bool) -> list[Record]:
        here = self.run.records[min(self.at, len(self.run.records) - 1)]
        lines = {self.where, here.call.where} if alike else set()
        return [here, *(record for record in self.run.records if record.call.where in lines)]

    def gates(self, found: Discovery, alike: bool) -> set[str]:
        """Those whose channels meet in the operation that differs; in all of its line, if alike."""
        near = self._near(alike)
        planes = [p for r in near for of in (*r.before, *r.after) for p in of]
        ids = torch.cat([torch.zeros(0, dtype=torch.long), *(p[p != NONE] for p in planes)])
        channels = found.numbers(ids.unique())
        gates = found.graph.gates.items()
        return {gate for gate, own in gates if torch.isin(own, channels).any()}


class Parted(Exception):
    """Values decide what runs from here on, and they are others: nothing is left to compare."""


def grouped_gates(graph: ChannelGraph) -> list[frozenset[str]]:
    """Gates that share channels, together."""
    groups: list[tuple[set[str], set[int]]] = []
    for gate, own in graph.gates.items():
        gates, channels = {gate}, set(own.tolist())
        apart = []
        for other in groups:
            if other[1] & channels:
                gates, channels = gates | other[0], channels | other[1]
            else:
                apart.append(other)
        groups = [*apart, (gates, channels)]
    return [frozenset(gates) for gates, _ in groups]


def trial(
    found: Discovery, whole: Collection[str], seed: int, least: int = 2
) -> tuple[dict[str, Tensor], Tensor]:
    """A random plan that cuts every gate but these: what it keeps, and which channels stay.

    Args:
        least: entries of every dimension that stay; two, since a size of 1 means something else to
            some operations. Where it can be, an odd number of channels stays.
    """
    graph = found.graph
    generator = torch.Generator().manual_seed(seed)
    stays = torch.rand(graph.num_channels, generator=generator) > 0.4
    for own in graph.gates.values():
        kinds = own.unique()
        if len(kinds) > 4:  # what counts on a place counts on the first or the last
            stays[kinds[[0, -1]]] = False
        left = kinds[stays[kinds]]
        if len(left) > 3 and len(left) % 2 == 0 or len(left) == len(kinds) > least:
            stays[left[-1]] = False
    for gate in whole:
        stays[graph.gates[gate]] = True
    for own in graph.dims.values():
        enough = min(least, len(own))
        gone = (own != NONE) & ~stays[own]
        if len(own) - int(gone.sum()) >= enough:
            continue
        for channel in own[gone].unique().tolist():
            stays[channel] = True
            if int(((own == NONE) | stays[own]).sum()) >= enough:
                break
    if stays.all():
        return {}, stays
    keep = {gate: stays[own].nonzero().flatten() for gate, own in graph.gates.items()}
    return keep, stays


def replay(
    twin: Twin, run: Run, ids: "Thinned", picks: Mapping[str, Tensor], follow: bool = True
) -> None:
    """Run the twin, which was made thin, in the mode of `run`, and hold it against that.

    Args:
        picks: {path of a channel selection: the channels that it selects}.
        follow: the ids, too, not only the operations and their numbers.

    Raises:
        Differs: it does something else.
    """
    found = Found(twin.batch, ids=ids, choices=run.found.choices)
    recorder = Replay(found, picks, run, follow)
    for name, tensor in stored(twin.model).items():
        found.store(name, tensor)
    try:
        with twin.running():
            recorder.run(twin, run.training)
    except Differs:
        raise
    except Parted:
        return
    except Exception as error:  # whatever the network's own code raises
        where = _last_line(error)
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        at = len(recorder.records)
        raise Differs(run, at, f"{where} fails where it is thinner: {line}", where) from error
    if len(recorder.records) < len(run.records) and not recorder.values_decide:
        at = len(recorder.records)
        raise Differs(run, at, f"{run.records[at].call} doesn't run where it is thinner")


def _last_line(error: Exception) -> str:
    """The last line of the user's code that ran."""
    lines = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((OURS, TORCH, "<"))
    ]
    return lines[-1] if lines else "a layer"


class Thinned(Ids):
    """The ids of a network whose channels were found, without those that were cut."""

    def __init__(self, found: Discovery, run: Run, stays: Tensor):
        """stays: (channels of the graph,) bool."""
        super().__init__()
        self._whole = run.found.ids
        here = torch.cat([stays, torch.ones(1, dtype=torch.bool)])
        # Of each id; the last entries are those of NONE.
        self._kind = torch.cat([found.classes, torch.full((1,), NONE)])
        self._here = here[found.channel[self._kind]]
        first, last = run.made
        self._next = iter(self._whole.made[first:last])
        self.origin, self.in_groups = self._whole.origin, self._whole.in_groups

    def here(self, ids: Tensor) -> Tensor:
        """Which of these are there."""
        return self._here[ids]

    def kind(self, ids: Tensor) -> Tensor:
        return self._kind[ids]

    def number(self, name: str, dim: int, size: int) -> Tensor:
        dims = self._whole.dims
        own = dims.get((name, dim), dims.get((name.replace(".norm.", "."), dim)))  # it selects now
        if own is None:
            return torch.full((size,), NONE)
        own = own[self.here(own)]
        return own if len(own) == size else torch.full((size,), NONE)

    def fresh(self, size: int) -> Tensor:
        own = next(self._next, None)
        own = torch.zeros(0, dtype=torch.long) if own is None else own[self.here(own)]
        if len(own) != size:
            raise ValueError(f"{size} instead of {len(own)} entries")
        return own

    def owners(self, ids: Tensor) -> list[tuple[str, int]]:
        return self._whole.owners(ids)

    def run_of(self, ids: Tensor) -> Tensor:
        return self._whole.run_of(ids)

    def mark(self, ids: Tensor, origin: int) -> None:
        pass

    def pin(self, ids: Tensor, reason: str) -> None:
        pass

    def tie(self, a: Tensor, b: Tensor, reason: str) -> None:
        a, b = self.kind(a), self.kind(b)
        if not ((a == b) | (a == NONE) | (b == NONE)).all():
            raise ValueError("other channels meet")


class Replay(Recorder):
    """Runs the thin network and holds each operation against what the whole one did."""

    def __init__(self, found: Found, picks: Mapping[str, Tensor], run: Run, follow: bool):
        super().__init__(found, picks)
        self._follow = follow
        self._expected, self._of = run.records, run
        self.values_decide = False  # how much there is, as of which boxes overlap

    def _see(self, call: Call) -> None:
        at = len(self.records)
        if at >= len(self._expected):
            if self.values_decide:
                raise Parted
            raise Differs(self._of, at, f"{call} runs only where it is thinner")
        expected = self._expected[at]
        self._compare(at, call, expected.call)
        self.values_decide |= torch.Tag.dynamic_output_shape in call.tags
        if not self._follow:
            self.records.append(Record.of(call, [], []))  # what is held is detached
            return
        try:
            super()._see(call)
        except (ValueError, RuntimeError, IndexError) as error:
            if self.values_decide:
                raise Parted from error
            raise Differs(self._of, at, f"{expected.call} counts on its size") from error
        here = self.records[at]
        for shapes, planes in zip(
            zip(here.shapes, expected.shapes), zip(expected.after, here.after)
        ):
            if not self._agrees(*shapes, *planes):
                raise Differs(self._of, at, f"{expected.call} counts on its size")

    def _see_module(self, path, module, rule, args, kwargs, output) -> None:
        if self._follow:
            super()._see_module(path, module, rule, args, kwargs, output)
        elif rule != self._pick:
            self.records += self._expected[len(self.records) : len(self.records) + 1]

    def _compare(self, at: int, call: Call, whole: Call) -> None:
        if call.name != whole.name and self.values_decide:
            raise Parted
        if call.name != whole.name or len(call.outputs) != len(whole.outputs):
            raise Differs(self._of, at, f"{whole} becomes {call} where it is thinner")
        numbers = call.numbers
        if not all(_equal(value, numbers.get(name)) for name, value in whole.numbers.items()):
            why = f"{whole} computes with a number that follows its width"
            raise Differs(self._of, at, why)

    def _agrees(self, shape: torch.Size, whole: torch.Size, of: Planes, planes: Planes) -> bool:
        """Whether the thin value is the whole one without the channels that were cut."""
        ids: Thinned = self.found.ids
        if len(shape) != len(whole) or len(of) != len(planes):
            return False
        follows = {d for plane in of for d in varying(plane)}
        others = [d for d in range(len(whole)) if d not in follows]
        if not self.values_decide and any(shape[d] != whole[d] for d in others):
            return False
        for plane, thin in zip(of, planes):
            dims = varying(plane)
            sizes = [n if d in dims else 1 for d, n in enumerate(shape)]
            left = ids.kind(plane[ids.here(plane)])
            if left.numel() != math.prod(sizes):
                return False
            if not torch.equal(ids.kind(thin).expand(sizes).flatten(), left):
                return False
        return True


def _equal(a: Any, b: Any) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and a != a and b != b)
