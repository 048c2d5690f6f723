"""Which runs may be averaged: those that differ in their seed and in nothing else.

A run is the content of a result.json, a chain the runs from a training on (see `table.py`).
What a run was asked for is read from the config it recorded, so no folder or hash is trusted.
"""

import inspect
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

from slimming.methods.base import MOMENTS, Method
from slimming.methods.slimming import Slimming
from utils.training.recipe import OFF

Run = dict[str, Any]
# What can't change a result, or is said by the result itself (seed, precision, data set).
NEVER = {"runs_dir", "seed", "device", "dry_run", "allow", "model_path", "logger", "hardware"}
NEVER |= {"ckpt", "passes", "experiment", "twin", "hydra", "strict", "recompute"}
PATHS = {"root", "download", "workers"}  # of a data set: where it lies and who reads it
# Where older results found what has a room of its own now.
MOVED = {"utils.schedules.": "utils.training.schedules.", "utils.streaming.": "utils.data."}
CUT = {"ratio", "target", "floor", "refill", "round_to", "rounding", "scope", "coupled"}
CUT |= {"exclude", "only", "combine", "dead", "unread", "compensate", "growth", "images"}
CUT |= {"recalibrate", "runtime", "unscored", "cost", "cost_power"}
START = {"model", "init", "init_skip"}
TUNING = {"finetune", "scratch"}
# A pipeline records its whole config with each stage: what belongs to the others.
FOREIGN = {
    "train": CUT | TUNING,
    "prune": START | TUNING | {"recipe", "epochs"},
    "finetune": CUT | START | {"finetune", "method"},
}
SAID = {"name", "needs"}  # of a method: what it is called, and which options go with it
# Of a method: not of its scores.
PENALTY = {"strength", "mode", "weight_decay_on_gamma", "cost", "cost_power"}
SCHEDULED = {"name", "epochs", "strength", "reach"}  # of a recipe: the result has what came of them
METHODS = "slimming.methods."  # ours, and those that a user puts beside them
SETS = "utils.data.sets"
OWN = ("models.", "slimming.", "utils.", "torch.")  # whose defaults may be looked up


def settings(run: Run) -> dict[str, Any]:
    """Everything in a run's config that can change its result, except the seed.

    -> {"recipe.optimizer.lr": 0.1, ...}, flat. Left out: device, logger, hardware but precision,
    paths, and what belongs to other stages. What chooses itself (lambda, epochs, precision) has the
    value it came to. An option that a run doesn't mention, because it is newer, has its default.
    """
    stage, config = run["stage"], run.get("config") or {}
    left_out = NEVER | FOREIGN[stage] | (START if run.get("parent") else set())
    asked = _filled({key: value for key, value in config.items() if key not in left_out})
    asked["data"] = _without(asked.get("data"), PATHS)
    if isinstance(asked.get("recipe"), Mapping):
        asked["recipe"] = _without({**OFF, **asked["recipe"]}, SCHEDULED)
    asked["dataset"], asked["network"] = run.get("dataset"), run.get("model")
    hardware = config.get("hardware") or {}
    # Of older runs only the wish is known, such as "auto".
    asked["precision"] = run.get("precision") or hardware.get("precision")
    asked["channels_last"] = hardware.get("channels_last")  # null: decided per network
    if stage != "prune":
        asked["compile"] = hardware.get("compile") or None
        on_gpu = run.get("device") == "cuda"  # a CPU is deterministic anyway
        asked["deterministic"] = (on_gpu and hardware.get("deterministic")) or None
    for key in ("processes", "sync_batchnorm"):  # of a training under torchrun
        asked[key] = run.get(key)
    if not run.get("parent") and config.get("ckpt"):  # somebody's file: its weights may differ
        asked["ckpt"] = config["ckpt"]
    _OF_STAGE[stage](run, asked)
    return dict(_flat(asked))


def _training(run: Run, asked: dict[str, Any]) -> None:
    strength = asked["strength"] = run.get("strength") or 0.0
    method = _without(asked.get("method"), {"strength", *SAID})
    # Without a penalty there is no telling which method didn't put one on.
    if not strength and isinstance(method, Mapping) and _plainly(str(method.get("_target_"))):
        spared = not method.get("weight_decay_on_gamma", True)
        method = {"weight_decay_on_gamma": False} if spared else None
    asked["method"] = method
    asked["epochs"] = run.get("epochs")


@lru_cache
def _plainly(target: str) -> bool:
    """Whether a method trains as any other does without a penalty; a stranger's may not."""
    module, _, name = target.rpartition(".")
    if not module.startswith(METHODS):
        return False
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        return False
    plain = [[vars(one).get(moment) for one in (Method, Slimming)] for moment in MOMENTS]
    return all(getattr(kind, m, None) in known for m, known in zip(MOMENTS, plain, strict=True))


def _cut(run: Run, asked: dict[str, Any]) -> None:
    from slimming.planning.planner import plan

    options = {**_defaults(plan), "coupled": "prune", "compensate": "none"}
    options |= {"unscored": "keep", "runtime": "eager"}
    asked.update({key: asked.get(key, options[key]) for key in options.keys() & CUT})
    goal = {key: value for key, value in (run.get("target") or {}).items() if value is not None}
    asked["target"] = goal or None
    asked["ratio"] = None if goal else run.get("ratio")  # with a target it is what came out
    # Of a result without its config only the method's name is known.
    asked["method"] = _without(asked.get("method"), PENALTY | SAID) or run.get("method")
    asked["recalibrate"] = run.get("recalibrate", asked.get("recalibrate"))
    if "latency" not in goal:
        asked.pop("runtime")
    if asked["compensate"] == "none":
        asked.pop("images", None)
    asked["growth"] = run.get("growth")  # what its default came to; none in older results


