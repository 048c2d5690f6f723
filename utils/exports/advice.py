"""Whether a thin network pays where it runs, and whether other widths would."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from slimming import slim, trace
from slimming.graph.slices import alive
from slimming.planning.layers import find_layers
from slimming.planning.rounding import rounded, widths
from utils.exports.runtimes import session
from utils.exports.timing import measure

MULTIPLE = 8
BATCH = 64
PAYS = 0.95  # of the time: what saves less isn't worth another cut


def sentences(
    times: Mapping[str, Any],
    runtime: str,
    dense: nn.Module,
    thin: nn.Module,
    keep: Mapping[str, Sequence[int]],
    input_shape: Sequence[int],
) -> list[str]:
    """What to know before this file is deployed: it is slower than the dense network there; other
    widths would be faster.

    Args:
        times: of `timing.compare`, where `runtime` is what will run it.
        keep: {gate: indices that stay} of the dense network, as a checkpoint has them.
    """
    found = [
        f"slower than the dense network: {_told(slow)} instead of {_told(fast)} in {runtime} at "
        f"batch {size}"
        for size, slow in times.get(runtime, {}).get("thin", {}).items()
        for fast in [times[runtime]["dense"].get(size)]
        if fast and _faster(fast, slow)
    ]
    other = _in_multiples(dense, keep, input_shape)
    if other is None or str(BATCH) not in times.get(runtime, {}).get("thin", {}):
        return found
    pair = {"thin": thin, "rounded": other}
    if runtime == "onnxruntime":
        pair = {name: session(network, input_shape) for name, network in pair.items()}
    both = {
        name: own[str(BATCH)] for name, own in measure(runtime, pair, input_shape, [BATCH]).items()
    }
    said = (
        f"{_told(both['rounded'])} instead of {_told(both['thin'])} in {runtime} at batch {BATCH}"
    )
    if _faster(both["rounded"], both["thin"]):
        found.append(
            f"with widths rounded to multiples of {MULTIPLE} it would take {said}: cut again with "
            f"`python prune.py ... round_to={MULTIPLE}`"
        )
    elif found:
        found.append(f"widths rounded to multiples of {MULTIPLE} don't help: {said}")
    return found


def _in_multiples(
    dense: nn.Module, keep: Mapping[str, Sequence[int]], input_shape: Sequence[int]
) -> nn.Module | None:
    """The dense network cut to the multiples that are nearest to the widths that `keep` leaves.

    None where there is nothing to round, or where `keep` isn't of this network as it is traced.
    """
    try:
        # `keep` says which of all that could be cut was: nobody knows by which options of `trace`.
        graph = trace(dense, torch.zeros(2, *input_shape), unscored="prune")
        known = {gate: torch.tensor(keep[gate]).long() for gate in graph.gates if gate in keep}
        stays = alive(graph, known)
    except ValueError:  # it was cut by another graph, or by hand
        return None
    layers, of = find_layers(graph)
    sizes = [layer.size for layer in layers]
    removed = [int((~stays[of == number]).sum()) for number in range(len(layers))]
    if not any(gone > 0 and (size - gone) % MULTIPLE for gone, size in zip(removed, sizes)):
        return None
    options = [widths(size, 1, MULTIPLE, "nearest") for size in sizes]
    for number, gone in enumerate(rounded(removed, sizes, options, "nearest")):
        own = (of == number).nonzero().flatten()
        stays[own] = torch.arange(len(own)) >= gone
    return slim(dense, graph, {g: stays[ids].nonzero().flatten() for g, ids in graph.gates.items()})


def _told(times: Mapping[str, float]) -> str:
    return f"{times['median_ms']:.3g} ms"


def _faster(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """By more than what the clock's noise makes."""
    apart = one["q3_ms"] < other["q1_ms"]
    return apart and one["median_ms"] < PAYS * other["median_ms"]
