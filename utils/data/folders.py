"""Class folders: <tree>/<class>/**/<image> into one uint8 tensor, decoded once and kept in a file.

The file, <tree>/.decoded.pt, belongs to exactly these files (names, sizes, times of change) and
these decode options; whenever something differs or it can't be read, the images are decoded again.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
CACHE = ".decoded.pt"
MANY = 2000  # images to decode; more than these are worth a word to whoever waits
MANY_FILES = 200_000  # the same for files to list


@dataclass(frozen=True)
class Tree:
    """What lies in a tree of class folders, before any image is opened."""

    folder: Path
    classes: tuple[str, ...]
    files: list[str]  # "<class>/<image>", sorted by class, then folder inside it, then name
    sizes: Tensor  # int64 (N,), bytes
    labels: Tensor  # int64 (N,)
    stamp: str  # changes when a file is added, removed, renamed or written


def scan(folder: Path) -> Tree:
    """List a tree, folders inside a class folder too, in the order of torchvision's ImageFolder.

    Hidden files and folders, and files that are no images by their extension, are left out.
    Raises FileNotFoundError without the folder; ValueError with fewer than two class folders, or
    a class without images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder.resolve()}; put one folder of images per class there"
        )
    with os.scandir(folder) as entries:
        classes = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if len(classes) < 2:
        found = f"only the class folder {classes[0]}" if classes else "no class folders"
        raise ValueError(f"{folder} holds {found}; it needs one folder of images per class (>= 2)")
    files, sizes, labels, stamp = [], [], [], hashlib.sha256()
    for label, name in enumerate(classes):
        images = sorted(_images_in(name, folder / name))
        if not images:
            raise ValueError(
                f"the class folder {folder / name} holds no images "
                f"({' '.join(EXTENSIONS)}); add some or delete it"
            )
        if len(files) <= MANY_FILES < len(files) + len(images):
            say(f"Listing the many images of {folder} ...")
        files += [f"{inside}/{image}" for inside, image, _, _ in images]
        labels += [label] * len(images)
        sizes += [size for _, _, size, _ in images]
        stamp.update(json.dumps(images).encode())
    numbers = torch.tensor(sizes), torch.tensor(labels)
    return Tree(folder, tuple(classes), files, *numbers, stamp.hexdigest())


def scan_all(folders: Sequence[Path]) -> list[Tree]:
    """List several trees of the same classes.

    Raises ValueError when one has other classes than the first, and as `scan` does.
    """
    trees = [scan(folder) for folder in folders]
    first = trees[0]
    for tree in trees[1:]:
        if odd := sorted(set(tree.classes) ^ set(first.classes)):
            raise ValueError(
                f"{tree.folder} and {first.folder} must hold the same classes; "
                f"only one of them has: {', '.join(odd)}"
            )
    return trees


def read(
    folders: Sequence[Path],
    *,
    channels: int,
    size: int | None = None,
    shape: tuple[int, int] | None = None,
) -> tuple[list[tuple[Tensor, Tensor]], tuple[str, ...]]:
    """Images uint8 (N, C, H, W) and labels int64 (N,) of every folder, and the class names.

    `channels` is 3 (grey, palette and CMYK images become RGB, transparency is dropped) or 1 (grey).
    `size` resizes the shorter side to it and cuts out the centre, size x size. Without it all
    images must measure `shape` (height, width), or the same as the first one.

    Raises ValueError when an image can't be read or has another size, when the images don't fit
    into memory, and as `scan_all` does.
    """
    # All are listed before the first is decoded: a mistake shows within a second.
    trees = scan_all(folders)
    parts = []
    for tree in trees:
        images = _images(tree, channels, size, shape)
        shape = (images.shape[2], images.shape[3])
        parts.append((images, tree.labels))
    return parts, trees[0].classes


def _images_in(inside: str, folder: Path, above: tuple = ()) -> Iterator[tuple]:
    """(folder inside the tree, name, bytes, time of change) of each image; links are followed."""
    here = os.stat(folder)
    if (here.st_dev, here.st_ino) in above:  # a link to a folder it lies in
        return
    above = (*above, (here.st_dev, here.st_ino))
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in shown:
        if entry.is_dir():
            yield from _images_in(f"{inside}/{entry.name}", folder / entry.name, above)
        elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
            yield inside, entry.name, entry.stat().st_size, entry.stat().st_mtime_ns


