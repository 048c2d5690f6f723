"""A whole comparison at a glance: means over seeds, one line per network and ratio.

A `Point` is a group of rows (see `table.rows`) that differ in their seed and in nothing else:
tables, plots and the page take their means from here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from utils.report import groups
from utils.report.table import AFTER
from utils.runs.units import si

Row = dict[str, Any]
LINE = ("recipe", "network", "data", "lambda", "ratio", "target", "pass", "method")
CUT = re.compile(r"^cut ([\d.]+ %|to [^+]*[^+ ])")  # "cut 50 %", "cut to macs 0.5"


@dataclass(frozen=True)
class Point:
    """One network at one step, over its seeds. Accuracies are fractions, times ms."""

    rows: tuple[Row, ...]

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
        """ "97.43 ± 0.31 (n = 5)" """
        mean, spread = self.mean(column), self.spread(column)
        if mean is None:
            return "-"
        more = "" if spread is None else f" ± {100 * spread:.2f} (n = {self.n})"
        return f"{100 * mean:.2f}{more}"


def points(rows: Iterable[Row]) -> list[Point]:
    """Groups that differ in their seed only. Where one seed has two values they stay apart."""
    found: dict[tuple, dict[tuple, Row]] = {}
    for row in rows:  # a plain cut is part of every kind of cut: one value is one value
        same = found.setdefault((row["group"], row["step"]), {})
        same.setdefault((row["seed"], row["test"]), row)
    return [
        Point(tuple(part))
        for same in found.values()
        for part in _parts([*same.values()])
    ]  # fmt: skip


def _parts(rows: list[Row]) -> list[list[Row]]:
    alone = len({row["seed"] for row in rows}) < len(rows)
    return [[row] for row in rows] if alone else [rows]


def what(row: Row) -> str:
    step = CUT.sub("cut", row["step"])
    return "trained" if step in ("baseline", "sparse") else step


def line(row: Row | Point) -> tuple:
    """What a line of the table stands for."""
    return tuple(row[column] for column in LINE)


def by_line(items: Iterable[Any]) -> dict[tuple, list[Any]]:
    """Rows or points of one line of the table together, in their order."""
    found: dict[tuple, list[Any]] = {}
    for item in items:
        found.setdefault(line(item), []).append(item)
    return found


def goal(row: Row | Point) -> str:
    """What a cut was asked for: "0.7", "macs 0.5", or "-" before any."""
    return row["target"] or ("-" if row["ratio"] is None else f"{row['ratio']:g}")


def by_ratio(rows: Sequence[Row]) -> pd.DataFrame:
    """Text: test accuracy in % right after training, after each kind of cut, after fine-tuning.

    Args:
        rows: of one recipe.

    Seeds become mean ± standard deviation (n); what differs in anything else is shown one by one,
    "87.10 / 86.20": see `apart`.
    """
    several = {column: len({row[column] for row in rows}) > 1 for column in ("pass", "method")}
    timed = any(row["latency_64_ms"] is not None for row in rows)
    lines = []
    for members in by_line(rows).values():
        first = members[0]
        uncut = first["ratio"] is None and first["target"] is None
        text = {
            "network": first["network"],
            "data": first["data"],
            **({"method": "-" if uncut else first["method"]} if several["method"] else {}),
            "λ": f"{first['lambda']:g}",
            "ratio": goal(first),
            **({"pass": f"{first['pass']:g}"} if several["pass"] else {}),
            "channels": _costs(members, "kept", lambda mean: f"{100 * mean:.0f} %", "total"),
            "params": _costs(members, "params", si),
            "MACs": _costs(members, "macs", si),
            **({"ms / 64": _costs(members, "latency_64_ms", "{:.3g}".format)} if timed else {}),
        }
        cells: dict[str, dict[str, None]] = {}
        for point in points(members):
            cells.setdefault(point.what, {})[point.percent()] = None
        lines.append({**text, **{step: " / ".join(values) for step, values in cells.items()}})
    data = pd.DataFrame(lines).fillna("-")
    cuts = [column for column in data if column.startswith("cut")]
    after = dict.fromkeys(map(what, rows))
    after = [column for column in after if column not in {"trained", *cuts}]
    return data[[column for column in data if column not in after] + after]


def _costs(rows: Sequence[Row], column: str, convert, whole: str | None = None) -> str:
    """The mean over seeds of each shape; shapes that differ are shown one by one."""
    shapes: dict[str, dict[tuple, float]] = {}
    for row in rows:
        if row[column] is not None:
            value = row[column] / (row[whole] or 1) if whole else row[column]
            shapes.setdefault(row["shape"], {})[row["seed"], value] = value
    cells = []
    for same in shapes.values():
        alone = len({seed for seed, _ in same}) < len(same)
        cells += map(convert, same.values()) if alone else [convert(fmean(same.values()))]
    return " / ".join(dict.fromkeys(cells)) or "-"


def apart(rows: Sequence[Row], paths: Mapping[str, Sequence[dict]]) -> list[str]:
    """Why some cells of `by_ratio` hold several values: which settings differ, one line each.

    Args:
        paths: {run: the chain that ends in it}, of `utils.report.table.paths`.
    """
    said: dict[tuple, list[str]] = {}
    for members in by_line(rows).values():
        steps: dict[str, list[Point]] = {}
        for point in points(members):
            steps.setdefault(point.what, []).append(point)
        for step, several in steps.items():
            if len({point.percent() for point in several}) > 1:
                why = _why(several, paths)
                said.setdefault((_title(members[0]), why), []).append(step)
    return [f"{title}: {', '.join(steps)} differ in {why}" for (title, why), steps in said.items()]


def _why(several: Sequence[Point], paths: Mapping[str, Sequence[dict]]) -> str:
    first = several[0].rows[0]
    # The same choice as in the rows: what follows a step can't have changed it.
    suffix = "recalibrated" if "recalibrated" in first["step"] else "compensated"
    after = AFTER[suffix if "+" in first["step"] else "cut"] if first["stage"] == "prune" else ()
    chains = [paths[point["run"]] for point in several]
    found = groups.differences(chains, after)
    if found and "seed" not in found:
        return groups.say(found)
    names = ", ".join(point["run"] for point in several)
    return f"something their configs don't tell: one seed has several results ({names})"


def _title(row: Row) -> str:
    cut = "" if goal(row) == "-" else f", ratio {goal(row)}"
    return f"{row['network']} on {row['data']}, λ {row['lambda']:g}{cut}"
