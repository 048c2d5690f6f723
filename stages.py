"""What the stages share: each is named before anything is computed, then found or run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from engine import evaluate
from slimming import checkpoint as artifact
from slimming.checkpoint import Checkpoint
from slimming.methods.sparsity import gammas
from utils.cli.configured import plain
from utils.cli.sentences import sentence_of
from utils.data import Data
from utils.data.deployment import deployment
from utils.exports.folders import without_folders
from utils.networks.cost import count
from utils.networks.initial import weights_digest
from utils.runs.folder import Run
from utils.runs.parent import Parent
from utils.training import distributed
from utils.training.hardware import Hardware
from utils.training.tracking import NoLogger, WandB

INHERITED = ("recipe", "recipe_changes", "strength", "method", "ratio", "target", "pass", "network")


class NotYet(Exception):
    """A stage has no name yet: it depends on what an unfinished one will be."""


@dataclass(frozen=True)
class Outcome:
    """What a stage computed."""

    model: nn.Module
    checkpoint: Checkpoint  # describes the network; its weights are taken from `model`
    facts: dict[str, Any]  # what result.json says beyond what is counted here


@dataclass(frozen=True)
class Stage:
    """What a config asks for, named: nothing is computed, and nothing written, before `work`."""

    run: Run
    work: Callable[[WandB | NoLogger], Outcome]
    check: Callable[[], Any]  # whether it can work at all, in seconds; raises ValueError
    leaves: Checkpoint  # what it will save, but for the weights and the channels kept
    seed: int
    parent: Parent | None
    hardware: Hardware
    data: Data
    epochs: int | None = None  # None: nothing is trained
    preview: Callable[[], Any] | None = None  # shows more of what `work` would do

    def as_parent(self) -> Parent:
        """As its followers see it, whether it is finished or not."""
        run, known = self.run, {"seed": self.seed}
        return Parent(self.leaves, run.name, run.name, run.label, run.row, run.folder, run, known)


def try_out(cfg: DictConfig, stage: Stage) -> None:
    """Whether a stage that isn't finished can work at all.

    Raises:
        ValueError: it can't.
    """
    if stage.run.result is None:
        instantiate(cfg.logger, _convert_="all")
        stage.check()


def complete(cfg: DictConfig, stage: Stage) -> Path:
    """Return the finished stage's folder: at once if it is done, else after its work."""
    run = stage.run
    if cfg.dry_run:
        print(f"{run.folder} {run.status()}")
        return run.folder
    distributed.agree(run.name)
    threads = torch.get_num_threads()  # resuming may set another number, for this run only
    try:
        if distributed.leads():
            _lead(cfg, stage)
        elif distributed.from_leader() and stage.epochs is not None:
            stage.work(NoLogger())  # the other processes of a torchrun only help to train
    finally:
        torch.set_num_threads(threads)
    distributed.from_leader()  # everything is written
    return run.folder


def _lead(cfg: DictConfig, stage: Stage) -> None:
    """All of a stage, but for the images that other processes of a torchrun compute."""
    run = stage.run
    if (done := run.result) is not None:  # nothing is written: the folder may be read-only
        return _finished(stage, done)
    if stage.parent is not None:
        stage.parent.insist(run)
    logger = instantiate(cfg.logger, _convert_="all")
    with run.locked():
        if (done := run.result) is not None:  # by the process we waited for
            return _finished(stage, done)
        distributed.from_leader(True)
        config = _with_parent(plain(cfg), stage)
        run.begin(OmegaConf.to_yaml({"stage": run.stage, **config}))
        try:
            result = _work(stage, config, logger)
        except Exception as error:
            run.fail(sentence_of(error, cfg))
            raise
        except BaseException:  # Ctrl-C, SIGTERM
            run.give_up()
            raise
    test = 100 * result["accuracy"]["test"]
    print(
        f"{run.folder}: test accuracy {test:.2f} %, {result['params']:,} parameters, "
        f"{result['macs']:,} MACs"
    )


def _work(stage: Stage, config: dict[str, Any], logger: WandB | NoLogger) -> dict[str, Any]:
    run = stage.run
    logger.start(run.folder, run.name, run.row, run.stage, config)
    try:
        result = _leave(stage, stage.work(logger), config)
        logger.finish(result)
    finally:
        logger.close()
    return result


