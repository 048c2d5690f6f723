"""From a name, plain arguments and tensors to a network: only ever a network, never other code."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slimming.modules.layers import agree_at
from slimming.surgery.edits import Edit, edits_in, replay

LIBRARIES = ("torchvision.models", "timm.models")  # their lists say what builds a network
ALLOWED = ("models", *LIBRARIES)  # modules whose networks a checkpoint may name


def factory_of(target: str, allow: Sequence[str] | None = ()) -> Callable[..., nn.Module]:
    """The network class of this name, or the builder function of torchvision or timm.

    Args:
        allow: modules besides `ALLOWED` that may be named, by a file that may be a stranger's;
            None: any module, where it is the user who names it.

    Raises:
        ValueError: the name is not of an allowed module, or doesn't lead to a network.
    """
    allowed = None if allow is None else (*ALLOWED, *allow)
    module_name, _, name = target.rpartition(".")
    if allowed and not inside(module_name, allowed):
        raise ValueError(
            f"'{target}' is not among the networks that may be built ({', '.join(allowed)}); "
            f"if you trust it, allow its module: allow=[{module_name}]"
        )
    if not module_name:
        raise ValueError(f"a network is a class, such as my_pkg.net.Net; got '{target}'")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # a user's file may raise anything
        known = isinstance(error, (ImportError, AttributeError))
        kind = "" if known else f"{type(error).__name__}: "
        more = _way_to(module_name, error) if allowed else ""
        raise ValueError(
            f"there is no network '{target}': {kind}{reason_of(error)}{more}"
        ) from error
    if not _is_network(factory, name, allowed):
        kind = "a function" if inspect.isfunction(factory) else "no network"
        where = f" defined in {', '.join(allowed)}" if allowed else ""
        raise ValueError(
            f"'{target}' is {kind}; a class derived from torch.nn.Module{where} is needed, for a "
            f"checkpoint names the class it is rebuilt from"
        )
    return factory


def build(target: str, arguments: Mapping[str, Any], allow: Sequence[str] = ()) -> nn.Module:
    """Call an allowed network class, or builder function of a library, with plain arguments.

    Raises:
        ValueError: as `factory_of`, or it can't be made of these arguments.
    """
    factory = factory_of(target, allow)
    refuse_downloads(factory, arguments)
    arguments = only_plain(dict(arguments))
    if (
        not isinstance(factory, type)
        and "weights_backbone" in inspect.signature(factory).parameters
    ):
        arguments["weights_backbone"] = None  # some of torchvision's are fetched by default
    try:
        return factory(**arguments)
    except Exception as error:  # arguments are data: what a class raises on them has no type
        raise ValueError(f"{target} can't be built with {arguments}: {reason_of(error)}") from error


def refuse_downloads(factory: Callable, arguments: Mapping[str, Any]) -> None:
    """Weights come from files: a library's builders must not fetch any."""
    for name in ("weights", "weights_backbone", "pretrained", "pretrained_backbone"):
        if not isinstance(factory, type) and arguments.get(name):
            raise ValueError(
                f"'{name}' would be downloaded: weights are a checkpoint's own, or init=FILE's"
            )


def fit_shapes(
    model: nn.Module, weights: Mapping[str, Tensor], edits: Sequence[Edit] | None = None
) -> None:
    """Give a freshly built network the edits, the (smaller) shapes and the types of the one whose
    weights these are, in place.

    Args:
        edits: None: as `weights` say, if they are its state_dict.

    Raises:
        ValueError: they can't come from this network.
    """
    replay(model, edits_in(weights) if edits is None else edits)
    kinds = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    if len(kinds) == 1 and kinds != {torch.get_default_dtype()}:
        model.to(*kinds)  # what isn't saved, too
    for path, module in model.named_modules():  # those that were cut are saved
        cut = {n for n in module._non_persistent_buffers_set if _joined(path, n) in weights}
        module._non_persistent_buffers_set -= cut
    own = model.state_dict(keep_vars=True)
    for name, tensor in weights.items():
        old = own.get(name)
        if old is not None and (old.shape, old.dtype) != (tensor.shape, tensor.dtype):
            if not _fits_into(tensor.shape, old.shape):
                shapes = f"{tuple(tensor.shape)} instead of {tuple(old.shape)}"
                raise ValueError(f"the weights are another network's: '{name}' is {shapes}")
            floating = old.is_floating_point() and tensor.is_floating_point()
            old.data = torch.empty(tensor.shape, dtype=tensor.dtype if floating else old.dtype)
            agree_at(model, name.rpartition(".")[0])
    for name in weights.keys() - own.keys():
        _add_bias(model, name, weights[name])


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _add_bias(model: nn.Module, name: str, tensor: Tensor) -> None:
    """What compensating and folding give to a layer without one."""
    path, _, attribute = name.rpartition(".")
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        layer = None
    if attribute != "bias" or not isinstance(layer, (_ConvNd, nn.Linear)):
        raise ValueError(f"the checkpoint has '{name}', which the network lacks")
    made = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if tensor.shape != (made,):
        raise ValueError(f"'{path}' gives {made} values, its bias has the shape {tensor.shape}")
    layer.bias = nn.Parameter(torch.empty(tensor.shape, dtype=tensor.dtype))


def _way_to(module_name: str, error: Exception) -> str:
    """How a checkpoint's class is found, if it is its own module that Python doesn't find."""
    if not isinstance(error, ModuleNotFoundError) or not inside(module_name, [error.name or ""]):
        return ""
    holder = "this project's folder" if inside(module_name, ["models"]) else "the folder it is in"
    return (
        f": run from {holder}, or add that to PYTHONPATH, or take along what `export.py "
        f"to=NAME.py` writes, which needs no module but torch"
    )


def _is_network(factory: Any, name: str, allowed: Sequence[str] | None) -> bool:
    """A class is judged by where it was defined, so that an imported one doesn't count."""
    if isinstance(factory, type):
        here = allowed is None or inside(factory.__module__, allowed)
        return issubclass(factory, nn.Module) and here
    module = str(getattr(factory, "__module__", ""))
    library = next((library for library in LIBRARIES if inside(module, [library])), None)
    return library is not None and name in importlib.import_module(library).list_models()


def _fits_into(small: Sequence[int], large: Sequence[int]) -> bool:
    return len(small) == len(large) and all(0 < a <= b for a, b in zip(small, large))


def inside(name: str, parts: Iterable[str]) -> bool:
    """Whether a dotted name is one of these, or below one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def only_plain(value: Any) -> Any:
    """A copy made of None, bool, int, float, str, list and dict only.

    Raises:
        ValueError: there is something else in it.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [only_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: only_plain(item) for key, item in value.items()}
    raise ValueError(f"a checkpoint holds plain values only, not {type(value).__name__}: {value!r}")


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".:") or type(error).__name__
