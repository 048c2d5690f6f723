"""Stage 2. Cut the channels with the smallest |gamma|; nothing is trained here.

    python prune.py                                     # the newest sparse training, ratio 0.7
    python prune.py method=l1_norm                      # another way to choose: the newest training
    python prune.py ckpt=runs/<name> ratio=0.5 dry_run=true
    python prune.py target.macs=0.5                     # whatever it takes to halve the MACs

Reads one checkpoint, writes one checkpoint. Shows what each layer would lose before it cuts, and
proves that the thin network computes what the masked one computes.
"""

from collections.abc import Mapping
from pathlib import Path

from utils.cli.script import script

RATIO = 0.7  # unless a ratio or a target is given
OPTIONS = ("floor", "refill", "round_to", "rounding", "scope", "combine", "dead", "unread")


def prune(cfg) -> Path:
    """Run or just find the cut that `cfg` describes; return its folder."""
    import stages

    stage = describe(cfg)
    if cfg.dry_run:
        stage.preview()
    return stages.complete(cfg, stage)


def describe(cfg, parent=None):
    """The cut as a `stages.Stage`: named, not begun. `parent`: of `Parent.open`."""
    from hydra.utils import instantiate

    import stages
    from slimming import plan
    from utils.cli import configured
    from utils.networks.show import show_plan
    from utils.runs.folder import Run
    from utils.training.method import scoring_identity

    goal = what_to_cut(cfg)
    if cfg.recalibrate < 0 or cfg.images < 1:
        raise ValueError(
            f"recalibrate and images are numbers of training images; got {cfg.recalibrate} and "
            f"{cfg.images}"
        )
    described = configured.plain(cfg.method)
    if parent is None:
        advice = "run `python train.py` first"
        parent = stages.Parent.open(stages.find_parent(cfg, _trained_for(described), advice))
    hardware = instantiate(cfg.hardware)
    data = parent.data(cfg, hardware)
    options = {key: cfg[key] for key in OPTIONS}
    seed = parent.facts.get("seed", cfg.seed)
    run = Run(
        cfg.runs_dir,
        "prune",
        f"{parent.row}-{_goal_label(goal)}{_options_label(cfg)}",
        seed,
        {
            "parent": parent.identity,
            "data": data.fingerprint,
            "method": scoring_identity(described),
            "plan": {"_target_": "slimming.plan", **goal, **options},
            **({} if cfg.coupled == "prune" else {"coupled": cfg.coupled}),
            "after": {
                **{key: cfg[key] for key in ("compensate", "recalibrate")},
                **({} if cfg.compensate == "none" else {"images": cfg.images}),
            },
            "precision": hardware.precision,
        },
    )

    def work(logger) -> stages.Outcome:
        return _cut(cfg, run, parent, data, hardware, goal, planned())

    def planned() -> tuple:
        model = parent.model(cfg, data, hardware)
        graph, scores = _score(cfg, model, data, seed)
        measure = _timer(model, graph, data, hardware)
        keep = plan(graph, scores, **goal, measure=measure, **options)
        show_plan(model, graph, scores, keep)
        return model, graph, keep

    leaves = parent.extended(stages.history_entry(run, cfg, **goal))
    return stages.Stage(run, work, leaves, seed, parent, hardware, preview=planned)


def _trained_for(method: dict):
    """Which finished runs to look at without ckpt=: a method with a penalty wants its trace."""
    penalty = "strength" in method
    return lambda result: result["stage"] == "train" and (result["strength"] > 0 or not penalty)


def what_to_cut(cfg) -> dict:
    """{"ratio": share} or {"target": {name: limit}}, as `plan` takes it.

    Raises:
        ValueError: both are given, or what is given is none.
    """
    from slimming.planning.planner import check_ratio, check_target

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


def _timer(model, graph, data, hardware, repeats: int = 15):
    """plan -> time of the thin network as a share of the dense one's, on this machine."""
    from slimming import slim
    from utils.networks.cost import latency

    def measure(keep) -> float:
        pair = {"dense": model, "thin": hardware.place(slim(model, graph, keep))}
        times = latency(pair, data.input_shape, (64,), repeats, device=hardware.device)
        dense, thin = (times[name]["64"]["median_ms"] for name in pair)
        print(
            f"timed: {keep.kept:,} channels, {thin:.3g} ms of {dense:.3g} ms ({thin / dense:.1%})"
        )
        return thin / dense

    return measure


def _time_again(goal: dict, keep, timer) -> tuple[float | None, list[str]]:
    """The share of time measured anew: the search took the first that was low enough."""
    if keep.latency is None or keep.kept == keep.total:
        return keep.latency, []
    share, asked = timer(keep), goal["target"]["latency"]
    over = f"timed again, {share:.1%} of the time stay where target.latency={asked:g} was asked"
    return share, [over] if share > asked else []


