"""The only training loop and the only evaluate()."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from slimming.methods.base import Plain
from slimming.methods.sparsity import gammas
from utils.data.sets import Data, Split
from utils.runs.folder import Run
from utils.training import distributed
from utils.training.hardware import Hardware
from utils.training.interrupt import Interrupted, interruptible
from utils.training.method import memory
from utils.training.progress import EpochProgress
from utils.training.recipe import Recipe, parameter_groups
from utils.training.smoothing import Average, soften
from utils.training.strength import advise, describe_gammas
from utils.training.tracking import NoLogger, WandB

EXPLODED = 1e3  # a cross-entropy beyond this never comes back
DIVERGED = (
    "training has diverged. Lower recipe.optimizer.lr or method.strength, or use "
    "hardware.precision=fp32"
)
CHECK_EVERY = 50  # steps between looks at the loss: each look waits for the GPU


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    method: Plain,
    run: Run,
    hardware: Hardware,
    logger: WandB | NoLogger,
    seed: int,
) -> nn.Module:
    """Train from wherever `run` stands to the last epoch; the network is returned, placed: with
    `recipe.ema` the averaged one, which is also what is evaluated and described.

    Everything is saved in `run` after every epoch, and every `hardware.save_minutes` inside one.
    The clock decides when to save, never what is computed: all random draws depend on (seed, epoch,
    step), so a run that was killed ends with the very bits of one that wasn't.

    Raises:
        ValueError: the cross-entropy is not finite or explodes, or so do the outputs.
        Interrupted: Ctrl-C or SIGTERM, after saving.
    """
    model = hardware.place(model)
    optimizer = recipe.optimizer(
        parameter_groups(model, method.weight_decay_on_gamma, recipe.lr_gamma)
    )
    full_lr = [group["lr"] for group in optimizer.param_groups]
    state = _Progress(method, Average(model, recipe.ema) if recipe.ema else None)
    if (saved := run.load_resume()) is not None:
        state.restore(saved, model, optimizer)
        print(f"{run.name}: going on at epoch {state.epoch + 1}, step {state.step + 1}")
    saver = _Saver(run, hardware.save_minutes)
    saver.write_rows(state)
    if hardware.compile:
        model.compile()
    steps = data.steps(recipe.batch_size)
    images = min(len(data.train), steps * recipe.batch_size)  # a last single one is left out
    done = state.epoch * images + state.images
    shared = distributed.wrap(model, hardware.sync_batchnorm)
    with interruptible() as stop, EpochProgress(run.label, recipe.epochs, images, done) as progress:
        while state.epoch < recipe.epochs:
            model.train()
            for batch, size in _batches(data, recipe, seed, state):
                share = (state.epoch * steps + state.step) / (recipe.epochs * steps)
                for group, lr in zip(optimizer.param_groups, full_lr, strict=True):
                    group["lr"] = lr * recipe.schedule(share)
                # For dropout and the like: what is drawn in a step depends on nothing before it.
                torch.manual_seed(distributed.own_seed(seed, "step", state.epoch, state.step))
                loss, logits = _step(shared, batch, optimizer, method, hardware, size, recipe)
                state.count(loss, logits, batch[1], size)
                _check(state, last=state.step == steps)
                if state.average:
                    state.average.update(model, state.epoch * steps + state.step)
                progress.step(size)
                if distributed.anyone(bool(stop)):
                    saver.save(state, model, optimizer)
                    raise _interrupted(state, recipe)
                if saver.is_due():
                    _check_weights(model, state)
                    saver.save(state, model, optimizer)
            model, optimizer = method.after_epoch(model, optimizer)
            if model is not distributed.bare(shared):
                if state.average:
                    state.average.restart(model)
                shared = distributed.wrap(model, hardware.sync_batchnorm)
            _check_weights(model, state)
            kept = state.average.model if state.average else model
            row = state.end_epoch(kept, data, method, hardware, optimizer.param_groups[0]["lr"])
            saver.save(state, model, optimizer)
            saver.write_rows(state)
            logger.log(row, gammas(kept))
            shares = {k.split("/")[0]: row[k] for k in row if k.endswith("/accuracy")}
            progress.end_epoch(state.epoch, row["train/loss"], shares)
            advise(row, recipe.epochs, method)
            if distributed.anyone(bool(stop)):  # it came while the epoch was being closed
                raise _interrupted(state, recipe)
    return state.average.model if state.average else model


def _batches(data: Data, recipe: Recipe, seed: int, state: "_Progress") -> Iterator[tuple]:
    """The rest of an epoch: ((images, targets) of this process, images of the whole batch)."""
    left = len(data.train) - state.step * recipe.batch_size
    now = {"seed": seed, "epoch": state.epoch}
    # Pairs are drawn from the whole batch, so that each process has to see it.
    read, take = (slice, distributed.part) if recipe.mixup else (distributed.part, slice)
    for images, labels in data.train_batches(recipe.batch_size, **now, start=state.step, part=read):
        size = min(left, recipe.batch_size)
        soft = soften(images, labels, data.num_classes, recipe, **now, step=state.step)
        yield tuple(part[take(size)] for part in soft), size
        left -= recipe.batch_size


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, split: Split, hardware: Hardware) -> dict[str, float]:
    """{"accuracy": share of right answers, "loss": mean cross-entropy} over a whole split.

    Raises:
        ValueError: the split is empty, or outputs are not finite, so that no answer counts.
    """
    model = hardware.place(model).eval()
    found, count = [], 0
    for images, labels in data.eval_batches(split):
        with hardware.autocast():
            logits = model(images)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        right = (logits.argmax(1) == labels).sum()
        found.append(torch.stack([right, logits.isfinite().all(1).sum(), loss]))
        count += len(labels)
    if count == 0:
        raise ValueError("there are no images to evaluate on")
    right, finite, loss = map(sum, zip(*torch.stack(found).tolist(), strict=True))
    if finite < count:
        raise ValueError(
            f"the network's outputs are not finite for {count - finite:.0f} of {count} images, so "
            f"they answer nothing: its weights or its BatchNorm statistics are broken"
        )
    return {"accuracy": right / count, "loss": loss / count}


@dataclass
class _Progress:
    """Where training stands; exactly what has to be saved for it to go on."""

    method: Plain
    average: Average | None = None
    epoch: int = 0
    step: int = 0
    loss: float | Tensor = 0.0  # sums over this epoch's images
    right: int | Tensor = 0
    images: int = 0

    def __post_init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def count(self, loss: Tensor, logits: Tensor, targets: Tensor, size: int) -> None:
        """A step more: `loss` (cross-entropy of labels or shares) and `logits` of this process's
        part of a batch of `size`. Right is the class with the largest share."""
        labels = targets if targets.dim() == 1 else targets.argmax(1)
        right = (logits.detach().argmax(1) == labels).sum()
        sums = torch.stack([loss.detach().double() * len(labels), right.double()])
        sums = distributed.total(sums) / distributed.copies(size)
        self.step += 1
        self.images += size
        self.loss, self.right = self.loss + sums[0], self.right + sums[1]

    def end_epoch(
        self, model: nn.Module, data: Data, method: Plain, hardware: Hardware, lr: float
    ) -> dict[str, Any]:
        """The finished epoch's row of metrics."""
        row = {
            "epoch": self.epoch + 1,
            "lr": lr,
            "train/loss": float(self.loss) / self.images,
            "train/accuracy": int(self.right) / self.images,
        }
        if len(data.val) and distributed.leads():
            scores = evaluate(model, data, data.val, hardware)
            row |= {f"val/{key}": value for key, value in scores.items()}
        row |= describe_gammas(model, method.strength)
        self.rows.append(row)
        self.epoch, self.step, self.loss, self.right, self.images = self.epoch + 1, 0, 0.0, 0, 0
        return row

    def dump(self, model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            **({"average": self.average.model.state_dict()} if self.average else {}),
            "optimizer": optimizer.state_dict(),
            "method": memory(self.method),
            "epoch": self.epoch,
            "step": self.step,
            "sums": [float(self.loss), int(self.right), self.images],
            "rows": self.rows,
            "threads": torch.get_num_threads(),
        }

    def restore(self, saved: dict[str, Any], model: nn.Module, optimizer: optim.Optimizer) -> None:
        model.load_state_dict(saved["model"])
        if self.average:
            self.average.model.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        vars(self.method).update(saved.get("method", {}))  # none in files of before
        self.epoch, self.step, self.rows = saved["epoch"], saved["step"], saved["rows"]
        self.loss, self.right, self.images = saved["sums"]
        if saved["threads"] != torch.get_num_threads():
            # Sums are split over threads: another number of them gives other bits.
            print(f"using {saved['threads']} threads, as this run did before")
            torch.set_num_threads(saved["threads"])


