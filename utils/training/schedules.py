"""Learning rates as a factor of the training's progress, 0 <= progress < 1: no state to resume."""

import math


def steps(progress: float, milestones: tuple[float, ...], factor: float = 0.1) -> float:
    """Multiplied by `factor` at each milestone, a share of the training (paper: 0.5 and 0.75)."""
    return factor ** sum(progress >= milestone for milestone in milestones)


def one_cycle(progress: float, warmup: float = 0.2, last: float = 0.0) -> float:
    """Up to 1 linearly, then down along a cosine (Smith & Topin 2018)."""
    if progress < warmup:
        return 0.05 + 0.95 * progress / warmup
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def constant(progress: float) -> float:
    return 1.0
