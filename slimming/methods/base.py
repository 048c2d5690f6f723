"""What a method sees of a training, and the moments at which it may act: by default it never does.

A method is ordinary training but for what it writes itself; see docs/extending.md.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from slimming.graph import ChannelGraph
from slimming.planning.planner import Plan, plan

# At which a method changes what is trained.
MOMENTS = ("start", "loss", "after_backward", "after_step", "after_epoch")
Batch = tuple[Tensor, Tensor]  # images (B, C, H, W); labels (B,), or shares of classes (B, classes)


@dataclass
class Training:
    """Where a training stands. A method may replace `model` and `optimizer` by others.

    In a loop of one's own the first two are enough: `Training(model, optimizer)`.
    """

    model: nn.Module
    optimizer: optim.Optimizer
    example: Tensor | None = None  # two blank images: for `trace`
    epochs: int = 1
    steps: int = 1  # of an epoch
    epoch: int = 0  # how many are finished
    step: int = 0  # how many of this epoch are finished
    shared: nn.Module | None = None  # the network as several processes train it, if they do
    # What `shrink` left: {gate: channels of the network as it came in}, of gates that were cut.
    keep: dict[str, Tensor] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """The share of all steps that are finished: 0 at the start, 1 after the last epoch."""
        return (self.epoch * self.steps + self.step) / (self.epochs * self.steps)

    @property
    def lr(self) -> float:
        """The learning rate of the last parameter group: of the gammas, if theirs is another."""
        return self.optimizer.param_groups[-1]["lr"]

    def forward(self, images: Tensor) -> Tensor:
        """The network's answer to a batch; its gradients are those of all processes."""
        return (self.shared or self.model)(images)


class Method:
    """Ordinary training. Override what differs."""

    leaves_zeros: bool = False  # whether weights that it leaves at zero shall stay so ever after

    @property
    def trains_plainly(self) -> bool:
        """Whether training with this is ordinary training, so that its networks are anybody's."""
        return all(getattr(type(self), moment) is getattr(Method, moment) for moment in MOMENTS)

    def start(self, t: Training) -> None:
        """Before the first step: the network is as it comes in, also where a run goes on. What was
        saved (weights, optimiser, `state_dict`) is put in place after this."""

    def loss(self, t: Training, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(images, targets) -> (loss to minimise, cross-entropy alone, logits).

        Targets are labels (B,), or shares of the classes (B, classes) where a recipe softens them.
        """
        images, targets = batch
        logits = t.forward(images)
        loss = F.cross_entropy(logits.float(), targets)
        return loss, loss, logits

    def after_backward(self, t: Training) -> None:
        """Gradients are what the step will use: unscaled, clipped, of the whole batch."""

    def after_step(self, t: Training) -> None:
        """The optimiser has stepped, with learning rate `t.lr`."""

    def after_epoch(self, t: Training) -> None:
        """An epoch is over: `t.step` is `t.steps`. What is left here is evaluated and saved."""

    def scores(
        self, model: nn.Module, graph: ChannelGraph, batches: Iterable[Batch] = ()
    ) -> dict[str, Tensor]:
        """{gate: (channels,)}, higher stays; `batches` are training images and their labels.

        Raises:
            ValueError: this method has none.
        """
        raise ValueError(f"{type(self).__name__} gives no scores to choose channels by")

    def choose(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        scores: dict[str, Tensor],
        evaluate: Callable[[Plan], float] | None = None,
        **goal: Any,
    ) -> Plan:
        """Which channels stay.

        Args:
            evaluate: plan -> accuracy of the network cut by it, from 0 to 1, on validation images;
                it raises ValueError where none are held out.
            goal: what `plan` takes: a ratio or a target, and options.
        """
        return plan(graph, scores, **goal)

    def views(self, model: nn.Module) -> dict[str, nn.Module]:
        """{name: network} evaluated after each epoch on the validation split, besides `model`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a run saves of the method: its attributes that are numbers, words, tensors, or
        lists, tuples and dicts of them."""
        return {name: value for name, value in vars(self).items() if _is_data(value)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave comes back, where a run goes on."""
        vars(self).update(state)

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> Training:
        """Act in a loop that isn't ours: `after_backward` before, and `after_step` behind each step
        that `optimizer` takes. Nothing else is to be called; lambda joins once per step, however
        many `backward` calls, clipping, a GradScaler or processes there are before it.

        Raises:
            ValueError: at a step, if its gradients are still multiplied by a GradScaler.
        """
        t = Training(model, optimizer)

        def before(_: Any, given: tuple, named: dict) -> tuple[tuple, dict] | None:
            if getattr(optimizer, "grad_scale", None) is not None:
                raise ValueError(
                    "a fused optimiser unscales gradients inside its step, where no method can "
                    "act: call scaler.unscale_(optimizer) before scaler.step(optimizer)"
                )
            closure = named.get("closure", given[1] if len(given) > 1 else None)
            if closure is None:
                self.after_backward(t)
                return None

            def and_then() -> Any:  # the gradients are made in the step
                with torch.enable_grad():
                    loss = closure()
                self.after_backward(t)
                return loss

            return given[:1], {**named, "closure": and_then}

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(lambda *_: self.after_step(t))
        return t


def _is_data(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_data, (*value, *value.values())))
    if isinstance(value, list | tuple):
        return all(map(_is_data, value))
    return value is None or type(value) in (bool, int, float, str, torch.Tensor)
