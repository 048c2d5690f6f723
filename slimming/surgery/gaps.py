"""How far apart two networks are, and which of their values could tell."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from slimming.modules.bypass import stands_in
from slimming.modules.layers import own_forward
from slimming.surgery.running import Runner, Seen

NUDGE = 0.1  # by how much weights are changed to see what reacts


class Gap(NamedTuple):
    absolute: float
    relative: float  # as a share of the expected value's largest magnitude

    @classmethod
    def between(cls, expected: Sequence[Tensor], got: Sequence[Tensor], least: float = 0) -> "Gap":
        """NaN if there is one; infinite between other shapes, types, or whole numbers.

        Args:
            least: the magnitude below which all is rounding.
        """
        far = [math.inf] if len(expected) != len(got) else [_far(*p) for p in zip(expected, got)]
        absolute = math.nan if any(map(math.isnan, far)) else max(far, default=0.0)
        scale = max(largest(expected), least)
        return cls(absolute, absolute / scale if scale > 0 else absolute)


def _far(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if not is_number(a):
        return 0.0 if torch.equal(a, b) else math.inf
    gap = (a - b).abs().masked_fill(a == b, 0)  # infinities are equal to themselves
    return gap.max().item() if gap.numel() else 0.0


def is_number(x: Tensor) -> bool:
    """Not a whole one, nor true or false."""
    return x.is_floating_point() or x.is_complex()


def largest(values: Sequence[Tensor]) -> float:
    """The largest finite magnitude."""
    finite = [x.abs()[x.isfinite()] for x in values if is_number(x)]
    return max((x.max().item() for x in finite if x.numel()), default=0.0)


def layer_gaps(
    masked: nn.Module,
    thin: nn.Module,
    seen: Seen,
    got: Seen,
    made: Mapping[str, Tensor],
    slack: float,
) -> dict[str, Gap]:
    """{layer: how far its kept channels are apart}, in the order of the calls, the worst of them.

    Args:
        seen, got: what the two gave.
        made: {layer: channels that it still makes}.
        slack: what a sum that cancels out leaves of the largest value in the network is rounding.
    """
    modules, top = dict(thin.named_modules()), 0.0
    gaps: dict[str, Gap] = {}
    for (name, call), output in seen.layers.items():
        module, other = masked.get_submodule(name), got.layers.get((name, call))
        if name in modules and stands_in(modules[name]):
            continue
        odd = own_forward(module) or module._forward_hooks or name not in made
        if odd and (other is None or other.shape != output.shape):
            continue  # who knows where it has its channels
        if name in made:
            dim = -1 if isinstance(module, nn.Linear) else 1
            output = output.index_select(dim, made[name].to(output.device))
        top = max(top, largest([output]))
        gap = Gap.between([output], [] if other is None else [other], slack * top)
        known = gaps.setdefault(name, gap)
        gaps[name] = known if known.relative >= gap.relative else gap
    return gaps


def nudged(runner: Runner, model: nn.Module) -> Seen:
    """What a network would give if all of its weights were others."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for parameter in other.parameters():
        if parameter.dim() > 1 and is_number(parameter):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.mul_(1 + NUDGE * noise.to(parameter))
    return runner.run(other)


def reacts(before: Tensor, after: Tensor, tolerance: float) -> bool:
    """Whether a value differs by more than what counts as equal; whole numbers never do."""
    return is_number(before) and Gap.between([before], [after]).relative > tolerance


def is_random(runner: Runner, model: nn.Module, seen: Seen) -> bool:
    """Whether another run gives something else than `seen`."""
    again = runner.run(model, seed=1)
    pairs = [*zip(seen.outputs, again.outputs)]
    pairs += [(x, again.layers.get(call, x)) for call, x in seen.layers.items()]
    return any(a.isfinite().all() and Gap.between([a], [b]).absolute != 0 for a, b in pairs)
