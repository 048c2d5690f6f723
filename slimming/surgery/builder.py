"""From a name, plain arguments and tensors to a network: only ever a network, never other code."""

import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slimming.graph.bypass import Constant, Removed, replace_module, stands_in
from slimming.graph.layers import SCORED
from slimming.graph.selection import SELECTING, select, selects
from slimming.surgery.cut import agree

ALLOWED = ("models", "torchvision.models")  # modules whose networks a checkpoint may name


def build(target: str, arguments: Mapping[str, Any], allow: Sequence[str] = ()) -> nn.Module:
    """Call an allowed network class, or builder function of torchvision, with plain arguments.

    Raises:
        ValueError: the name is not of an allowed module, or doesn't lead to a network.
    """
    allowed = (*ALLOWED, *allow)
    module_name, _, name = target.rpartition(".")
    if not any(_inside(module_name, prefix) for prefix in allowed):
        raise ValueError(
            f"'{target}' is not among the networks that may be built ({', '.join(allowed)}); "
            f"if you trust it, allow its module: allow=[{module_name}]"
        )
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no network '{target}': {error}") from error
    if not _is_network(factory, name, allowed):
        raise ValueError(f"'{target}' is not a network class defined in {', '.join(allowed)}")
    arguments = {**plain(dict(arguments)), **_no_download(factory, arguments)}
    try:
        return factory(**arguments)
    except Exception as error:  # arguments are data: what a class raises on them has no type
        raise ValueError(f"{target} can't be built with {arguments}: {reason_of(error)}") from error


def fit_shapes(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a freshly built network the (smaller) shapes of these tensors, in place.

    Raises:
        ValueError: they can't come from this network.
    """
    old = model.state_dict()
    made: dict[nn.Parameter, nn.Parameter] = {}  # a weight that layers share stays one
    for name, tensor in weights.items():
        path, _, attribute = name.rpartition(".")
        if name in old and old[name].shape == tensor.shape:
            continue
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"the checkpoint has '{name}', which the network lacks") from error
        if name in old:
            if not _fits_into(tensor.shape, old[name].shape):
                shapes = f"{tuple(tensor.shape)} instead of {tuple(old[name].shape)}"
                raise ValueError(f"the weights are another network's: '{name}' is {shapes}")
            new = torch.empty(tensor.shape, dtype=old[name].dtype)
            present = getattr(module, attribute)
            if isinstance(present, nn.Parameter):
                new = made.setdefault(present, nn.Parameter(new))
            setattr(module, attribute, new)
        elif (attribute == "index" and selects(module)) or stands_in(module):
            continue  # done under another name
        elif attribute == "removed" and isinstance(module, SCORED):
            replace_module(model, path, Removed(module))
        elif attribute == "constant" and isinstance(module, (_ConvNd, nn.Linear)):
            replace_module(model, path, Constant(module, torch.empty_like(tensor)))
        elif attribute == "index" and type(module) in SELECTING:
            replace_module(model, path, select(module, torch.empty_like(tensor)))
        elif attribute == "bias" and isinstance(module, (_ConvNd, nn.Linear)):
            module.bias = nn.Parameter(torch.empty(tensor.shape, dtype=module.weight.dtype))
        else:
            raise ValueError(f"the checkpoint has '{name}', which the network lacks")
        agree(model.get_submodule(path))


def _is_network(factory: Any, name: str, allowed: Iterable[str]) -> bool:
    """A class is judged by where it was defined, so that an imported one doesn't count."""
    if isinstance(factory, type):
        inside = any(_inside(factory.__module__, prefix) for prefix in allowed)
        return issubclass(factory, nn.Module) and inside
    if getattr(factory, "__module__", "").startswith("torchvision.models"):
        from torchvision.models import list_models

        return name in list_models()
    return False


def _no_download(factory: Any, arguments: Mapping[str, Any]) -> dict[str, None]:
    """torchvision's builders must not fetch weights, which some do unless they are told."""
    if isinstance(factory, type):
        return {}
    for name in ("weights", "weights_backbone", "pretrained", "pretrained_backbone"):
        if arguments.get(name):
            raise ValueError(f"'{name}' would be downloaded: the weights are in the checkpoint")
    backbone = "weights_backbone" in inspect.signature(factory).parameters
    return {"weights_backbone": None} if backbone else {}


def _fits_into(small: Sequence[int], large: Sequence[int]) -> bool:
    return len(small) == len(large) and all(0 < a <= b for a, b in zip(small, large))


def _inside(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def plain(value: Any) -> Any:
    """A copy made of None, bool, int, float, str, list and dict only."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item) for key, item in value.items()}
    raise ValueError(f"a checkpoint holds plain values only, not {type(value).__name__}: {value!r}")


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".:") or type(error).__name__
