"""Where a training stands: what is saved, so that a killed run goes on with the same bits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimming.methods.base import Method, Training
from utils.training import distributed
from utils.training.smoothing import Average


@dataclass
class State:
    """Where training stands; exactly what has to be saved for it to go on."""

    t: Training
    method: Method
    average: Average | None = None
    loss: float | Tensor = 0.0  # sums over this epoch's images
    right: int | Tensor = 0
    images: int = 0

    def __post_init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.kind = type(self.t.optimizer)
        self.full_lr = [group["lr"] for group in self.t.optimizer.param_groups]

    @property
    def kept(self) -> nn.Module:
        """The network that counts."""
        return self.average.model if self.average else self.t.model

    def count(self, loss: Tensor, logits: Tensor, targets: Tensor, size: int) -> None:
        """A step more: `loss` (cross-entropy of labels or shares) and `logits` of this process's
        part of a batch of `size`. Right is the class with the largest share."""
        labels = targets if targets.dim() == 1 else targets.argmax(1)
        right = (logits.detach().argmax(1) == labels).sum()
        sums = torch.stack([loss.detach().double() * len(labels), right.double()])
        sums = distributed.total(sums) / distributed.copies(size)
        self.t.step += 1
        self.images += size
        self.loss, self.right = self.loss + sums[0], self.right + sums[1]

    def next_epoch(self, row: dict[str, Any]) -> None:
        """`row` is what is told of the one that is over."""
        self.rows.append(row)
        t = self.t
        t.epoch, t.step, self.loss, self.right, self.images = t.epoch + 1, 0, 0.0, 0, 0

    def dump(self) -> dict[str, Any]:
        t = self.t
        return {
            "model": t.model.state_dict(),
            **({"average": self.average.model.state_dict()} if self.average else {}),
            "optimizer": t.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "keep": t.keep,
            "epoch": t.epoch,
            "step": t.step,
            "sums": [float(self.loss), int(self.right), self.images],
            "rows": self.rows,
            "threads": torch.get_num_threads(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """All but the network, which is there already."""
        t = self.t
        if self.average:
            self.average.model.load_state_dict(saved["average"])
        t.optimizer.load_state_dict(saved["optimizer"])
        self.method.load_state_dict(saved.get("method", {}))  # none in files of before
        t.keep = saved.get("keep", {})
        t.epoch, t.step, self.rows = saved["epoch"], saved["step"], saved["rows"]
        self.loss, self.right, self.images = saved["sums"]
        if saved["threads"] != torch.get_num_threads():
            # Sums are split over threads: another number of them gives other bits.
            print(f"using {saved['threads']} threads, as this run did before")
            torch.set_num_threads(saved["threads"])
