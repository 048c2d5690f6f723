"""What a config describes: its data, its recipe; and plain Python of any part of it."""

import copy
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from utils.cli.sentences import CONF, close
from utils.data.sets import Data
from utils.data.streaming import Streamed
from utils.networks.own_code import source_of
from utils.runs.identity import essence
from utils.training.recipe import OFF, Recipe, check_numbers, is_number

HYDRAS = ("_target_", "_partial_", "_convert_", "_recursive_")
PARTS = ("optimizer", "schedule")
TOLD = ("name", "epochs", "strength", "reach")  # of a recipe, by results themselves
RECIPE = (*TOLD, "batch_size", *PARTS, *OFF)


def plain(node: Any) -> Any:
    """A config node as plain Python."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


@contextmanager
def _called(cfg: DictConfig) -> Iterator[None]:
    """Errors name the options of a pipeline's fine-tuning as they are typed."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        if "scratch" in cfg and "finetune" in cfg:
            text = re.sub(r"(?<![.\w])(recipe\.|epochs=)", r"finetune.\1", text)
            text = re.sub(r"(?<![.\w])batch_size=", "finetune.recipe.batch_size=", text)
        raise ValueError(text) from error


def recipe_of(cfg: DictConfig) -> Recipe:
    """
    Raises:
        ValueError: an option of the recipe is unknown, of a wrong type, or out of range.
    """
    with _called(cfg):
        return _recipe_of(cfg)


def _recipe_of(cfg: DictConfig) -> Recipe:
    told = plain(cfg.recipe)
    _check_names(told, RECIPE, "recipe.")
    for part in PARTS:
        node = told.get(part)
        if not isinstance(node, dict) or "_target_" not in node:
            name = node if isinstance(node, str) else "NAME"
            raise ValueError(f"recipe.{part} is a choice: write {part}={name}; got {node!r}")
    check_numbers(told)
    added = {name: told.get(name, off) for name, off in OFF.items()}
    made = {part: instantiate(cfg.recipe[part], _convert_="all") for part in PARTS}
    recipe = Recipe(cfg.epochs, told.get("batch_size"), **made, **added)
    for part in PARTS:
        _check_arguments(part, told[part])
    _try(cfg, "schedule", lambda: [_factor(recipe.schedule, k / 100) for k in range(100)])
    return recipe


def _factor(schedule: Callable[[float], float], progress: float) -> None:
    factor = schedule(progress)
    if not is_number(factor) or factor < 0:
        raise ValueError(f"it gives the learning rate the factor {factor!r} at {progress:.0%}")


def _check_arguments(part: str, node: Mapping[str, Any]) -> None:
    """Every argument of an optimiser or a schedule is one that it takes."""
    if strange := [key for key in node if key.startswith("_") and key not in HYDRAS]:
        raise ValueError(f"recipe.{part}.{strange[0]}: arguments are given by name")
    try:
        taken = inspect.signature(get_object(node["_target_"])).parameters
    except ValueError:  # a builtin says nothing of itself
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    own = list(taken)[1:]  # the first is what the engine gives: parameters, or the progress
    told = {key: value for key, value in node.items() if not key.startswith("_")}
    if wrong := [key for key in told if key not in own]:
        raise ValueError(
            f"recipe.{part}.{wrong[0]}: {node['_target_']} takes no {' and no '.join(wrong)}"
            f"{close(wrong[0], own)}; choose another one with {part}=NAME, or leave out with "
            f"{' '.join(f'~recipe.{part}.{key}' for key in wrong)}"
        )
    for key, value in told.items():
        if isinstance(taken[key].default, bool) and not isinstance(value, bool):
            raise ValueError(f"recipe.{part}.{key} is true or false; got {value!r}")


def _check_names(node: Mapping[str, Any], known: Collection[str], before: str) -> None:
    for key in node:
        if key not in known:
            raise ValueError(
                f"no recipe has the option '{before}{key}'{close(key, list(known))}; there are: "
                f"{', '.join(known)}"
            )


def try_optimizer(cfg: DictConfig, recipe: Recipe) -> None:
    """Build it once, before anything is written. Takes seconds: not for what is finished.

    Raises:
        ValueError: it can't be made of its options.
    """
    with _called(cfg):
        _try(cfg, "optimizer", lambda: recipe.optimizer([nn.Parameter(torch.zeros(1))]))


