"""How many images a second are turned into training batches (random draws included).

    python benchmarks/data.py

In memory, on one core: batches of 64 CIFAR-sized images, 3x32x32. From the disk, by 0, 1, 2
workers: batches of 64 JPEGs of 500x375 (the usual size in ImageNet), 224x224 to the network, beside
decoding alone. All made up on the spot; takes about a minute. Prints the median over the repeats
and, as the spread, the slowest and the fastest repeat.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.data import folders
from utils.data.sets import fake
from utils.data.streaming import imagenet

BATCH, IMAGES, REPEATS = 64, 12_800, 15
PHOTOS, PHOTO_REPEATS = 256, 5
GOAL = 50_000  # images/s with everything on, so that data is never what we wait for


def rate(batches) -> float:
    """Images per second of one pass."""
    start = time.perf_counter()
    num = sum(len(images) for images, _ in batches)
    return num / (time.perf_counter() - start)


def main() -> None:
    torch.set_num_threads(1)
    in_memory()
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder))
        from_disk(Path(folder))


def in_memory() -> None:
    data = fake(num_train=IMAGES, num_test=10)
    plain = fake(num_train=IMAGES, num_test=10, pad=0, flip=False)
    raw = fake(num_train=IMAGES, num_test=10, pad_raw=True)
    passes = {
        "crop + flip + normalise": lambda i: data.train_batches(BATCH, seed=0, epoch=i),
        "  the same, pad_raw": lambda i: raw.train_batches(BATCH, seed=0, epoch=i),
        "shuffle + normalise": lambda i: plain.train_batches(BATCH, seed=0, epoch=i),
        "normalise, in order": lambda i: data.eval_batches(data.train, BATCH),
    }
    print(f"images/s on one core, batch {BATCH}, {REPEATS} passes over {IMAGES:,} images")
    for name, batches in passes.items():
        median = show(name, batches, REPEATS)
        if name.startswith("crop"):
            print(f"  goal {GOAL:,}: {'reached' if median >= GOAL else 'MISSED'}")


def write_photos(folder: Path) -> None:
    """Smooth patterns with some noise: files of about 80 kB, as photos have."""
    draw = np.random.default_rng(0)
    for split, count in (("train", PHOTOS), ("val", 2)):
        for i in range(count):
            path = folder / split / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
            noisy = smooth + draw.integers(-20, 21, (375, 500, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def from_disk(folder: Path) -> None:
    paths = sorted(folder.glob("train/*/*"))

    def decode_all(i: int):
        return ((folders.decode(path, 3, None)[:1], None) for path in paths)

    print(f"images/s from {PHOTOS} JPEGs of 500x375, batch {BATCH}, {PHOTO_REPEATS} passes")
    show("decoding alone", decode_all, PHOTO_REPEATS)
    for workers, color in ((0, False), (0, True), (1, True), (2, True)):
        data = imagenet(root=str(folder), color=color, workers=workers)
        batches = partial(epoch_of, data)
        show(f"{workers} workers, color={color}", batches, PHOTO_REPEATS)


def epoch_of(data, i: int) -> Iterable:
    return data.train_batches(BATCH, seed=0, epoch=i)


def show(name: str, batches: Callable[[int], Iterable], repeats: int) -> float:
    """Print and return the median rate; the first pass pays for memory and caches."""
    rate(batches(0))
    rates = [rate(batches(i)) for i in range(repeats)]
    median = statistics.median(rates)
    print(f"{name:<24} {median:>9,.0f}  ({min(rates):,.0f} to {max(rates):,.0f})", flush=True)
    return median


if __name__ == "__main__":
    main()
