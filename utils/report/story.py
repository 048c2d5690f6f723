"""What finished runs have to tell: each step is made once, and all plots and pages share it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from utils.report import table
from utils.report.compare import Contest, contests
from utils.report.knee import Knee, knee, sweeps
from utils.report.summary import Point, points


@dataclass(frozen=True)
class Story:
    """All that a plot or a page may show: `runs` as `utils.runs.results.find_runs` gives them."""

    runs: Sequence[dict[str, Any]]

    @cached_property
    def alone(self) -> bool:
        """Whether all is about one network on one data set: then no plot needs to say so."""
        return len({(row["network"], row["data"], row["recipe"]) for row in self.rows}) == 1

    @cached_property
    def by_name(self) -> dict[str, dict[str, Any]]:
        return {run["run"]: run for run in self.runs}

    @cached_property
    def chains(self) -> list[list[dict[str, Any]]]:
        return table.chains(self.runs)

    @cached_property
    def paths(self) -> dict[str, list[dict[str, Any]]]:
        return table.paths(self.runs)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return table.rows(self.runs)

    @cached_property
    def points(self) -> list[Point]:
        return points(self.rows)

    @cached_property
    def contests(self) -> list[Contest]:
        return contests([*self.paths.values()])

    @cached_property
    def sweeps(self) -> dict[tuple, list[Point]]:
        return sweeps(self.points)

    @cached_property
    def knees(self) -> dict[tuple, Knee | None]:
        """The knee of each sweep, None where nothing may be chosen."""
        return {key: knee(points, self.paths) for key, points in self.sweeps.items()}
