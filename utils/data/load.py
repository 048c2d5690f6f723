"""From a description to a data set: that of a `data` config, or of a checkpoint's history."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from utils import data
from utils.data.arguments import check_types
from utils.data.sets import Data
from utils.data.streaming import Streamed

SETS = ("digits", "cifar10", "cifar100", "svhn", "mnist", "imagefolder", "fake", "imagenet")


def load_data(description: Mapping[str, Any], device: torch.device) -> Data | Streamed:
    """{"_target_": "utils.data.cifar10", "root": ...} -> the data set, on the training device.

    Raises:
        ValueError: it is none of ours (a checkpoint may come from a stranger), or doesn't take
            these options.
        OSError: its files aren't there, or can't be read.
    """
    room, _, name = str(description.get("_target_", "")).rpartition(".")
    if room != "utils.data" or name not in SETS:
        raise ValueError(f"'{description.get('_target_')}' is none of our data sets")
    arguments = {key: value for key, value in description.items() if key != "_target_"}
    if isinstance(arguments.get("root"), int):  # a folder that is called 2024
        arguments["root"] = str(arguments["root"])
    check_types("data.", getattr(data, name), arguments)
    return _load(name, json.dumps(arguments), device)


@lru_cache(maxsize=2)  # the stages of a pipeline and the jobs of a sweep share it
def _load(name: str, arguments: str, device: torch.device) -> Data | Streamed:
    try:
        return getattr(data, name)(**json.loads(arguments)).to(device)
    except TypeError as error:
        raise ValueError(f"data={name}: {error}") from error
