"""The only training loop and the only evaluate()."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from slimming.methods.base import Method, Training
from slimming.methods.sparsity import gammas
from slimming.surgery.builder import fit_shapes
from slimming.surgery.edits import edits_in
from utils.data.sets import Data, Split
from utils.runs.folder import Run
from utils.training import distributed
from utils.training.hardware import Hardware
from utils.training.interrupt import Interrupted, interruptible
from utils.training.method import decays_gammas
from utils.training.progress import EpochProgress
from utils.training.recipe import Recipe, parameter_groups
from utils.training.smoothing import Average, soften
from utils.training.state import State
from utils.training.strength import advise, describe_gammas, functional_of, strength_of
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
    method: Method,
    run: Run,
    hardware: Hardware,
    logger: WandB | NoLogger,
    seed: int,
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Train from wherever `run` stands to the last epoch.

    Everything is saved in `run` after every epoch, and every `hardware.save_minutes` inside one.
    The clock decides when to save, never what is computed: all random draws depend on (seed, epoch,
    step), so a run that was killed ends with the very bits of one that wasn't.

    Returns:
        The network, placed: with `recipe.ema` the averaged one, which is also what is evaluated and
        described; and {gate: channels that stay} of those that the method cut while training.

    Raises:
        ValueError: the cross-entropy is not finite or explodes, or so do the outputs; or the method
            replaced the optimiser by one of another kind.
        Interrupted: Ctrl-C or SIGTERM, after saving.
    """
    steps = data.steps(recipe.batch_size)
    state = _begin(model, data, recipe, method, run, hardware)
    t = state.t
    full_lr = state.full_lr
    saver = _Saver(run, hardware.save_minutes)
    saver.write_rows(state)
    images = min(len(data.train), steps * recipe.batch_size)  # a last single one is left out
    done = t.epoch * images + state.images
    with interruptible() as stop, EpochProgress(run.label, recipe.epochs, images, done) as progress:
        while t.epoch < recipe.epochs:
            t.model.train()
            for batch, size in _batches(data, recipe, seed, state):
                for group, lr in zip(t.optimizer.param_groups, full_lr, strict=True):
                    group["lr"] = lr * recipe.schedule(t.progress)
                # For dropout and the like: what is drawn in a step depends on nothing before it.
                torch.manual_seed(distributed.own_seed(seed, "step", t.epoch, t.step))
                loss, logits = _step(t, batch, method, hardware, size, recipe)
                state.count(loss, logits, batch[1], size)
                _follow(state, recipe, hardware)
                _check(state, last=t.step == steps)
                if state.average:
                    state.average.update(t.model, t.epoch * steps + t.step)
                progress.step(size)
                if distributed.anyone(bool(stop)):
                    saver.save(state)
                    raise _interrupted(state, recipe)
                if saver.is_due():
                    _check_weights(state)
                    saver.save(state)
            method.after_epoch(t)
            _follow(state, recipe, hardware)
            _check_weights(state)
            row = _end_epoch(state, data, hardware)
            saver.save(state)
            saver.write_rows(state)
            logger.log(row, gammas(state.kept, functional_of(method)))
            shares = {k.split("/")[0]: row[k] for k in row if k.endswith("/accuracy")}
            progress.end_epoch(t.epoch, row["train/loss"], shares)
            advise(row, recipe.epochs, method)
            if distributed.anyone(bool(stop)):  # it came while the epoch was being closed
                raise _interrupted(state, recipe)
    return state.kept, t.keep


def _begin(
    model: nn.Module, data: Data, recipe: Recipe, method: Method, run: Run, hardware: Hardware
) -> State:
    """The training where `run` stands: at its beginning, or where it was interrupted."""

    def optimizer() -> optim.Optimizer:
        apart = (decays_gammas(method), recipe.lr_gamma, functional_of(method))
        return recipe.optimizer(parameter_groups(t.model, *apart))

    blank = torch.zeros(2, *data.input_shape, device=hardware.device)
    steps = data.steps(recipe.batch_size)
    t = Training(hardware.place(model), None, blank, recipe.epochs, steps)
    t.optimizer = first = optimizer()
    method.start(t)
    saved = run.load_resume()
    if saved is not None:
        before = edits_in(t.model.state_dict())
        new = [edit for edit in edits_in(saved["model"]) if edit not in before]
        fit_shapes(t.model, saved["model"], new)  # a method may have cut it
        t.model.load_state_dict(saved["model"])
        hardware.place(t.model)
    if t.optimizer is first:
        t.optimizer = optimizer()  # of the parameters that there are now
    state = State(t, method)
    _install(state, recipe, hardware)
    if saved is not None:
        state.restore(saved)
        print(f"{run.name}: going on at epoch {t.epoch + 1}, step {t.step + 1}")
    return state


