"""Numbers for channels: which entries of which tensors have to be cut together.

Every index along every dimension of a parameter gets a number, its channel id. A value carries
*planes* of ids: tensors of its rank that say of each entry which channel it belongs to (-1: none).
Planes have size 1 along every dimension along which nothing varies, so they are small however large
the maps are; a tensor may carry several, a weight one per dimension.
"""

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

NONE = -1
NEUTRAL, RAW, SCORED = 0, 1, 2  # what an id's values come from: anything, a layer, a BatchNorm


class Ids:
    """The ids handed out so far, the pairs that belong together, and those that must stay."""

    def __init__(self) -> None:
        self.dims: dict[tuple[str, int], Tensor] = {}  # (tensor name, dim) -> ids
        self._ties: list[tuple[Tensor, Tensor, str]] = []  # that aren't sorted yet into
        self._pairs = torch.zeros(2, 0, dtype=torch.long)  # ids that belong together,
        self._pinned = torch.zeros(2, 0, dtype=torch.long)  # and those that stay; whose reason
        self._reasons: list[str] = []  # is one of these
        self._root = torch.zeros(0, dtype=torch.long)  # what `classes` found
        self._count = 0
        self.in_groups: set[str] = set()  # weights of grouped convolutions
        self.made: list[Tensor] = []  # what `fresh` gave, in order
        self._owners: list[tuple[str, int] | None] = []  # of each run of ids; None: no tensor's
        self._run = torch.zeros(0, dtype=torch.long)  # of each id
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
        runs = torch.unique_consecutive(self._run[ids[ids != NONE]]).tolist()
        return [owner for run in sorted({*runs}) if (owner := self._owners[run]) is not None]

    def run_of(self, ids: Tensor) -> Tensor:
        """Which run each id is from; -1 of no channel."""
        return torch.where(ids == NONE, NONE, self._run[ids])

    def mark(self, ids: Tensor, origin: int) -> None:
        self.origin[ids[ids != NONE]] = origin

    def pin(self, ids: Tensor, reason: str) -> None:
        """These channels stay at full width."""
        self.tie(ids.unique(), torch.tensor(NONE), reason)

    def tie(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Entry by entry, `a` and `b` are cut together; they may broadcast.

        Where one of them is no channel, it has a size that can't follow: the other one stays.
        """
        if a.shape != b.shape:
            a, b = torch.broadcast_tensors(a, b)
        self._ties.append((a.flatten(), b.flatten(), reason))

    def classes(self) -> Tensor:
        """(ids,) -> the smallest id each one is connected with.

        Hook and shortcut: every root takes the smallest root it touches, then paths are halved.
        """
        root = torch.cat([self._root, torch.arange(len(self._root), self._count)])
        self._sort()
        a, b = self._pairs
        self._pairs = self._pairs[:, :0]
        while True:
            ra, rb = root[a], root[b]
            low = torch.minimum(ra, rb)
            new = root.scatter_reduce(0, ra, low, "amin").scatter_reduce(0, rb, low, "amin")
            while not torch.equal(new[new], new):
                new = new[new]
            if torch.equal(new, root):
                self._root = root
                return root
            root = new

    def reasons(self, classes: Tensor) -> dict[int, str]:
        """{class: why it stays}, the first reason found."""
        self._sort()
        ids, why = self._pinned.flip(1)
        return {root: self._reasons[i] for root, i in zip(classes[ids].tolist(), why.tolist())}

    def _sort(self) -> None:
        """All new ties at once: there are thousands of small ones."""
        ties, self._ties = self._ties, []
        sizes = torch.tensor([len(a) for a, _, _ in ties], dtype=torch.long)
        why = torch.arange(len(ties)).repeat_interleave(sizes) + len(self._reasons)
        none = torch.zeros(0, dtype=torch.long)
        pairs = torch.stack([torch.cat([none, *(tie[side] for tie in ties)]) for side in (0, 1)])
        self._reasons += [reason for _, _, reason in ties]
        differ = pairs[0] != pairs[1]
        lonely = differ & (pairs == NONE).any(0)
        pinned = torch.stack([pairs.amax(0), why])[:, lonely]
        self._pinned = torch.cat([self._pinned, pinned], 1)
        self._pairs = torch.cat([self._pairs, pairs[:, differ & ~lonely]], 1)

    def _hand_out(self, size: int, owner: tuple[str, int] | None) -> Tensor:
        first, self._count = self._count, self._count + size
        if self._count > len(self._run):  # twice as long, so that it is seldom copied
            more = torch.zeros(self._count, dtype=torch.long)
            self._run = torch.cat([self._run, more])
            self.origin = torch.cat([self.origin, more.to(torch.int8)])
        self._run[first : self._count] = len(self._owners)
        self._owners.append(owner)
        return torch.arange(first, self._count)


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
    """Whether a plane with nothing to squeeze holds no channel."""
    return plane.numel() < 2 and bool((plane == NONE).all())


def numbered(chosen: Collection[int], size: int) -> Tensor:
    """(size + 1,) of each number below `size` its place among the chosen ones, or -1; of -1, -1."""
    places = torch.full((size + 1,), NONE)
    places[list(chosen)] = torch.arange(len(chosen))
    return places


def parted(sets: Sequence[Tensor], size: int) -> tuple[Tensor, list[list[int]]]:
    """Numbers below `size` that are in the same sets, together.

    Returns:
        (size,) the part of each, in the order of their first; and the sets of each part.
    """
    part, count = torch.zeros(size, dtype=torch.long), 1
    for members in sets:  # those of a part that are in it become a new part
        old, which = part[members].unique(return_inverse=True)
        part[members] = count + which
        count += len(old)
    parts = dict.fromkeys(part.tolist())
    part = numbered(parts, count)[part]
    found: list[list[int]] = [[] for _ in parts]
    for i, members in enumerate(sets):
        for own in part[members].unique().tolist():
            found[own].append(i)
    return part, found
