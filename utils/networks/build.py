"""The network that a `model` config describes: its class, its arguments, and one trial batch.

Any network class will do: one of `models/`, of torchvision, timm or of the user's own files.
"""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from slimming.surgery.builder import factory_of, reason_of, refuse_downloads
from utils.data.sets import Data
from utils.training.hardware import Hardware

# What a user's module can't be called: ours are found first.
OURS = ("models", "utils", "slimming", "engine", "train", "prune", "finetune", "pipeline")


def model_for(description: Mapping[str, Any], data: Data) -> tuple[str, dict[str, Any]]:
    """(target, arguments) of a `model` config; what it leaves open is taken from the data.

    Raises:
        ValueError: there is no such class, it doesn't take these arguments, or it was told other
            classes or channels than the data have.
    """
    target = str(description.get("_target_") or "???")
    arguments = {key: value for key, value in description.items() if key != "_target_"}
    factory = _found(target)
    refuse_downloads(factory, arguments)
    facts = {
        "num_classes": data.num_classes,
        "in_channels": data.input_shape[0],
        "input_shape": list(data.input_shape),
    }
    if target.startswith("timm."):
        facts["in_chans"] = data.input_shape[0]
    for key, fact in facts.items():
        if arguments.get(key) is None and (key in arguments or _takes(factory, key)):
            arguments[key] = fact
        elif key in arguments and arguments[key] != fact:
            raise ValueError(f"model.{key}={arguments[key]}, but {data.name} has {fact}")
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        takes = ", ".join(inspect.signature(factory).parameters) or "none"
        raise ValueError(f"model._target_={target}: {error} (its arguments: {takes})") from error
    return target, arguments


def label(target: str, arguments: Mapping[str, Any]) -> str:
    """ "vgg11-w0.25": the class, and what the field calls a network's size."""
    name = target.rpartition(".")[2].lower() + str(arguments.get("depth", ""))
    width = arguments.get("width", 1.0)
    return f"{name}-w{width:g}" if isinstance(width, (int, float)) and width != 1.0 else name


def check(name: str, model: nn.Module, data: Data, hardware: Hardware) -> None:
    """Show a copy of the network two images, before hours are spent on it.

    Raises:
        ValueError: it can't read them, or doesn't give one logit per class.
    """
    if any(map(is_lazy, model.parameters())):
        raise ValueError(f"{name} has Lazy layers: say their sizes, so that weights can be loaded")
    trial = hardware.place(copy.deepcopy(model))
    for training in (False, True):
        check_outputs(name, trial.train(training), data)


@torch.no_grad()
def check_outputs(name: str, model: nn.Module, data: Data) -> None:
    """The same, in the mode it is in; in training mode this changes BatchNorm's statistics."""
    images = next(data.sample(2, seed=0))
    mode = " in training mode" if model.training else ""
    try:
        outputs = model(images)
    except Exception as error:  # what a stranger's forward raises has no type
        shape = "x".join(map(str, images.shape[1:]))
        raise ValueError(
            f"{name} can't read {data.name}'s images of {shape}{mode}: {reason_of(error)}"
        ) from error
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"{name} gives {_described(outputs)}{mode}; training needs one tensor of logits: turn "
            f"other heads off (torchvision: model.aux_logits=false), or return the logits alone"
        )
    if outputs.dim() != 2 or len(outputs) != len(images):
        raise ValueError(
            f"{name} gives {tuple(outputs.shape)} for {len(images)} images{mode}; one row of "
            f"{data.num_classes} logits per image is needed"
        )
    if outputs.shape[1] != data.num_classes:
        raise ValueError(
            f"{name} tells {outputs.shape[1]} classes apart, but {data.name} has {data.num_classes}"
        )


def _described(outputs: Any) -> str:
    if isinstance(outputs, (tuple, list)):
        return f"{len(outputs)} outputs"
    return "named outputs" if isinstance(outputs, Mapping) else f"a {type(outputs).__name__}"


def _found(target: str) -> Any:
    try:
        return factory_of(target, allow=None)
    except ValueError as error:
        cause = error.__cause__
        missing = isinstance(cause, ImportError) and cause.name or target
        first = missing.partition(".")[0]
        hint = f"; this project's own '{first}' is found before yours" if first in OURS else ""
        raise ValueError(f"{error}{hint if cause else ''}") from error


def _takes(factory: Any, name: str) -> bool:
    """Also through **kwargs: a class whose parent takes it, a builder function of a library."""
    if not isinstance(factory, type):
        parameters = inspect.signature(factory).parameters.values()
        passed_on = any(p.kind is p.VAR_KEYWORD for p in parameters)
        return (passed_on and name in ("num_classes", "in_chans")) or name in {
            p.name for p in parameters
        }
    for layer in factory.__mro__:
        parameters = inspect.signature(layer).parameters
        if layer is nn.Module or name in parameters:
            return layer is not nn.Module
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return False
    return False
