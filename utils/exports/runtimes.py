"""A network as the program runs it in the end: torch as it is, torch compiled, or onnxruntime."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from slimming.surgery.builder import reason_of
from utils.exports import onnx_file
from utils.networks.cost import Model, example, latency

RUNTIMES = ("eager", "compiled", "onnxruntime")


def check_runtime(runtime: str, device: torch.device) -> None:
    """
    Raises:
        ValueError: there is no such runtime, or it doesn't run on this device.
        ImportError: it isn't installed.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime is one of {', '.join(RUNTIMES)}; got {runtime!r}")
    if runtime == "onnxruntime":
        if device.type != "cpu":
            raise ValueError(
                f"runtime=onnxruntime is timed on the CPU, not on {device}: device=cpu"
            )
        onnx_file.check_installed("runtime=onnxruntime")


def session(model: nn.Module, input_shape: Sequence[int]) -> Model:
    """The network in onnxruntime, on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timed.onnx"
        onnx_file.save(path, onnx_file.convert(model, input_shape), {}, {})
        return onnx_file.open_file(path)


def timed_against(
    dense: nn.Module, runtime: str, input_shape: Sequence[int], batch: int, device: torch.device
) -> Callable[[nn.Module, int], tuple[float, float]]:
    """A function (thin network, repeats) -> milliseconds per batch of the dense one and of it,
    which take turns.

    Raises:
        ValueError: the runtime can't run such a network; when the function is called, too.
    """
    kept: list[Model] = []

    def measure(thin: nn.Module, repeats: int) -> tuple[float, float]:
        if runtime == "compiled":  # torch forgets the oldest when it has compiled a few
            torch.compiler.reset()
            kept.clear()
        if not kept:
            kept.append(prepare(dense, runtime, input_shape, batch))
        pair = {"dense": kept[0], "thin": prepare(thin, runtime, input_shape, batch)}
        times = latency(pair, input_shape, (batch,), repeats, device=device)
        return tuple(times[name][str(batch)]["median_ms"] for name in pair)

    return measure


def prepare(model: nn.Module, runtime: str, input_shape: Sequence[int], batch: int) -> Model:
    """
    Raises:
        ValueError: the runtime can't run it.
    """
    if runtime == "onnxruntime":
        return session(model, input_shape)
    return _compiled(model, input_shape, batch) if runtime == "compiled" else model


def _compiled(model: nn.Module, input_shape: Sequence[int], batch: int) -> nn.Module:
    """Compiled now, so that what fails is known to be that."""
    made = torch.compile(model.eval())
    try:
        with torch.no_grad():
            made(example(model, input_shape, batch))
    except Exception as error:  # a missing compiler, or what a network's own code does
        name = type(model).__name__
        raise ValueError(f"runtime=compiled can't compile {name}: {reason_of(error)}") from error
    return made
