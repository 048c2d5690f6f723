"""Training without any penalty: what every method starts from. It holds no state."""

import torch.nn.functional as F
from torch import Tensor, nn, optim

MOMENTS = ("loss", "after_backward", "after_step", "after_epoch")


class Plain:
    """The moments at which a method may act; by default none of them does anything."""

    strength: float = 0.0  # lambda
    weight_decay_on_gamma: bool = True

    @property
    def trains_plainly(self) -> bool:
        """Whether training with this is ordinary training, so that its networks are anybody's."""
        return all(getattr(type(self), moment) is getattr(Plain, moment) for moment in MOMENTS)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(images, targets) -> (loss to minimise, cross-entropy alone, logits).

        Targets are labels (B,), or shares of the classes (B, classes) where a recipe softens them.
        """
        images, targets = batch
        logits = model(images)
        loss = F.cross_entropy(logits.float(), targets)
        return loss, loss, logits

    def after_backward(self, model: nn.Module) -> None:
        """Gradients are there, the step is not yet taken."""

    def after_step(self, model: nn.Module, lr: float) -> None:
        """The optimiser has stepped, the gammas with this learning rate."""

    def after_epoch(
        self, model: nn.Module, optimizer: optim.Optimizer
    ) -> tuple[nn.Module, optim.Optimizer]:
        """May replace the network and the optimiser."""
        return model, optimizer
