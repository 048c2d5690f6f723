"""The L1 penalty on the BatchNorm scales (paper, equation 1), in four modes.

    subgradient  lambda * sign(gamma) joins the gradient before the step: the paper's way. It passes
                 through momentum, weight decay and, with Adam, through the rescaling.
    loss         lambda * sum |gamma| joins the loss: the same, unless gradients are clipped: then
                 the penalty is clipped with them, where a subgradient stays lambda.
    proximal     after the step, gamma is soft-thresholded by lr * lambda: exact zeros.
    decoupled    after the step, gamma moves by lr * lambda towards zero, and may cross it.

The last two mean the same under every optimiser, in mixed precision and across processes.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimming.graph import trace
from slimming.modules.selection import name_in, named_norms

Mode = Literal["subgradient", "loss", "proximal", "decoupled"]
MODES: tuple[str, ...] = get_args(Mode)
# {gate, as `gammas` names it: (channels,)}: lambda times this; a gate without one isn't penalised.
Weights = Mapping[str, Tensor]


NOTHING = "the network has no BatchNorm with a gamma, so there is nothing to slim"


def gammas(model: nn.Module, functional: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """{gate: gamma} of every BatchNorm, each of shape (channels,), in the order of the network;
    then those of `functional`, as `find_functional` names them."""
    found = {gate: norm.weight for gate, norm in named_norms(model) if norm.weight is not None}
    if not functional:
        return found
    named = dict(model.named_parameters(remove_duplicate=False))
    return found | {n: named[n] for n in (name_in(model, n) for n in functional) if n in named}


def find_functional(model: nn.Module, example: Tensor | None) -> list[str]:
    """The names of gammas that no BatchNorm module holds: of `F.batch_norm` in somebody's forward.

    Only the network run tells which they are; it is run where there may be any at all.
    """
    if example is None or not any(map(_may_hold, model.modules())):
        return []
    try:
        with torch.random.fork_rng():
            graph = trace(model, example, unscored="prune")
    except ValueError:  # such a network trains all the same
        return []
    modules = {gate for gate, _ in named_norms(model)}
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    names = (name for gate, name in graph.gammas.items() if gate not in modules)
    return [name for name in names if name in named]


def _may_hold(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm) or type(module).__module__.startswith("torch.nn."):
        return False
    return any(p.dim() == 1 for p in module.parameters(recurse=False))


def penalty(
    model: nn.Module,
    strength: float,
    functional: Sequence[str] = (),
    weights: Weights | None = None,
) -> Tensor:
    """strength * sum |gamma| over all BatchNorms: a scalar that can be differentiated."""
    scales = gammas(model, functional)
    if not scales:
        raise ValueError(NOTHING)
    weighed = [_weighed(gamma.abs(), gate, weights).sum() for gate, gamma in scales.items()]
    return strength * torch.stack(weighed).sum()


def add_subgradient(
    model: nn.Module,
    strength: float,
    functional: Sequence[str] = (),
    weights: Weights | None = None,
) -> None:
    """grad += strength * sign(gamma), for every gamma that has a gradient."""
    for gate, gamma in gammas(model, functional).items():
        if gamma.grad is not None:
            gamma.grad.add_(_weighed(gamma.detach().sign(), gate, weights), alpha=strength)


@torch.no_grad()
def shrink(
    model: nn.Module,
    amount: float,
    exact_zero: bool,
    functional: Sequence[str] = (),
    weights: Weights | None = None,
) -> None:
    """Move every trainable gamma by `amount` towards zero; stop there if `exact_zero`."""
    for gate, gamma in gammas(model, functional).items():
        if not gamma.requires_grad:
            continue
        step = _weighed(gamma.sign(), gate, weights)
        if exact_zero:
            far = (gamma.abs() - amount * step.abs()).clamp(min=0.0)
            gamma.copy_(gamma.sign() * far)
        else:
            gamma.sub_(step, alpha=amount)


def _weighed(value: Tensor, gate: str, weights: Weights | None) -> Tensor:
    """Times the gate's own weights, where there are any."""
    if weights is None:
        return value
    return value * weights[gate].to(value) if gate in weights else torch.zeros_like(value)


def reach(strength: float, learning_rates: float, mode: str, momentum: float = 0.0) -> float:
    """How far the penalty alone can move a gamma, given the sum of all steps' learning rates.

    strength * sum(lr) / (1 - momentum) where the penalty passes through SGD's momentum.
    """
    through_momentum = mode in ("subgradient", "loss")
    return strength * learning_rates / ((1.0 - momentum) if through_momentum else 1.0)
