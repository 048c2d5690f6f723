"""Stage 1. Train a network: with an L1 penalty on its BatchNorm scales, or (strength 0) without.

    python train.py                                   # handwritten digits, half a minute
    python train.py experiment=cifar10_vgg11_fast     # real CIFAR-10
    python train.py ckpt=runs/<name>                  # train that network further, a thin one too

Writes runs/<name>/: config.yaml, metrics.jsonl, model.pt, result.json. The same command goes on
after an interruption, and returns at once when the run is finished.
"""

from utils.cli.script import begin, script, typed

if __name__ == "__main__":  # --help doesn't wait for what is imported next
    begin("train")

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

import stages
from engine import fit
from slimming.checkpoint import Checkpoint, build, compose
from utils.cli import configured
from utils.data import Data
from utils.data.load import load_data
from utils.data.seeding import mix
from utils.networks import build as network
from utils.networks.initial import Initial
from utils.runs.folder import Run
from utils.runs.parent import Parent, find_parent
from utils.training.method import decided, make, training_identity
from utils.training.strength import announce_reach, strength_of


@dataclass(frozen=True)
class Start:
    """Where a training begins: at new weights, or at a checkpoint."""

    checkpoint: Checkpoint  # with the history so far; its weights aren't read
    identity: dict[str, Any]  # as it enters the hash
    data: Data
    model: Callable[[], nn.Module]
    parent: Parent | None = None
    init: dict[str, Any] | None = None  # the file its weights come from, for the history


def train(cfg) -> Path:
    """Run, resume or just find the training that `cfg` describes; return its folder."""
    stage = describe(cfg)
    stages.try_out(cfg, stage)
    return stages.complete(cfg, stage)


def describe(cfg, parent: Parent | None = None) -> stages.Stage:
    """The training as a stage: named, not begun; from `parent`, or as `cfg` says.

    Raises:
        ValueError: an option is out of range, or there is no such network, method or data set.
    """
    # What is asked for: where it starts, on which data, by which recipe and method.
    hardware = instantiate(cfg.hardware)
    further = parent is not None or cfg.ckpt is not None
    seed = cfg.seed or 0
    start = _further(cfg, hardware, parent) if further else _anew(cfg, hardware, seed)
    parent, data, checkpoint = start.parent, start.data, start.checkpoint
    if parent is not None and cfg.seed is None:
        seed = parent.facts.get("seed", 0)
    recipe = configured.recipe_of(cfg)
    steps = data.steps(recipe.batch_size)
    asked = decided(configured.plain(cfg.method), recipe, steps, cfg.recipe.reach)
    method = make(asked)
    strength = strength_of(method)

    # What it is called.
    cuts = sum(entry.get("stage") == "prune" for entry in checkpoint.history)
    label = network.label(checkpoint.target, checkpoint.arguments) + ("-init" if start.init else "")
    run = Run(
        cfg.runs_dir,
        "train",
        f"{label}-{data.name}-l{strength:g}" + (f"-p{cuts + 1}" if parent else ""),
        seed,
        {
            **start.identity,
            "data": configured.data_identity(data),
            "method": training_identity(asked, method, configured.decays(cfg)),
            "recipe": configured.recipe_identity(cfg, data),
            **hardware.identity,
        },
        device=hardware.device,
        strict=cfg.strict,
        recompute=cfg.recompute,
    )
    entry = stages.history_entry(run, cfg, epochs=recipe.epochs, strength=strength)
    entry |= {"init": start.init} if start.init else {}
    entry |= {"masked": True} if method.leaves_zeros else {}

    # Whether it can work; what it computes; what it leaves.
    def check() -> None:
        configured.try_optimizer(cfg, recipe)
        network.check(checkpoint.target, start.model(), data, hardware)

    def work(logger) -> stages.Outcome:
        model = start.model()
        announce_reach(recipe, method, model, steps)
        model, keep = fit(model, data, recipe, method, run, hardware, logger, seed)
        return stages.Outcome(
            model,
            leaves(parent and parent.opened().checkpoint, keep),
            {
                **stages.facts(run, seed, data, hardware, checkpoint.target, parent),
                "network": label,
                **configured.recipe_facts(cfg, "recipe"),
                "epochs": recipe.epochs,
                "strength": strength,
                "pass": cuts + 1,
                "ratio": None,  # that of the last pass is the parent's
                "accuracy": stages.accuracies(model, data, hardware),
            },
        )

    def leaves(before: Checkpoint | None, keep: Mapping[str, Tensor]) -> Checkpoint:
        before = before or checkpoint
        history, kept = [*before.history, entry], compose(before.keep, keep)
        return replace(before, history=history, keep=kept)

    return stages.Stage(
        run, work, check, leaves(None, {}), seed, parent, hardware, data, recipe.epochs
    )


def _anew(cfg, hardware, seed: int) -> Start:
    """The network of the config, with new weights or those of a file, and the data."""
    data = load_data(configured.plain(cfg.data), hardware.device)
    target, arguments = network.model_for(configured.plain(cfg.model), data)
    identity = {"model": {"_target_": target, **arguments}}
    initial, init = None, None
    if cfg.init is not None:
        initial = Initial.read(cfg.init, configured.plain(cfg.init_skip))
        identity["init"] = initial.identity
        init = {"file": initial.path, "sha256": initial.identity, "skip": initial.skip}
    elif cfg.init_skip:
        raise ValueError("init_skip leaves out layers of a file of weights: say which, init=FILE")

    def model() -> nn.Module:
        torch.manual_seed(mix(seed, "initial weights"))
        built = build(target, arguments, allow=(target.rpartition(".")[0],))
        if initial is not None:
            initial.put_into(built, target)
        return built

    empty = Checkpoint(target, arguments, {}, data.input_shape)
    return Start(empty, identity, data, model, init=init)


def _further(cfg, hardware, parent: Parent | None) -> Start:
    """The network of a checkpoint, as it is, and the data."""
    if cfg.init is not None:
        raise ValueError("ckpt= brings its own weights: leave init= out, or ckpt=")
    parent = parent or Parent.open(find_parent(cfg.ckpt, cfg.runs_dir, lambda result: True, ""))
    data = parent.data(configured.plain(cfg.get("data")), hardware)
    identity = {"parent": parent.identity, **parent.source(tuple(cfg.allow))}

    def model() -> nn.Module:
        return parent.opened().model(tuple(cfg.allow), data, hardware)

    return Start(parent.checkpoint, identity, data, model, parent)


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
