"""Progress on the terminal: a live bar for people, one plain line per epoch for files."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class EpochProgress:
    """Shows epoch, loss, accuracy, images/s and the time left."""

    def __init__(self, title: str, epochs: int, steps: int, done: int = 0):
        self.title, self.epochs, self.steps = title, epochs, steps
        self._started, self._images, self._first = time.monotonic(), 0, done
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(),
                transient=True,
            )
            self._task = self._bar.add_task(title, total=epochs * steps, completed=done, note="")

    def __enter__(self) -> "EpochProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, images: int) -> None:
        self._images += images
        if self._bar:
            self._bar.update(self._task, advance=1, note=f"{self._rate():,.0f} img/s")

    def epoch(self, epoch: int, loss: float, accuracy: dict[str, float]) -> None:
        """`epoch` is 1 after the first one; accuracies are fractions by split."""
        shares = ", ".join(f"{split} {100 * value:.2f} %" for split, value in accuracy.items())
        done = max(1, epoch * self.steps - self._first)  # 0: resumed after an epoch's last step
        left = (time.monotonic() - self._started) / done * (self.epochs - epoch) * self.steps
        line = (
            f"{self.title}  epoch {epoch}/{self.epochs}  loss {loss:.4f}  {shares}  "
            f"{self._rate():,.0f} img/s  {left:.0f} s left"
        )
        (self._bar.console.print(line) if self._bar else print(line, flush=True))

    def _rate(self) -> float:
        return self._images / max(1e-9, time.monotonic() - self._started)
