"""What smooths a training: soft targets (label smoothing, mixup), and averaged weights."""

import copy

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from utils.data.seeding import mix
from utils.training.recipe import Recipe


def soften(
    images: Tensor, labels: Tensor, classes: int, recipe: Recipe, seed: int, epoch: int, step: int
) -> tuple[Tensor, Tensor]:
    """A whole batch as the recipe wants it: images (B, C, H, W), and targets.

    Targets stay labels (B,) where nothing softens them; else they are shares of the classes, float
    (B, classes). All draws depend on (seed, epoch, step).
    """
    if not recipe.label_smoothing and not recipe.mixup:
        return images, labels
    targets = F.one_hot(labels, classes).float()
    targets = targets * (1 - recipe.label_smoothing) + recipe.label_smoothing / classes
    if not recipe.mixup:
        return images, targets
    draw = numpy.random.default_rng(mix(seed, "mixup", epoch, step))
    share = float(draw.beta(recipe.mixup, recipe.mixup))
    others = torch.from_numpy(draw.permutation(len(labels))).to(labels.device)
    return torch.lerp(images[others], images, share), torch.lerp(targets[others], targets, share)


class Average:
    """An exponential moving average of a network's weights and buffers, as a network of its own.

    After step t it is decay * average + (1 - decay) * network, with a decay of at most
    (1 + t) / (10 + t), as in TensorFlow, so that a short training forgets where it started.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.restart(model)

    def restart(self, model: nn.Module) -> None:
        """From another network, or another shape of it, on."""
        self.model = copy.deepcopy(model)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """`step`: how many steps the whole training has done, this one included."""
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        means, now = zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True)
        get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))(means, now, None)
        for mean, value in pairs:  # counters and indices have no mean
            if not mean.is_floating_point():
                mean.copy_(value)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*(parameter.detach() for parameter in model.parameters()), *model.buffers()]
