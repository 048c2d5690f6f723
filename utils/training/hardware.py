"""Where and how a network runs: device, precision, memory layout, threads."""

from dataclasses import dataclass
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
        compiled = {"compile": True} if self.compile else {}
        return {**self.numerics, **compiled, **({} if alone else several)}

    def place(self, model: nn.Module) -> nn.Module:
        """Move a network to the device, in the layout that suits it."""
        model.to(self.device)
        if self.lays_channels_last(model):
            model.to(memory_format=torch.channels_last)
        return model

    def lays_channels_last(self, model: nn.Module) -> bool:
        return prefers_channels_last(model) if self.channels_last is None else self.channels_last

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
) -> Hardware:
    """Resolve "auto" and set the number of threads.

    Args:
        device: auto (a GPU if there is one; each worker of joblib its own), cpu, cuda, cuda:1, mps.
        precision: auto (bf16 where the processor computes it natively), fp32, bf16.
        channels_last: memory layout of images; None: wherever there are 2d convolutions.
        compile: use torch.compile (each new width compiles again: rarely pays for short runs).
        threads: CPU threads; None leaves torch's choice.
        save_minutes: training is saved that often inside an epoch, too; 0: after every step.
        sync_batchnorm: under torchrun, normalise over the whole batch, not over each GPU's part.

    Raises:
        ValueError: unknown or absent device, unknown precision, threads below 1, a negative time,
            sync_batchnorm on the CPU.
    """
    if not save_minutes >= 0:
        raise ValueError(f"hardware.save_minutes is a time, 0 or more; got {save_minutes}")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"hardware.threads is a number from 1 on; got {threads}")
        torch.set_num_threads(threads)
    device = distributed.join(device)
    if device == "auto":
        gpu = gpu_of_worker(current_process().name, torch.cuda.device_count())
        device = f"cuda:{gpu}" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip() or "not available here").splitlines()[0].rstrip(".")
        raise ValueError(f"device={device} can't be used ({reason}); try device=cpu") from error
    if sync_batchnorm and chosen.type != "cuda":
        raise ValueError("hardware.sync_batchnorm needs GPUs: leave it out on the CPU")
    if precision == "auto":
        precision = "bf16" if has_native_bf16(chosen) else "fp32"
    if precision not in PRECISIONS:
        raise ValueError(f"hardware.precision is auto, fp32 or bf16; got {precision!r}")
    return Hardware(chosen, precision, channels_last, compile, save_minutes, sync_batchnorm)


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
    flags = set(info.read_text().split()) if info.exists() else set()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def prefers_channels_last(model: nn.Module) -> bool:
    """Networks of 2d convolutions gain from channels_last: measured, see docs/decisions.md.

    Decided by what the network is, not by timing, so that a run repeats bit for bit.
    """
    return any(isinstance(module, nn.Conv2d) for module in model.modules())
