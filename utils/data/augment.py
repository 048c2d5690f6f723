"""Batches of raw images into what the network sees: normalise, pad, crop, flip; tensors only.

Everything works on whole batches on whatever device they are: one core prepares well over 50,000
images of 32x32 a second (`python benchmarks/data.py`), so no worker processes are needed.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def channel_stats(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, (C,) each, of uint8 (N, C, H, W) on 0..255.

    Exact (whole numbers up to the last step), then rounded to 0.1, as the Torch code the paper
    builds on writes them (fb.resnet.torch, datasets/cifar10.lua: 125.3, 123.0, 113.9 and 63.0,
    62.1, 66.7). A channel that never changes gets deviation 1, so that it is only shifted.
    """
    values = torch.arange(256)
    means, stds = [], []
    for channel in images.unbind(1):
        # A histogram holds all there is to know, and has no rounding to accumulate. In pieces,
        # because bincount copies what it counts.
        counts = sum(
            torch.bincount(piece.flatten(), minlength=256) for piece in channel.split(4096)
        )
        n = int(counts.sum())
        total, squares = int((counts * values).sum()), int((counts * values**2).sum())
        means.append(round(total / n, 1))
        stds.append(round(math.sqrt(n * squares - total**2) / n, 1) or 1.0)
    return torch.tensor(means), torch.tensor(stds)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (N, C, H, W) to float32 (N, C, H, W), (image - mean) / std per channel (C,)."""
    return images.float().sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


def augment(
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    pad: int,
    flip: bool,
    pad_raw: bool,
    generator: torch.Generator,
) -> Tensor:
    """The paper's training augmentation: uint8 (N, C, H, W) to float32 (N, C, H, W).

    Normalise, put `pad` zeros around, cut a random window of the old size, mirror every image with
    probability 1/2. With `pad_raw` the border is black before normalising, so it is -mean/std
    afterwards: that is what the official PyTorch port does, while the paper's Torch code pads last.
    `generator` is on the CPU, so the same seed crops alike on every device.
    """
    n, _, height, width = images.shape
    # Both are always drawn: switching one off leaves the other's draws as they were.
    offsets = torch.randint(2 * pad + 1, (2, n), generator=generator).to(images.device)
    mirrored = torch.randint(2, (n, 1, 1, 1), generator=generator).to(images.device).bool()
    if pad and pad_raw:
        out = normalise(F.pad(images, (pad,) * 4), mean, std)
    else:
        out = F.pad(normalise(images, mean, std), (pad,) * 4)
    if pad:
        # All windows as a view, (N, C, 2 pad + 1, 2 pad + 1, H, W), and one of them per image.
        windows = out.unfold(2, height, 1).unfold(3, width, 1)
        out = windows[torch.arange(n, device=out.device), :, offsets[0], offsets[1]]
    return torch.where(mirrored, out.flip(3), out) if flip else out
