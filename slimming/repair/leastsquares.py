"""What has to be added to a linear layer's weights so that it gives what it ought to give."""

import torch
from torch import Tensor


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

    def solve(self, damping: float) -> tuple[Tensor, Tensor, float, float, float]:
        """(change (inputs, outputs), shift (outputs,), error before, error after, damping).

        The ridge on `change` is `damping` times the inputs' mean variance. Where the equations are
        singular all the same, it grows tenfold until they are not. Errors are root mean squares,
        as shares of the target's standard deviation.
        """
        n, (x, y, t) = self.rows, (total / self.rows for total in self._sums[:3])
        before, energy = self._sums[3], self._sums[4] - n * t.square().sum()
        shifted = before - n * y.square().sum()  # the error with the best shift alone
        if self._gram is not None:
            matrix = self._gram - n * torch.outer(x, x)
            moment = self._moment - n * torch.outer(x, y)
        else:
            inputs, missing = self._kept()
            inputs = inputs - x
            matrix, moment = inputs @ inputs.T, missing - y
        scale = matrix.trace() / max(len(x), 1)
        change, after = torch.zeros(len(x), len(y)).to(x), shifted
        while scale > 0:
            ridge = damping * scale * torch.eye(len(matrix)).to(matrix)
            factor, failed = torch.linalg.cholesky_ex(matrix + ridge)
            # Of a singular matrix rounding may leave a tiny pivot, and huge weights behind it.
            smallest = len(matrix) * torch.finfo(matrix.dtype).eps * matrix.diagonal().max()
            if not failed and factor.diagonal().square().min() >= smallest:
                change = torch.cholesky_solve(moment, factor)
                left = moment - matrix @ change
                if self._gram is not None:
                    after = shifted - (change * (moment + left)).sum()
                else:
                    after, change = left.square().sum(), inputs.T @ change
                if after <= shifted * (1 + 1e-9):  # False for NaN
                    break
            damping = max(10 * damping, 1e-15)
        shift = y - (self._origin[0] + x) @ change
        return change, shift, _share(before, energy), _share(after, energy), damping


def _share(error: Tensor, energy: Tensor) -> float:
    return (error.clamp(min=0) / energy.clamp(min=1e-300)).sqrt().item() if error > 0 else 0.0
