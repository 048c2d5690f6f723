"""Stage 1. Train a network: with an L1 penalty on its BatchNorm scales, or (strength 0) without.

    python train.py                                   # handwritten digits, half a minute
    python train.py experiment=cifar10_vgg11_fast     # real CIFAR-10
    python train.py ckpt=runs/<name>                  # train that network further, a thin one too

Writes runs/<name>/: config.yaml, metrics.jsonl, model.pt, result.json. The same command goes on
after an interruption, and returns at once when the run is finished.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli.script import script, typed


@dataclass(frozen=True)
class Start:
    """Where a training begins: at new weights, or at a checkpoint."""

    checkpoint: Any  # of slimming.checkpoint, with the history so far; its weights aren't read
    identity: dict[str, Any]  # as it enters the hash
    model: Callable[[], Any]
    parent: Any = None
    facts: dict[str, Any] | None = None  # for the checkpoint's history

    @property
    def cuts(self) -> int:
        return sum(entry.get("stage") == "prune" for entry in self.checkpoint.history)


def train(cfg) -> Path:
    """Run, resume or just find the training that `cfg` describes; return its folder."""
    import stages

    return stages.complete(cfg, describe(cfg))


def describe(cfg, parent=None):
    """The training as a `stages.Stage`: named, not begun. `parent`: of `Parent.open`."""
    from dataclasses import replace

    from hydra.utils import instantiate

    import stages
    from engine import fit
    from utils.cli import configured
    from utils.networks import build as network
    from utils.runs.folder import Run
    from utils.training.method import make, training_identity
    from utils.training.strength import announce_reach, choose_strength

    hardware = instantiate(cfg.hardware)
    further = parent is not None or cfg.ckpt is not None
    start, data = _further(cfg, hardware, parent) if further else _anew(cfg, hardware)
    recipe = configured.recipe_of(cfg)
    steps = data.steps(recipe.batch_size)
    described = configured.plain(cfg.method)
    if described.get("strength", 0.0) is None:
        mode = described.get("mode", "subgradient")
        described["strength"] = choose_strength(recipe, mode, steps, cfg.recipe.reach)
    method = make(described)
    target = start.checkpoint.target
    label = network.label(target, start.checkpoint.arguments) + ("-init" if start.facts else "")
    seed = start.parent.facts.get("seed", cfg.seed) if start.parent else cfg.seed
    again = f"-p{start.cuts + 1}" if start.parent else ""
    run = Run(
        cfg.runs_dir,
        "train",
        f"{label}-{data.name}-l{method.strength:g}{again}",
        seed,
        {
            **start.identity,
            "data": data.fingerprint,
            "method": training_identity(described, method),
            "recipe": configured.recipe_identity(cfg),
            **hardware.identity,
        },
    )

    past = stages.history_entry(run, cfg, epochs=recipe.epochs, strength=method.strength)
    history = [*start.checkpoint.history, {**past, **(start.facts or {})}]
    leaves = replace(start.checkpoint, history=history)

    def work(logger) -> stages.Outcome:
        model = start.model()
        network.check(target, model, data, hardware)
        announce_reach(recipe, method, model, steps)
        model = fit(model, data, recipe, method, run, hardware, logger, seed)
        return stages.Outcome(
            model,
            leaves,
            {
                **stages.facts(run, cfg, data, hardware, target, start.parent),
                "recipe": cfg.recipe.name,
                "epochs": cfg.epochs,
                "strength": method.strength,
                "pass": start.cuts + 1,
                "ratio": None,  # that of the last pass is the parent's
                "accuracy": stages.accuracies(model, data, hardware),
            },
        )

    if run.result is None:
        configured.try_optimizer(cfg, recipe)
    return stages.Stage(run, work, leaves, seed, start.parent, hardware, recipe.epochs)


def _anew(cfg, hardware) -> tuple:
    """The network of the config, with new weights or those of a file, and the data."""
    import torch

    from slimming.checkpoint import Checkpoint, build
    from utils.cli import configured
    from utils.data.seeding import mix
    from utils.networks.build import model_for
    from utils.networks.initial import Initial

    data = configured.load_data(configured.plain(cfg.data), hardware)
    target, arguments = model_for(configured.plain(cfg.model), data)
    identity = {"model": {"_target_": target, **arguments}}
    initial, facts = None, None
    if cfg.init is not None:
        initial = Initial.read(cfg.init, configured.plain(cfg.init_skip))
        identity["init"] = initial.identity
        facts = {"init": {"file": initial.path, "sha256": initial.identity, "skip": initial.skip}}
    elif cfg.init_skip:
        raise ValueError("init_skip leaves out layers of a file of weights: say which, init=FILE")

    def model():
        torch.manual_seed(mix(cfg.seed, "initial weights"))
        built = build(target, arguments, allow=(target.rpartition(".")[0],))
        if initial is not None:
            initial.put_into(built, target)
        return built

    return Start(
        Checkpoint(target, arguments, {}, data.input_shape), identity, model, None, facts
    ), data


def _further(cfg, hardware, parent) -> tuple:
    """The network of a checkpoint, as it is, and the data."""
    import stages

    if cfg.init is not None:
        raise ValueError("ckpt= brings its own weights: leave init= out, or ckpt=")
    parent = parent or stages.Parent.open(stages.find_parent(cfg, lambda result: True, ""))
    data = parent.data(cfg, hardware)
    identity = {"parent": parent.identity}
    return Start(
        parent.checkpoint, identity, lambda: parent.model(cfg, data, hardware), parent
    ), data


def from_checkpoint(cfg) -> None:
    """With ckpt=, the network and (unless said) the data are the checkpoint's.

    Raises:
        ValueError: another network was asked for as well.
    """
    if cfg.ckpt is None:
        return
    if typed("model"):
        raise ValueError("ckpt= brings its own network: leave out model=, or ckpt=")
    if not typed("data") and not typed("experiment"):
        cfg.data = None


@script("train")
def main(cfg) -> None:
    from_checkpoint(cfg)
    train(cfg)


if __name__ == "__main__":
    main()
