"""Learning rates as a factor of the training's progress, 0 <= progress < 1: no state to resume.

A new one is one more file in this folder, and one yaml: docs/extending.md.

All of these take `warmup`, the share of the training in which the rate first rises linearly.

Raises (each of these):
    ValueError: a share or a factor is out of range, or milestones don't rise.
"""

import math
from collections.abc import Sequence

from utils.training.recipe import is_number


def steps(
    progress: float, milestones: Sequence[float], factor: float = 0.1, warmup: float = 0.0
) -> float:
    """Multiplied by `factor` at each milestone, a share of the training (paper: 0.5 and 0.75)."""
    _share("warmup", warmup, below=1)
    _share("factor", factor)
    shares = isinstance(milestones, Sequence) and all(map(is_number, milestones))
    if not shares or not all(a < b for a, b in zip([0, *milestones], [*milestones, 1])):
        raise ValueError(
            f"recipe.schedule.milestones are shares of the training that rise, such as [0.5,0.75]; "
            f"got {milestones}"
        )
    reached = sum(progress >= milestone for milestone in milestones)
    return _warmed(progress, warmup) * factor**reached


def one_cycle(progress: float, warmup: float = 0.2, last: float = 0.0) -> float:
    """Up to 1 linearly, then down to `last` along a cosine (Smith & Topin 2018)."""
    _share("warmup", warmup, below=1)
    _share("last", last)
    if progress < warmup:
        return _warmed(progress, warmup)
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def cosine(progress: float, warmup: float = 0.0, last: float = 0.0) -> float:
    """Down from 1 to `last` along a cosine (Loshchilov & Hutter 2017, without restarts)."""
    return one_cycle(progress, warmup, last)


def constant(progress: float, warmup: float = 0.0) -> float:
    _share("warmup", warmup, below=1)
    return _warmed(progress, warmup)


def _warmed(progress: float, warmup: float) -> float:
    """From 5 % to all of the rate within `warmup`."""
    return 0.05 + 0.95 * progress / warmup if progress < warmup else 1.0


def _share(name: str, value: object, below: float = math.inf) -> None:
    if not is_number(value) or not 0 <= value <= 1 or not value < below:
        most = f"{name} < 1" if below == 1 else f"{name} <= 1"
        raise ValueError(f"recipe.schedule.{name} is a share, 0 <= {most}; got {value!r}")
