"""Progress on the terminal: a live bar for people, one plain line per epoch for files."""

import sys

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class EpochProgress(Progress):
    """Shows epoch, loss, accuracy, images/s and the time left.

    Args:
        images: in an epoch.
        done: how many of all epochs' images were seen before.
    """

    def __init__(self, title: str, epochs: int, images: int, done: int = 0):
        columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}")]
        columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
        super().__init__(*columns, transient=True, disable=not sys.stdout.isatty())
        self.title, self.epochs, self.done = title, epochs, done
        self.note = f"epoch {done // images + 1}/{epochs}"
        self.add_task(title, total=epochs * images, completed=done, note=self.note)

    def step(self, images: int) -> None:
        (task,) = self.tasks
        self.update(task.id, advance=images, note=f"{self.note}  {self.rate():,.0f} img/s")

    def rate(self) -> float:
        """Images per second, since it goes on."""
        (task,) = self.tasks
        return (task.completed - self.done) / max(1e-9, task.elapsed)

    def end_epoch(self, epoch: int, loss: float, accuracy: dict[str, float]) -> None:
        """`epoch` is 1 after the first one; accuracies are fractions by split."""
        (task,) = self.tasks
        shares = ", ".join(f"{split} {100 * value:.2f} %" for split, value in accuracy.items())
        self.note = f"epoch {min(epoch + 1, self.epochs)}/{self.epochs}  loss {loss:.4f}"
        print(
            f"{self.title}  epoch {epoch}/{self.epochs}  loss {loss:.4f}  {shares}  "
            f"{self.rate():,.0f} img/s  {task.remaining / max(1e-9, self.rate()):.0f} s left",
            flush=True,
        )
