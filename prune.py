"""Stage 2. Cut the channels with the smallest |gamma|; nothing is trained here.

    python prune.py                                     # the newest sparse training, ratio 0.7
    python prune.py method=l1_norm                      # another way to choose: the newest training
    python prune.py ckpt=runs/<name> ratio=0.5 dry_run=true
    python prune.py target.macs=0.5                     # whatever it takes to halve the MACs
    python prune.py exclude=[layer4.*,fc1]              # these stay whole

Reads one checkpoint, writes one checkpoint. Shows what each layer would lose before it cuts, and
proves that the thin network computes what the masked one computes.
"""

from utils.cli.script import begin, script

if __name__ == "__main__":  # --help doesn't wait for what is imported next
    begin("prune")

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

import stages
from engine import evaluate
from slimming import ChannelGraph, Plan, compensate, mask, plan, recalibrate, slim, trace, verify
from slimming.checkpoint import compose
from slimming.graph.trace import check_streams
from slimming.planning.budget import check_target
from slimming.planning.names import patterns
from slimming.planning.planner import check_options, check_ratio
from slimming.repair.compensate import check_compensation
from slimming.repair.consumers import out_of_reach
from slimming.repair.refit import GROWTH, GROWTH_BEFORE_TUNING, check_growth
from utils.cli import configured, sweep
from utils.data import Data
from utils.data.seeding import mix
from utils.exports.runtimes import RUNTIMES, check_runtime, prepare, timed_against
from utils.networks.show import show_accuracies, show_cut, show_plan
from utils.runs.folder import Run
from utils.runs.parent import Parent, find_parent
from utils.training.hardware import Hardware
from utils.training.method import check_needs, make, name_of, scoring_identity

IMAGES = 2048  # as in conf/cut.yaml
RATIO = 0.7  # unless a ratio or a target is given
# Options of a cut and the value at which they say nothing in a run's name.
PLAINEST = {
    "exclude": None,
    "only": None,
    "floor": 1,
    "refill": True,
    "round_to": 1,
    "rounding": "nearest",
    "scope": "global",
    "combine": "max",
    "cost": "none",
    "cost_power": 0.5,
    "dead": "floor",
    "unread": "keep",
}


def prune(cfg) -> Path:
    """Run or just find the cut that `cfg` describes; return its folder."""
    stage = describe(cfg)
    if cfg.dry_run:
        stage.preview()
    return stages.complete(cfg, stage)  # its work begins with what would be tried


