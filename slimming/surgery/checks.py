"""What a checkpoint may not say: it may be a stranger's, and nobody may be led astray by it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from slimming.modules.selection import selects


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """
    Raises:
        ValueError: one of them isn't.
    """
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"'{name}' is NaN or infinite in the checkpoint, so the network computes nothing: "
                f"its training diverged, or the file is damaged"
            )


def check_kept(
    keep: Mapping[str, Sequence[int]], dense: Mapping[str, int], now: Mapping[str, int]
) -> None:
    """
    Args:
        keep: {gate: channels of the original network}.
        dense, now: {gate: how many channels it had, and has}.

    Raises:
        ValueError: the channels can't be those that were kept.
    """
    for gate, kept in keep.items():
        if not _some_of(kept, dense.get(gate)):
            raise ValueError(
                f"the checkpoint says that '{gate}' kept channels {list(kept)} of {dense.get(gate)}"
            )
        # Folding also gives a norm back the channels that its selection leaves out.
        if now.get(gate, len(kept)) not in (len(kept), dense.get(gate)):
            raise ValueError(
                f"the checkpoint says that '{gate}' kept {len(kept)} channels, but it has "
                f"{now[gate]}"
            )


def check_selections(model: nn.Module) -> None:
    """
    Raises:
        ValueError: a norm selects channels that there aren't, or one of them twice.
    """
    for path, module in model.named_modules():
        if selects(module) and not _some_of(module.index.tolist(), module.width):
            raise ValueError(
                f"'{path}' selects channels {module.index.tolist()} of {module.width}: each at "
                f"most once, from 0 to {module.width - 1}, would be possible"
            )


def _some_of(indices: Sequence[int], count: int | None) -> bool:
    """Whether these are different numbers from 0 to count - 1; None: to anywhere."""
    numbers = all(type(i) is int and i >= 0 and (count is None or i < count) for i in indices)
    return numbers and len(set(indices)) == len(indices)


def check_deployment(said: Any) -> None:
    """
    Args:
        said: something with input_shape, mean, std, resize and classes, as a `Checkpoint`.

    Raises:
        ValueError: it would lead a deployment astray.
    """
    if (said.mean is None) != (said.std is None):
        raise ValueError("mean and std belong together: a checkpoint has both or neither")
    if said.mean is not None:
        sizes = {(len(numbers),) for numbers in (said.mean, said.std)}
        if sizes != {tuple(said.input_shape[:1])} or not _finite(*said.mean, *said.std):
            raise ValueError(
                f"mean and std are one number each per channel of inputs of shape "
                f"{tuple(said.input_shape)}; got {said.mean} and {said.std}"
            )
        if min(said.std) <= 0:
            raise ValueError(f"images are divided by std, so it is above 0; got {said.std}")
    if said.resize is not None and (not isinstance(said.resize, int) or said.resize < 1):
        raise ValueError(f"resize is a number of pixels; got {said.resize!r}")
    names = said.classes if isinstance(said.classes, (list, tuple, type(None))) else [None]
    if not all(isinstance(name, str) for name in names or ()):
        raise ValueError(f"classes are names, one per output; got {said.classes!r}")


def _finite(*values: Any) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)
