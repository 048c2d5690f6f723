"""Where a sweep bends: the cheapest cut that is as good as the best one, as far as one can tell.

"As good" is the one-standard-error rule (Breiman et al., Classification and Regression Trees,
1984): within one standard error of the best mean validation accuracy. The test set has no say.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from utils.report.summary import Point, by_line, goal

Run = Mapping[str, Any]
SWEEP = ("recipe", "network", "data", "method", "pass")


@dataclass(frozen=True)
class Knee:
    """The suggestion of one sweep."""

    point: Point  # the fewest MACs within the error of the best
    best: Point  # the highest validation accuracy of all cuts
    dense: Point | None  # the same of all uncut networks
    error: float  # standard error of the best, as a fraction
    why: str  # where the error is from


def sweeps(points: Iterable[Point]) -> dict[tuple, list[Point]]:
    """{(recipe, network, data, method, pass): its final points}; a single cell has no bend.

    Uncut networks belong to the sweeps of all methods.
    """
    ends = final(points)
    cuts: dict[tuple, list[Point]] = {}
    for point in ends:
        if not uncut(point):
            cuts.setdefault(tuple(point[column] for column in SWEEP), []).append(point)
    found = {}
    for key, members in cuts.items():
        members = _comparable(members)
        if len({(point["lambda"], goal(point)) for point in members}) > 1:
            lambdas = {0, *(point["lambda"] for point in members)}
            here = [p for p in ends if uncut(p) and p["lambda"] in lambdas and _same(p, key)]
            found[key] = here + members
    return found


def _comparable(cuts: Sequence[Point]) -> list[Point]:
    """Cuts by ratio; where there are none, cuts to targets under several lambdas (a comparison of
    methods has one)."""
    if by_ratio := [point for point in cuts if point["ratio"] is not None]:
        return by_ratio
    return list(cuts) if len({point["lambda"] for point in cuts}) > 1 else []


def _same(point: Point, key: tuple) -> bool:
    own = zip(SWEEP, key, strict=True)
    return all(point[column] == value for column, value in own if column != "method")


def title(key: tuple) -> str:
    """What a sweep is of, as far as it isn't what all are."""
    recipe, network, data, method, number = key
    more = [] if method == "slimming" else [method]
    more += [] if number == 1 else [f"pass {number}"]
    return ", ".join([network, str(data), f"{recipe} recipe", *more])


def uncut(point: Point) -> bool:
    return point["ratio"] is None and point["target"] is None


def final(points: Iterable[Point]) -> list[Point]:
    """What each line of the table ends in: fine-tuned, else its cuts, else trained."""
    ends = []
    for members in by_line(points).values():
        tuned = [point for point in members if point.what.startswith("fine-tuned")]
        ends += tuned or last_steps(members)
    return ends


def last_steps(points: Iterable[Point]) -> list[Point]:
    """Each network once: of what was done to it after a cut, only the last."""
    last = {(point["run"], point.n): point for point in points}
    return list(last.values())


def knee(points: Sequence[Point], paths: Mapping[str, Sequence[Run]]) -> Knee | None:
    """The knee of one sweep; None where no validation accuracy, or no error of it, is known.

    Args:
        paths: {run: the chain that ends in it}, of `utils.report.table.paths`.
    """
    known = [point for point in points if point.mean("val") is not None]
    able = [point for point in known if not uncut(point)]
    if not able:
        return None
    best = max(able, key=lambda point: (point.mean("val"), -point.mean("macs")))
    dense = max(filter(uncut, known), key=lambda point: point.mean("val"), default=None)
    errors = {"over seeds": (best.spread("val") or 0) / sqrt(best.n)}
    if images := _val_images(paths[best["run"]]):
        mean = best.mean("val")
        # The same images for each seed: more seeds don't make this part smaller.
        errors[f"of {images} validation images"] = sqrt(mean * (1 - mean) / images)
    why, error = max(errors.items(), key=lambda item: item[1])
    if not error:
        return None
    good = [point for point in able if point.mean("val") >= best.mean("val") - error]
    point = min(good, key=lambda point: (point.mean("macs"), -point.mean("val")))
    return Knee(point, best, dense, error, why)


def _val_images(path: Sequence[Run]) -> int | None:
    """How many images a run was validated on, as its config or that of its parents says."""
    said = (((run.get("config") or {}).get("data") or {}).get("val_size") for run in path[::-1])
    return next((int(size) for size in said if size), None)
