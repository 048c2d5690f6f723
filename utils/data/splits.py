"""Which images a split, an epoch or a sample holds: alike for data in memory and streamed ones."""

from collections.abc import Callable

import torch
from torch import Tensor

from utils.data.seeding import mix
from utils.data.sources import Split

Part = Callable[[int], slice]  # which of a batch's images one process wants; `slice`: all


def steps_per_epoch(name: str, count: int, batch_size: int) -> int:
    """BatchNorm can't train on one image: no batch for a single one left over."""
    if batch_size < 1:
        raise ValueError(f"a batch holds at least 1 image; got batch_size {batch_size}")
    full, rest = divmod(count, batch_size)
    if full + (rest > 1) == 0:
        raise ValueError(f"training needs at least 2 images; {name} has {count}")
    return full + (rest > 1)


def order_of_epoch(count: int, seed: int, epoch: int) -> Tensor:
    """All numbers below `count`, shuffled."""
    return torch.randperm(count, generator=generator_of(seed, epoch, "order"))


def order_of_sample(count: int, n: int, seed: int) -> Tensor:
    """n different numbers below `count`."""
    if not 0 <= n <= count:
        raise ValueError(f"{n} training images asked for; there are {count}")
    return torch.randperm(count, generator=generator_of(seed, "sample"))[:n]


def set_aside(train: Split, val_size: int, split_seed: int) -> tuple[Split, Split]:
    """(rest, validation split): `val_size` training images, each class in proportion.

    Raises ValueError when it is no such number, or a class would have no training image left.
    """
    whole = isinstance(val_size, int) and not isinstance(val_size, bool)
    if not whole or not 0 <= val_size < len(train):
        raise ValueError(
            f"data.val_size is how many of the {len(train)} training images to validate on, "
            f"a whole number from 0 to {len(train) - 1}; got {val_size}"
        )
    spare = len(train) - int(train.labels.unique().numel())
    if val_size > spare:
        raise ValueError(
            f"data.val_size={val_size} takes the last training image of a class: with one left in "
            f"each, {spare} of the {len(train)} can be set aside"
        )
    if val_size == 0:
        return train, Split(train.images[:0], train.labels[:0])
    return carve(train, val_size, generator_of("val", split_seed))


def carve(whole: Split, count: int, generator: torch.Generator) -> tuple[Split, Split]:
    """(rest, chosen): `count` images at random, from every class in proportion to its size.

    One of each class stays in the rest; `count` leaves room for that.
    """
    sizes = torch.bincount(whole.labels)
    quotas = sizes * count // len(whole)
    # Whole numbers leave some over; they go to the classes that were rounded down the most.
    most_short = (sizes * count % len(whole)).argsort(descending=True, stable=True)
    while left := count - int(quotas.sum()):
        spare = most_short[quotas[most_short] < sizes[most_short] - 1]
        quotas[spare[:left]] += 1
    chosen = torch.zeros(len(whole), dtype=torch.bool)
    for label, quota in enumerate(quotas.tolist()):
        members = (whole.labels == label).nonzero().squeeze(1)
        chosen[members[torch.randperm(len(members), generator=generator)[:quota]]] = True
    parts = (Split(whole.images[mask], whole.labels[mask]) for mask in (~chosen, chosen))
    return tuple(parts)


def generator_of(*parts: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(mix(*parts))
