"""What a network costs: parameters, multiply-accumulates, milliseconds.

Three counts of the same forward pass are in use, and they never share a word here:

    macs         multiply-accumulates of convolutions and matrix products (VGG-19: 398,136,320)
    flops_paper  2 x macs, the convention of the paper's CIFAR tables     (VGG-19: 7.96e8)
    macs_thop    what thop, the counter of most pruning papers, prints    (VGG-19: 3.99e8)

thop adds BatchNorm and pooling (depending on how they are written), and misses functional calls: it
is a cross-check for who asks for it (`evaluate.py macs_thop=true`).
"""

import contextlib
import copy
import io
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from slimming.surgery.builder import reason_of

Model = Callable[[Tensor], Any]  # a network, or whatever else takes a batch


def count(model: nn.Module, input_shape: Sequence[int]) -> dict[str, Any]:
    """Parameters, and multiply-accumulates for ONE image of `input_shape` (no batch dimension).

    -> {"params", "macs", "flops_paper", "layers"}. The model is not touched: a copy is counted.
    `layers` is {module path: {"params", "macs", "channels"}} of what multiplies, in order of
    execution, and last "other", the rest of the network (its BatchNorms, ...): the sums are those
    of the network. `channels` are those of its output; None where the module doesn't say.
    """
    twin = copy.deepcopy(model).eval()
    macs = _macs_of_modules(twin, example(model, input_shape))
    total = sum(macs.values())
    return {
        "params": sum(p.numel() for p in model.parameters()),  # index buffers are not parameters
        "macs": total,
        "flops_paper": 2 * total,
        "layers": _layers(twin, macs),
    }


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of convolutions and matrix products, attention included, per image."""
    return sum(_macs_of_modules(copy.deepcopy(model).eval(), example(model, input_shape)).values())


def _macs_of_modules(model: nn.Module, image: Tensor) -> dict[nn.Module, int]:
    """What each module multiplies itself, not in a module that it calls, in order of execution."""
    from torch.utils.flop_counter import FlopCounterMode  # imports half of torch's compiler

    counter, macs = FlopCounterMode(display=False), dict.fromkeys([model], 0)
    running, seen = [model], 0

    def switch(module: nn.Module | None) -> None:
        """What was multiplied since the last time is the running module's; now `module` runs."""
        nonlocal seen
        before, seen = seen, counter.get_total_flops() // 2
        macs[running[-1]] += seen - before
        if module is None:
            running.pop()
        else:
            running.append(module)
            macs.setdefault(module, 0)

    def enter(module: nn.Module, _: Any) -> None:
        switch(module)

    def leave(*_: Any) -> None:
        switch(None)

    # Of all modules, since one that was scripted takes no hook of its own.
    with (
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave),
        torch.no_grad(),
        _unfused_attention(),
        counter,
    ):
        model(image)
    return macs


def _layers(model: nn.Module, macs: Mapping[nn.Module, int]) -> dict[str, dict[str, int | None]]:
    names = {module: name for name, module in model.named_modules()}
    left = dict.fromkeys(model.parameters())
    found, rest = {}, 0
    for module, own in macs.items():
        if module is model or not own:
            rest += own
            continue
        params = [p for p in module.parameters(recurse=False) if p in left]
        for parameter in params:  # two layers may share one: it is counted once
            del left[parameter]
        sizes = (getattr(module, key, None) for key in ("out_channels", "out_features"))
        channels = next((size for size in sizes if isinstance(size, int)), None)
        found[names[module]] = {
            "params": sum(p.numel() for p in params),
            "macs": own,
            "channels": channels,
        }
    others = {"params": sum(p.numel() for p in left), "macs": rest, "channels": None}
    return {**found, "other" if "other" not in found else "other_": others}


def count_macs_thop(model: nn.Module, input_shape: Sequence[int]) -> int:
    """thop's number, comparable with published tables.

    Raises:
        ImportError: thop isn't installed.
        ValueError: it can't count this network.
    """
    # thop leaves `total_ops` and `total_params` buffers behind: a later strict load would fail.
    twin = copy.deepcopy(model).eval()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", message=".*distutils", category=DeprecationWarning)
        try:
            import thop

            macs, _ = thop.profile(twin, (example(model, input_shape),), verbose=False)
        except ImportError as error:
            raise ImportError(
                "macs_thop=true needs two more packages: pip install thop setuptools"
            ) from error
        except Exception as error:  # unmaintained since 2022: what it raises has no type
            name = type(model).__name__
            raise ValueError(f"thop can't count this {name}: {reason_of(error)}") from error
    return int(macs)


def latency(
    models: Mapping[str, Model],
    input_shape: Sequence[int],
    batch_sizes: Sequence[int] = (1, 64),
    repeats: int = 30,
    warmup: int = 5,
    device: str | torch.device = "cpu",
) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds per batch -> {name: {"1": {"median_ms", "q1_ms", "q3_ms"}, "64": {...}}}.

    The repeats are interleaved (A B C A B C ...), so that a machine that slows down or warms up
    slows all networks alike. Networks are timed as they are laid out in memory, as copies in eval
    mode. Any other callable (a function around a session of onnxruntime) gets float32 batches.
    """
    if repeats < 2:
        raise ValueError(f"quartiles need at least 2 repeats; got repeats={repeats}")
    device = torch.device(device)
    twins = {name: _to_time(model, device) for name, model in models.items()}
    result: dict[str, dict[str, dict[str, float]]] = {name: {} for name in twins}
    for size in batch_sizes:
        inputs = {name: example(twin, input_shape, size) for name, twin in twins.items()}
        times: dict[str, list[float]] = {name: [] for name in twins}
        for step in range(warmup + repeats):
            for name, twin in twins.items():
                elapsed = _milliseconds(twin, inputs[name])
                if step >= warmup:
                    times[name].append(elapsed)
        for name, values in times.items():
            q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
            result[name][str(size)] = {"median_ms": median, "q1_ms": q1, "q3_ms": q3}
    return result


def example(model: Model, input_shape: Sequence[int], batch_size: int = 1) -> Tensor:
    """A random batch (batch_size, *input_shape) on the model's device and in its precision."""
    if not input_shape or any(size < 1 for size in input_shape):
        raise ValueError(
            f"input_shape is the shape of one image, such as (3, 32, 32); got {tuple(input_shape)}"
        )
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    like = next((p for p in parameters if p.is_floating_point()), torch.empty(0))
    # Its own generator: measuring must not move the random numbers of the run that asks for it.
    noise = torch.randn(batch_size, *input_shape, generator=torch.Generator().manual_seed(0))
    return noise.to(device=like.device, dtype=like.dtype)


def _to_time(model: Model, device: torch.device) -> Model:
    return copy.deepcopy(model).to(device).eval() if isinstance(model, nn.Module) else model


def _milliseconds(model: Model, batch: Tensor) -> float:
    """One forward pass, from an idle device to an idle device."""
    _synchronize(batch.device)
    start = time.perf_counter()
    with torch.no_grad():
        model(batch)
    _synchronize(batch.device)
    return 1000 * (time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextlib.contextmanager
def _unfused_attention() -> Iterator[None]:
    """In eval mode torch fuses attention into one kernel that FlopCounterMode counts as zero."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
