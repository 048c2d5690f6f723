"""Data sets as whole tensors in memory, and the batches drawn from them.

One function per data set, each returning a `Data`; `conf/data/*.yaml` names the function and its
arguments. A new data set is one more file in this folder, with a function that ends in `build`, and
one yaml: docs/extending.md.

    data = digits(val_size=100)
    for images, labels in data.train_batches(64, seed=0, epoch=0): ...
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.data import folders, sources
from utils.data.augment import augment, channel_stats, normalise
from utils.data.sources import Split
from utils.data.splits import (
    Part,
    carve,
    generator_of,
    order_of_epoch,
    order_of_sample,
    set_aside,
    steps_per_epoch,
)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set with the numbers that normalise it and the augmentation it is trained with."""

    name: str
    train: Split
    val: Split  # empty unless asked for; every choice (epochs, strength, ratio) is made on it
    test: Split  # read once per stage, for the record
    classes: tuple[str, ...]
    mean: Tensor  # (C,) on the 0..255 scale
    std: Tensor  # (C,)
    pad: int  # pixels on each side before the random crop
    flip: bool
    pad_raw: bool
    fingerprint: str  # SHA-256 of all that can change a result; not of names or paths of files

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return tuple(self.train.images.shape[1:])

    def to(self, device: torch.device | str) -> "Data":
        """The same data on `device`; nothing is copied that is there already."""
        tensors = {name: getattr(self, name).to(device) for name in ("mean", "std")}
        splits = {name: getattr(self, name).to(device) for name in ("train", "val", "test")}
        return replace(self, **tensors, **splits)

    def steps(self, batch_size: int) -> int:
        """Training batches per epoch."""
        return steps_per_epoch(self.name, len(self.train), batch_size)

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int, start: int = 0, part: Part = slice
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented, normalised float32 (B, C, H, W) and labels (B,), every image once, shuffled.

        The order depends on (seed, epoch) and a batch's augmentation on (seed, epoch, step), so
        `start=k` yields exactly what comes after the first k batches, without drawing those, and
        `part` says which images of a batch of n are wanted: they look as in the whole batch.
        """
        assert start >= 0
        order = order_of_epoch(len(self.train), seed, epoch).to(self.train.images.device)
        for step in range(start, self.steps(batch_size)):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            images = augment(
                self.train.images[chosen],
                self.mean,
                self.std,
                pad=self.pad,
                flip=self.flip,
                pad_raw=self.pad_raw,
                generator=generator_of(seed, epoch, step),
            )
            wanted = part(len(chosen))
            yield images[wanted], self.train.labels[chosen[wanted]]

    def eval_batches(self, split: Split, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float32 (B, C, H, W) and labels (B,), in order, not augmented."""
        for i in range(0, len(split), batch_size):
            images = normalise(split.images[i : i + batch_size], self.mean, self.std)
            yield images, split.labels[i : i + batch_size]

    def sample(self, n: int, *, seed: int, batch_size: int = 256) -> Iterator[Tensor]:
        """n different training images, normalised, not augmented, float32 (B, C, H, W).

        Raises ValueError, at the call, when there are fewer than n.
        """
        pairs = self.labelled(n, seed=seed, batch_size=batch_size)
        return (images for images, _ in pairs)

    def labelled(
        self, n: int, *, seed: int, batch_size: int = 256
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of `sample` with their labels, int64 (B,)."""
        order = order_of_sample(len(self.train), n, seed).to(self.train.images.device)
        parts = (order[i : i + batch_size] for i in range(0, n, batch_size))
        return (
            (normalise(self.train.images[part], self.mean, self.std), self.train.labels[part])
            for part in parts
        )


class Options(TypedDict, total=False):
    """What every data set accepts; the defaults are those of `build` unless it says otherwise."""

    val_size: int  # so many training images are set aside to validate on: 0
    split_seed: int  # which ones: 0
    pad: int  # augmentation, see `augment`: 4
    flip: bool  # True
    pad_raw: bool  # False


def digits(**options: Unpack[Options]) -> Data:
    """scikit-learn's handwritten digits, 8x8 grey: nothing to download. 1000 to train, 797 to test.

    They come without a test set; ours is stratified and always the same, whatever `split_seed` is.
    Defaults to pad=1, flip=False.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    whole = Split(images, torch.from_numpy(raw.target).long())
    train, test = carve(whole, 797, generator_of("the test set of digits"))
    return build("digits", train, test, sources.DIGITS, **{"pad": 1, "flip": False} | options)


def cifar10(*, root: str = "data", download: bool = False, **options: Unpack[Options]) -> Data:
    """CIFAR-10, 50,000 + 10,000 images of 32x32, from root/cifar-10-batches-py or root/cifar10."""
    source = sources.find(
        "cifar10", root, "cifar-10-batches-py", sources.cifar, download, (3, 32, 32)
    )
    return build("cifar10", *source, **options)


def cifar100(*, root: str = "data", download: bool = False, **options: Unpack[Options]) -> Data:
    """CIFAR-100, 50,000 + 10,000 images of 32x32, from root/cifar-100-python or root/cifar100."""
    source = sources.find(
        "cifar100", root, "cifar-100-python", sources.cifar, download, (3, 32, 32)
    )
    return build("cifar100", *source, **options)


def svhn(*, root: str = "data", download: bool = False, **options: Unpack[Options]) -> Data:
    """SVHN, 604,388 (train and extra, as in the paper) + 26,032 images of 32x32.

    From root/train_32x32.mat, extra_32x32.mat, test_32x32.mat, or root/svhn/{train,extra,test}; as
    folders, `extra` is joined to `train` where it exists. Defaults to pad=0, flip=False: the paper
    names no augmentation.
    """
    source = sources.find(
        "svhn", root, "train_32x32.mat", sources.svhn, download, (3, 32, 32), more="extra"
    )
    return build("svhn", *source, **{"pad": 0, "flip": False} | options)


def mnist(*, root: str = "data", download: bool = False, **options: Unpack[Options]) -> Data:
    """MNIST, 60,000 + 10,000 grey images of 28x28, from root/MNIST/raw or root/mnist.

    Defaults to pad=0, flip=False.
    """
    # A file, because torchvision leaves the empty folder behind when a download fails.
    marker = "MNIST/raw/train-images-idx3-ubyte"
    source = sources.find("mnist", root, marker, sources.mnist, download, (1, 28, 28))
    return build("mnist", *source, **{"pad": 0, "flip": False} | options)


def imagefolder(
    *, root: str, size: int | None = None, channels: int = 3, **options: Unpack[Options]
) -> Data:
    """Your own images: root/train/<class>/*, and the same classes under root/val and/or root/test.

    With both, `val` is the validation split and `val_size` must be 0. With one of them, whichever
    it is, it is the test split, and `val_size` images of `train` may be set aside to validate on.
    `size` resizes every image's shorter side to it and crops the centre; without it they must all
    have one size. `channels` is 3 (colour) or 1 (grey). All of them must fit into memory;
    `utils.data.imagenet` reads them from the disk as it goes.
    """
    base = Path(root).expanduser()
    if not (base / "train").is_dir() and (base / "imagefolder").is_dir():
        base = base / "imagefolder"  # as data.root of the other data sets
    if channels not in (1, 3):
        raise ValueError(f"data.channels is 3 (colour) or 1 (grey); got {channels}")
    if size is not None and size < 1:
        raise ValueError(f"data.size is the side of the images in pixels; got {size}")
    held_out = [base / name for name in ("val", "test") if (base / name).is_dir()]
    if not (base / "train").is_dir() or not held_out:
        raise FileNotFoundError(
            f"no class folders found: {base.resolve()} needs train/<class>/<images>, and test/ or "
            "val/ (or both) with the same classes; data.root=<folder> looks elsewhere"
        )
    if len(held_out) == 2 and (val_size := options.get("val_size", 0)):
        raise ValueError(
            f"data.val_size must be 0, got {val_size}: {base / 'val'} is the validation split"
        )
    parts, classes = folders.read([base / "train", *held_out], channels=channels, size=size)
    train, *val, test = (Split(*part) for part in parts)
    return build("imagefolder", train, test, classes, val=val[0] if val else None, **options)


def fake(
    *,
    num_train: int = 256,
    num_test: int = 128,
    num_classes: int = 10,
    size: int = 32,
    channels: int = 3,
    seed: int = 0,
    **options: Unpack[Options],
) -> Data:
    """Made-up images that can be learned: per class one smooth random pattern, plus noise."""
    if min(num_train, num_test, size, channels) < 1 or num_classes < 2:
        raise ValueError(
            "fake data needs images, of at least 1 pixel and 1 channel, in at least 2 classes; got "
            f"{num_train=}, {num_test=}, {size=}, {channels=}, {num_classes=}"
        )
    coarse = torch.randn(num_classes, channels, 4, 4, generator=generator_of("fake", seed))
    patterns = F.interpolate(coarse, size=(size, size), mode="bilinear")

    def draw(n: int, split: str) -> Split:
        labels = torch.arange(n) % num_classes
        noise = torch.randn(n, channels, size, size, generator=generator_of("fake", seed, split))
        images = 128 + 40 * patterns[labels] + 40 * noise
        return Split(images.clamp(0, 255).to(torch.uint8), labels)

    classes = tuple(f"class {i}" for i in range(num_classes))
    return build("fake", draw(num_train, "train"), draw(num_test, "test"), classes, **options)


def build(
    name: str,
    train: Split,
    test: Split,
    classes: tuple[str, ...],
    *,
    val: Split | None = None,
    val_size: int = 0,
    split_seed: int = 0,
    pad: int = 4,
    flip: bool = True,
    pad_raw: bool = False,
) -> Data:
    """A data set of its images: measures mean and deviation, sets the validation split aside.

    Args:
        name: what runs and tables call it.
        train, test: images (N, C, H, W) of uint8 and labels (N,) of int64, below `len(classes)`.
        classes: their names.
        val: a validation split that the data bring along; then `val_size` is 0.
        val_size, split_seed, pad, flip, pad_raw: `Options`, as the user said.

    Raises:
        ValueError: an option is out of range, or the images or labels are not of this kind.
    """
    _check("train", train, len(classes))
    _check("test", test, len(classes))
    if pad < 0:
        raise ValueError(f"data.pad is a number of pixels, 0 or more; got {pad}")
    rest, aside = set_aside(train, val_size, split_seed)
    # Of all of them: the same images are normalised the same way with and without the split.
    mean, std = channel_stats(train.images)
    train, val = rest, aside if val is None else val
    # What classes are called changes nothing, nor what is padded by nothing.
    options = [len(classes), mean.tolist(), std.tolist(), pad, flip, pad_raw and pad > 0]
    digest = _fingerprint(options, train, val, test)
    return Data(name, train, val, test, classes, mean, std, pad, flip, pad_raw, digest)


def _check(split: str, given: Split, num_classes: int) -> None:
    images, labels = given.images, given.labels
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(
            f"the data's images are uint8 (N, C, H, W), 0 to 255; got {images.dtype} "
            f"{tuple(images.shape)} to {split} on"
        )
    if len(images) != len(labels):
        raise ValueError(f"the data have {len(images)} images, but {len(labels)} labels")
    if len(images) == 0:
        raise ValueError(f"the data set has no images to {split} on")
    low, high = int(labels.min()), int(labels.max())
    if labels.is_floating_point() or low < 0 or high >= num_classes:
        raise ValueError(
            f"the data's labels are from 0 to {num_classes - 1}; got {labels.dtype} from {low} to "
            f"{high} to {split} on"
        )


def _fingerprint(options: list, *splits: Split) -> str:
    digest = hashlib.sha256(json.dumps(options).encode())
    for split in splits:
        digest.update(json.dumps(split.images.shape).encode())
        digest.update(split.images.contiguous().numpy())
        digest.update(split.labels.contiguous().numpy())
    return digest.hexdigest()
