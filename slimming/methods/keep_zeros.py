"""Training a network whose zeros are meant: weights that are pruned one by one, or in blocks."""

from slimming.methods.base import Method, Training
from slimming.surgery import masks


class KeepZeros(Method):
    """Ordinary training in which every weight of a convolution or linear layer that is exactly zero
    at the start is zero after each step."""

    leaves_zeros = True

    def start(self, t: Training) -> None:
        self.masks = masks.zeros(t.model)

    def after_step(self, t: Training) -> None:
        masks.apply(t.model, self.masks)
