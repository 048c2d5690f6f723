"""What a config describes: its data, its recipe; and plain Python of any part of it."""

import functools
import json
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from utils.data.sets import Data
from utils.data.streaming import Streamed
from utils.networks.own_code import source_of
from utils.training.hardware import Hardware
from utils.training.recipe import Recipe

IN_MEMORY = ("digits", "cifar10", "cifar100", "svhn", "mnist", "imagefolder", "fake")
DATASETS = (*(f"utils.data.{name}" for name in IN_MEMORY), "utils.data.imagenet")


def plain(node: Any) -> Any:
    """A config node as plain Python."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def load_data(description: Mapping[str, Any], hardware: Hardware) -> Data | Streamed:
    """The data set of a `data` config or of a checkpoint's history, on the training device.

    Only our own functions can be named: a checkpoint may come from a stranger.
    """
    target = str(description.get("_target_", ""))
    if target not in DATASETS:
        raise ValueError(f"'{description.get('_target_')}' is none of our data sets")
    arguments = {key: value for key, value in description.items() if key != "_target_"}
    return _load_data(target, json.dumps(arguments), hardware.device)


@functools.lru_cache(maxsize=2)  # the stages of a pipeline and the jobs of a sweep share it
def _load_data(target: str, arguments: str, device: torch.device) -> Data | Streamed:
    try:
        return get_object(target)(**json.loads(arguments)).to(device)
    except TypeError as error:
        raise ValueError(f"data={target.rpartition('.')[2]}: {error}") from error


def recipe_of(cfg: DictConfig) -> Recipe:
    """
    Raises:
        ValueError: an option of the recipe is of a wrong type, or out of range.
    """
    size, reach = cfg.recipe.batch_size, cfg.recipe.reach
    if not isinstance(size, int):
        raise ValueError(f"recipe.batch_size is a number of images; got {size!r}")
    if not isinstance(reach, (int, float, NoneType)):
        raise ValueError(f"recipe.reach is how far the penalty can move a gamma; got {reach!r}")
    made = instantiate(cfg.recipe, _convert_="all")
    recipe = Recipe(cfg.epochs, made["batch_size"], made["optimizer"], made["schedule"])
    _try(cfg, "schedule", lambda: recipe.schedule(0.0))
    told = [cfg.recipe.optimizer.get(name, 0.0) for name in ("lr", "momentum")]
    if not all(isinstance(value, (int, float)) for value in told):  # lambda is computed from them
        try_optimizer(cfg, recipe)
    return recipe


def try_optimizer(cfg: DictConfig, recipe: Recipe) -> None:
    """Build it once, before anything is written. Takes seconds: not for what is finished.

    Raises:
        ValueError: it can't be made of its options.
    """
    _try(cfg, "optimizer", lambda: recipe.optimizer([nn.Parameter(torch.zeros(1))]))


def _try(cfg: DictConfig, part: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except (TypeError, ValueError) as error:
        said = {key: value for key, value in cfg.recipe[part].items() if key[0] != "_"}
        raise ValueError(f"recipe.{part} can't be made of {said}: {error}") from error


def recipe_identity(cfg: DictConfig, data: Data | Streamed) -> dict[str, Any]:
    """The part of a recipe that can change the result; a batch is no larger than the data."""
    recipe = {key: plain(cfg.recipe[key]) for key in ("batch_size", "optimizer", "schedule")}
    size = min(recipe["batch_size"], len(data.train))
    return {**recipe, "epochs": cfg.epochs, "batch_size": size}


def data_identity(data: Data | Streamed) -> dict[str, str]:
    """What the images are, and the code that augments, orders and splits them."""
    return {"contents": data.fingerprint, **source_of(type(data))}


def decays(cfg: DictConfig) -> bool:
    """Whether weights decay, so that it matters whether gammas do."""
    return cfg.recipe.optimizer.get("weight_decay") != 0
