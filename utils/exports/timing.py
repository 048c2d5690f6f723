"""Milliseconds of a dense network and the thin one it became, side by side."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimming.surgery.fold import fold
from utils.exports import onnx_file
from utils.exports.runtimes import session
from utils.networks.cost import Model, latency
from utils.training.hardware import prefers_channels_last

BATCHES = (1, 64)
BUDGET = 3000.0  # milliseconds for each runtime and batch size, as far as the repeats allow
REPEATS = (4, 30)
LIMIT = 10 * BUDGET  # what would take longer is left out

Times = dict[str, dict[str, dict[str, float]]]  # network -> batch size -> median_ms, q1_ms, q3_ms


def compare(
    networks: Mapping[str, nn.Module], input_shape: Sequence[int], written: Path | None = None
) -> dict[str, Any]:
    """Time and print {"dense": network, "thin": network} on the CPU: as torch runs them, with
    BatchNorm folded, and with onnxruntime. Within a runtime they take turns.

    Args:
        written: the ONNX file of the last network; None: onnxruntime is left out.

    Returns {"threads": ..., runtime: {network: {batch size: {"median_ms", "q1_ms", "q3_ms"}}}}.
    """
    threads = torch.get_num_threads()
    found: dict[str, Any] = {"threads": threads}
    print(f"milliseconds on {threads} CPU thread{'s' * (threads > 1)}, median (quartiles):")
    example, last = torch.zeros(2, *input_shape), list(networks.values())[-1]
    runtimes = {
        "torch": _laid_out,
        "torch, BatchNorm folded": lambda m: _laid_out(fold(m, example)),
    }
    if written is not None:
        runtimes["onnxruntime"] = lambda m: (
            onnx_file.open_file(written) if m is last else session(m, input_shape)
        )
    for runtime, prepare in runtimes.items():
        try:
            prepared = {name: prepare(network) for name, network in networks.items()}
        except ValueError as error:  # folding needs a trace
            print(f"  {runtime}: left out, {error}")
            continue
        found[runtime] = measure(runtime, prepared, input_shape)
        for size in BATCHES:
            if all(str(size) in times for times in found[runtime].values()):
                print(_line(runtime, size, found[runtime]))
    return found


def measure(
    runtime: str,
    models: Mapping[str, Model],
    input_shape: Sequence[int],
    sizes: Sequence[int] = BATCHES,
) -> Times:
    """Networks that take turns, for about BUDGET per batch size; what takes too long is left out.

    Args:
        runtime: what they run in, to be named.
    """
    found: Times = {name: {} for name in models}
    for size in sizes:
        fewer = max(size // 16, 1)  # how long one turn takes is first guessed
        guess = latency(models, input_shape, (fewer,), repeats=2, warmup=1)
        expected = sum(times[str(fewer)]["median_ms"] for times in guess.values()) * size / fewer
        if expected * (1 + REPEATS[0]) > LIMIT:
            print(f"  {runtime}, batch {size}: left out, one turn takes {expected / 1000:.0f} s")
            continue
        repeats = min(max(int(BUDGET / expected), REPEATS[0]), REPEATS[1])
        for name, times in latency(models, input_shape, (size,), repeats, warmup=1).items():
            found[name] |= times
    return found


def _laid_out(model: nn.Module) -> nn.Module:
    """As the scripts run it, see `Hardware.place`."""
    if prefers_channels_last(model):
        return copy.deepcopy(model).to(memory_format=torch.channels_last)
    return model


def _line(runtime: str, size: int, times: Times) -> str:
    cells = [
        "{} {median_ms:.2f} ({q1_ms:.2f}-{q3_ms:.2f})".format(name, **each[str(size)])
        for name, each in times.items()
    ]
    if len(cells) > 1:
        dense, thin = (times[name][str(size)]["median_ms"] for name in ("dense", "thin"))
        cells.append(f"thin/dense {thin / dense:.2f}")
    return f"  {runtime:<23} batch {size:>2}  {'   '.join(cells)}"
