"""How to train: epochs, batches, optimiser, schedule."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn, optim

from slimming.methods.sparsity import gammas


@dataclass(frozen=True)
class Recipe:
    """How to train. `schedule(progress)` is the learning rate's factor at 0 <= progress < 1."""

    epochs: int
    batch_size: int
    optimizer: Callable[..., optim.Optimizer]  # from parameter groups
    schedule: Callable[[float], float]

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                f"training needs at least 1 epoch and batches of 2; got epochs={self.epochs}, "
                f"batch_size={self.batch_size}"
            )

    def factors(self, steps: int) -> float:
        """The sum of the schedule over a whole training of `steps` steps an epoch."""
        total = self.epochs * steps
        return sum(self.schedule(k / total) for k in range(total))


def parameter_groups(model: nn.Module, weight_decay_on_gamma: bool) -> list[dict[str, Any]]:
    """For the optimiser: all parameters, or gammas apart without weight decay."""
    if weight_decay_on_gamma:
        return [{"params": list(model.parameters())}]
    scales = {id(gamma) for gamma in gammas(model).values()}
    rest = [p for p in model.parameters() if id(p) not in scales]
    return [{"params": rest}, {"params": list(gammas(model).values()), "weight_decay": 0.0}]


def lr_and_momentum(recipe: Recipe) -> tuple[float, float | None]:
    """Momentum is None for optimisers that rescale gradients, such as Adam."""
    call = recipe.optimizer
    if isinstance(call, partial) and call.func is optim.SGD:  # building one imports a compiler
        arguments = inspect.signature(call.func).bind_partial(**call.keywords)
        arguments.apply_defaults()
        return arguments.arguments["lr"], arguments.arguments["momentum"]
    optimizer = call([nn.Parameter(torch.zeros(1))])
    group = optimizer.param_groups[0]
    return group["lr"], group["momentum"] if isinstance(optimizer, optim.SGD) else None
