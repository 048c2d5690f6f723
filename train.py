"""Stage 1. Train a network: with an L1 penalty on its BatchNorm scales, or (strength 0) without.

    python train.py                                   # handwritten digits, half a minute
    python train.py experiment=cifar10_vgg11_fast     # real CIFAR-10

Writes runs/<name>/: config.yaml, metrics.jsonl, model.pt, result.json. The same command goes on
after an interruption, and returns at once when the run is finished.
"""

from pathlib import Path

from utils.cli import script


def train(cfg) -> Path:
    """Run, resume or just find the training that `cfg` describes; return its folder."""
    import torch
    from hydra.utils import instantiate

    from engine import fit
    from slimming.artifact import Checkpoint, build
    from utils import stages
    from utils.gammas import announce_reach, choose_strength
    from utils.runs import Run
    from utils.seeding import mix

    hardware = instantiate(cfg.hardware)
    data = stages.load_data(stages.plain(cfg.data), hardware)
    target, arguments = stages.model_for(stages.plain(cfg.model), data)
    recipe, steps = stages.recipe_of(cfg), data.steps(cfg.recipe.batch_size)
    strength = cfg.method.strength
    if strength is None:
        strength = choose_strength(recipe, cfg.method.mode, steps, cfg.recipe.reach)
    method = instantiate(cfg.method, strength=strength, _convert_="all")
    run = Run(
        cfg.runs_dir,
        "train",
        f"{network_label(target, arguments)}-{data.name}-l{strength:g}",
        cfg.seed,
        {
            "data": data.fingerprint,
            "model": {"_target_": target, **arguments},
            "method": {**stages.plain(cfg.method), "strength": strength},
            "recipe": stages.recipe_identity(cfg),
            "precision": hardware.precision,
        },
    )

    def work(logger) -> stages.Outcome:
        torch.manual_seed(mix(cfg.seed, "initial weights"))
        model = build(target, arguments, allow=(target.rpartition(".")[0],))
        announce_reach(recipe, method, model, steps)
        model = fit(model, data, recipe, method, run, hardware, logger, cfg.seed)
        past = [stages.history_entry(run, cfg, epochs=recipe.epochs, strength=strength)]
        return stages.Outcome(
            model,
            Checkpoint(target, arguments, {}, data.input_shape, {}, past),
            {
                **stages.facts(run, cfg, data, hardware, target),
                "recipe": cfg.recipe.name,
                "epochs": cfg.epochs,
                "strength": strength,
                "accuracy": stages.accuracies(model, data, hardware),
            },
        )

    return stages.complete(cfg, run, work)


def network_label(target: str, arguments: dict) -> str:
    """ "vgg11-w0.25": the class, and what the field calls a network's size."""
    name = target.rpartition(".")[2].lower() + str(arguments.get("depth", ""))
    width = arguments.get("width", 1.0)
    return name if width == 1.0 else f"{name}-w{width:g}"


@script("train")
def main(cfg) -> None:
    train(cfg)


if __name__ == "__main__":
    main()
