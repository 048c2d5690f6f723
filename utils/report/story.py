"""What finished runs have to tell: each step is made once, and all plots and pages share it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from utils.report import groups, table
from utils.report.compare import Contest, contests
from utils.report.knee import Sweep, sweeps
from utils.report.label import labels
from utils.report.summary import Line, Point, lines, points
from utils.report.together import regime


@dataclass(frozen=True)
class Story:
    """All that a plot or a page may show: `runs` as `utils.runs.results.find_runs` gives them."""

    runs: Sequence[dict[str, Any]]

    @cached_property
    def by_name(self) -> dict[str, dict[str, Any]]:
        return {run["run"]: run for run in self.runs}

    @cached_property
    def paths(self) -> dict[str, list[dict[str, Any]]]:
        return table.paths(self.runs)

    @cached_property
    def settings(self) -> dict[str, dict[str, Any]]:
        return {run["run"]: groups.settings(run) for run in self.runs}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return table.rows(self.paths, self.settings)

    @cached_property
    def points(self) -> list[Point]:
        return points(self.rows, self.paths, self.settings)

    @cached_property
    def lines(self) -> list[Line]:
        return lines(self.rows, self.paths, self.points)

    @cached_property
    def names(self) -> dict[Point, str]:
        """What the end of each line is called, wherever it is shown."""
        return labels([line.end for line in self.lines])

    @cached_property
    def dense(self) -> dict[str, Point]:
        """{regime: the uncut network without a penalty}, what all of its kind are measured by."""
        found = {}
        for line in self.lines:
            told = line.end.settings
            # A method of one's own may train in its way without any lambda.
            plain = not any(name.startswith("train: method") for name in told)
            if plain and told["stages"] == ["train"] and not line.end["lambda"]:
                found.setdefault(regime(line.end), line.end)
        return found

    @cached_property
    def contests(self) -> list[Contest]:
        return contests([line.end for line in self.lines])

    @cached_property
    def sweeps(self) -> list[Sweep]:
        return sweeps(self.lines)
