"""Where a sweep bends: the cheapest cut that is as good as the best one, as far as one can tell.

"As good" is the one-standard-error rule (Breiman et al., Classification and Regression Trees,
1984): within one standard error of the best mean validation accuracy. The test set has no say.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

from utils.report.label import again, goal, labels, limited, titles, uncut
from utils.report.summary import Line, Point
from utils.report.together import regime, together


@dataclass(frozen=True)
class Knee:
    """The suggestion of one sweep."""

    point: Point  # the fewest MACs within the error of the best
    best: Point  # the highest validation accuracy of all cuts
    dense: Point | None  # the same of all uncut networks
    error: float  # standard error of the best, as a fraction
    why: str  # where the error is from


@dataclass(frozen=True, eq=False)
class Sweep:
    """Networks of one training regime and schedule that differ in penalty, choice and goal."""

    title: str  # what they share
    cuts: Sequence[Point]
    uncut: Sequence[Point]  # what they were before, and the network without a penalty

    @cached_property
    def names(self) -> dict[Point, str]:
        return labels([*self.uncut, *self.cuts])

    @cached_property
    def knee(self) -> Knee | None:
        return knee([*self.uncut, *self.cuts])


def sweeps(lines: Iterable[Line]) -> list[Sweep]:
    """Ratios by themselves, targets by what they limit; all other options of a cut may differ.

    One goal has no bend, unless several penalties met it.
    """
    ends = [line.end for line in lines if not line.end.what.startswith("scratch")]
    found: dict[tuple, list[Point]] = {}
    for point in ends:
        if not (uncut(point) or again(point)):
            key = (limited(point), together(point, "lambda", "cut"))
            found.setdefault(key, []).append(point)
    bent = [cs for cs in found.values() if len({goal(c) for c in cs}) > 1 or _penalties(cs) > 1]
    return [
        Sweep(title, cuts, [p for p in ends if uncut(p) and _before(p, cuts)])
        for title, cuts in zip(titles(bent), bent, strict=True)
    ]


def _penalties(cuts: Sequence[Point]) -> int:
    """Under how many lambdas a method was tried, at most."""
    tried = Counter(method for method, _ in {(cut["method"], cut["lambda"]) for cut in cuts})
    return max(tried.values())


def _before(point: Point, cuts: Sequence[Point]) -> bool:
    """Whether a point is the network before one of the cuts, or what it is without a penalty."""
    if regime(point) not in {regime(cut) for cut in cuts} or point["pass"] > 1:
        return False
    return not point["lambda"] or point["lambda"] in {cut["lambda"] for cut in cuts}


def knee(points: Sequence[Point]) -> Knee | None:
    """The knee of one sweep; None where no validation accuracy, or no error of it, is known.

    Where all images are right (or none) there is no error, and only what is as good will do.
    """
    known = [point for point in points if point.mean("val") is not None]
    able = [point for point in known if not uncut(point)]
    if not able or any(point.mean("val") is None for point in points if not uncut(point)):
        return None
    best = max(able, key=lambda point: (point.mean("val"), -point.mean("macs")))
    dense = max(filter(uncut, known), key=lambda point: point.mean("val"), default=None)
    errors = {"over seeds": (best.spread("val") or 0) / sqrt(best.n)}
    if images := _val_images(best.chain):
        mean = best.mean("val")
        # The same images for each seed: more seeds don't make this part smaller.
        errors[f"of {images} validation images"] = sqrt(mean * (1 - mean) / images)
    why, error = max(errors.items(), key=lambda item: item[1])
    if not error and not images:
        return None
    good = [point for point in able if point.mean("val") >= best.mean("val") - error]
    point = min(good, key=lambda point: (point.mean("macs"), -point.mean("val")))
    return Knee(point, best, dense, error, why)


def _val_images(chain: Sequence[dict[str, Any]]) -> int | None:
    """How many images a run was validated on, as it or those before it say."""
    counted = ((run.get("images") or {}).get("val") for run in chain[::-1])
    asked = (((run.get("config") or {}).get("data") or {}).get("val_size") for run in chain[::-1])
    return next((int(size) for size in (*counted, *asked) if size), None)
