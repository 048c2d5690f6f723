"""Types of the options that stand at the top level, so that a wrong one is refused at once."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import (
    MISSING,
    BooleanNode,
    DictConfig,
    FloatNode,
    IntegerNode,
    ListConfig,
    OmegaConf,
    StringNode,
    ValueNode,
)


def _needed(kind: type[ValueNode]) -> ValueNode:
    return kind(MISSING, is_optional=False)  # conf/*.yaml says the value


COMMON = {
    "runs_dir": _needed(StringNode),
    "seed": IntegerNode(None),
    "device": _needed(StringNode),
    **{name: _needed(BooleanNode) for name in ("dry_run", "strict", "recompute")},
    "model_path": StringNode(None),
    "ckpt": StringNode(None),
}
WORDS = ("rounding", "scope", "coupled", "unscored", "combine", "dead", "unread", "compensate")
WORDS += ("runtime", "cost")
CUT = {
    "ratio": FloatNode(None),
    "target": {name: FloatNode(None) for name in ("macs", "params", "latency")},
    "refill": _needed(BooleanNode),
    "growth": FloatNode(None),
    "cost_power": _needed(FloatNode),
    **{name: _needed(IntegerNode) for name in ("round_to", "images", "recalibrate")},
    **{name: _needed(StringNode) for name in WORDS},
}
TRAINING = {**COMMON, "epochs": _needed(IntegerNode)}
START = {**TRAINING, "init": StringNode(None)}
TUNING = {"epochs": IntegerNode(None), "scratch": _needed(StringNode)}
TYPES: dict[str, dict[str, Any]] = {  # of a script; one schema each, since each costs a job 5 ms
    "train": START,
    "prune": {**COMMON, **CUT},
    "finetune": {**TRAINING, "scratch": _needed(StringNode)},
    "pipeline": {**START, **CUT, "passes": _needed(IntegerNode), "finetune": TUNING},
    "sensitivity": {
        **COMMON,
        "recalibrate": _needed(IntegerNode),
        "loss": _needed(FloatNode),
        **{
            name: _needed(StringNode)
            for name in ("coupled", "unscored", "combine", "scope", "cost")
        },
        "cost_power": _needed(FloatNode),
    },
    "evaluate": {**COMMON, **{n: _needed(BooleanNode) for n in ("latency", "macs_thop")}},
    "export": {
        **COMMON,
        "to": StringNode(None),
        **{name: _needed(BooleanNode) for name in ("fold", "half", "latency")},
    },
    "report": {
        "runs_dir": _needed(StringNode),
        **{name: StringNode(None) for name in ("only", "figures", "table", "delete", "to")},
        **{name: _needed(BooleanNode) for name in ("fast", "list", "unfinished", "yes", "latency")},
    },
}
PLACES = ("runs_dir", "ckpt", "init", "to", "model_path")


def register() -> None:
    """Make the types known to Hydra as `schema/...`; `conf/*.yaml` put values on top of them."""
    for name, nodes in TYPES.items():
        ConfigStore.instance().store(
            group="schema", name=name, node=OmegaConf.create(nodes), package="_global_"
        )


def settle(cfg: DictConfig) -> None:
    """Numbers and places as they are meant, in place: 12 digits, ~ as the home folder.

    range(0.1,0.5,0.1) counts 0.30000000000000004, and that would be another run than 0.3.

    Raises:
        ValueError: a whole number of more than 64 bits, a place that is empty or a pattern.
    """
    for key, value in _numbers(OmegaConf.to_container(cfg), ()):
        name = ".".join(key)
        if isinstance(value, float):
            if (rounded := float(f"{value:.12g}")) != value:
                OmegaConf.update(cfg, name, rounded)
        elif not -(2**63) <= value < 2**64:
            raise ValueError(
                f"{name} is a number of at most 64 bits; got one of {value.bit_length()}"
            )
    if "allow" in cfg and not isinstance(cfg.allow, ListConfig):
        raise ValueError(f"allow is a list: write allow=[{cfg.allow}]")
    for name in PLACES:
        if cfg.get(name) is not None:
            cfg[name] = _place(name, cfg[name])


def _place(name: str, value: str) -> str:
    if not value.strip():
        raise ValueError(f"{name}= is empty: say which, or leave it out")
    path = str(Path(value).expanduser()) if value.startswith("~") else value
    if name in ("ckpt", "init") and glob.has_magic(path) and not Path(path).exists():
        fits = sorted(glob.glob(path))
        told = ", ".join(fits[:8]) + (f" and {len(fits) - 8} more" if len(fits) > 8 else "")
        raise ValueError(f"{name}={value} is a pattern that fits {told or 'nothing'}: say which")
    return path


def _numbers(node: Any, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int | float]]:
    if isinstance(node, (int, float)) and not isinstance(node, bool):
        yield key, node
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from _numbers(value, (*key, str(name)))
