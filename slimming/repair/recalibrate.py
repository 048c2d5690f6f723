"""BatchNorm statistics are estimated anew, as if the network were trained on these images."""

import copy
import inspect
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from slimming.repair.batches import NotFinite, examples, explained

ARGUMENTS = inspect.signature(F.batch_norm)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@torch.no_grad()
def recalibrate(model: nn.Module, images: Iterable[Any]) -> None:
    """Estimate every BatchNorm's mean and variance anew on these images, in place.

    The average of the batches' statistics, each weighted by its number of images; dropout stays off
    and no weight changes. What a norm is never called with, such as an auxiliary head's input,
    leaves its statistics as they are. One value per channel (one image where the map is 1x1) has no
    variance: such a batch isn't counted there.

    Args:
        images: batches of training images without augmentation, or whatever else the network is
            called with: see `slimming.repair.batches.examples`. Labels may come along.

    Raises:
        ValueError: no images, NaN or infinity, or nothing but single values to estimate a variance
            from. Whatever is raised, the network is as before.
    """
    work = copy.deepcopy(model).eval()
    for module in work.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.reset_running_stats()
            module.momentum = None
            module.train()
    averages, number = _Averages(work), 0
    for number, example in enumerate(examples(model, images), 1):
        with explained(model, example, number, "no statistic was changed"), averages:
            work(*example.args, **example.kwargs)
    if not number:
        raise ValueError("recalibration needs at least one batch of training images")
    _install(model, averages.all())


class _Averages(TorchFunctionMode):
    """Every batch norm on running statistics normalises by its batch, and averages over them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        buffers = model.named_buffers(remove_duplicate=False)
        self.names = {id(buffer): name for name, buffer in buffers}
        self.images: dict[str, int] = {}  # a running mean -> images that went into it
        self.estimated: dict[str, Tensor] = {}  # buffers of norms that were called

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        call = ARGUMENTS.bind(*args, **(kwargs or {}))
        call.apply_defaults()
        x, mean, variance, weight, bias, _, _, eps = call.args
        name, spread = self.names.get(id(mean)), self.names.get(id(variance))
        if name is None or spread is None:
            return func(*args, **(kwargs or {}))
        if not x.isfinite().all():
            raise NotFinite(name.rpartition(".")[0])
        if name not in self.images:
            self.images[name] = 0
            self.estimated |= {name: mean.zero_(), spread: variance.fill_(1)}
        counts = x.numel() > x.shape[1]
        self.images[name] += len(x) if counts else 0
        share = len(x) / self.images[name] if counts else 0.0
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(x, weight, bias, mean, variance, counts, share, eps, cudnn)

    def all(self) -> dict[str, Tensor]:
        """{buffer's name: its new value} of all norms that were called.

        Raises:
            ValueError: a norm had nothing to estimate its variance from.
        """
        for name, images in self.images.items():
            if not images:
                raise ValueError(
                    f"'{name.rpartition('.')[0]}' reads one value per channel in every batch, "
                    f"which has no variance: give batches of two images or more"
                )
        found = dict(self.estimated)
        for path, module in self.model.named_modules():
            if isinstance(module, _BatchNorm) and module.training and _was_called(module):
                found |= {n: b for n, b in module.named_buffers(path, False) if _is_statistic(n)}
        return found


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in STATISTICS


def _was_called(norm: _BatchNorm) -> bool:
    return bool(norm.running_mean.any() or (norm.running_var != 1).any())


def _install(model: nn.Module, statistics: dict[str, Tensor]) -> None:
    for name, tensor in statistics.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"'{name}' of these images is too large for {tensor.dtype}: nothing was changed"
            )
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in statistics.items():
        buffers[name].copy_(tensor)
