"""Types of the options that stand at the top level, so that a wrong one is refused at once."""

from collections.abc import Iterator
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, OmegaConf, StringNode

TYPES = {
    "common": {
        "runs_dir": StringNode("runs", is_optional=False),
        "seed": IntegerNode(None),
        "device": StringNode("auto", is_optional=False),
        "dry_run": BooleanNode(False, is_optional=False),
        "strict": BooleanNode(False, is_optional=False),
        "recompute": BooleanNode(False, is_optional=False),
    },
    "cut": {
        "ratio": FloatNode(None),
        "target": {name: FloatNode(None) for name in ("macs", "params", "latency")},
        "floor": FloatNode(1, is_optional=False),
        "refill": BooleanNode(True, is_optional=False),
        "round_to": IntegerNode(1, is_optional=False),
        "rounding": StringNode("nearest", is_optional=False),
        "scope": StringNode("global", is_optional=False),
        "coupled": StringNode("prune", is_optional=False),
        "combine": StringNode("max", is_optional=False),
        "dead": StringNode("floor", is_optional=False),
        "unread": StringNode("keep", is_optional=False),
        "compensate": StringNode("none", is_optional=False),
        "images": IntegerNode(2048, is_optional=False),
        "recalibrate": IntegerNode(0, is_optional=False),
    },
    "evaluate": {
        "latency": BooleanNode(False, is_optional=False),
        "macs_thop": BooleanNode(False, is_optional=False),
    },
    "export": {
        "fold": BooleanNode(False, is_optional=False),
        "half": BooleanNode(False, is_optional=False),
        "latency": BooleanNode(True, is_optional=False),
    },
    "report": {
        "runs_dir": StringNode("runs", is_optional=False),
        "only": StringNode(None),
        "figures": StringNode(None),
        "table": StringNode(None),
        "fast": BooleanNode(False, is_optional=False),
        "list": BooleanNode(False, is_optional=False),
        "delete": StringNode(None),
        "unfinished": BooleanNode(False, is_optional=False),
        "yes": BooleanNode(False, is_optional=False),
        "latency": BooleanNode(False, is_optional=False),
    },
    "training": {"epochs": IntegerNode(1, is_optional=False)},
}


def register() -> None:
    """Make the types known to Hydra as `schema/...`; `conf/*.yaml` put values on top of them."""
    for name, nodes in TYPES.items():
        ConfigStore.instance().store(
            group="schema", name=name, node=OmegaConf.create(nodes), package="_global_"
        )


def round_floats(cfg: DictConfig) -> None:
    """Every number to 12 digits, in place: range(0.1,0.5,0.1) counts 0.30000000000000004, and that
    would be another run than 0.3."""
    for key, value in _floats(OmegaConf.to_container(cfg), ()):
        if (rounded := float(f"{value:.12g}")) != value:
            OmegaConf.update(cfg, ".".join(key), rounded)


def _floats(node: Any, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(node, float):
        yield key, node
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from _floats(value, (*key, str(name)))
