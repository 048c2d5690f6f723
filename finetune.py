"""Stage 3. Train the thin network: the same loop, without a penalty.

    python finetune.py                                  # the newest cut
    python finetune.py ckpt=runs/<name> scratch=E       # the same shape from new weights

The controls of Liu et al. 2019 ("Rethinking the Value of Network Pruning"): scratch=E trains new
weights for as many epochs as the unpruned network had, scratch=B for as much computation.
"""

from pathlib import Path

from utils.cli.script import script, typed

SCRATCH = ("none", "E", "B")


def finetune(cfg) -> Path:
    """Run, resume or just find the fine-tuning that `cfg` describes; return its folder."""
    import stages

    return stages.complete(cfg, describe(cfg))


def describe(cfg, parent=None):
    """The fine-tuning as a `stages.Stage`: named, not begun. `parent`: of `Parent.open`."""
    from dataclasses import replace

    from hydra.utils import instantiate

    import stages
    from engine import fit
    from slimming.methods.base import Plain
    from utils.cli import configured
    from utils.runs.folder import Run

    if cfg.scratch not in SCRATCH:
        raise ValueError(f"scratch is one of {', '.join(SCRATCH)}; got {cfg.scratch!r}")
    if parent is None:
        path = stages.find_parent(
            cfg, lambda result: result["stage"] == "prune", "run `python prune.py` first"
        )
        parent = stages.Parent.open(path)
    hardware = instantiate(cfg.hardware)
    data = parent.data(cfg, hardware)
    seed = parent.facts.get("seed", cfg.seed)
    recipe = configured.recipe_of(cfg)
    if cfg.scratch != "none":
        recipe = replace(recipe, epochs=_scratch_epochs(cfg.scratch, parent, tuple(cfg.allow)))
    run = Run(
        cfg.runs_dir,
        "finetune",
        f"{parent.row}-{'ft' if cfg.scratch == 'none' else f'scratch{cfg.scratch}'}",
        seed,
        {
            "parent": parent.identity,
            "data": data.fingerprint,
            "recipe": {**configured.recipe_identity(cfg), "epochs": recipe.epochs},
            "scratch": cfg.scratch,
            **hardware.identity,
        },
    )

    leaves = parent.extended(stages.history_entry(run, cfg, scratch=cfg.scratch))

    def work(logger) -> stages.Outcome:
        model = parent.model(cfg, data, hardware)
        if cfg.scratch != "none":
            _start_over(model, parent, seed, tuple(cfg.allow))
        model = fit(model, data, recipe, Plain(), run, hardware, logger, seed)
        return stages.Outcome(
            model,
            leaves,
            {
                **stages.facts(run, cfg, data, hardware, parent.checkpoint.target, parent),
                "scratch": cfg.scratch,
                "finetune_recipe": cfg.recipe.name,
                "epochs": recipe.epochs,
                "accuracy": stages.accuracies(model, data, hardware),
            },
        )

    if run.result is None:
        configured.try_optimizer(cfg, recipe)
    return stages.Stage(run, work, leaves, seed, parent, hardware, recipe.epochs)


def _start_over(model, parent, seed: int, allow: tuple[str, ...]) -> None:
    """New weights: those that the dense network would start from, cut to the thin shape."""
    import torch

    from slimming.checkpoint import build
    from utils.data.seeding import mix

    torch.manual_seed(mix(seed, "initial weights", "scratch"))
    checkpoint = parent.checkpoint
    fresh = build(checkpoint.target, checkpoint.arguments, allow).state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            new = fresh[name] if name in fresh else torch.zeros_like(tensor)
            if not name.endswith(".index"):  # which channels are selected is part of the shape
                tensor.copy_(new[tuple(slice(size) for size in tensor.shape)])


def _scratch_epochs(scratch: str, parent, allow: tuple[str, ...]) -> int:
    """As many epochs as the unpruned network was trained (E), or as much computation (B)."""
    from utils.networks.cost import count_macs

    trained = [entry for entry in parent.checkpoint.history if "epochs" in entry]
    if not trained:
        raise ValueError("the checkpoint doesn't say how long the unpruned network was trained")
    epochs = trained[0]["epochs"]
    if scratch == "E":
        return epochs
    from slimming.checkpoint import build, restore
    from stages import NotYet

    checkpoint = parent.checkpoint
    if not checkpoint.weights:
        raise NotYet("the epochs of scratch=B depend on the MACs that the cut will leave")
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
