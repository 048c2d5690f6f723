"""Stage 3. Train the thin network: the same loop, without a penalty unless method= brings one.

    python finetune.py                                  # the newest cut
    python finetune.py ckpt=runs/<name> scratch=E       # the same shape from new weights

The controls of Liu et al. 2019 ("Rethinking the Value of Network Pruning"): scratch=E trains new
weights for as many epochs as the unpruned network had, scratch=B for as much computation.
"""

from utils.cli.script import begin, script, typed

if __name__ == "__main__":  # --help doesn't wait for what is imported next
    begin("finetune")

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

import stages
from engine import fit
from slimming.checkpoint import build, compose, restore
from slimming.methods.base import Method
from slimming.methods.keep_zeros import KeepZeros
from slimming.modules.selection import name_in
from slimming.surgery import masks
from utils.cli import configured
from utils.data import Data
from utils.data.seeding import mix
from utils.networks.cost import count_macs
from utils.networks.own_code import source_of
from utils.runs.folder import Run
from utils.runs.parent import Parent, find_parent
from utils.training.method import decays_gammas, decided, make, name_of, training_identity
from utils.training.recipe import Recipe

SCRATCH = ("none", "E", "B")
PLAIN = {"_target_": f"{Method.__module__}.{Method.__qualname__}"}
KEEPING = {"_target_": f"{KeepZeros.__module__}.{KeepZeros.__qualname__}"}


def finetune(cfg) -> Path:
    """Run, resume or just find the fine-tuning that `cfg` describes; return its folder."""
    stage = describe(cfg)
    stages.try_out(cfg, stage)
    return stages.complete(cfg, stage)


def describe(cfg, parent: Parent | None = None) -> stages.Stage:
    """The fine-tuning as a stage: named, not begun; of `parent`, or as `cfg` says.

    Raises:
        ValueError: an option is out of range, or there are no such data.
        NotYet: of `scratch=B`, the epochs follow from a cut that isn't made.
    """
    # What is asked for: which network, by which recipe, from which weights.
    if cfg.scratch not in SCRATCH:
        option = "finetune.scratch" if "finetune" in cfg else "scratch"  # as it is typed
        raise ValueError(f"{option} is one of {', '.join(SCRATCH)}; got {cfg.scratch!r}")
    recipe, allow = configured.recipe_of(cfg), tuple(cfg.allow)
    if parent is None:
        advice = "run `python prune.py` first"
        parent = Parent.open(find_parent(cfg.ckpt, cfg.runs_dir, _is_cut, advice))
    hardware = instantiate(cfg.hardware)
    data = parent.data(configured.plain(cfg.get("data")), hardware)
    seed = parent.facts.get("seed", 0) if cfg.seed is None else cfg.seed
    if cfg.scratch != "none":
        recipe = replace(recipe, epochs=_scratch_epochs(cfg.scratch, parent, allow))
    method, trained, called = _method(cfg, parent, recipe, data)
    # What it is called.
    run = Run(
        cfg.runs_dir,
        "finetune",
        "-".join([parent.row, "ft" if cfg.scratch == "none" else f"scratch{cfg.scratch}", *called]),
        seed,
        {
            "parent": parent.identity,
            **parent.source(allow),
            "method": trained,
            "data": configured.data_identity(data),
            "recipe": {**configured.recipe_identity(cfg, data), "epochs": recipe.epochs},
            "scratch": cfg.scratch,
            **hardware.identity,
        },
        device=hardware.device,
        strict=cfg.strict,
        recompute=cfg.recompute,
    )
    entry = stages.history_entry(run, cfg, scratch=cfg.scratch)

    # Whether it can work; what it computes; what it leaves.
    def check() -> None:
        configured.try_optimizer(cfg, recipe)
        parent.opened().model(allow, data, hardware)

    def work(logger) -> stages.Outcome:
        start = parent.opened()
        model = start.model(allow, data, hardware)
        if cfg.scratch != "none":
            _start_over(model, start, seed, allow)
        model, keep = fit(model, data, recipe, method, run, hardware, logger, seed)
        return stages.Outcome(
            model,
            start.extended(entry, compose(start.checkpoint.keep, keep)),
            {
                **stages.facts(run, seed, data, hardware, parent.checkpoint.target, parent),
                "scratch": cfg.scratch,
                **({"finetune_method": called[0]} if called else {}),
                **configured.recipe_facts(cfg, "finetune_recipe"),
                "epochs": recipe.epochs,
                "accuracy": stages.accuracies(model, data, hardware),
            },
        )

    leaves = parent.extended(entry)
    return stages.Stage(run, work, check, leaves, seed, parent, hardware, data, recipe.epochs)


