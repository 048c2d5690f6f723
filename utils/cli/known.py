"""An option that no code reads is an error, wherever it was said: also in a user's own yaml."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from utils.cli.sentences import CONF, close
from utils.cli.words import DATA_OF_CHECKPOINT, key_of

GLOBAL = "# @package _global_"
WHOLE = ("experiment", "twin", "sweep")  # groups whose yaml speaks of everything
TWIN = {"epochs": None, "finetune": None, "pixels": None}  # what rows tell their twin=fast


@functools.cache
def options(config: str) -> dict[str, Any]:
    """Every option of a script, as its own yaml composes them."""
    known = OmegaConf.to_container(compose(config), resolve=False)
    if "finetune" in known:  # fine-tuning takes any option of a recipe
        known["finetune"]["recipe"] = known["recipe"]
        known["finetune"]["method"] = None  # what a method takes is its own business
    if config == "finetune":
        known["method"] = None
    if config in DATA_OF_CHECKPOINT:  # data.x=y changes what the checkpoint says of its data
        known["data"] = None
    return {**known, "twin": TWIN} if "model" in known else known


def check(cfg: DictConfig) -> None:
    """Look through the composed config of the job that HydraConfig knows.

    Raises:
        ValueError: an option is unknown, or a yaml of the user's lies where nobody reads it.
    """
    hydra, node = HydraConfig.get(), OmegaConf.to_container(cfg, resolve=False)
    files, config = list(_files(hydra.runtime.choices)), hydra.job.config_name
    for group, file in files:
        if file.read_bytes().startswith(b"\xef\xbb\xbf"):
            raise ValueError(
                f"{file} begins with a byte-order mark, which hides its first line from Hydra: "
                f"save it as UTF-8 without one"
            )
        if group in WHOLE and group in node and (group != "twin" or node[group].keys() - TWIN):
            first, whose = file.read_text("utf-8").partition("\n")[0], "it"
            if first.strip() == GLOBAL:
                whose = "a yaml in its defaults"
            raise ValueError(f"{file} has no effect: {whose} doesn't begin with '{GLOBAL}'")
    for word in hydra.overrides.task:
        if key_of(word).startswith("twin.") and hydra.runtime.choices.get("twin", "") is None:
            raise ValueError(f"{word} has no effect without a twin: add twin=fast")
        if word.startswith("+"):
            _look_up(key_of(word), options(config), config)
    # An experiment speaks of the whole pipeline, also where only its training is asked for.
    known = options("pipeline" if config == "train" else config)
    compare(node, known, "", f"{config}.py{_where(files)}")


def _look_up(key: str, known: dict, config: str) -> None:
    """One option that was typed with a plus."""
    node: Any = known
    parts = key.split(".")
    for place, part in enumerate(parts):
        if not isinstance(node, dict) or "_target_" in node or "@" in part or "/" in part:
            return  # looked at where it is called, or a choice of a group
        if part not in node:
            if place == 0 and (CONF / part).is_dir() and "." not in key:
                return  # a group, and what it brings is in the composed config
            _refuse(".".join(parts[: place + 1]), node, ".".join(parts[:place]), f"{config}.py")
        node = node[part]


def compare(node: dict, known: dict, before: str, where: str) -> None:
    """
    Raises:
        ValueError: `node` has a key that `known` hasn't. `before`: the key of both.
    """
    for key, value in node.items():
        if key not in known:
            _refuse(f"{before}.{key}".lstrip("."), known, before, where)
        own = known[key]
        both = isinstance(value, dict) and isinstance(own, dict)
        if both and "_target_" not in {*value, *own}:  # else it is looked at where it is called
            compare(value, own, f"{before}.{key}".lstrip("."), where)


def _refuse(name: str, known: dict, before: str, where: str) -> None:
    near = close(name, [f"{before}.{other}".lstrip(".") for other in known])
    raise ValueError(f"there is no option '{name}'{near} in {where}")


def _where(files: list[tuple[str, Path]]) -> str:
    """The user's files that may have said so."""
    own = [str(file) for group, file in files if group in WHOLE or CONF not in file.parents]
    return f": see {' and '.join(own)}" if own else ""


def _files(choices: DictConfig) -> Iterator[tuple[str, Path]]:
    """(group, the yaml that Hydra takes) of each choice that isn't Hydra's own."""
    for group, chosen in choices.items():
        group = group.partition("@")[0]
        if chosen is None or group.startswith(("hydra", "schema")):
            continue
        for name in [chosen] if isinstance(chosen, str) else chosen:
            if (file := _found(f"{group}/{name}.yaml")) is not None:
                yield group, file


def _found(name: str) -> Path | None:
    for element in GlobalHydra.instance().config_loader().get_search_path().get_path():
        folder = urlparse(str(element.path))
        file = Path(unquote(folder.path)) / name
        if folder.scheme in ("", "file") and file.is_file():
            return file
    return None