def describe(cfg, parent: Parent | None = None) -> stages.Stage:
    """The cut as a stage: named, not begun; of `parent`, or as `cfg` says.

    Raises:
        ValueError: an option is out of range, or there are no such data.
    """
    # What is asked for: how much to cut, of which network, scored by which method.
    goal, method, allow = what_to_cut(cfg), configured.plain(cfg.method), tuple(cfg.allow)
    options = _options(cfg, goal)
    check_needs(method, cfg)
    if parent is None:
        advice = "run `python train.py` first"
        parent = Parent.open(find_parent(cfg.ckpt, cfg.runs_dir, trained_for(method), advice))
    hardware = instantiate(cfg.hardware)
    runtime = _runtime(cfg, goal, hardware)
    data = parent.data(configured.plain(cfg.get("data")), hardware)
    seed = parent.facts.get("seed", 0) if cfg.seed is None else cfg.seed
    # What it is called.
    after = {"compensate": cfg.compensate, "recalibrate": min(cfg.recalibrate, len(data.train))}
    seen = {} if cfg.compensate == "none" else {"images": min(cfg.images, len(data.train))}
    seen |= _growth(cfg)
    run = Run(
        cfg.runs_dir,
        "prune",
        f"{parent.row}-{_goal_label(goal)}"
        f"{_options_label(method, streams(cfg), options, {**after, **runtime})}",
        seed,
        {
            "parent": parent.identity,
            **parent.source(allow),
            "data": configured.data_identity(data),
            "method": scoring_identity(method),
            "plan": {"_target_": "slimming.plan", **goal, **options},
            **streams(cfg),
            **runtime,
            "after": {**after, **seen},
            **hardware.numerics,
        },
        device=hardware.device,
        strict=cfg.strict,
        recompute=cfg.recompute,
    )
    entry = stages.history_entry(run, cfg, **goal)

    # What it would cut; whether it can; what it computes and leaves.
    def planned() -> tuple[nn.Module, ChannelGraph, Plan]:
        model = parent.opened().model(allow, data, hardware)
        graph, scores = score(cfg, model, data, seed)
        measure = _timer(cfg, model, graph, data, hardware)
        judged = judge(model, graph, data, hardware, after["recalibrate"], seed)
        wanted = {**goal, "measure": measure, "evaluate": judged, **options}
        keep = make(method, strength=0.0).choose(model, graph, scores, **wanted)
        if not sweep.is_on():
            show_plan(model, graph, scores, keep)
        return model, graph, keep

    def check() -> None:
        start = parent.opened()
        if not start.checkpoint.weights and start.is_thin:
            return  # a second cut: the network isn't known before the first
        model = start.model(allow, data, hardware)
        graph = trace(model, example(data, seed), **streams(cfg))
        _try_plan(graph, goal, options)
        prepare(model, runtime.get("runtime", "eager"), data.input_shape, 2)

    def work(logger) -> stages.Outcome:
        model, graph, keep = planned()
        thin, cut = _cut(cfg, model, graph, keep, data, hardware, seed)
        share, over = _time_again(goal, keep, _timer(cfg, model, graph, data, hardware))
        asked = {"ratio": keep.ratio, **goal}  # with a target, what it took
        start = parent.opened()
        return stages.Outcome(
            thin,
            start.extended({**entry, **asked}, compose(start.checkpoint.keep, keep)),
            {
                **stages.facts(run, seed, data, hardware, parent.checkpoint.target, parent),
                "target": None,
                **asked,
                "safe_ratio": keep.safe_ratio,
                "method": name_of(method),
                "epochs": None,
                **after,
                **_growth(cfg),
                "plan": {
                    "kept": keep.kept,
                    "total": keep.total,
                    "latency": share,  # of the time, if that was the target
                    "keep": {gate: keep[gate].tolist() for gate in graph.gates},
                },
                **cut,
                "shortfalls": [*keep.shortfalls, *over, *cut["shortfalls"]],
            },
        )

    return stages.Stage(
        run, work, check, parent.extended(entry), seed, parent, hardware, data, preview=planned
    )


def _options(cfg, goal: dict[str, Any]) -> dict[str, Any]:
    """The options of `plan`, all of them possible; those that change nothing at their default.

    Raises:
        ValueError: one is out of range.
    """
    options = {key: configured.plain(cfg[key]) for key in PLAINEST}
    for key in ("exclude", "only"):
        globs = options.pop(key)
        options |= {key: sorted({*patterns(key, globs)})} if globs else {}
    check_options(**{key: value for key, value in options.items() if key != "refill"})
    check_compensation(cfg.compensate)
    check_streams(cfg.coupled, cfg.unscored)
    if cfg.recalibrate < 0 or cfg.images < 1:
        raise ValueError(
            f"recalibrate and images are numbers of training images; got {cfg.recalibrate} and "
            f"{cfg.images}"
        )
    if cfg.growth is not None:
        check_growth(cfg.growth)
        if cfg.compensate != "refit":
            print(f"note: growth={cfg.growth:g} changes nothing with compensate={cfg.compensate}")
    if cfg.compensate == "none" and cfg.images != IMAGES:
        print(f"note: images={cfg.images} changes nothing with compensate=none")
    idle = {
        "rounding": "round_to=1" if options["round_to"] == 1 else "",
        "refill": "scope=layer" if options["scope"] == "layer" else "",
        "cost_power": "cost=none" if options["cost"] == "none" else "",
    }
    if "target" in goal:
        idle["refill"] = "a target"
    for key, cause in idle.items():
        if cause and options[key] != PLAINEST[key]:
            print(f"note: {key}={options[key]} changes nothing with {cause}")
            options[key] = PLAINEST[key]
    return options


def _growth(cfg) -> dict[str, float]:
    """How much refit may let weights grow, where it is asked for."""
    if cfg.compensate != "refit":
        return {}
    default = GROWTH_BEFORE_TUNING if "finetune" in cfg else GROWTH  # a pipeline's config has it
    return {"growth": default if cfg.growth is None else cfg.growth}