def _method(
    cfg, parent: Parent, recipe: Recipe, data: Data
) -> tuple[Method, dict[str, Any], list[str]]:
    """How to train: as asked, or as it keeps the network what it is: zeros that a training left on
    purpose stay zero.

    Returns:
        The method; what of it is in the hash; what is in the name: nothing, unless it was asked for
        and is another one than it would be.
    """
    usual = KEEPING if _is_masked(parent) else PLAIN
    node = configured.plain(cfg.method) or usual
    node = node.get("method", node)  # a yaml that sets options of the cut, too
    if "_target_" not in node:
        option = "finetune.method" if "finetune" in cfg else "method"
        raise ValueError(f"{option}.{next(iter(node))} is said of no method: add {option}=NAME")
    asked = decided(node, recipe, data.steps(recipe.batch_size), cfg.recipe.get("reach"))
    found = []
    for of in (asked, usual):
        method = make(of)
        plainly = method.trains_plainly and decays_gammas(method)
        identity = training_identity(of, method, configured.decays(cfg))
        found.append((method, source_of(Method) if plainly else identity))
    (method, identity), (_, before) = found
    return method, identity, [] if identity == before else [name_of(asked)]


def _is_masked(parent: Parent) -> bool:
    return any(entry.get("masked") for entry in parent.checkpoint.history)


def _is_cut(result: dict) -> bool:
    return result["stage"] == "prune"


def _start_over(model: nn.Module, parent: Parent, seed: int, allow: tuple) -> None:
    """New weights: those that the dense network would start from, cut to the thin shape."""
    torch.manual_seed(mix(seed, "initial weights", "scratch"))
    checkpoint = parent.checkpoint
    kept = masks.zeros(model) if _is_masked(parent) else {}
    dense = build(checkpoint.target, checkpoint.arguments, allow).state_dict()
    fresh = {name_in(model, name): tensor for name, tensor in dense.items()}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            new = fresh[name] if name in fresh else torch.zeros_like(tensor)
            if not name.endswith(".index"):  # which channels are selected is part of the shape
                tensor.copy_(new[tuple(slice(size) for size in tensor.shape)])
    masks.apply(model, kept)


def _scratch_epochs(scratch: str, parent: Parent, allow: tuple) -> int:
    """As many epochs as the unpruned network was trained (E), or as much computation (B)."""
    trained = [entry for entry in parent.checkpoint.history if "epochs" in entry]
    if not trained:
        raise ValueError("the checkpoint doesn't say how long the unpruned network was trained")
    epochs = trained[0]["epochs"]
    if scratch == "E":
        return epochs
    checkpoint = parent.opened().checkpoint
    if not checkpoint.weights:
        raise stages.NotYet("the epochs of scratch=B depend on the MACs that the cut will leave")
    dense = build(checkpoint.target, checkpoint.arguments, allow)
    thin = restore(checkpoint, allow)
    shape = checkpoint.input_shape
    return int(epochs * count_macs(dense, shape) / count_macs(thin, shape))


def refuse_epochs_of_scratch(scratch: str, option: str) -> None:
    """
    Raises:
        ValueError: the epochs of a control were typed, though they follow from the unpruned run.
    """
    if scratch != "none" and typed(option):
        raise ValueError(f"scratch={scratch} says how many epochs there are: leave out {option}=")


@script("finetune")
def main(cfg) -> None:
    refuse_epochs_of_scratch(cfg.scratch, "epochs")
    finetune(cfg)


if __name__ == "__main__":
    main()
