"""Numbers for channels: which entries of which tensors have to be cut together.

Every index along every dimension of a parameter gets a number, its channel id. A value carries
*planes* of ids: tensors of its rank that say of each entry which channel it belongs to (-1: none).
Planes have size 1 along every dimension along which nothing varies, so they are small however large
the maps are; a tensor may carry several, a weight one per dimension.
"""

from bisect import bisect_right
from collections.abc import Iterable

import torch
from torch import Tensor

NONE = -1
MANY = 1 << 16  # pairs, of which each is kept once
NEUTRAL, RAW, SCORED = 0, 1, 2  # what an id's values come from: anything, a layer, a BatchNorm


class Ids:
    """The ids handed out so far, the pairs that belong together, and those that must stay."""

    def __init__(self) -> None:
        self.dims: dict[tuple[str, int], Tensor] = {}  # (tensor name, dim) -> ids
        self.pinned: list[tuple[Tensor, str]] = []  # ids that must stay, and why
        self._pairs: list[Tensor] = []
        self._count = 0
        self.in_groups: set[str] = set()  # weights of grouped convolutions
        self.made: list[Tensor] = []  # what `fresh` gave, in order
        self._starts: list[int] = []  # the first id of each run handed out, ascending
        self._owners: list[tuple[str, int] | None] = []  # whose run it is; None: no tensor's
        self.origin = torch.zeros(0, dtype=torch.int8)  # of each id: NEUTRAL, RAW or SCORED

    def number(self, name: str, dim: int, size: int) -> Tensor:
        """The ids along a tensor's dimension: new at the first call, the same ever after."""
        if (name, dim) not in self.dims:
            self.dims[name, dim] = self._hand_out(size, (name, dim))
        return self.dims[name, dim]

    def fresh(self, size: int) -> Tensor:
        """Ids of nothing that is stored: of what the code itself makes in some size."""
        self.made.append(self._hand_out(size, None))
        return self.made[-1]

    def owners(self, ids: Tensor) -> list[tuple[str, int]]:
        """The (tensor, dim)s that these ids were handed out to, in the order of the ids."""
        runs = {bisect_right(self._starts, i) - 1 for i in ids[ids != NONE].unique().tolist()}
        return [owner for run in sorted(runs) if (owner := self._owners[run]) is not None]

    def run_of(self, ids: Tensor) -> Tensor:
        """Which run each id is from; -1 of no channel."""
        starts = torch.tensor(self._starts, dtype=torch.long)
        run = torch.bucketize(ids.contiguous(), starts, right=True) - 1
        return torch.where(ids == NONE, NONE, run)

    def mark(self, ids: Tensor, origin: int) -> None:
        self.origin[ids[ids != NONE]] = origin

    def pin(self, ids: Tensor, reason: str) -> None:
        """These channels stay at full width."""
        ids = ids[ids != NONE].unique()
        if len(ids):
            self.pinned.append((ids, reason))

    def tie(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Entry by entry, `a` and `b` are cut together; they may broadcast.

        Where one of them is no channel, it has a size that can't follow: the other one stays.
        """
        a, b = torch.broadcast_tensors(a, b)
        lonely = (a == NONE) != (b == NONE)
        if lonely.any():
            self.pin(torch.where(lonely, torch.maximum(a, b), NONE), reason)
        both = (a != NONE) & (b != NONE) & (a != b)
        if both.any():
            pairs = torch.stack([a[both], b[both]])
            many = pairs.shape[1] > MANY
            self._pairs.append(pairs.unique(dim=1) if many else pairs)

    def classes(self) -> Tensor:
        """(ids,) -> the smallest id each one is connected with.

        Hook and shortcut: every root takes the smallest root it touches, then paths are halved.
        """
        root = torch.arange(self._count)
        if not self._pairs:
            return root
        a, b = torch.cat(self._pairs, dim=1)
        while True:
            ra, rb = root[a], root[b]
            low = torch.minimum(ra, rb)
            new = root.scatter_reduce(0, ra, low, "amin").scatter_reduce(0, rb, low, "amin")
            while not torch.equal(new[new], new):
                new = new[new]
            if torch.equal(new, root):
                return root
            root = new

    def reasons(self, classes: Tensor) -> dict[int, str]:
        """{class: why it stays}, the first reason found."""
        found: dict[int, str] = {}
        for ids, reason in self.pinned:
            for root in classes[ids].unique().tolist():
                found.setdefault(root, reason)
        return found

    def _hand_out(self, size: int, owner: tuple[str, int] | None) -> Tensor:
        self._starts.append(self._count)
        self._owners.append(owner)
        self._count += size
        self.origin = torch.cat([self.origin, torch.zeros(size, dtype=torch.int8)])
        return torch.arange(self._count - size, self._count)


def varying(plane: Tensor) -> list[int]:
    """Dimensions along which the channel changes."""
    return [dim for dim, size in enumerate(plane.shape) if size > 1]


def narrow(plane: Tensor, dims: Iterable[int]) -> Tensor:
    """The plane at the first index of these dimensions."""
    for dim in dims:
        plane = plane.narrow(dim, 0, 1)
    return plane


def squeezed(plane: Tensor) -> Tensor:
    """Size 1 along every dimension along which nothing varies."""
    for dim in varying(plane):
        first = plane.narrow(dim, 0, 1)
        if plane.stride(dim) == 0 or bool((plane == first).all()):
            plane = first
    return plane


def spread(ids: Tensor, dim: int, rank: int) -> Tensor:
    """(size,) ids along `dim` of a value of this rank."""
    shape = [1] * rank
    shape[dim] = len(ids)
    return ids.reshape(shape)


def blank(plane: Tensor) -> bool:
    return bool((plane == NONE).all())
