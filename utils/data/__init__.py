"""Data sets as tensors, augmentation, splits, folders, streaming, seeding."""

from utils.data.sets import Data, cifar10, cifar100, digits, fake, imagefolder, mnist, svhn
from utils.data.streaming import Streamed, imagenet

__all__ = [
    "Data",
    "Streamed",
    "cifar10",
    "cifar100",
    "digits",
    "fake",
    "imagefolder",
    "imagenet",
    "mnist",
    "svhn",
]