def _runtime(cfg, goal: dict[str, Any], hardware: Hardware) -> dict[str, str]:
    """What times are taken in, where it isn't torch as it is and times are taken at all.

    Raises:
        ValueError: there is no such runtime here.
        ImportError: it isn't installed.
    """
    if "latency" not in goal.get("target", {}):
        if cfg.runtime not in RUNTIMES[:1]:
            check_runtime(cfg.runtime, torch.device("cpu"))
            print(f"note: runtime={cfg.runtime} changes nothing without target.latency")
        return {}
    check_runtime(cfg.runtime, hardware.device)
    return {} if cfg.runtime == RUNTIMES[0] else {"runtime": cfg.runtime}


def trained_for(method: dict):
    """Which finished runs to look at without ckpt=: a method with a penalty wants its trace."""
    penalty = "strength" in method
    return lambda result: result["stage"] == "train" and (result["strength"] > 0 or not penalty)


def what_to_cut(cfg) -> dict:
    """{"ratio": share} or {"target": {name: limit}}, as `plan` takes it.

    Raises:
        ValueError: both are given, or what is given is none.
    """
    if not isinstance(cfg.target or {}, Mapping):
        raise ValueError(f"target needs a name, such as target.macs={cfg.target}")
    target = {name: value for name, value in (cfg.target or {}).items() if value is not None}
    if not target:
        return {"ratio": check_ratio(RATIO if cfg.ratio is None else cfg.ratio)}
    if cfg.ratio is not None:
        names = ", ".join(f"target.{name}={value:g}" for name, value in target.items())
        raise ValueError(f"give a ratio or a target, not both; got ratio={cfg.ratio:g} and {names}")
    check_target(target)
    return {"target": target}


def example(data: Data, seed: int) -> torch.Tensor:
    return next(data.sample(2, seed=seed))


def _try_plan(graph: ChannelGraph, goal: dict[str, Any], options: dict[str, Any]) -> None:
    """Plan with scores that spread evenly over every layer: whether the goal is in reach at all.

    Raises:
        ValueError: nothing can be cut, or not so much.
    """
    even = {gate: torch.linspace(0, 1, len(ids)) for gate, ids in graph.gates.items()}
    target = {name: limit for name, limit in goal.get("target", {}).items() if name != "latency"}
    trial = {"target": target} if target else {"ratio": goal.get("ratio", 0.01)}
    plan(graph, even, **trial, **{**options, "dead": options["dead"].replace("error", "floor")})


def _timer(cfg, model, graph, data, hardware) -> Callable[..., float]:
    """plan -> time of the thin network as a share of the dense one's, on this machine."""
    timed = timed_against(model, cfg.runtime, data.input_shape, 64, hardware.device)

    def measure(keep: Plan, repeats: int = 15) -> float:
        dense, thin = timed(hardware.place(slim(model, graph, keep)), repeats)
        print(
            f"timed: {keep.kept:,} channels, {thin:.3g} ms of {dense:.3g} ms ({thin / dense:.1%})"
        )
        return thin / dense

    return measure


def judge(
    model: nn.Module, graph: ChannelGraph, data: Data, hardware: Hardware, number: int, seed: int
) -> Callable[[Plan], float]:
    """plan -> accuracy on the validation split after the cut, recalibrated on `number` images.

    Raises:
        ValueError: when it is called, there is no validation split.
    """

    images: list[torch.Tensor] = []

    def accuracy(keep: Plan) -> float:
        if not len(data.val):
            raise ValueError(
                f"a choice is made on validation images, never on the test set, and {data.name} "
                f"has none here: data.val_size=N holds N out"
            )
        if number and not images:
            images.extend(data.sample(number, seed=seed))
        thin = slim(model, graph, keep)
        if number:
            recalibrate(thin, images)
        return evaluate(thin, data, data.val, hardware)["accuracy"]

    return accuracy


def _time_again(goal: dict, keep, timer) -> tuple[float | None, list[str]]:
    """The share of time measured anew: the search took the first that was low enough."""
    if keep.latency is None or keep.kept == keep.total:
        return keep.latency, []
    share, asked = timer(keep, repeats=50), goal["target"]["latency"]
    over = f"timed again, {share:.1%} of the time stay where target.latency={asked:g} was asked"
    return share, [over] if share > asked else []


