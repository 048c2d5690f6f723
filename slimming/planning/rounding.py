"""Widths that are multiples of a number, because hardware likes them."""

from collections.abc import Sequence
from typing import Literal

Rounding = Literal["nearest", "up", "down"]


def widths(size: int, floor: int, multiple: int, rounding: Rounding) -> list[int]:
    """What a layer of `size` channels may keep: multiples, at least one; if none fits, all of it.

    Rounding up, a layer may also stay whole.
    """
    counts = [k for k in range(multiple, size + 1, multiple) if k >= floor]
    whole = [size] if not counts or (rounding == "up" and counts[-1] < size) else []
    return counts + whole


def rounded(
    removed: Sequence[int],
    sizes: Sequence[int],
    options: Sequence[Sequence[int]],
    rounding: Rounding,
) -> list[int]:
    """What each layer loses when it keeps the nearest, next higher or next lower of its widths.

    A layer that has lost everything stays as it is.
    """
    result = []
    for gone, size, counts in zip(removed, sizes, options, strict=True):
        if gone == size:
            result.append(gone)
            continue
        kept = size - gone
        if rounding == "up":
            counts = [k for k in counts if k >= kept]
        elif rounding == "down":
            counts = [k for k in counts if k <= kept] or counts[:1]
        result.append(size - min(counts, key=lambda k: (abs(k - kept), -k)))
    return result


def settle(
    removed: Sequence[int],
    sizes: Sequence[int],
    options: Sequence[Sequence[int]],
    multiple: int,
    goal: int,
) -> list[int]:
    """Round to the nearest; then the layers closest to a tie take the next multiple instead, until
    the sum of what is removed is as near to `goal` as it gets.
    """
    wanted = [size - gone for size, gone in zip(sizes, removed)]
    start = rounded(removed, sizes, options, "nearest")
    kept = [size - gone for size, gone in zip(sizes, start)]
    free = [i for i, (gone, size) in enumerate(zip(removed, sizes)) if gone < size]
    allowed = [set(counts) for counts in options]
    gap = sum(sizes) - goal - sum(kept)  # > 0: more channels may stay
    while True:
        moves = [
            (abs(gap - step), abs(kept[i] + step - wanted[i]), i, step)
            for i in free
            for step in (-multiple, multiple)
            if kept[i] + step in allowed[i] and abs(gap - step) < abs(gap)
        ]
        if not moves:
            return [size - k for size, k in zip(sizes, kept)]
        _, _, layer, step = min(moves)
        kept[layer] += step
        gap -= step
