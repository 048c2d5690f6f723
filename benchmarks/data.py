"""How many images a second one core turns into training batches (random draws included).

    python benchmarks/data.py

Batches of 64 CIFAR-sized images, 3x32x32, made up on the spot; takes about ten seconds. Prints the
median over the repeats and, as the spread, the slowest and the fastest repeat.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.data import fake

BATCH, IMAGES, REPEATS = 64, 12_800, 15
GOAL = 50_000  # images/s with everything on, so that data is never what we wait for


def rate(batches) -> float:
    """Images per second of one pass."""
    start = time.perf_counter()
    num = sum(len(images) for images, _ in batches)
    return num / (time.perf_counter() - start)


def main() -> None:
    torch.set_num_threads(1)
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
        rate(batches(0))  # the first pass pays for memory and caches
        rates = [rate(batches(i)) for i in range(REPEATS)]
        median = statistics.median(rates)
        print(f"{name:<24} {median:>9,.0f}  ({min(rates):,.0f} to {max(rates):,.0f})")
        if name.startswith("crop"):
            print(f"  goal {GOAL:,}: {'reached' if median >= GOAL else 'MISSED'}")


if __name__ == "__main__":
    main()