def streams(cfg) -> dict[str, str]:
    """What `trace` is told of channels that are added up, where it isn't the usual."""
    usual = {"coupled": "prune", "unscored": "keep"}
    return {option: cfg[option] for option in usual if cfg[option] != usual[option]}


def score(cfg, model: nn.Module, data: Data, seed: int) -> tuple[ChannelGraph, dict]:
    graph = trace(model, example(data, seed), **streams(cfg))
    method = make(configured.plain(cfg.method), strength=0.0)
    batches = data.labelled(min(512, len(data.train)), seed=seed)
    torch.manual_seed(mix(seed, "scores"))  # for a method that draws
    return graph, method.scores(model, graph, batches)


def _cut(cfg, model, graph, keep: Plan, data: Data, hardware, seed: int) -> tuple[nn.Module, dict]:
    """Cut, prove, compensate if asked, recalibrate -> the thin network, accuracy after each step.

    Raises:
        RuntimeError: the thin network isn't the masked one, or nothing can tell.
    """
    thin = slim(model, graph, keep)
    proof = verify(model, graph, keep, thin, next(data.sample(min(8, len(data.train)), seed=seed)))
    if not proof.holds:
        blame = "" if proof.compared == "nothing" else "; please report this"
        raise RuntimeError(f"{proof.problem}: nothing was saved{blame}")
    if proof.note is not None:
        print(f"note: {proof.note}")
    reached = {
        "masked": stages.accuracies(mask(model, graph, keep), data, hardware),
        "cut": stages.accuracies(thin, data, hardware),
    }

    def images(number: int) -> list[torch.Tensor]:
        return list(data.sample(min(number, len(data.train)), seed=seed))

    folded, shortfalls = [], []
    if cfg.compensate != "none":
        seen, bound = images(cfg.images), _growth(cfg)
        folded = compensate(model, graph, keep, thin, seen, cfg.compensate, **bound)
        reached["compensated"] = stages.accuracies(thin, data, hardware)
        beyond = out_of_reach(graph, keep, thin)
        shortfalls = [f"'{weight}' isn't a plain layer's: not compensated" for weight in beyond]
        shortfalls += [layer.shortfall for layer in folded if layer.shortfall is not None]
    if cfg.recalibrate:
        recalibrate(thin, images(cfg.recalibrate))
        reached["recalibrated"] = stages.accuracies(thin, data, hardware)
    for said in shortfalls:
        print(f"note: {said}")
    if sweep.is_on():
        show_cut(keep, reached)
    else:
        show_accuracies(reached)
    return thin, {
        "accuracy": list(reached.values())[-1],
        "variants": reached,
        "folded": [vars(layer) for layer in folded],
        "shortfalls": shortfalls,
        "certificate": proof.as_dict(),
    }


def _goal_label(goal: dict) -> str:
    if "ratio" in goal:
        return f"r{goal['ratio']:g}"
    return "-".join(f"{name}{limit:g}" for name, limit in goal["target"].items())


def _short(value: Any) -> Any:
    """An option in a run's name; of many layers the first ones, since the hash tells all."""
    if isinstance(value, Mapping):
        value = [f"{glob}{low:g}" for glob, low in value.items()]
    if isinstance(value, list):
        return "+".join(value)[:24]
    return f"{value:g}" if isinstance(value, float) else value


def _options_label(method: dict, streams: dict, options: dict, after: dict) -> str:
    """What differs from the plainest cut, for the run's name."""
    said = {"floor": "floor{}", "refill": "norefill", "round_to": "x{}", "unread": "{}unread"}
    said |= {"exclude": "exclude{}", "only": "only{}"}
    said |= {"cost": "per-{}", "cost_power": "power{}"}
    differs = [
        said.get(key, "{}").format(_short(value))
        for key, value in options.items()
        if value != PLAINEST[key]
    ]
    parts = [
        name_of(method) if name_of(method) != "slimming" else "",
        *differs,
        *(f"{value}{option}" for option, value in streams.items()),
        after.get("runtime", ""),
        after["compensate"] if after["compensate"] != "none" else "",
        f"rc{after['recalibrate']}" if after["recalibrate"] else "",
    ]
    return "".join(f"-{part}" for part in parts if part)


@script("prune")
def main(cfg) -> None:
    prune(cfg)


if __name__ == "__main__":
    main()