def _images(tree: Tree, channels: int, size: int | None, shape: tuple[int, int] | None) -> Tensor:
    """The images of a tree, out of its cache where that still fits."""
    cache = tree.folder / CACHE
    with suppress(Exception):  # A cache is no authority: whatever is wrong with it, decode again.
        saved = torch.load(cache, weights_only=True)
        images = saved["images"]
        same = saved["stamp"] == tree.stamp and saved["options"] == [channels, size]
        if same and shape in (None, tuple(images.shape[2:])):
            return images
    images = _decode_all(tree, channels, size, shape)
    part = cache.with_name(f"{CACHE}.{os.getpid()}")
    try:
        with open(part, "wb") as file:
            saved = {"stamp": tree.stamp, "options": [channels, size], "images": images}
            torch.save(saved, file)
        os.replace(part, cache)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        with suppress(OSError):
            part.unlink(missing_ok=True)
        say(f"The decoded images could not be kept in {cache} ({error}); next time decodes again.")
    return images


def _decode_all(
    tree: Tree, channels: int, size: int | None, shape: tuple[int, int] | None
) -> Tensor:
    paths = [tree.folder / name for name in tree.files]
    if size is None and shape is None:
        shape = decode(paths[0], channels, None).shape[1:]
    height, width = (size, size) if size is not None else shape
    images = _room_for((len(paths), channels, height, width), tree.folder)

    def fill(i: int) -> None:
        image = decode(paths[i], channels, size)
        if image.shape[1:] != (height, width):
            raise ValueError(
                f"{paths[i]} has {image.shape[1]}x{image.shape[2]} pixels (height x width), but "
                f"all images must have {height}x{width}; data=imagefolder with "
                "data.size=<pixels> resizes and crops every image"
            )
        images[i] = image

    # Decoding happens outside Python's lock, so threads do; they share one result array.
    with ThreadPoolExecutor(min(8, max(2, os.cpu_count() or 2))) as pool:
        for _ in _watched(pool.map(fill, range(len(paths))), len(paths), tree.folder):
            pass
    return torch.from_numpy(images)


def _room_for(shape: tuple[int, ...], folder: Path) -> np.ndarray:
    """Checked first: a system that promises more memory than it has kills us while we fill it."""
    needed = math.prod(shape)
    if not hasattr(os, "sysconf"):  # Windows promises no more than it has
        return np.empty(shape, np.uint8)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(
            f"the {shape[0]:,} images of {folder} need {needed / 1e9:.1f} GB of memory, and this "
            f"machine has {there / 1e9:.1f}: make them smaller (data.size=<pixels>), or let "
            "data=imagenet data.root=<folder> read train/ and val/ from the disk as it goes"
        )
    return np.empty(shape, np.uint8)


def decode(path: Path, channels: int, size: int | None) -> np.ndarray:
    """One image as uint8 (C, H, W); ValueError, naming the file, where that can't be."""
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                # Pillow would cut those values off at 255 without a word.
                raise ValueError("more than 8 bits per pixel; convert it to 8 bits first")
            if "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert("RGB" if channels == 3 else "L")
            if size is not None:
                image = _resize_and_crop(image, size)
            pixels = np.asarray(image)
    except Exception as error:  # Pillow's decoders raise a dozen different types.
        raise ValueError(
            f"{path} can't be used as an image ({error}); replace it or delete it"
        ) from error
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        # Pillow's filters widen when they shrink: this is antialiased.
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _watched(results: Iterator[None], total: int, folder: Path) -> Iterable[None]:
    """A progress bar on a terminal, one line elsewhere, nothing for a few images."""
    text = f"Decoding {total:,} images of {folder}"
    if total < MANY:
        return results
    if not sys.stderr.isatty():
        say(f"{text} (only this once: they are kept in {CACHE}) ...")
        return results
    return track(results, text, total, console=Console(stderr=True), transient=True)


def say(line: str) -> None:
    """One line for whoever waits; on stderr, so that a script's output stays clean."""
    print(line, file=sys.stderr, flush=True)
