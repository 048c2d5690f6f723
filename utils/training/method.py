"""The `method` of a config: the object, and what of it can change a training or a cut."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from hydra.utils import get_object, instantiate

from slimming.methods.base import Plain

# What ordinary training is called in a hash: as it was before there was more than one method.
PLAIN = {"_target_": "slimming.methods.slimming.Slimming", "strength": 0.0}
PENALTY = ("strength", "mode", "weight_decay_on_gamma")  # not part of the scores
# What a class may define that trains as the one it is derived from.
SCORING = {"scores", "__doc__", "__module__", "__firstlineno__", "__static_attributes__"}
WORDS = ("name", "needs")  # of the yaml: what tables call it, what else it fixes


def make(node: Mapping[str, Any], **more: Any) -> Plain:
    """The object; `more` replaces arguments that the method has.

    Raises:
        ValueError: it has no such option, or no scores to choose by.
    """
    known = {key: value for key, value in more.items() if key in node}
    described = {**_described(node), **known}
    takes = inspect.signature(get_object(described["_target_"])).parameters
    wrong = [key for key in described if key not in takes and not key.startswith("_")]
    if wrong and not any(taken.kind is taken.VAR_KEYWORD for taken in takes.values()):
        options = ", ".join(takes) or "none"
        raise ValueError(f"method={name_of(node)} has no option '{wrong[0]}' (it has: {options})")
    if not hasattr(get_object(described["_target_"]), "scores"):
        raise ValueError(
            f"method={name_of(node)} has no scores(model, graph, batches) to choose channels by"
        )
    return instantiate(described, _convert_="all")


def name_of(node: Mapping[str, Any]) -> str:
    """What tables call it: its yaml's name, else its module's."""
    return node.get("name") or node["_target_"].split(".")[-2]


def check_needs(node: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: an option of the cut was set to another value than the method's yaml needs.
    """
    for key, value in (node.get("needs") or {}).items():
        if options[key] != value:
            raise ValueError(
                f"method={name_of(node)} means {key}={value}; got {key}={options[key]}: leave it "
                f"out, or choose another method"
            )


def training_identity(node: Mapping[str, Any], method: Plain, decays: bool) -> dict[str, Any]:
    """What of a method can change a training: nothing, where it trains plainly.

    It is called by the class that says how it trains, so that methods which differ in their scores
    alone share their trainings. `decays`: whether there is a weight decay to spare gammas from.
    """
    spared = {} if decays else {"weight_decay_on_gamma": True}
    if method.trains_plainly:
        return {**PLAIN, "weight_decay_on_gamma": method.weight_decay_on_gamma, **spared}
    kind = next(kind for kind in type(method).__mro__ if not vars(kind).keys() <= SCORING)
    takes = inspect.signature(kind).parameters
    arguments = {key: value for key, value in _described(node).items() if key in takes}
    target = {"_target_": f"{kind.__module__}.{kind.__qualname__}"}
    return {**arguments, **target, "strength": method.strength, **spared}


def memory(method: Plain) -> dict[str, Any]:
    """What a method keeps in its attributes and a run can save: numbers, words, tensors, and lists,
    tuples and dicts of them. `vars(method).update(...)` brings it back."""
    return {name: value for name, value in vars(method).items() if _is_data(value)}


def scoring_identity(node: Mapping[str, Any]) -> dict[str, Any]:
    """What of a method can change a cut."""
    return {key: value for key, value in _described(node).items() if key not in PENALTY}


def _described(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in WORDS}


def _is_data(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_data, (*value, *value.values())))
    if isinstance(value, list | tuple):
        return all(map(_is_data, value))
    return value is None or type(value) in (bool, int, float, str, torch.Tensor)