def _score(cfg, model, data, seed: int) -> tuple:
    import torch

    from slimming import trace
    from utils.cli import configured
    from utils.data.seeding import mix
    from utils.training.method import make

    graph = trace(model, next(data.sample(2, seed=seed)), cfg.coupled)
    method = make(configured.plain(cfg.method), strength=0.0)
    images = data.sample(min(512, len(data.train)), seed=seed)
    torch.manual_seed(mix(seed, "scores"))  # for a method that draws
    return graph, method.scores(model, graph, images)


def _cut(cfg, run, parent, data, hardware, goal: dict, planned: tuple):
    """Cut, prove, compensate if asked, recalibrate; accuracy after each step."""
    import stages
    from slimming import compensate, mask, recalibrate, slim, verify
    from slimming.checkpoint import compose
    from utils.networks.show import show_accuracies
    from utils.training.method import name_of

    model, graph, keep = planned
    seed = parent.facts.get("seed", cfg.seed)
    thin = slim(model, graph, keep)
    proof = verify(model, graph, keep, thin, next(data.sample(min(8, len(data.train)), seed=seed)))
    if not proof.holds:
        raise RuntimeError(
            f"the thin network differs from the masked one by {proof.relative:.1e} of its output, "
            f"first in '{proof.first_difference}': nothing was saved; please report this"
        )
    reached = {
        "masked": stages.accuracies(mask(model, graph, keep), data, hardware),
        "cut": stages.accuracies(thin, data, hardware),
    }

    def images(number: int) -> list:
        if number > len(data.train):
            print(f"using all {len(data.train)} training images: there are no more")
        return list(data.sample(min(number, len(data.train)), seed=seed))

    folded = []
    if cfg.compensate != "none":
        folded = compensate(model, graph, keep, thin, images(cfg.images), cfg.compensate)
        reached["compensated"] = stages.accuracies(thin, data, hardware)
    if cfg.recalibrate:
        recalibrate(thin, images(cfg.recalibrate))
        reached["recalibrated"] = stages.accuracies(thin, data, hardware)
    show_accuracies(reached)
    kept = {gate: indices.tolist() for gate, indices in keep.items()}
    share, over = _time_again(goal, keep, _timer(model, graph, data, hardware, repeats=50))
    asked = {"ratio": 1 - keep.kept / keep.total, **goal}  # with a target, what it took
    return stages.Outcome(
        thin,
        parent.extended(
            stages.history_entry(run, cfg, **asked), compose(parent.checkpoint.keep, keep)
        ),
        {
            **stages.facts(run, cfg, data, hardware, parent.checkpoint.target, parent),
            "target": None,
            **asked,
            "safe_ratio": keep.safe_ratio,
            "method": name_of(cfg.method),
            "epochs": None,
            "accuracy": list(reached.values())[-1],
            "variants": reached,
            "compensate": cfg.compensate,
            "recalibrate": min(cfg.recalibrate, len(data.train)),
            "folded": [vars(layer) for layer in folded],
            "plan": {
                "kept": keep.kept,
                "total": keep.total,
                "latency": share,  # of the time, if that was the target
                "keep": kept,
            },
            "shortfalls": [*keep.shortfalls, *over],
            "certificate": proof.as_dict(),
        },
    )


def _goal_label(goal: dict) -> str:
    if "ratio" in goal:
        return f"r{goal['ratio']:g}"
    return "-".join(f"{name}{limit:g}" for name, limit in goal["target"].items())


def _options_label(cfg) -> str:
    """What differs from the plainest cut, for the run's name."""
    from utils.training.method import name_of

    method = name_of(cfg.method)
    parts = [
        method if method != "slimming" else "",
        f"floor{cfg.floor:g}" if cfg.floor != 1 else "",
        "" if cfg.refill else "norefill",
        f"x{cfg.round_to}" if cfg.round_to != 1 else "",
        cfg.rounding if cfg.rounding != "nearest" else "",
        cfg.scope if cfg.scope != "global" else "",
        f"{cfg.coupled}coupled" if cfg.coupled != "prune" else "",
        cfg.combine if cfg.combine != "max" else "",
        cfg.dead if cfg.dead != "floor" else "",
        f"{cfg.unread}unread" if cfg.unread != "keep" else "",
        cfg.compensate if cfg.compensate != "none" else "",
        f"rc{cfg.recalibrate}" if cfg.recalibrate else "",
    ]
    return "".join(f"-{part}" for part in parts if part)


@script("prune")
def main(cfg) -> None:
    prune(cfg)


if __name__ == "__main__":
    main()
