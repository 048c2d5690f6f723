"""Means over seeds, and the lines of a table that they make.

A `Point` is a group of rows (see `table.rows`) that differ in their seed and in nothing else:
tables, plots and the page take their means from here. A `Line` is what became of one network.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from utils.report import groups
from utils.report.table import AFTER

Row = dict[str, Any]
Chain = Sequence[dict[str, Any]]
CUT = re.compile(r"^cut (?!\+ ).*?(?= \+ |$)")  # "cut 50 %", "cut to macs 0.5", before " + refit"


@dataclass(frozen=True, eq=False)
class Point:
    """One network at one step, over its seeds. Accuracies are fractions, times ms."""

    rows: tuple[Row, ...]
    chain: Chain  # the runs that led to the first of the rows
    settings: Mapping[str, Any]  # theirs, without what came after this step

    def __getitem__(self, column: str) -> Any:
        """What all rows have in common: network, lambda, ratio, step, ..."""
        return self.rows[0][column]

    @property
    def what(self) -> str:
        """The step without its ratio: "trained", "cut", "cut + recalibrated", "fine-tuned"."""
        return what(self.rows[0])

    @property
    def n(self) -> int:
        return len(self.rows)

    def values(self, column: str) -> list[float]:
        """Times of two machines are none."""
        if "latency" in column and len({row["timed_on"] for row in self.rows} - {None}) > 1:
            return []
        return [row[column] for row in self.rows if row[column] is not None]

    def mean(self, column: str) -> float | None:
        """None unless every seed has a value."""
        values = self.values(column)
        return fmean(values) if len(values) == self.n else None

    def spread(self, column: str) -> float | None:
        """Standard deviation over seeds (n - 1), None for one seed."""
        values = self.values(column)
        return stdev(values) if len(values) == self.n > 1 else None

    def percent(self, column: str = "test") -> str:
        """ "97.43 ± 0.31" """
        mean, spread = self.mean(column), self.spread(column)
        if mean is None:
            return "-"
        return f"{100 * mean:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")

    def by_seed(self, column: str = "test") -> dict[int, float]:
        """{seed: accuracy in %}"""
        return {row["seed"]: 100 * row[column] for row in self.rows if row[column] is not None}


@dataclass(frozen=True, eq=False)
class Line:
    """One network: what it is now, and each step on its way there."""

    end: Point
    steps: Mapping[str, Point]  # {"trained": ..., "cut": ..., "cut + recalibrated": ..., ...}


def points(
    rows: Iterable[Row], paths: Mapping[str, Chain], known: Mapping[str, dict[str, Any]]
) -> list[Point]:
    """Groups that differ in their seed only. Where one seed has two values they stay apart.

    Args:
        rows, paths, known: of `table`.
    """
    found: dict[tuple, dict[tuple, Row]] = {}
    for row in rows:  # a plain cut is part of every kind of cut: one value is one value
        same = found.setdefault((row["group"], row["step"]), {})
        same.setdefault((row["seed"], row["test"]), row)
    return [
        _point(part, paths, known)
        for same in found.values()
        for part in _parts([*same.values()])
    ]  # fmt: skip


def _parts(rows: list[Row]) -> list[list[Row]]:
    alone = len({row["seed"] for row in rows}) < len(rows)
    return [[row] for row in rows] if alone else [rows]


def _point(
    rows: Sequence[Row], paths: Mapping[str, Chain], known: Mapping[str, dict[str, Any]]
) -> Point:
    chain = paths[rows[0]["run"]]
    return Point(tuple(rows), chain, groups.of_chain(chain, _later(rows[0]), known))


def _later(row: Row) -> frozenset[str]:
    """The settings of a cut that came after this step, so that they can't have changed it."""
    if row["stage"] != "prune":
        return frozenset()
    suffix = "recalibrated" if "recalibrated" in row["step"] else "compensated"
    return AFTER[suffix if row["repair"] else "cut"]


def what(row: Row) -> str:
    step = CUT.sub("cut", row["step"])
    return "trained" if step in ("baseline", "sparse") else step


def lines(rows: Sequence[Row], paths: Mapping[str, Chain], points: Sequence[Point]) -> list[Line]:
    """One for each first training, each fine-tuning, and each that nothing more was done to.

    Args:
        rows, paths, points: all of them; of a step that several cuts share one row is in a point.
    """
    at = {_place(row): point for point in points for row in point.rows}
    by_run: dict[str, list[Row]] = {}
    for row in rows:
        by_run.setdefault(row["run"], []).append(row)
    parents = {run["run"] for path in paths.values() for run in path[:-1]}
    ends = [own[-1] for run, own in by_run.items() if _is_end(own[-1], run in parents)]
    made: dict[Point, Line] = {}
    for row in ends:
        end = at[_place(row)]
        before = [step for run in paths[row["run"]] for step in by_run[run["run"]]]
        made.setdefault(end, Line(end, {what(step): at[_place(step)] for step in before}))
    passed = {p for line in made.values() for p in line.steps.values() if p is not line.end}
    # A cut whose other seeds were fine-tuned stands in their line.
    return [line for end, line in made.items() if _is_end(end, end in passed)]


def _is_end(step: Row | Point, has_children: bool) -> bool:
    """What was trained again or cut is on the way to something; the rest is a result by itself."""
    first = step["stage"] == "train" and step["pass"] == 1
    return first or step["stage"] == "finetune" or not has_children


def _place(row: Row) -> tuple:
    """What a row shares with those that its point stands for."""
    return tuple(row[column] for column in ("group", "step", "seed", "test"))
