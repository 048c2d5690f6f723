"""Where and how a network runs: device, precision, memory layout, threads."""

import os
import re
from dataclasses import dataclass
from functools import cache
from multiprocessing import current_process
from pathlib import Path

import torch
from torch import nn

from utils.training import distributed

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Hardware:
    """Resolved choices: nothing here is "auto" any more, except the layout (per network)."""

    device: torch.device
    precision: str  # fp32 or bf16: the type of convolutions and matrix products
    channels_last: bool | None  # None: decided per network, see `prefers_channels_last`
    compile: bool
    save_minutes: float = 10.0  # between two saves inside an epoch
    sync_batchnorm: bool = False
    deterministic: bool = False  # asked for, where it makes a difference

    @property
    def numerics(self) -> dict[str, object]:
        """How sums are computed, as it enters a run's hash; a layout only where one is typed."""
        typed = {} if self.channels_last is None else {"channels_last": self.channels_last}
        return {"precision": self.precision, **typed}

    @property
    def identity(self) -> dict[str, object]:
        """The same of a training; compiled, and over several processes, only if so."""
        several = {"processes": distributed.count(), "sync_batchnorm": self.sync_batchnorm}
        alone = distributed.count() == 1
        repeats = {"deterministic": True} if self.deterministic else {}
        compiled = {"compile": True} if self.compile else {}
        return {**self.numerics, **repeats, **compiled, **({} if alone else several)}

    def place(self, model: nn.Module) -> nn.Module:
        """Move a network to the device, in the layout that suits it."""
        if self.device.type == "cpu":
            _warn_if_busy()
        last = self.lays_channels_last(model)
        layout = torch.channels_last if last else torch.contiguous_format
        return model.to(self.device).to(memory_format=layout)

    def lays_channels_last(self, model: nn.Module) -> bool:
        if self.channels_last is not None:
            return self.channels_last
        here = self.device.type == "cpu"
        return prefers_channels_last(model) and not (here and breaks_channels_last(model))

    def autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32"
        )


def choose(
    device: str = "auto",
    precision: str = "auto",
    channels_last: bool | None = None,
    compile: bool = False,
    threads: int | None = None,
    save_minutes: float = 10.0,
    sync_batchnorm: bool = False,
    deterministic: bool = False,
) -> Hardware:
    """Resolve "auto", and set what torch keeps for the whole process: threads, precision of fp32.

    Args:
        device: auto (a GPU if there is one; each worker of joblib its own), cpu, cuda, cuda:1, mps.
        precision: auto (bf16 where the processor computes it natively), fp32, bf16.
        channels_last: memory layout of images; None: wherever there are 2d convolutions.
        compile: use torch.compile (each new width compiles again: rarely pays for short runs).
        threads: CPU threads; None leaves torch's choice.
        save_minutes: training is saved that often inside an epoch, too; 0: after every step.
        sync_batchnorm: under torchrun, normalise over the whole batch, not over each GPU's part.
        deterministic: on a GPU, too, the same bits every time; slower. A CPU gives them anyway.

    Raises:
        ValueError: unknown or absent device, unknown precision, an option of the wrong type or out
            of its range, sync_batchnorm on the CPU.
    """
    flags = {"compile": compile, "sync_batchnorm": sync_batchnorm, "deterministic": deterministic}
    _check_types(flags, channels_last, threads, save_minutes)
    if not save_minutes >= 0:
        raise ValueError(f"hardware.save_minutes is a time, 0 or more; got {save_minutes}")
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"hardware.precision is auto, fp32 or bf16; got {precision!r}")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"hardware.threads is a number from 1 on; got {threads}")
        torch.set_num_threads(threads)
    device = distributed.join(device)
    if device == "auto":
        gpu = gpu_of_worker(current_process().name, torch.cuda.device_count())
        device = f"cuda:{gpu}" if torch.cuda.is_available() else "cpu"
    chosen = _usable(device)
    if sync_batchnorm and chosen.type != "cuda":
        raise ValueError("hardware.sync_batchnorm needs GPUs: leave it out on the CPU")
    if precision == "auto":
        precision = "bf16" if has_native_bf16(chosen) else "fp32"
    _set_kernels(precision, deterministic)
    counts = deterministic and chosen.type == "cuda"
    return Hardware(chosen, precision, channels_last, compile, save_minutes, sync_batchnorm, counts)


def _check_types(flags: dict, channels_last: object, threads: object, save_minutes: object) -> None:
    """A text such as "maybe" would count as true."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"hardware.{name} is true or false; got {value!r}")
    if not isinstance(channels_last, bool | None):
        raise ValueError(f"hardware.channels_last is true, false or null; got {channels_last!r}")
    if isinstance(threads, bool) or not isinstance(threads, int | None):
        raise ValueError(f"hardware.threads is a whole number from 1 on; got {threads!r}")
    if isinstance(save_minutes, bool) or not isinstance(save_minutes, int | float):
        raise ValueError(f"hardware.save_minutes is a time, 0 or more; got {save_minutes!r}")


def _usable(device: str) -> torch.device:
    """
    Raises:
        ValueError: nothing can be computed there.
    """
    try:
        chosen = torch.ones(1, device=device)
        if chosen.is_meta:
            raise RuntimeError("it holds no numbers")
        (chosen + 1).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).strip() or "not available here"
        if "could not run" in said.lower():  # a page about torch's dispatcher
            said = "this torch is built without it"
        reason = re.split(r"\. |\n", said)[0].rstrip(".")
        raise ValueError(f"device={device} can't be used ({reason}); try device=cpu") from error
    return chosen.device


def _set_kernels(precision: str, deterministic: bool) -> None:
    """fp32 is all 24 bits, also where a GPU would round factors to the 11 of TF32."""
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        torch.backends.cudnn.benchmark = False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # setting it takes 2 s
        torch.use_deterministic_algorithms(deterministic)


@cache
def _warn_if_busy() -> None:
    """Threads wait for each other: where others keep the cores busy, two are slower than one."""
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads > 1 and load > 1.5 * cores:
        print(
            f"warning: a load of {load:.0f} on {cores} cores, so {threads} threads will wait for "
            f"each other; hardware.threads=1 may be many times as fast"
        )


def gpu_of_worker(process: str, count: int) -> int:
    """The GPU of a process among `count`: joblib's workers, LokyProcess-1, -2, ..., take turns."""
    kind, _, number = process.rpartition("-")
    return (int(number) - 1) % count if kind == "LokyProcess" and count else 0


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 products are computed in hardware; emulation is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    info = Path("/proc/cpuinfo")  # torch has no public question for this; elsewhere: fp32
    flags = set(info.read_text("utf-8").split()) if info.exists() else set()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def prefers_channels_last(model: nn.Module) -> bool:
    """Networks of 2d convolutions gain from channels_last: measured, see docs/decisions.md.

    Decided by what the network is, not by timing, so that a run repeats bit for bit.
    """
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def breaks_channels_last(model: nn.Module) -> bool:
    """Whether torch's CPU kernels write beyond their memory where it is trained in that layout.

    torch 2.15 does on processors without AVX-512, in the gradient of a 1x1 convolution with stride
    2 that reads fewer than 8 channels: a shortcut of a narrow ResNet (docs/decisions.md).
    """
    return any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels < 8
        for module in model.modules()
    )
