"""From a description to a data set: that of a `data` config, or of a checkpoint's history."""

import importlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, get_type_hints

import torch

from utils.data.arguments import check_types
from utils.data.sets import Data
from utils.data.streaming import Streamed

HOME, SHELF = "utils.data", "utils.data.sets."  # where functions that make data sets are found


def load_data(description: Mapping[str, Any], device: torch.device) -> Data | Streamed:
    """{"_target_": "utils.data.cifar10", "root": ...} -> the data set, on the training device.

    Raises:
        ValueError: it is none of ours (a checkpoint may come from a stranger), or doesn't take
            these options.
        OSError: its files aren't there, or can't be read.
    """
    target = str(description.get("_target_", ""))
    arguments = {key: value for key, value in description.items() if key != "_target_"}
    if isinstance(arguments.get("root"), int):  # a folder that is called 2024
        arguments["root"] = str(arguments["root"])
    if unsaid := [key for key, value in arguments.items() if value == "???"]:
        raise ValueError(f"data.{unsaid[0]} has no default: say data.{unsaid[0]}=...")
    check_types("data.", _function(target), arguments)
    return _load(target, json.dumps(arguments), device)


@lru_cache(maxsize=2)  # the stages of a pipeline and the jobs of a sweep share it
def _load(target: str, arguments: str, device: torch.device) -> Data | Streamed:
    try:
        return _function(target)(**json.loads(arguments)).to(device)
    except TypeError as error:
        raise ValueError(f"data={target.rpartition('.')[2]}: {error}") from error


def _function(target: str) -> Callable[..., Data | Streamed]:
    """What a file of utils/data/sets/ says makes a data set; nothing else is called."""
    room, _, name = target.rpartition(".")
    if room == HOME or room.startswith(SHELF):
        try:
            function = getattr(importlib.import_module(room), name, None)
        except ModuleNotFoundError as error:
            if not room.startswith(error.name or "?"):
                raise ValueError(f"data: {target} needs a package: {error}") from error
            function = None
        own = getattr(function, "__module__", "").startswith(f"{HOME}." if room == HOME else room)
        if own and get_type_hints(function).get("return") in (Data, Streamed):
            return function
    raise ValueError(
        f"'{target}' is none of our data sets: those are functions in utils/data/sets/ that say "
        f"'-> Data'"
    )
