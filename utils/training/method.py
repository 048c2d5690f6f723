"""The `method` of a config: the object, and what of it can change a training or a cut."""

import inspect
from collections.abc import Mapping
from typing import Any

from hydra.utils import get_object, instantiate

from slimming.methods.base import Method
from utils.training.recipe import Recipe
from utils.training.strength import choose_strength, strength_of

# What ordinary training is called in a hash: as it was before there was more than one method.
PLAIN = {"_target_": "slimming.methods.slimming.Slimming", "strength": 0.0}
# Not part of the scores.
PENALTY = ("strength", "mode", "weight_decay_on_gamma", "cost", "cost_power")
# What a class may define that trains as the one it is derived from.
SCORING = {"scores", "choose", "__doc__", "__module__", "__firstlineno__", "__static_attributes__"}
WORDS = ("name", "needs")  # of the yaml: what tables call it, what else it fixes


def make(node: Mapping[str, Any], **more: Any) -> Method:
    """The object; `more` replaces arguments that the method has.

    Raises:
        ValueError: it has no such option.
    """
    known = {key: value for key, value in more.items() if key in node}
    described = {**_described(node), **known}
    takes = inspect.signature(get_object(described["_target_"])).parameters
    wrong = [key for key in described if key not in takes and not key.startswith("_")]
    if wrong and not any(taken.kind is taken.VAR_KEYWORD for taken in takes.values()):
        options = ", ".join(takes) or "none"
        raise ValueError(f"method={name_of(node)} has no option '{wrong[0]}' (it has: {options})")
    return instantiate(described, _convert_="all")


def decided(
    node: Mapping[str, Any], recipe: Recipe, steps: int, far: float | None
) -> dict[str, Any]:
    """The same with a lambda: where none is said it follows from the recipe's reach `far`; where
    nothing is trained it is 0. `steps` are those of an epoch.

    Raises:
        ValueError: as `choose_strength`.
    """
    if "strength" in node and not recipe.epochs:
        return {**node, "strength": 0.0}
    if node.get("strength", 0.0) is None:
        strength = choose_strength(recipe, node.get("mode", "subgradient"), steps, far)
        return {**node, "strength": strength}
    return dict(node)


def name_of(node: Mapping[str, Any]) -> str:
    """What tables call it: its yaml's name, else its module's."""
    return node.get("name") or node["_target_"].split(".")[-2]


def check_needs(node: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: the method has no scores, or an option of the cut was set to another value than
            its yaml needs.
    """
    scores = getattr(get_object(node["_target_"]), "scores", None)
    if scores in (None, Method.scores):
        raise ValueError(
            f"method={name_of(node)} has no scores(model, graph, batches) to choose channels by"
        )
    for key, value in (node.get("needs") or {}).items():
        if options[key] != value:
            raise ValueError(
                f"method={name_of(node)} means {key}={value}; got {key}={options[key]}: leave it "
                f"out, or choose another method"
            )


def training_identity(node: Mapping[str, Any], method: Method, decays: bool) -> dict[str, Any]:
    """What of a method can change a training: nothing, where it trains plainly.

    It is called by the class that says how it trains, so that methods which differ in their scores
    alone share their trainings. `decays`: whether there is a weight decay to spare gammas from.
    """
    spared = {} if decays else {"weight_decay_on_gamma": True}
    if method.trains_plainly:
        return {**PLAIN, "weight_decay_on_gamma": decays_gammas(method), **spared}
    kind = next(kind for kind in type(method).__mro__ if not vars(kind).keys() <= SCORING)
    takes = inspect.signature(kind).parameters
    arguments = {key: value for key, value in _described(node).items() if key in takes}
    target = {"_target_": f"{kind.__module__}.{kind.__qualname__}"}
    return {**arguments, **target, "strength": strength_of(method), **spared}


def decays_gammas(method: Method) -> bool:
    """Whether gammas are decayed like all other weights."""
    return getattr(method, "weight_decay_on_gamma", True)


def scoring_identity(node: Mapping[str, Any]) -> dict[str, Any]:
    """What of a method can change a cut."""
    return {key: value for key, value in _described(node).items() if key not in PENALTY}


def _described(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in WORDS}
