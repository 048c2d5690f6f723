"""One key for what may stand side by side: in a mean, a line, a pair, a front, a panel.

Points that share it agree in all settings but the seed, and but those along which they are meant to
differ.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from utils.report import groups
from utils.report.summary import Point

# What an axis of a comparison lets differ: beginnings of the names that `groups.of_chain` gives.
AXES = {
    "lambda": ("train: strength", "train: method"),  # how strong a penalty, and how it is put on
    "method": ("prune: method", "prune: scope"),  # which channels
    "goal": ("prune: ratio", "prune: target"),  # how many of them
    "repair": tuple(f"prune: {k}" for k in ("compensate", "growth", "images", "recalibrate")),
    "control": ("finetune: scratch", "finetune: epochs"),
    "cut": ("prune: ",),  # all of it
    "after": ("finetune: ",),
    "stages": ("stages",),
}
TRAINING = ("lambda", "cut", "after", "stages")  # what is left is how the network was trained


@lru_cache(1 << 17)  # a page asks for each point again and again
def together(point: Point, *axes: str) -> str:
    """Equal for points that may stand together, and for no others.

    Args:
        axes: names of AXES: in what they may differ besides their seed.
    """
    return groups.as_key(kept(point, axes))


def kept(point: Point, axes: Sequence[str]) -> dict[str, Any]:
    """The settings in which points that may stand together agree."""
    free = tuple(start for axis in axes for start in AXES[axis])
    # Where a cut and all that follows may differ, so may the trainings of later passes.
    later = _later(point.settings["stages"]) if {"cut", "after", "stages"} <= {*axes} else ()
    return {
        name: value
        for name, value in point.settings.items()
        if not _first_pass(name).startswith(free) and not name.startswith(later)
    }


def _later(stages: Sequence[str]) -> tuple[str, ...]:
    """How the settings of trainings begin that came after the first cut: "train 2: "."""
    first = next((i for i, stage in enumerate(stages) if stage != "train"), len(stages))
    return tuple(f"train {n}: " for n in range(first + 1, stages.count("train") + 1))


def regime(point: Point) -> str:
    """Equal for points whose networks were trained alike but for the penalty."""
    return together(point, *TRAINING)


def _first_pass(name: str) -> str:
    return re.sub(r"^(\w+) \d+: ", r"\1: ", name)


def family(points: Iterable[Point], *axes: str) -> dict[str, list[Point]]:
    """The points that may stand together, by their key, in their order."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(together(point, *axes), []).append(point)
    return found