def _try(cfg: DictConfig, part: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except (TypeError, ValueError) as error:
        if str(error).startswith("recipe."):
            raise
        said = {key: value for key, value in cfg.recipe[part].items() if key[0] != "_"}
        raise ValueError(f"recipe.{part} can't be made of {said}: {error}") from error


def recipe_identity(cfg: DictConfig, data: Data | Streamed) -> dict[str, Any]:
    """The part of a recipe that can change the result: what is off, an older recipe hadn't; and a
    batch is no larger than the data."""
    told = plain(cfg.recipe)
    added = {name: told[name] for name, off in OFF.items() if told.get(name, off) != off}
    size = min(told["batch_size"], len(data.train))
    parts = {key: told[key] for key in PARTS}
    return {**parts, **added, "batch_size": size, "epochs": cfg.epochs}


def data_identity(data: Data | Streamed) -> dict[str, str]:
    """What the images are, and the code that augments, orders and splits them."""
    return {"contents": data.fingerprint, **source_of(type(data))}


def decays(cfg: DictConfig) -> bool:
    """Whether weights decay, so that it matters whether gammas do."""
    return cfg.recipe.optimizer.get("weight_decay") != 0


def tuning(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `finetune` of a pipeline's config with all that it takes over from the training.

    -> {"epochs", "scratch", "method", "recipe"}, as finetune.py has them.
    """
    said = config["finetune"]
    recipe = said["recipe"] or {}
    told = (said["epochs"], recipe.get("epochs"), config["epochs"])
    return {
        "epochs": next(epochs for epochs in told if epochs is not None),
        "scratch": said["scratch"],
        "method": said.get("method") or {},  # none in configs of before
        "recipe": finetuning(config["recipe"], recipe),
    }


def finetuning(recipe: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a fine-tuning: that of the training, but for what is `said` of it.

    A part that names its own `_target_` takes nothing over from the one it replaces.

    Raises:
        ValueError: something is said that no recipe has.
    """
    _check_names(said, RECIPE, "finetune.recipe.")
    return _merged(recipe, said)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(dict(old))
    for key, value in new.items():
        before = merged.get(key)
        if not isinstance(value, Mapping) or not isinstance(before, Mapping):
            merged[key] = copy.deepcopy(value)
        elif "_target_" in value:
            partial = {"_partial_": True} if before.get("_partial_") else {}
            merged[key] = {**partial, **copy.deepcopy(dict(value))}
        else:
            merged[key] = _merged(before, value)
    return merged


def recipe_facts(cfg: DictConfig, key: str) -> dict[str, Any]:
    """How a result names its recipe: "fast", or "fast*" and what was changed of it."""
    changed = changes(cfg)
    star = "*" if changed else ""
    return {key: f"{cfg.recipe.name}{star}", f"{key}_changes": changed}


def changes(cfg: DictConfig, named: str | None = None) -> dict[str, Any]:
    """What was changed of a recipe by hand: {"optimizer.lr": 0.2, ...}, without "recipe.".

    A value is None where the option was taken away. Not counted are how long the training is, and
    lambda and what it follows from: results tell them by themselves.

    Args:
        named: the recipe as conf/recipe/ calls it; None: the one that was chosen, or `recipe.name`.
    """
    original = _unchanged(cfg, named)
    now = plain(cfg.recipe)
    before, after, said = (dict(_flat(node)) for node in (_telling(original), _telling(now), now))
    return {
        key: said.get(key)
        for key in {**before, **after}
        if key not in TOLD and before.get(key) != after.get(key)
    }


def _unchanged(cfg: DictConfig, named: str | None) -> Mapping[str, Any]:
    """The recipe as our own yamls compose it, or that of their fine-tuning."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    known = HydraConfig.initialized() and named is None
    choices = HydraConfig.get().runtime.choices if known else {}
    if "scratch" in cfg and "finetune" in cfg:
        if not known:  # which experiment it is of
            return plain(cfg.recipe)
        chosen = {key: choices.get(key) for key in ("recipe", "recipe@finetune.recipe")}
        for group in ("experiment", "twin"):
            if (CONF / group / f"{choices.get(group)}.yaml").is_file():
                chosen[group] = choices[group]
        words = [f"{key}={choice}" for key, choice in chosen.items() if choice is not None]
        return tuning(plain(compose("pipeline", words)))["recipe"]
    inside = GlobalHydra.instance().is_initialized()  # a script's own Hydra, or none
    with nullcontext() if inside else initialize_config_dir(str(CONF), version_base="1.3"):
        name = named or choices.get("recipe") or cfg.recipe.name
        return plain(compose(f"recipe/{name}").recipe)


def _telling(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is off anyway, and arguments that are their callable's own defaults."""
    told = {key: value for key, value in recipe.items() if OFF.get(key, ...) != value}
    for part in PARTS:
        arguments = essence(recipe[part])["arguments"]
        told[part] = {"_target_": recipe[part]["_target_"], **arguments}
    return told


def _flat(node: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
