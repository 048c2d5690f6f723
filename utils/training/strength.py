"""What the penalty can do to the gammas of a run, and what it did."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimming.methods.base import Method
from slimming.methods.sparsity import gammas, reach
from utils.training.recipe import Recipe, lr_and_momentum

EDGES = [0.0, *(10 ** (k / 2) for k in range(-12, 3)), math.inf]  # of the |gamma| histograms
WATCHED = (
    11 / 16
)  # of the depth: the 11th BatchNorm of VGG-19, whose gammas the paper's Fig. 6 follows
STRONGEST = 0.02  # of the lambdas we choose: beyond it, the penalty drowns the loss


def choose_strength(recipe: Recipe, mode: str, steps: int, far: float | None) -> float:
    """The lambda with which the penalty can move a gamma by `far`, to two digits, at most 0.02.

    The same lambda means little in a short run and collapse in a long one; the same reach means
    about the same. The paper's VGG has a reach of 6.6.

    Raises:
        ValueError: the optimiser rescales gradients, so that nothing can be said; the gammas don't
            move at all; no reach is said.
    """
    if far is None:
        raise ValueError("lambda follows from recipe.reach, which is null: set method.strength")
    lr, momentum = lr_and_momentum(recipe)
    if not lr:
        raise ValueError(
            "recipe.optimizer.lr=0 moves no gamma, so no lambda follows from recipe.reach: set "
            "method.strength, or a learning rate above 0"
        )
    if momentum is None and mode in ("subgradient", "loss"):
        raise ValueError(
            "what lambda does to a gamma depends on the optimiser's rescaling here: set "
            "method.strength, or use method.mode=proximal"
        )
    per_unit = reach(1.0, lr * recipe.factors(steps), mode, momentum or 0.0)
    return min(float(f"{far / per_unit:.1e}"), STRONGEST)


def strength_of(method: Method) -> float:
    """Lambda; 0 of a method that has no penalty."""
    return getattr(method, "strength", 0.0)


def announce_reach(recipe: Recipe, method: Method, model: nn.Module, steps: int) -> None:
    """Say how far the penalty can move a gamma in this run, against where it starts."""
    strength = strength_of(method)
    if not strength:
        return
    mode = getattr(method, "mode", "subgradient")
    lr, momentum = lr_and_momentum(recipe)
    if momentum is None and mode in ("subgradient", "loss"):
        print(f"lambda {strength:g} passes through the optimiser's rescaling")
        return
    scales = gammas(model)
    if not scales:
        return  # of a functional norm's gammas only the training knows
    far = reach(strength, lr * recipe.factors(steps), mode, momentum or 0.0)
    start = torch.cat([gamma.detach().abs().flatten() for gamma in scales.values()]).mean()
    print(f"lambda {strength:g} can move a gamma by {far:.2g}; they start at {start:.2g}")
    if far < start:
        print("warning: too little to bring one to zero; raise method.strength or epochs")


def functional_of(method: Method) -> Sequence[str]:
    """The gammas that it found where no BatchNorm module holds them."""
    return getattr(method, "functional", ())


def describe_gammas(
    model: nn.Module, strength: float, functional: Sequence[str] = ()
) -> dict[str, Any]:
    """The penalty, how many gammas are small, counts of |gamma| per layer between EDGES, and each
    |gamma| of one layer."""
    found = gammas(model, functional)
    scales = {name: gamma.detach().abs().float().cpu() for name, gamma in found.items()}
    if not scales:
        return {}
    everything = torch.cat(list(scales.values()))
    edges = torch.tensor(EDGES[1:-1])
    return {
        "penalty": strength * everything.double().sum().item(),
        "gamma_below_1e-3": (everything < 1e-3).double().mean().item(),
        "gamma_below_1e-2": (everything < 1e-2).double().mean().item(),
        "gamma_histogram": {
            name: torch.bincount(torch.bucketize(scale, edges), minlength=len(EDGES) - 1).tolist()
            for name, scale in scales.items()
        },
        "gammas": _watched(scales),
    }


def _watched(scales: dict[str, Tensor]) -> dict[str, Any]:
    """{"layer": name, "values": |gamma| of each channel}: one layer, as a row has to stay small."""
    name = list(scales)[max(0, round(WATCHED * len(scales)) - 1)]
    return {"layer": name, "values": [float(f"{value:.4g}") for value in scales[name].tolist()]}


def advise(row: dict[str, Any], epochs: int, method: Method) -> None:
    """Once, late in training, when the penalty has shrunk nothing."""
    late = row["epoch"] == math.ceil(0.8 * epochs)
    strength = strength_of(method)
    if strength and late and row.get("gamma_below_1e-2", 1.0) < 0.01:
        print(
            f"warning: after {row['epoch']} of {epochs} epochs less than 1 % of the gammas are "
            f"below 0.01, so a cut will hurt: raise method.strength (now {strength:g})"
        )
