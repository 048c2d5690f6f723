"""How to train: epochs, batches, optimiser, schedule, and what may be added to plain training."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import nn, optim

from slimming.methods.sparsity import gammas


@dataclass(frozen=True)
class Recipe:
    """How to train. `schedule(progress)` is the learning rate's factor at 0 <= progress < 1.

    Args:
        label_smoothing: the share of each target that all classes get alike (Szegedy et al. 2016).
        mixup: alpha of Zhang et al. 2018; 0: images are not blended.
        ema: decay of an exponential moving average of the weights; 0: the last weights count.
        grad_clip: the largest norm of the whole gradient, before the penalty's part of it.
        lr_gamma: the learning rate of BatchNorm scales; None: that of all other weights.

    Raises:
        ValueError: one of them is no number, or out of range.
    """

    epochs: int
    batch_size: int
    optimizer: Callable[..., optim.Optimizer]  # from parameter groups
    schedule: Callable[[float], float]
    label_smoothing: float = 0.0
    mixup: float = 0.0
    ema: float = 0.0
    grad_clip: float | None = None
    lr_gamma: float | None = None

    def __post_init__(self) -> None:
        size = self.batch_size
        if not isinstance(size, int) or isinstance(size, bool):
            raise ValueError(f"recipe.batch_size is a number of images; got {size!r}")
        if self.epochs < 0 or size < 2:
            raise ValueError(
                f"training needs epochs, from 0 (none at all) on, and batches of 2; got "
                f"epochs={self.epochs}, batch_size={size}"
            )
        for name in ("label_smoothing", "ema"):
            if not is_number(value := getattr(self, name)) or not 0 <= value < 1:
                raise ValueError(f"recipe.{name} is a share, 0 <= {name} < 1; got {value!r}")
        if not is_number(self.mixup) or self.mixup < 0:
            raise ValueError(f"recipe.mixup is alpha, 0 or more; got {self.mixup!r}")
        for name in ("grad_clip", "lr_gamma"):
            value = getattr(self, name)
            if value is not None and (not is_number(value) or value <= 0):
                raise ValueError(f"recipe.{name} is a number above 0, or null; got {value!r}")

    def factors(self, steps: int) -> float:
        """The sum of the schedule over a whole training of `steps` steps an epoch."""
        total = self.epochs * steps
        return sum(self.schedule(k / total) for k in range(total))


# What may be added to plain training, as it is when nothing is.
OFF = {field.name: field.default for field in fields(Recipe) if field.default is not MISSING}


def is_number(value: object) -> bool:
    """Whether one can compute with it: neither nan nor infinite, neither a text nor a bool."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def check_numbers(told: Mapping[str, Any]) -> None:
    """What can be said of a recipe's numbers before it is made.

    Args:
        told: the whole recipe as a config describes it.

    Raises:
        ValueError: one is nan or infinite, or no learning rate, decay, momentum or reach can be it.
    """
    _check_finite(told, "recipe")
    for name in ("lr", "weight_decay", "momentum"):
        value = told["optimizer"].get(name, 0.0)
        if not is_number(value) or value < 0 or (name == "momentum" and value >= 1):
            wanted = "share, 0 <= momentum < 1" if name == "momentum" else "number from 0 on"
            raise ValueError(f"recipe.optimizer.{name} is a {wanted}; got {value!r}")
    reach = told.get("reach")
    if reach is not None and (not is_number(reach) or reach < 0):
        raise ValueError(f"recipe.reach is how far the penalty can move a gamma; got {reach!r}")


def _check_finite(node: Any, name: str) -> None:
    if isinstance(node, float) and not math.isfinite(node):
        raise ValueError(f"{name} is a finite number; got {node}")
    for key, value in node.items() if isinstance(node, Mapping) else ():
        _check_finite(value, f"{name}.{key}")
    for value in node if isinstance(node, list) else ():
        _check_finite(value, name)


def parameter_groups(
    model: nn.Module,
    weight_decay_on_gamma: bool,
    lr_gamma: float | None = None,
    functional: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """For the optimiser: all parameters; or, the last group, gammas apart with what is theirs.

    Raises:
        ValueError: gammas shall have a learning rate of their own, but there are none.
    """
    own: dict[str, Any] = {} if weight_decay_on_gamma else {"weight_decay": 0.0}
    if lr_gamma is not None:
        own["lr"] = lr_gamma
    if not own:
        return [{"params": list(model.parameters())}]
    scales = list(gammas(model, functional).values())
    if lr_gamma is not None and not scales:
        raise ValueError("recipe.lr_gamma is for BatchNorm's scales, and the network has none")
    apart = {id(gamma) for gamma in scales}
    rest = [p for p in model.parameters() if id(p) not in apart]
    return [{"params": rest}, {"params": scales, **own}]


def lr_and_momentum(recipe: Recipe) -> tuple[float, float | None]:
    """Of the gammas. Momentum is None for optimisers that rescale gradients, such as Adam."""
    call = recipe.optimizer
    if isinstance(call, partial) and call.func is optim.SGD:  # building one imports a compiler
        arguments = inspect.signature(call.func).bind_partial(**call.keywords)
        arguments.apply_defaults()
        lr, momentum = arguments.arguments["lr"], arguments.arguments["momentum"]
    else:
        optimizer = call([nn.Parameter(torch.zeros(1))])
        group = optimizer.param_groups[0]
        lr, momentum = group["lr"], None
        if isinstance(optimizer, optim.SGD):
            momentum = group["momentum"]
    return (lr if recipe.lr_gamma is None else recipe.lr_gamma), momentum
