"""Methods against each other at one budget, seed by seed.

A contest holds all networks that differ in nothing but the method (with the penalty it trains
with), and in whether they were fine-tuned or trained from new weights. Differences are paired: both
networks of a pair have the same seed, so the same initial weights and order of images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev

from utils.report.label import labels, titles
from utils.report.summary import Point
from utils.report.together import family, together

REFERENCE = "slimming"
LEAST = 3  # seeds: two that happen to agree have an interval of any width


@dataclass(frozen=True)
class Difference:
    """Of two paired samples, in points of accuracy."""

    mean: float
    half_width: float | None  # of the 95 % confidence interval; None for one pair
    n: int

    @property
    def verdict(self) -> str:
        if self.n == 0:
            return "no seed in common"
        if self.n < LEAST or self.half_width is None:
            return f"{self.n} seed{'s' if self.n > 1 else ''} can't tell"
        # Differences that are all alike have no spread to go by: steps of whole images.
        if not self.half_width or abs(self.mean) <= self.half_width:
            return f"{self.n} seeds can't tell"
        return "better" if self.mean > 0 else "worse"

    def __str__(self) -> str:
        if self.n == 0:
            return "-"
        spread = "" if self.half_width is None else f" ± {self.half_width:.2f}"
        return f"{self.mean:+.2f}{spread}"


@dataclass(frozen=True, eq=False)
class Contest:
    """Networks that met one target."""

    title: str  # what they share
    entrants: Sequence[Point]

    @cached_property
    def names(self) -> dict[Point, str]:
        return labels(self.entrants)

    @cached_property
    def pairs(self) -> list[tuple[Point, Point]]:
        """(a network, what it is compared with), fine-tunings before controls."""
        ordered = sorted(self.entrants, key=lambda point: (is_control(point), point.what))
        return [(ours, other) for ours in ordered for other in self.references(ours)]

    def references(self, ours: Point) -> list[Point]:
        """A control is compared with its own fine-tuning; that with slimming of the same training.

        A method that trains without the penalty has none of these: it meets every lambda.
        """
        if is_control(ours):
            own = together(ours, "control")
            return [o for o in self._tuned if together(o, "control") == own]
        rivals = [o for o in self._tuned if o["epochs"] == ours["epochs"]]
        rivals = [other for other in rivals if other["method"] == REFERENCE]
        same = [other for other in rivals if _training(other) == _training(ours)]
        if ours not in rivals:
            return same or rivals
        # Of several lambdas the rest is compared with the one of most seeds, the lowest of those.
        first = max(rivals, key=lambda other: (other.n, -other["lambda"]))
        return [] if ours is first else [first]

    @cached_property
    def _tuned(self) -> list[Point]:
        return [point for point in self.entrants if not is_control(point)]


def is_control(point: Point) -> bool:
    return point.what.startswith("scratch")


def _training(point: Point) -> str:
    return together(point, "cut", "after", "stages")


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """Mean of ours - theirs over the seeds that both have, with Student's 95 % interval."""
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    n = len(differences)
    if n < 2:
        return Difference(differences[0] if n else 0.0, None, n)
    from scipy.stats import t  # slow to import, and not every report compares

    half = t.ppf(0.975, n - 1) * stdev(differences) / n**0.5
    return Difference(mean(differences), float(half), n)


def contests(points: Sequence[Point]) -> list[Contest]:
    """Those in which at least two methods met one target; ratios leave unequal MACs.

    Args:
        points: what each line of the table ends in; what wasn't fine-tuned is passed over.
    """
    able = [p for p in points if p["stage"] == "finetune" and p["target"] is not None]
    met = family(able, "lambda", "method", "control").values()
    met = [them for them in met if len({point["method"] for point in them}) > 1]
    return [Contest(title, them) for title, them in zip(titles(met), met, strict=True)]
