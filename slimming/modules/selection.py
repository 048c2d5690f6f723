"""A BatchNorm that first selects the channels it normalises.

Where a BatchNorm reads a stream that others read too (pre-activation ResNet, DenseNet), its
channels can go but the stream's can't: the paper's "channel selection" (section 3, "handling
cross-layer connections"). The index is a buffer: no parameter, no trip to the CPU, saved with the
weights.

The gate keeps its name: where the dense network has the BatchNorm "bn", the thin one has "bn", a
`Selecting`, and in it "bn.norm", the BatchNorm.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Edited(nn.Module):
    """A module that was made of another one, in place; its state_dict's metadata say so.

    `kind` is the function of `slimming.surgery.edits.EDITS` that makes it, `arguments` are what
    that takes besides the network and the path.
    """

    kind = ""

    def arguments(self) -> dict[str, Any]:
        """Plain values."""
        return {}

    def _save_to_state_dict(self, destination, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):  # where torch writes a module's version
            destination._metadata[prefix[:-1]]["edit"] = [self.kind, self.arguments()]


def become(module: nn.Module, other: nn.Module) -> None:
    """Turn `module` into `other`: everything that holds it, a plain list too, then holds that."""
    other.training = module.training
    module.__class__, module.__dict__ = type(other), other.__dict__


@fx.wrap
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


class Select(nn.Module):
    """(N, C, ...), (n,) -> (N, n, ...): the paper's channel selection layer."""

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return gather(x, index)


class Selecting(Edited):
    """(N, width, ...) -> (N, len(index), ...): the BatchNorm `norm` behind a channel selection.

    What it lacks itself is read off the norm, as `weight` or `num_features` are, for code that
    knows only the BatchNorm.
    """

    kind = "select"

    def __init__(self, norm: nn.Module, index: Tensor, width: int):
        super().__init__()
        self.width = width
        self.register_buffer("index", index)
        self.pick, self.norm = Select(), norm

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "norm":
                raise
            return getattr(self.norm, name)

    def arguments(self) -> dict[str, Any]:
        return {"width": self.width}

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.pick(x, self.index))


def selects(module: nn.Module) -> bool:
    return isinstance(module, Selecting)


def select(norm: nn.Module, index: Tensor, width: int) -> None:
    """Let a BatchNorm of any class select `index` (n,) of `width` channels first, in place.

    Its parameters, buffers, hooks and own attributes are those of `norm.norm` from then on.
    """
    inner = type(norm).__new__(type(norm))
    inner.__dict__ = dict(norm.__dict__)
    selecting = Selecting(inner, index, width)
    selecting.pick.train(norm.training)
    become(norm, selecting)


def norm_of(module: nn.Module) -> nn.Module:
    """The BatchNorm itself, of one that may stand behind a selection."""
    return module.norm if selects(module) else module


def gate_of(model: nn.Module, path: str) -> str:
    """The gate of the BatchNorm at `path`: its own name, or that of its selection."""
    parent, _, name = path.rpartition(".")
    return parent if name == "norm" and selects(model.get_submodule(parent)) else path


def name_in(model: nn.Module, tensor: str) -> str:
    """What a tensor of the dense network is called in `model`, where its norm may select."""
    path, _, name = tensor.rpartition(".")
    try:
        inside = selects(model.get_submodule(path)) and name != "index"
    except AttributeError:  # of a module that isn't there any more
        inside = False
    return f"{path}.norm.{name}" if inside else tensor


def named_norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """(gate, BatchNorm) of each, behind a selection or not, in the order of `named_modules`."""
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            yield gate_of(model, path), module