@dataclass
class _Saver:
    """Writes the run folder, or leaves that to the process that leads."""

    run: Run
    minutes: float  # between two saves inside an epoch
    last: float = field(default_factory=time.monotonic)

    def is_due(self) -> bool:
        return time.monotonic() - self.last >= 60 * self.minutes

    def save(self, state: _Progress, model: nn.Module, optimizer: optim.Optimizer) -> None:
        if distributed.leads():
            self.run.save_resume(state.dump(model, optimizer))
        self.last = time.monotonic()

    def write_rows(self, state: _Progress) -> None:
        if distributed.leads():
            self.run.write_rows(state.rows)


def _step(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    optimizer: optim.Optimizer,
    method: Plain,
    hardware: Hardware,
    size: int,
    recipe: Recipe,
) -> tuple[Tensor, Tensor]:
    """-> cross-entropy and logits of `batch`, this process's part of one of `size` images."""
    optimizer.zero_grad(set_to_none=True)
    with hardware.autocast():
        loss, cross_entropy, logits = method.loss(model, batch)
    (loss * distributed.share(size, own=len(batch[1]))).backward()
    if recipe.grad_clip is not None:  # before the penalty's gradient, which stays lambda
        nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
    method.after_backward(distributed.bare(model))
    optimizer.step()
    method.after_step(distributed.bare(model), optimizer.param_groups[-1]["lr"])  # of the gammas
    return cross_entropy, logits


def _check(state: _Progress, last: bool) -> None:
    if state.step % CHECK_EVERY and not last:
        return
    mean = float(state.loss) / state.images
    if not math.isfinite(mean) or mean > EXPLODED:
        raise ValueError(f"the loss is {mean:g} in epoch {state.epoch + 1}: {DIVERGED}")


def _check_weights(model: nn.Module, state: _Progress) -> None:
    """The last step's weights have seen no loss yet: never save them broken."""
    values = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
    sound = [tensor.isfinite().all() for tensor in values.values()]
    if sound and not torch.stack(sound).all():  # one look: each waits for the GPU
        name = next(name for name, fine in zip(values, sound, strict=True) if not fine)
        when = f"{state.epoch} epochs and {state.step} steps"
        raise ValueError(f"'{name}' is not finite after {when}: {DIVERGED}")


def _interrupted(state: _Progress, recipe: Recipe) -> Interrupted:
    distributed.from_leader()  # which has saved: nobody ends before
    return Interrupted(
        f"stopped after {state.epoch} of {recipe.epochs} epochs and {state.step} steps; everything "
        f"is saved: the same command goes on from here"
    )