def _install(state: State, recipe: Recipe, hardware: Hardware) -> None:
    """Lay out, average, compile and share the network that `t.model` is from now on."""
    t = state.t
    t.model = hardware.place(t.model)
    state.average = Average(t.model, recipe.ema) if recipe.ema else None
    if hardware.compile:
        t.model.compile()
    t.shared = distributed.wrap(t.model, hardware.sync_batchnorm)


def _follow(state: State, recipe: Recipe, hardware: Hardware) -> None:
    """
    Raises:
        ValueError: a method replaced the optimiser by one that a killed run couldn't go on with.
    """
    t = state.t
    kind = type(t.optimizer)
    if kind is not state.kind or len(t.optimizer.param_groups) != len(state.full_lr):
        raise ValueError(
            f"the method replaced the optimiser by a {kind.__name__} of "
            f"{len(t.optimizer.param_groups)} parameter groups: while training it stays a "
            f"{state.kind.__name__} of {len(state.full_lr)}; another one is made in start()"
        )
    if t.model is not distributed.bare(t.shared):
        _install(state, recipe, hardware)


def _batches(data: Data, recipe: Recipe, seed: int, state: State) -> Iterator[tuple]:
    """The rest of an epoch: ((images, targets) of this process, images of the whole batch)."""
    done = state.t.step
    left = len(data.train) - done * recipe.batch_size
    now = {"seed": seed, "epoch": state.t.epoch}
    # Pairs are drawn from the whole batch, so that each process has to see it.
    read, take = (slice, distributed.part) if recipe.mixup else (distributed.part, slice)
    for images, labels in data.train_batches(recipe.batch_size, **now, start=done, part=read):
        size = min(left, recipe.batch_size)
        soft = soften(images, labels, data.num_classes, recipe, **now, step=state.t.step)
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


def _end_epoch(state: State, data: Data, hardware: Hardware) -> dict[str, Any]:
    """Close the epoch -> its row of metrics."""
    t, model = state.t, state.kept
    row = {
        "epoch": t.epoch + 1,
        "lr": t.optimizer.param_groups[0]["lr"],
        "train/loss": float(state.loss) / state.images,
        "train/accuracy": int(state.right) / state.images,
    }
    if len(data.val) and distributed.leads():
        for name, seen in {"val": model, **state.method.views(model)}.items():
            scores = evaluate(seen, data, data.val, hardware)
            row |= {f"{name}/{key}": value for key, value in scores.items()}
    row |= describe_gammas(model, strength_of(state.method), functional_of(state.method))
    state.next_epoch(row)
    return row


@dataclass
class _Saver:
    """Writes the run folder, or leaves that to the process that leads."""

    run: Run
    minutes: float  # between two saves inside an epoch
    last: float = field(default_factory=time.monotonic)

    def is_due(self) -> bool:
        return time.monotonic() - self.last >= 60 * self.minutes

    def save(self, state: State) -> None:
        if distributed.leads():
            self.run.save_resume(state.dump())
        self.last = time.monotonic()

    def write_rows(self, state: State) -> None:
        if distributed.leads():
            self.run.write_rows(state.rows)


def _step(
    t: Training,
    batch: tuple[Tensor, Tensor],
    method: Method,
    hardware: Hardware,
    size: int,
    recipe: Recipe,
) -> tuple[Tensor, Tensor]:
    """-> cross-entropy and logits of `batch`, this process's part of one of `size` images."""
    t.optimizer.zero_grad(set_to_none=True)
    with hardware.autocast():
        loss, cross_entropy, logits = method.loss(t, batch)
    (loss * distributed.share(size, own=len(batch[1]))).backward()
    if recipe.grad_clip is not None:  # before the penalty's gradient, which stays lambda
        nn.utils.clip_grad_norm_(t.model.parameters(), recipe.grad_clip)
    method.after_backward(t)
    t.optimizer.step()
    method.after_step(t)
    return cross_entropy, logits


def _check(state: State, last: bool) -> None:
    if state.t.step % CHECK_EVERY and not last:
        return
    mean = float(state.loss) / state.images
    if not math.isfinite(mean) or mean > EXPLODED:
        raise ValueError(f"the loss is {mean:g} in epoch {state.t.epoch + 1}: {DIVERGED}")


def _check_weights(state: State) -> None:
    """The last step's weights have seen no loss yet: never save them broken."""
    held = state.t.model.state_dict()
    values = {name: tensor for name, tensor in held.items() if tensor.is_floating_point()}
    sound = [tensor.isfinite().all() for tensor in values.values()]
    if sound and not torch.stack(sound).all():  # one look: each waits for the GPU
        name = next(name for name, fine in zip(values, sound, strict=True) if not fine)
        when = f"{state.t.epoch} epochs and {state.t.step} steps"
        raise ValueError(f"'{name}' is not finite after {when}: {DIVERGED}")


def _interrupted(state: State, recipe: Recipe) -> Interrupted:
    distributed.from_leader()  # which has saved: nobody ends before
    return Interrupted(
        f"stopped after {state.t.epoch} of {recipe.epochs} epochs and {state.t.step} steps; "
        f"everything is saved: the same command goes on from here"
    )
