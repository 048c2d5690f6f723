"""A BatchNorm that first selects the channels it normalises.

Where a BatchNorm reads a stream that others read too (pre-activation ResNet, DenseNet), its
channels can go but the stream's can't: the paper's "channel selection" (section 3, "handling
cross-layer connections"). The index is a buffer: no parameter, no trip to the CPU, saved with the
weights.
"""

from torch import Tensor, nn


class _Selecting:
    """Mixed into a BatchNorm: (N, C, ...) -> (N, len(index), ...)."""

    index: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(gather(x, self.index))


def gather(x: Tensor, index: Tensor) -> Tensor:
    """(N, C, ...) -> (N, len(index), ...), in the same memory layout.

    In channels_last torch's own index_select copies everything to the other layout first, and what
    follows copies it back; there, it selects columns of the matrix (positions, channels) instead.
    """
    if x.stride(1) != 1:
        return x.index_select(1, index)
    last = x.movedim(1, -1)
    columns = last.flatten(0, -2).index_select(1, index)
    return columns.unflatten(0, last.shape[:-1]).movedim(-1, 1)


class SelectingBatchNorm1d(_Selecting, nn.BatchNorm1d):
    pass


class SelectingBatchNorm2d(_Selecting, nn.BatchNorm2d):
    pass


class SelectingBatchNorm3d(_Selecting, nn.BatchNorm3d):
    pass


class SelectingSyncBatchNorm(_Selecting, nn.SyncBatchNorm):
    pass


SELECTING = {
    nn.BatchNorm1d: SelectingBatchNorm1d,
    nn.BatchNorm2d: SelectingBatchNorm2d,
    nn.BatchNorm3d: SelectingBatchNorm3d,
    nn.SyncBatchNorm: SelectingSyncBatchNorm,
}


def selects(module: nn.Module) -> bool:
    return isinstance(module, _Selecting)


def select(norm: nn.Module, index: Tensor) -> nn.Module:
    """A BatchNorm with the same parameters and statistics that selects `index` first."""
    selecting = SELECTING[type(norm)](
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    selecting.__dict__.update({k: v for k, v in norm.__dict__.items() if k != "_buffers"})
    selecting._buffers = dict(norm._buffers)
    selecting.register_buffer("index", index)
    return selecting
