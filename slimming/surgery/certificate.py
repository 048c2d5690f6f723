"""The proof that removing channels and hiding them compute the same."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from slimming.graph import ChannelGraph
from slimming.graph.slices import Keep, slices
from slimming.graph.twin import Example, stored
from slimming.modules.selection import gate_of, name_in
from slimming.surgery.cut import mask
from slimming.surgery.gaps import Gap, is_number, is_random, layer_gaps, nudged, reacts
from slimming.surgery.running import Runner, Seen, place_of_failure

SINGLE = 1e-4  # the tolerance in float32
NOTHING = "nothing"


@dataclass(frozen=True)
class Certificate:
    """How far the thin network is from the masked one, in eval mode."""

    absolute: float  # largest difference between their outputs
    relative: float  # the same as a share of the masked output's largest magnitude
    tolerance: float  # the largest relative difference that counts as equal
    first_difference: str | None  # if it doesn't hold: the first layer whose kept channels differ
    dtype: str = "float64"  # in which both were run
    compared: str = "outputs"  # or the last layer that can tell them apart; or "nothing"
    note: str | None = None  # what else there is to say, such as why not the outputs

    @property
    def holds(self) -> bool:
        return self.compared != NOTHING and self.relative <= self.tolerance  # False for NaN

    @property
    def problem(self) -> str | None:
        """In words, why it doesn't hold."""
        if self.holds:
            return None
        if self.compared == NOTHING:
            return self.note
        where = f", first in '{self.first_difference}'" if self.first_difference else ""
        what = "output" if self.compared == "outputs" else f"'{self.compared}'"
        said = f"the thin network differs from the masked one by {self.relative:.1e} of its {what}"
        return f"{said}{where}{f' ({self.note})' if self.note else ''}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values; numbers that aren't finite are None."""
        values = {**asdict(self), "holds": self.holds}
        odd = {k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
        return {k: None if k in odd else v for k, v in values.items()}


@torch.no_grad()
def verify(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Keep,
    thin: nn.Module,
    x: Any,
    tolerance: float = 1e-9,
) -> Certificate:
    """Compare `thin` with `mask(model, graph, keep)` on the inputs `x`, as `trace` takes them.

    Both run in eval mode, as copies; neither network is changed. In float64 on the CPU, where casts
    to shorter types are ignored; where that can't run, in float32, with a tolerance of 1e-4.

    All outputs are compared, and every layer's kept channels on the first image. Outputs that
    wouldn't tell a wrong network (whole numbers, constants, saturated ones: they stay as they are
    when all weights are changed by a tenth) prove nothing; then the last layer that can tell is
    what was compared, and behind it the weights. If the network draws at random in eval mode, it is
    compared without: dropout off, drawn numbers constant.

    Raises:
        ValueError: the masked network, of the same size as `model`, can't run on `x`.
    """
    masked = mask(model, graph, keep)
    runner, hidden, seen = _first_run(masked, Example.of(x))
    tolerance = tolerance if runner.dtype == torch.float64 else max(tolerance, SINGLE)
    blank = Certificate(math.nan, math.nan, tolerance, None, str(runner.dtype).partition(".")[2])
    if seen.drew:
        runner.calm, chance = True, "random in eval mode: compared without dropout, with constants"
        seen, blank = runner.run(hidden), replace(blank, note=f"{chance} for drawn numbers")
    if any(value.isnan().any() for value in seen.outputs):
        return _nothing(blank, "the masked network gives NaN on these inputs")
    try:
        got = runner.run(runner.copy(thin))
    except Exception as error:
        where = place_of_failure(runner, runner.copy(thin))
        said = f"{type(error).__name__}: {_first_line(error)}"
        place = f"'{where}'" if where else "its own forward"
        proof = _nothing(blank, f"the thin network can't run: {said} (in {place})")
        return replace(proof, absolute=math.inf, relative=math.inf, first_difference=where or None)
    slack = 10 * torch.finfo(runner.dtype).eps / tolerance
    gaps = layer_gaps(hidden, thin, seen, got, _made(model, graph, keep), slack)
    proof = _judged(blank, Gap.between(seen.outputs, got.outputs), gaps)
    if not proof.holds:
        if is_random(runner, hidden, seen):
            return _nothing(
                blank, "the network gives something else each time it runs in eval mode"
            )
        return proof
    proof = _weighed(proof, seen, nudged(runner, hidden), gaps)
    if proof.compared == "outputs" or not proof.holds:
        return proof
    wrong = _wrong_weights(model, graph, keep, thin)
    return proof if wrong is None else _at(proof, wrong, Gap(math.inf, math.inf))


def _first_run(masked: nn.Module, example: Example) -> tuple[Runner, nn.Module, Seen]:
    """What can run the masked network, its copy there, and what that gave."""
    own = next(iter(masked.parameters()), torch.empty(0)).device
    for dtype, device in ((torch.float64, "cpu"), (torch.float32, "cpu"), (torch.float32, own)):
        runner = Runner(example, dtype, device)
        hidden = runner.copy(masked)
        try:
            return runner, hidden, runner.run(hidden)
        except Exception as error:  # such as constants of one type, or on one device
            problem = error
    raise ValueError(
        f"{type(masked).__name__} can't run on these inputs: {_first_line(problem)}"
    ) from problem


def _made(model: nn.Module, graph: ChannelGraph, keep: Keep) -> dict[str, Tensor]:
    """{layer: channels that it still makes}."""
    return {
        gate_of(model, name.rpartition(".")[0]): index
        for name, dims in slices(graph, keep).items()
        for dim, index in dims
        if (name, dim) not in graph.reads and name.endswith((".weight", ".running_mean"))
    }


def _judged(blank: Certificate, outputs: Gap, gaps: Mapping[str, Gap]) -> Certificate:
    """Of the outputs, unless they agree and a layer doesn't."""
    proof = replace(blank, absolute=outputs.absolute, relative=outputs.relative)
    first = next((n for n, gap in gaps.items() if not gap.relative <= proof.tolerance), None)
    if proof.holds and first is not None:
        return _at(proof, first, gaps[first])
    return proof if proof.holds else replace(proof, first_difference=first)


def _at(proof: Certificate, layer: str, gap: Gap) -> Certificate:
    """The outputs agree, but this layer doesn't."""
    absolute, relative = gap
    return replace(
        proof, absolute=absolute, relative=relative, compared=layer, first_difference=layer
    )


def _weighed(proof: Certificate, seen: Seen, other: Seen, gaps: Mapping[str, Gap]) -> Certificate:
    """A proof that holds, if the outputs could tell; else that of the last layer that could."""
    tolerance = proof.tolerance
    if any(reacts(*pair, tolerance) for pair in zip(seen.outputs, other.outputs)):
        return proof
    telling = [
        call[0]
        for call, value in seen.layers.items()
        if call[0] in gaps and reacts(value, other.layers.get(call, value), tolerance)
    ]
    if not telling:
        return _nothing(proof, "nothing reacts to the weights on these inputs: give other ones")
    absolute, relative = (max(values) for values in zip(*(gaps[name] for name in telling)))
    said = f"{_why(seen.outputs)}: compared up to '{telling[-1]}', and behind it the weights"
    proof = replace(proof, absolute=absolute, relative=relative, compared=telling[-1])
    return _noted(proof, said)


def _nothing(proof: Certificate, why: str) -> Certificate:
    unknown = replace(proof, absolute=math.nan, relative=math.nan, compared=NOTHING)
    return _noted(unknown, why)


def _noted(proof: Certificate, said: str) -> Certificate:
    return replace(proof, note=f"{said}; {proof.note}" if proof.note else said)


def _why(outputs: Sequence[Tensor]) -> str:
    """Why these outputs tell nothing."""
    if not outputs:
        return "the network returns no tensor"
    if not any(map(is_number, outputs)):
        return "the outputs are whole numbers, which tell little"
    if not any(value.any() for value in outputs):
        return "the outputs are all zero"
    return "the outputs are constant or saturated on these inputs"


def _wrong_weights(
    model: nn.Module, graph: ChannelGraph, keep: Keep, thin: nn.Module
) -> str | None:
    """The first tensor of `thin` that isn't the kept part of the original one."""
    cuts, new = slices(graph, keep), stored(thin)
    for name, tensor in stored(model).items():
        other = new.get(name_in(thin, name))
        for dim, index in cuts.get(name, []):
            tensor = tensor.index_select(dim, index.to(tensor.device))
        if other is not None and not torch.equal(tensor, other):
            return name
    return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
