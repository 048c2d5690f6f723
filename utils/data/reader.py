"""Worker processes that read images in batches: streaming.py says which and what of them."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from utils.data import folders
from utils.data.seeding import mix
from utils.data.splits import Part

MOST_WORKERS = 16  # by default; each one keeps two batches ready

View = Callable[[Tensor], Tensor]  # uint8 (3, any, any) to uint8 (3, size, size)


@dataclass(frozen=True, eq=False)
class Files:
    """The images of a split, none of them read."""

    folder: Path
    names: np.ndarray  # bytes (N,), "<class>/<image>": one block, which processes share
    sizes: Tensor  # int64 (N,), bytes
    labels: Tensor  # int64 (N,)

    def __len__(self) -> int:
        return len(self.names)

    def chosen(self, numbers: Tensor) -> "Files":
        return Files(self.folder, self.names[numbers], self.sizes[numbers], self.labels[numbers])


@dataclass(frozen=True, eq=False)
class Reader:
    """A data set as torch's loader wants it, except that its items are batches."""

    files: Files
    order: Tensor  # int64; batch k holds numbers k * batch_size ... of it
    batch_size: int
    view: View
    seeds: tuple[int, ...] = ()
    part: Part = slice

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor] | str:
        """uint8 (B, 3, size, size) and labels (B,), or what is wrong with an image."""
        chosen = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        chosen = chosen[self.part(len(chosen))]
        before = torch.get_rng_state()
        try:
            images = torch.stack([self._image(number) for number in chosen.tolist()])
        except ValueError as error:
            return str(error)  # raised here, it would arrive wrapped in a worker's traceback
        finally:
            torch.set_rng_state(before)
        return images, self.files.labels[chosen]

    def _image(self, number: int) -> Tensor:
        path = self.files.folder / os.fsdecode(self.files.names[number])
        pixels = folders.decode(path, 3, None).copy(order="K")  # Pillow's own can't be written to
        if self.seeds:
            # torchvision's transforms know no other generator. Only the CPU's: not the GPU's.
            torch.default_generator.manual_seed(mix(*self.seeds, "image", number))
        return self.view(torch.from_numpy(pixels))


def read(
    reader: Reader, steps: range, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """These batches of a reader, in order, on `device`; ValueError for what `Reader` says."""
    workers = min(workers, max(0, len(steps) - 1))  # for one batch nobody is hired
    loader = DataLoader(
        reader,
        batch_size=None,  # the reader makes whole batches
        sampler=steps,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_outlive_one_signal,
        # They use neither threads nor the GPU, so that forking is safe, and start at once.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else it draws a seed from the global one
    )
    for batch in loader:
        if isinstance(batch, str):
            raise ValueError(batch)
        images, labels = batch
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def default_workers() -> int:
    """One per core but one, shared by the processes of a torchrun."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    free = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1
    return max(0, min(free, MOST_WORKERS))


def _as_it_is(batch: Any) -> Any:
    return batch


def _outlive_one_signal(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach whole groups of processes. The training then wants to
    finish its step, and needs us; it ends us itself. A second SIGTERM acts as usual."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _now_as_usual)


def _now_as_usual(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)
