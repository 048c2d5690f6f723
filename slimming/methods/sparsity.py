"""The L1 penalty on the BatchNorm scales (paper, equation 1), in four modes.

    subgradient  lambda * sign(gamma) joins the gradient before the step: the paper's way. It passes
                 through momentum, weight decay and, with Adam, through the rescaling.
    loss         lambda * sum |gamma| joins the loss: the same, unless gradients are clipped: then
                 the penalty is clipped with them, where a subgradient stays lambda.
    proximal     after the step, gamma is soft-thresholded by lr * lambda: exact zeros.
    decoupled    after the step, gamma moves by lr * lambda towards zero, and may cross it.

The last two mean the same under every optimiser, in mixed precision and across processes.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from slimming.modules.selection import named_norms

Mode = Literal["subgradient", "loss", "proximal", "decoupled"]
MODES: tuple[str, ...] = get_args(Mode)


def gammas(model: nn.Module) -> dict[str, nn.Parameter]:
    """{gate: gamma} of every BatchNorm, each of shape (channels,), in the order of the network."""
    return {gate: norm.weight for gate, norm in named_norms(model) if norm.weight is not None}


def penalty(model: nn.Module, strength: float) -> Tensor:
    """strength * sum |gamma| over all BatchNorms: a scalar that can be differentiated."""
    scales = list(gammas(model).values())
    if not scales:
        raise ValueError("the network has no BatchNorm with a gamma, so there is nothing to slim")
    return strength * torch.stack([gamma.abs().sum() for gamma in scales]).sum()


def add_subgradient(model: nn.Module, strength: float) -> None:
    """grad += strength * sign(gamma), for every gamma that has a gradient."""
    for gamma in gammas(model).values():
        if gamma.grad is not None:
            gamma.grad.add_(gamma.detach().sign(), alpha=strength)


@torch.no_grad()
def shrink(model: nn.Module, amount: float, exact_zero: bool) -> None:
    """Move every trainable gamma by `amount` towards zero; stop there if `exact_zero`."""
    for gamma in gammas(model).values():
        if not gamma.requires_grad:
            continue
        if exact_zero:
            gamma.copy_(gamma.sign() * (gamma.abs() - amount).clamp(min=0.0))
        else:
            gamma.sub_(gamma.sign(), alpha=amount)


def reach(strength: float, learning_rates: float, mode: str, momentum: float = 0.0) -> float:
    """How far the penalty alone can move a gamma, given the sum of all steps' learning rates.

    strength * sum(lr) / (1 - momentum) where the penalty passes through SGD's momentum.
    """
    through_momentum = mode in ("subgradient", "loss")
    return strength * learning_rates / ((1.0 - momentum) if through_momentum else 1.0)
