"""Numbers for channels: which entries of which tensors have to be cut together.

Every index along every dimension that might be cut gets a number. While the graph is walked, values
carry a tensor of such numbers as large as themselves: views and concatenations are simply run on
the numbers, element-wise operations unite them, and convolutions end them. -1 means "no channel".
"""

from collections.abc import Iterable

import torch
from torch import Tensor

NONE = -1


class Labels:
    """The numbers handed out so far, the pairs that belong together, and those that must stay."""

    def __init__(self) -> None:
        self.dims: dict[tuple[str, int], Tensor] = {}  # (tensor name, dim) -> numbers
        self.fixed: list[tuple[Tensor, str]] = []  # numbers that must stay, and why
        self._pairs: list[Tensor] = []
        self._count = 0

    def number(self, name: str, dim: int, size: int) -> Tensor:
        """The numbers along a tensor's dimension: new at the first call, the same ever after."""
        if (name, dim) not in self.dims:
            self.dims[name, dim] = torch.arange(self._count, self._count + size)
            self._count += size
        return self.dims[name, dim]

    def fix(self, labels: Tensor, reason: str) -> None:
        """These channels stay at full width."""
        for dim in set(range(labels.dim())) - {*varying_dims(labels)}:
            labels = _first(labels, dim)
        labels = labels[labels != NONE].unique()
        if len(labels):
            self.fixed.append((labels, reason))

    def unite(self, a: Tensor, b: Tensor, reason: str = "") -> None:
        """Entry by entry, `a` and `b` (of one shape) are cut together.

        Where one of them is no channel, it has a size that can't follow: the other one stays.
        """
        for dim in set(range(a.dim())) - {*varying_dims(a), *varying_dims(b)}:
            a, b = _first(a, dim), _first(b, dim)  # a map of 32x32 says everything 1024 times
        lonely = (a == NONE) != (b == NONE)
        self.fix(torch.where(lonely, torch.maximum(a, b), NONE), reason)
        both = (a != NONE) & (b != NONE) & (a != b)
        if both.any():
            pairs = (a[both] * self._count + b[both]).unique()  # as one number: far faster
            self._pairs.append(torch.stack([pairs // self._count, pairs % self._count]))

    def classes(self) -> Tensor:
        """(numbers,) -> the smallest number each one is connected with.

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

    def fixed_reasons(self, classes: Tensor) -> dict[int, str]:
        """{class: why it stays}, the first reason found."""
        reasons: dict[int, str] = {}
        for labels, reason in self.fixed:
            for root in classes[labels].unique().tolist():
                reasons.setdefault(root, reason)
        return reasons


def varying_dims(labels: Tensor) -> list[int]:
    """Dimensions along which the channel changes."""
    return [
        dim
        for dim in range(labels.dim())
        if labels.shape[dim] > 1
        and labels.stride(dim) != 0  # 0: one entry seen many times, as `spread` makes them
        and not torch.equal(labels, _first(labels, dim).expand_as(labels))
    ]


def is_blank(labels: Tensor) -> bool:
    """Whether no entry is a channel."""
    for dim in range(labels.dim()):
        if labels.stride(dim) == 0:
            labels = _first(labels, dim)
    return bool((labels == NONE).all())


def along(labels: Tensor, dim: int) -> Tensor | None:
    """The channel at each index of `dim`, or None where it also changes along another dimension."""
    dim = dim % labels.dim()
    if any(d != dim for d in varying_dims(labels)):
        return None
    for other in range(labels.dim()):
        if other != dim:
            labels = _first(labels, other)
    return labels.reshape(-1)


def spread(numbers: Tensor, dim: int, shape: Iterable[int]) -> Tensor:
    """Numbers along `dim` of a value of this shape (a view: costs nothing)."""
    shape = tuple(shape)
    view = [1] * len(shape)
    view[dim % len(shape)] = -1
    return numbers.reshape(view).expand(shape)


def _first(labels: Tensor, dim: int) -> Tensor:
    return labels.narrow(dim, 0, 1)
