"""Class folders too large for memory: worker processes read the images as they are needed.

    data = imagenet(root="data/imagenet", workers=8)
    for images, labels in data.train_batches(256, seed=0, epoch=0): ...

What an image looks like in a batch depends on (seed, epoch, its number) alone: neither on the
number of workers, nor on which of them read it, nor on what was drawn before.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.data import folders
from utils.data.augment import normalise
from utils.data.reader import Files, Reader, View, default_workers, read
from utils.data.sources import Split
from utils.data.splits import Part, order_of_epoch, order_of_sample, set_aside, steps_per_epoch

# Of ImageNet's colours, on the 0..1 scale; fb.resnet.torch, datasets/imagenet.lua.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


@dataclass(frozen=True, eq=False)
class Streamed:
    """What `Data` offers, from files; batches have the same order and the same form."""

    name: str
    train: Files
    val: Files  # empty unless asked for; every choice (epochs, strength, ratio) is made on it
    test: Files  # read once per stage, for the record
    classes: tuple[str, ...]
    mean: Tensor  # (3,) on the 0..255 scale
    std: Tensor  # (3,); batches are made on the device where these two are
    size: int
    augment: View  # draws from torch's own generator
    crop: View
    workers: int
    fingerprint: str  # SHA-256 of what can change a result; see `imagenet`

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return 3, self.size, self.size

    def to(self, device: torch.device | str) -> "Streamed":
        """The same data, with batches on `device`."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def steps(self, batch_size: int) -> int:
        """Training batches per epoch."""
        return steps_per_epoch(self.name, len(self.train), batch_size)

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int, start: int = 0, part: Part = slice
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented, normalised float32 (B, 3, size, size) and labels (B,), every image once.

        `start=k` yields exactly what comes after the first k batches, without reading those, and
        `part` says which images of a batch of n are read.
        ValueError, naming the file, for an image that can't be read.
        """
        order = order_of_epoch(len(self.train), seed, epoch)
        steps = range(start, self.steps(batch_size))
        reader = Reader(self.train, order, batch_size, self.augment, (seed, epoch), part)
        return self._normalised(reader, steps)

    def eval_batches(self, split: Files, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Centre crops, normalised float32 (B, 3, size, size), and labels (B,), in order."""
        order = torch.arange(len(split))
        reader = Reader(split, order, batch_size, self.crop)
        return self._normalised(reader, range(-(-len(split) // batch_size)))

    def sample(self, n: int, *, seed: int, batch_size: int = 256) -> Iterator[Tensor]:
        """n different training images, as in evaluation: float32 (B, 3, size, size).

        Raises ValueError, at the call, when there are fewer than n.
        """
        pairs = self.labelled(n, seed=seed, batch_size=batch_size)
        return (images for images, _ in pairs)

    def labelled(
        self, n: int, *, seed: int, batch_size: int = 256
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of `sample` with their labels, int64 (B,)."""
        order = order_of_sample(len(self.train), n, seed)
        reader = Reader(self.train, order, batch_size, self.crop)
        return self._normalised(reader, range(-(-n // batch_size)))

    def _normalised(self, reader: Reader, steps: range) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in read(reader, steps, self.workers, self.mean.device):
            yield normalise(images, self.mean, self.std), labels


def imagenet(
    *,
    root: str = "data/imagenet",
    name: str = "imagenet",
    size: int = 224,
    resize: int | None = None,
    color: bool = True,
    val_size: int = 0,
    split_seed: int = 0,
    workers: int | None = None,
) -> Streamed:
    """ImageNet, or any other class folders: root/train/<class>/* and root/val/<class>/*.

    `val` is the test split; `val_size` images of `train` may be set aside to validate on. Training
    images are augmented as in fb.resnet.torch, which the paper follows (section 4.2): a window of
    8 to 100 % of the area and of 3:4 to 4:3 scaled to size x size, a mirror, and with `color`
    brightness, contrast and saturation (each up to 40 %) and lighting. Unlike there, scaling is
    bilinear with antialiasing, and values are rounded to 8 bits. To evaluate, the shorter side
    becomes `resize` pixels (None: 8/7 of size, 256 for 224) and the centre is cut out.
    `workers` processes read (None: one per core but one, 16 at most; 0: none); `name` is what runs
    and tables call the data.

    The fingerprint knows the images by class, file name and size in bytes, not by their contents,
    which would take an hour to read: an image replaced by one of the same length isn't noticed.

    Raises FileNotFoundError where the folders aren't, ValueError for what is wrong in them and for
    impossible options.
    """
    base, resize = Path(root).expanduser(), round(size * 8 / 7) if resize is None else resize
    _check(size, resize, workers)
    if not all((base / split).is_dir() for split in ("train", "val")):
        raise FileNotFoundError(
            f"no images found: {base.resolve()} needs train/<class>/<images> and "
            "val/<class>/<images> (ImageNet itself must be fetched from image-net.org by hand); "
            "data.root=<folder> looks elsewhere"
        )
    trees = folders.scan_all([base / "train", base / "val"])
    whole, test = (_files(tree) for tree in trees)
    rest, aside = set_aside(Split(torch.arange(len(whole)), whole.labels), val_size, split_seed)
    train, val = whole.chosen(rest.images), whole.chosen(aside.images)
    classes = trees[0].classes
    mean, std = (torch.tensor(numbers) * 255 for numbers in (MEAN, STD))
    options = [classes, mean.tolist(), std.tolist(), size, resize, color]
    digest = _fingerprint(options, train, val, test)
    views = _views(size, resize, color)
    hired = default_workers() if workers is None else workers
    return Streamed(name, train, val, test, classes, mean, std, size, *views, hired, digest)


def lighting(image: Tensor) -> Tensor:
    """Noise along the principal colours (Krizhevsky et al. 2012): uint8 (3, H, W) to the same."""
    amounts = 0.1 * torch.randn(3) * torch.tensor(EIGENVALUES)
    shift = 255 * torch.tensor(EIGENVECTORS) @ amounts
    return (image + shift.view(3, 1, 1)).round_().clamp_(0, 255).to(torch.uint8)


def _views(size: int, resize: int, color: bool) -> tuple[View, View]:
    """What training and evaluation make of an image."""
    from torchvision.transforms import v2  # takes seconds to import

    jitter = [v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4), lighting]
    window = v2.RandomResizedCrop(size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), antialias=True)
    augment = v2.Compose([window, *(jitter if color else []), v2.RandomHorizontalFlip()])
    return augment, v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size)])


def _check(size: int, resize: int, workers: int | None) -> None:
    if size < 1 or resize < size:
        raise ValueError(
            f"data.size is the side of the images in pixels, 1 or more, and data.resize, before "
            f"the centre is cut out, is no smaller; got {size} and {resize}"
        )
    if workers is not None and workers < 0:
        raise ValueError(f"data.workers is a number of processes, 0 or more; got {workers}")


def _files(tree: folders.Tree) -> Files:
    names = np.array([os.fsencode(name) for name in tree.files])
    return Files(tree.folder, names, tree.sizes, tree.labels)


def _fingerprint(options: list[Any], *splits: Files) -> str:
    digest = hashlib.sha256(json.dumps(options).encode())
    for split in splits:
        digest.update(json.dumps(len(split)).encode())
        digest.update(b"\0".join(split.names.tolist()))
        digest.update(split.sizes.numpy())
        digest.update(split.labels.numpy())
    return digest.hexdigest()
