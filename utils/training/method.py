"""The `method` of a config: the object, and what of it can change a training or a cut."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate

from slimming.methods.base import Plain

# What ordinary training is called in a hash: as it was before there was more than one method.
PLAIN = {"_target_": "slimming.methods.slimming.Slimming", "strength": 0.0}
PENALTY = ("strength", "mode", "weight_decay_on_gamma")  # not part of the scores


def make(node: Mapping[str, Any], **more: Any) -> Plain:
    """The object; `more` replaces arguments that the method has."""
    arguments = {key: value for key, value in node.items() if key != "name"}
    known = {key: value for key, value in more.items() if key in node}
    return instantiate({**arguments, **known}, _convert_="all")


def name_of(node: Mapping[str, Any]) -> str:
    """What tables call it: its yaml's name, else its module's."""
    return node.get("name") or node["_target_"].split(".")[-2]


def training_identity(node: Mapping[str, Any], method: Plain) -> dict[str, Any]:
    """What of a method can change a training: nothing, where it trains plainly."""
    if method.trains_plainly:
        return {**PLAIN, "weight_decay_on_gamma": method.weight_decay_on_gamma}
    return {**_described(node), "strength": method.strength}


def scoring_identity(node: Mapping[str, Any]) -> dict[str, Any]:
    """What of a method can change a cut."""
    return {key: value for key, value in _described(node).items() if key not in PENALTY}


def _described(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "name"}