def _tuning(run: Run, asked: dict[str, Any]) -> None:
    scratch = asked["scratch"] = run.get("scratch", "none")
    # The epochs of a control follow from the thin network, and that one differs with the seed.
    asked["epochs"] = run.get("epochs") if scratch == "none" else None
    if name := run.get("finetune_method"):  # else the pipeline's own, which is of other stages
        node = _filled((run.get("config") or {}).get("method") or {})
        asked["method"] = _without(node.get("method", node), SAID) or name


_OF_STAGE = {"train": _training, "prune": _cut, "finetune": _tuning}


def of_chain(
    chain: Iterable[Run],
    without: Container[str] = (),
    known: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The settings of all runs of a chain: {"train: recipe.batch_size": 64, ...}.

    A stage that names no data has those of the stage before. What the first run stands on is not
    known when its parent isn't here: then the parent's name is a setting, and no other chain's.

    Args:
        without: settings of the last run that came after what is looked at.
        known: {run: its `settings`}, if they were read before.
    """
    whole: dict[str, Any] = {}
    data: dict[str, Any] = {}
    stages: list[str] = []
    chain = list(chain)
    if chain and chain[0].get("parent"):
        whole["unseen"] = chain[0]["parent"]
    elif chain and chain[0]["stage"] != "train":
        whole["file"] = _file(chain[0])
    for run in chain:
        own = known[run["run"]] if known else settings(run)
        data = {name: value for name, value in own.items() if name.startswith("data.")} or data
        stages.append(run["stage"])
        again = stages.count(run["stage"])
        title = run["stage"] + (f" {again}" if again > 1 else "")
        left_out = without if run is chain[-1] else ()
        seen = {name: value for name, value in {**own, **data}.items() if name not in left_out}
        whole |= {f"{title}: {name}": value for name, value in seen.items()}
    return {"stages": stages, **whole}


def _file(first: Run) -> str:
    """What a cut or a fine-tuning began with that is no run: somebody's file, with what in it."""
    file = (first.get("config") or {}).get("ckpt") or first.get("run")
    return f"{file} ({first.get('model')} on {first.get('dataset')})"


def differences(
    chains: Sequence[Sequence[Run]], without: Container[str] = ()
) -> dict[str, list[Any]]:
    """What keeps these chains from being one group: {setting: its distinct values}; {} if nothing.

    Chains that are alike but share a seed are no group either: {"seed": [0, 0, 1]}.
    """
    found = differing([of_chain(chain, without) for chain in chains])
    seeds = [chain[-1]["seed"] for chain in chains]
    return found or ({"seed": seeds} if len(set(seeds)) < len(seeds) else {})


def differing(several: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """{setting: its distinct values} of all that are not the same everywhere (of `of_chain`)."""
    names = list(dict.fromkeys(name for one in several for name in one))
    if any(one.get("stages") != several[0].get("stages") for one in several):
        names = ["stages"]
    found = {name: _distinct(one.get(name) for one in several) for name in names}
    return {name: values for name, values in found.items() if len(values) > 1}


def key(chain: Iterable[Run], *more: Any) -> str:
    """Equal for chains with equal settings, and for no others. `more`: as in `of_chain`."""
    return as_key(of_chain(chain, *more))


def as_key(settings: Mapping[str, Any]) -> str:
    """Equal for equal settings, and for no others."""
    return repr(sorted((name, _plain(value)) for name, value in settings.items()))


def say(found: Mapping[str, Sequence[Any]], most: int = 5) -> str:
    """For a person: "finetune: recipe.batch_size (64 / 128), train: epochs (1 / 9)"."""
    said = [f"{name} ({' / '.join(map(value, values))})" for name, values in found.items()]
    return ", ".join(said[:most]) + (f" and {len(said) - most} more" if len(said) > most else "")


def told(name: str, setting: Any) -> str:
    """ "batch_size 32"; a class or function by its own name: "schedule cosine"."""
    if name.endswith("_target_"):
        name, setting = name.removesuffix("_target_").rstrip("."), str(setting).rpartition(".")[2]
    return f"{name} {value(setting)}"


def value(setting: Any) -> str:
    """A setting as text; "-" for what is off, or wasn't there."""
    return "-" if setting is None else str(setting)


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({repr(_plain(value)): value for value in values}.values())


def _plain(value: Any) -> Any:
    """1 and 1.0 are one number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _without(node: Any, keys: set[str]) -> Any:
    return {k: v for k, v in node.items() if k not in keys} if isinstance(node, Mapping) else node


def _flat(node: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif value is not None:  # an option that is off, or that wasn't there yet
            yield before + name, value


def _filled(node: Any) -> Any:
    """A config in which each object's description names all its plain arguments."""
    if not isinstance(node, Mapping):
        return node
    filled = {key: _filled(value) for key, value in node.items() if key != "_partial_"}
    if "_target_" not in node:
        return filled
    target = str(node["_target_"])
    for before, now in MOVED.items():
        target = target.replace(before, now) if target.startswith(before) else target
    return {**_defaults_of(target), **filled, "_target_": target}


@lru_cache
def _defaults_of(target: str) -> dict[str, Any]:
    """Only our own objects and torch's are looked up: a result may come from a stranger."""
    module, _, name = target.rpartition(".")
    if not target.startswith(OWN):
        return {}
    try:
        home = import_module(module)
        # Every data set of ours hands what it doesn't take itself to one function.
        inner = _defaults(import_module(SETS).build) if module.startswith("utils.data") else {}
        return {**inner, **_defaults(getattr(home, name))}
    except (ImportError, AttributeError, TypeError, ValueError):
        return {}  # gone since: what the run recorded has to do


def _defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, (bool, int, float, str))}
