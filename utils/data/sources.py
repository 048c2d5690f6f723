"""Where the standard data sets come from: torchvision's files, or class folders."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from utils.data import folders

DIGITS = tuple("0123456789")


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (N, C, H, W) and their labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


Source = tuple[Split, Split, tuple[str, ...]]  # train, test, class names


def find(
    name: str,
    root: str,
    marker: str,
    fetch: Callable[[str, str, bool], Source],
    download: bool,
    shape: tuple[int, int, int],
    more: str | None = None,
) -> Source:
    """A standard data set: torchvision's files if root/marker is there, else class folders.

    `root` is the folder that holds root/marker or root/name, or one of these two themselves.
    `more` names a folder that belongs to the training images where it exists. Raises
    FileNotFoundError when neither is there and `download` is off; OSError when torchvision can't
    read or get its files; ValueError for what is wrong inside class folders.
    """
    base = Path(root).expanduser()
    if not (base / marker).exists() and base.name == Path(marker).parts[0]:
        base = base.parent
    files, tree = base / marker, base / name
    if not tree.is_dir() and (base / "train").is_dir():
        tree = base
    if not files.exists() and tree.is_dir():
        return from_folders(tree, shape, more)
    if not files.exists() and not download:
        raise FileNotFoundError(
            f"{name} is neither at {files.resolve()} (as torchvision stores it) nor at "
            f"{tree.resolve()} (class folders train/<class>/<images> and test/...): "
            "data.download=true gets it, or put class folders there; "
            "data.root=<folder> looks elsewhere"
        )
    try:
        return fetch(name, str(base), download)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:  # damaged files, too
        reason = " ".join(str(error).split())
        raise OSError(
            f"{name} could not be {'downloaded' if download else 'read'} ({reason}): delete "
            f"{files.resolve()} if it is there, then try data.download=true with a network, or put "
            f"class folders train/<class>/<images> and test/... at {tree.resolve()}"
        ) from error


def from_folders(tree: Path, shape: tuple[int, int, int], more: str | None) -> Source:
    names = ["train", "test"] + [more] * bool(more and (tree / more).is_dir())
    read = [tree / name for name in names]
    parts, classes = folders.read(read, channels=shape[0], shape=shape[1:])
    train, test, *extra = (Split(*part) for part in parts)
    return join(train, *extra), test, classes


def cifar(name: str, root: str, download: bool) -> Source:
    from torchvision import datasets  # Takes seconds to import, and class folders need none of it.

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    parts = [kind(root, train=train, download=download) for train in (True, False)]
    train, test = (split(torch.from_numpy(p.data).permute(0, 3, 1, 2), p.targets) for p in parts)
    return train, test, tuple(parts[0].classes)


def svhn(name: str, root: str, download: bool) -> Source:
    from torchvision.datasets import SVHN

    parts = [SVHN(root, split, download=download) for split in ("train", "extra", "test")]
    train, extra, test = (split(torch.from_numpy(p.data), p.labels) for p in parts)
    return join(train, extra), test, DIGITS


def mnist(name: str, root: str, download: bool) -> Source:
    from torchvision.datasets import MNIST

    parts = [MNIST(root, train=train, download=download) for train in (True, False)]
    train, test = (split(p.data.unsqueeze(1), p.targets) for p in parts)
    return train, test, DIGITS


def join(first: Split, *more: Split) -> Split:
    if not more:
        return first  # torch.cat would copy it
    splits = (first, *more)
    return Split(torch.cat([s.images for s in splits]), torch.cat([s.labels for s in splits]))


def split(images: Tensor, labels) -> Split:
    return Split(images.contiguous(), torch.as_tensor(labels, dtype=torch.int64))
