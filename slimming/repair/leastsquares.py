"""What has to be added to a linear layer's weights so that it gives what it ought to give."""

import math

import torch
from torch import Tensor

STEP = math.sqrt(10)  # from one damping to the next
MOST = 1e8  # damping beyond which no change is left


class LeastSquares:
    """inputs @ change + shift = target - given, row block by row block, in float64.

    The normal equations are summed up; while there are fewer rows than inputs the rows are kept
    instead, and the same solution comes from the smaller matrix between rows. So memory is bounded
    by the square of the number of inputs.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._origin: tuple[Tensor, Tensor] | None = None
        self._blocks: list[tuple[Tensor, Tensor]] = []
        self._gram: Tensor | None = None
        self._moment: Tensor | None = None
        self._sums: list[Tensor] = []

    def add(self, inputs: Tensor, given: Tensor, target: Tensor) -> None:
        """(rows, inputs), and what the layer gives and ought to give: (rows, outputs)."""
        if self._origin is None:  # near the mean, so that differences of squares stay exact
            self._origin = inputs.mean(0), target.mean(0)
        inputs, missing = inputs - self._origin[0], target - given
        target = target - self._origin[1]
        squares = missing.square().sum(), target.square().sum()
        sums = [inputs.sum(0), missing.sum(0), target.sum(0), *squares]
        self._sums = [a + b for a, b in zip(self._sums, sums)] if self.rows else sums
        self.rows += len(inputs)
        self._blocks.append((inputs, missing))
        if self._gram is not None or self.rows > inputs.shape[1]:
            x, y = self._kept()
            self._gram = x.T @ x if self._gram is None else self._gram.addmm_(x.T, x)
            self._moment = x.T @ y if self._moment is None else self._moment.addmm_(x.T, y)
            self._blocks = []

    def _kept(self) -> tuple[Tensor, Tensor]:
        inputs, missing = zip(*self._blocks)
        return torch.cat(inputs), torch.cat(missing)

    def solve(
        self, damping: float, weights: Tensor | None = None, growth: float = math.inf
    ) -> tuple[Tensor, Tensor, float, float, float]:
        """(change (inputs, outputs), shift (outputs,), error before, error after, damping).

        The ridge on `change` is `damping` times the inputs' mean variance. It grows by sqrt(10)
        while the equations are singular all the same, or `weights` + change are larger than
        `growth` times `weights` (inputs, outputs), by their Frobenius norms. In the end no change
        is left, only the shift. Errors are root mean squares, as shares of the target's standard
        deviation.
        """
        n, (x, y, _) = self.rows, (total / self.rows for total in self._sums[:3])
        before = self._sums[3]
        shifted = before - n * y.square().sum()  # the error with the best shift alone
        if self._gram is not None:
            matrix = self._gram - n * torch.outer(x, x)
            moment = self._moment - n * torch.outer(x, y)
        else:
            inputs, missing = self._kept()
            inputs = inputs - x
            matrix, moment = inputs @ inputs.T, missing - y
        scale = matrix.trace() / max(len(x), 1)
        # Differences of squares are off by rounding, below 0 too where a shift is all it takes.
        most = shifted.clamp(min=0) * (1 + 1e-9) + 1e-12 * before
        while scale > 0 and damping < MOST:
            factor = _factor(matrix, damping * scale)
            if factor is not None:
                change = torch.cholesky_solve(moment, factor)
                left = moment - matrix @ change
                if self._gram is not None:
                    after = shifted - (change * (moment + left)).sum()
                else:
                    after, change = left.square().sum(), inputs.T @ change
                # False for NaN
                if after <= most and times_larger(weights, change) <= growth:
                    break
            damping = max(STEP * damping, 1e-15)
        else:
            change, after = torch.zeros(len(x), len(y)).to(x), shifted
        shift = y - (self._origin[0] + x) @ change
        energy = self._energy()
        return change, shift, _share(before, energy), _share(after, energy), damping

    def _energy(self) -> Tensor:
        """The target's squared deviation; of one that never changes, a millionth of its size."""
        n, mean = self.rows, self._sums[2] / self.rows
        deviation = self._sums[4] - n * mean.square().sum()
        return torch.maximum(deviation, 1e-12 * n * (self._origin[1] + mean).square().sum())


def times_larger(weights: Tensor | None, change: Tensor) -> float:
    """How many times as large (Frobenius norm) the weights are with the change; none: 1."""
    if weights is None or not len(change):
        return 1.0
    new, old = (weights + change).norm(), weights.norm()
    return (new / old).item() if new != old else 1.0


def _factor(matrix: Tensor, ridge: Tensor) -> Tensor | None:
    """The Cholesky factor of matrix + ridge, unless that is singular."""
    factor, failed = torch.linalg.cholesky_ex(matrix + ridge * torch.eye(len(matrix)).to(matrix))
    # Of a singular matrix rounding may leave a tiny pivot, and huge weights behind it.
    smallest = len(matrix) * torch.finfo(matrix.dtype).eps * matrix.diagonal().max()
    if failed or factor.diagonal().square().min() < smallest:
        return None
    return factor


def _share(error: Tensor, energy: Tensor) -> float:
    return (error.clamp(min=0) / energy.clamp(min=1e-300)).sqrt().item() if error > 0 else 0.0
