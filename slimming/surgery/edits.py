"""Structural changes as data: what a network is besides what its class builds.

An edit is (path of a module, kind, plain arguments). A network's state_dict says its edits,
`replay` makes them anew. A further kind is a subclass of `Edited` and a function in `EDITS`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from slimming.modules.bypass import Removed, become_constant
from slimming.modules.layers import SCORED
from slimming.modules.selection import Selecting, become, name_in, select, selects
from slimming.modules.widths import set_widths
from slimming.surgery.fold import Folded

Edit = tuple[str, str, dict[str, Any]]
# Buffers that said it in files of schema 1: {what their names end in: kind}.
MARKS = {"index": "select", "removed": "removed", "constant": "constant"}


def edits_in(weights: Mapping[str, Tensor]) -> list[Edit]:
    """The edits of the network whose `state_dict()` this is, outer modules first.

    Copied into a plain dict it doesn't say them any more.
    """
    said = getattr(weights, "_metadata", {})
    return [(path, *local["edit"]) for path, local in said.items() if "edit" in local]


def replay(model: nn.Module, edits: Sequence[Edit]) -> None:
    """Change a freshly built network as these edits say, in place; its shapes stay full.

    Raises:
        ValueError: an unknown kind, a module that isn't there, or one that can't be changed so.
    """
    done: set[nn.Module] = set()
    for path, kind, arguments in edits:
        if kind not in EDITS:
            raise ValueError(
                f"'{path}' was changed in a way that this version doesn't know: '{kind}' is none "
                f"of {', '.join(sorted(EDITS))}"
            )
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"the checkpoint changes '{path}', which the network lacks") from error
        if module in done:  # under another name
            continue
        try:
            EDITS[kind](model, path, **arguments)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the edit '{kind}' of '{path}' isn't possible: {error}") from error
        done.add(module)


def upgrade(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replay what the names of a file of schema 1 say; return its weights under today's names.

    Raises:
        ValueError: as `replay`.
    """
    own = model.state_dict()
    marks = [name.rpartition(".") for name in weights if name not in own]
    replay(model, [(path, MARKS[last], {}) for path, _, last in marks if last in MARKS])
    gone = {f"{path}.removed" for path, _, last in marks if last == "removed"}
    return {name_in(model, name): t for name, t in weights.items() if name not in gone}


def _select(model: nn.Module, path: str, width: int | None = None) -> None:
    norm = _one_of((_BatchNorm, Selecting), model, path)
    most = norm.width if selects(norm) else norm.num_features
    width = most if width is None else width
    if type(width) is not int or not 0 < width <= most:
        raise ValueError(f"it can't read {width!r} of the {most} channels there are")
    if selects(norm):  # already, of more channels
        norm.width = width
    else:
        select(norm, torch.arange(norm.num_features), width)


def _removed(model: nn.Module, path: str) -> None:
    layer = _one_of(SCORED, model, path)
    become(layer, Removed(layer))


def _constant(model: nn.Module, path: str, bias: bool | None = None) -> None:
    layer = _one_of((_ConvNd, nn.Linear), model, path)
    if bias is False:
        layer.bias = None
    elif bias and layer.bias is None:  # a compensation had made one
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
    become_constant(layer)


def _folded(model: nn.Module, path: str) -> None:
    become(_one_of((_BatchNorm,), model, path), Folded())


def _widths(model: nn.Module, path: str, **values: Any) -> None:
    set_widths(model.get_submodule(path), values)


def _one_of(kinds: tuple[type[nn.Module], ...], model: nn.Module, path: str) -> nn.Module:
    module = model.get_submodule(path)
    if not isinstance(module, kinds):
        raise ValueError(f"it is a {type(module).__name__}")
    return module


# {kind: function(model, path, **plain arguments)}, which changes the module there in place.
EDITS: dict[str, Callable[..., None]] = {
    "select": _select,
    "removed": _removed,
    "constant": _constant,
    "folded": _folded,
    "widths": _widths,
}