def _finished(stage: Stage, result: dict[str, Any]) -> None:
    """Say so; and what it was computed with that isn't so any more."""
    distributed.from_leader(False)
    print(f"{stage.run.folder} is finished{stage.run.remarks(result)}")
    if stage.parent is not None:
        stage.parent.compare(result.get("parent_weights"), stage.run)


def _with_parent(config: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """The config with the seed, data and parent that were found, also for an unfinished folder."""
    known = [entry["data"] for entry in stage.leaves.history if "data" in entry]
    data = {**(known[-1] if known else {}), **(config.get("data") or {})}
    config = {**config, "seed": stage.seed, "data": data or None}
    if config.get("ckpt") is not None or stage.parent is None or stage.parent.folder is None:
        return config
    return {**config, "ckpt": str(stage.run.folder.with_name(stage.parent.folder))}


def _leave(stage: Stage, outcome: Outcome, config: dict[str, Any]) -> dict[str, Any]:
    """Save the network, then write everything a reader needs to trust the numbers."""
    run, parent = stage.run, stage.parent
    weights = {name: tensor.detach().cpu() for name, tensor in outcome.model.state_dict().items()}
    # Files are passed on, so they name no folders of this machine: result.json does.
    history = without_folders(outcome.checkpoint.history)
    told = deployment(stage.data)
    checkpoint = outcome.checkpoint.of(outcome.model)
    checkpoint = replace(checkpoint, weights=weights, history=history, **told)
    with run.writing("model.pt") as path:
        artifact.save(path, checkpoint)
    # Of norms in functional form only a cut tells which they are.
    scales = gammas(outcome.model, [*checkpoint.keep])
    scales = {name: gamma.detach().cpu() for name, gamma in scales.items()}
    dense = original_widths(checkpoint, scales)
    return run.finish(
        {
            **outcome.facts,
            **count(outcome.model, checkpoint.input_shape),
            "channels": {
                "kept": sum(map(len, scales.values())),
                "total": sum(dense.values()),
            },
            "widths": {name: [len(scales.get(name, ())), dense[name]] for name in dense},
            "gammas": {
                name: [float(f"{value:.4g}") for value in gamma.tolist()]
                for name, gamma in scales.items()
            },
            "channels_last": stage.hardware.lays_channels_last(outcome.model),
            "weights": weights_digest(weights),
            "parent_weights": parent.weights if parent else None,
            "config": config,
        }
    )


def original_widths(checkpoint: Checkpoint, scales: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """{BatchNorm: its channels before any cut}, also of those that are gone with their branch."""
    named = (checkpoint.target, checkpoint.arguments, (checkpoint.module,))
    try:
        with torch.device("meta"):
            dense = artifact.build(*named)
    except ValueError:  # a constructor that looks at values, such as tensor.item()
        dense = artifact.build(*named)
    widths = {name: len(gamma) for name, gamma in gammas(dense, [*checkpoint.keep]).items()}
    return {**{name: len(gamma) for name, gamma in scales.items()}, **widths}


def accuracies(model: nn.Module, data: Data, hardware: Hardware) -> dict[str, float | None]:
    """{"test": accuracy, "val": accuracy, or None where there is no validation split}."""
    if not distributed.leads():
        return {}
    return {
        "test": evaluate(model, data, data.test, hardware)["accuracy"],
        "val": evaluate(model, data, data.val, hardware)["accuracy"] if len(data.val) else None,
    }


def facts(
    run: Run,
    seed: int,
    data: Data,
    hardware: Hardware,
    target: str,
    parent: Parent | None = None,
) -> dict[str, Any]:
    """What every result.json says about its run; a child says what its parent said."""
    known = parent.facts if parent else {}
    return {
        "stage": run.stage,
        "row": run.row,
        "seed": seed,
        "parent": parent.folder if parent else None,
        "dataset": data.name,
        "images": {split: len(getattr(data, split)) for split in ("train", "val", "test")},
        **hardware.identity,
        "model": target.rpartition(".")[2],
        **{key: known.get(key) for key in INHERITED},
    }


def history_entry(run: Run, cfg: DictConfig, **more: Any) -> dict[str, Any]:
    """One line of a checkpoint's past."""
    data = {} if "_target_" not in (cfg.get("data") or {}) else {"data": plain(cfg.data)}
    commit = run.environment["commit"]
    return {"stage": run.stage, "name": run.name, "commit": commit, **data, **more}
