"""What the stages share: the parent, the folder, the result."""

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
from utils.cli.configured import load_data, plain
from utils.data.sets import Data
from utils.networks import port
from utils.networks.build import check_outputs
from utils.networks.cost import count
from utils.networks.initial import weights_digest
from utils.runs.folder import Run, newest, read_result
from utils.training import distributed
from utils.training.hardware import Hardware
from utils.training.tracking import NoLogger, WandB


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
    leaves: Checkpoint  # what it will save, but for the weights and the channels kept
    seed: int
    parent: "Parent | None"
    hardware: Hardware
    epochs: int | None = None  # None: nothing is trained
    preview: Callable[[], Any] | None = None  # shows more of what `work` would do


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
        return _finished(run, done)
    with run.locked():
        if (done := run.result) is not None:  # by the process we waited for
            return _finished(run, done)
        distributed.from_leader(True)
        config = _with_parent(plain(cfg), stage)
        run.write("config.yaml", OmegaConf.to_yaml({"stage": run.stage, **config}))
        logger = instantiate(cfg.logger, _convert_="all")
        logger.start(run.folder, run.name, run.row, run.stage, config)
        try:
            result = _finish(run, stage.work(logger), config)
            logger.finish(result)
        finally:
            logger.close()
    test = 100 * result["accuracy"]["test"]
    print(
        f"{run.folder}: test accuracy {test:.2f} %, {result['params']:,} parameters, "
        f"{result['macs']:,} MACs"
    )


def _finished(run: Run, result: dict[str, Any]) -> None:
    """Say so; and whether other code than this computed it."""
    distributed.from_leader(False)
    print(f"{run.folder} is finished{run.of_other_code(result)}")


def _with_parent(config: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """The config with the parent that was found, so that an unfinished folder tells it, too."""
    if config.get("ckpt") is not None or stage.parent is None or stage.parent.folder is None:
        return config
    return {**config, "ckpt": str(stage.run.folder.with_name(stage.parent.folder))}


def _finish(run: Run, outcome: Outcome, config: dict[str, Any]) -> dict[str, Any]:
    """Save the network, then write everything a reader needs to trust the numbers."""
    weights = {name: tensor.detach().cpu() for name, tensor in outcome.model.state_dict().items()}
    checkpoint = replace(outcome.checkpoint, weights=weights)
    with run.writing("model.pt") as path:
        artifact.save(path, checkpoint)
    scales = {name: gamma.detach().cpu() for name, gamma in gammas(outcome.model).items()}
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
    widths = {name: len(gamma) for name, gamma in gammas(dense).items()}
    return {**{name: len(gamma) for name, gamma in scales.items()}, **widths}


def find_parent(cfg: DictConfig, fits: Callable[[dict], bool], advice: str) -> Path:
    """`ckpt`, or the newest finished run whose result `fits`."""
    if cfg.ckpt is not None:
        path = Path(cfg.ckpt)
        if not path.exists():
            raise FileNotFoundError(f"there is no checkpoint at ckpt={cfg.ckpt}")
        return path
    nothing = f"no finished run to start from in {cfg.runs_dir}/: {advice}, or say ckpt=..."
    folder = newest(cfg.runs_dir, fits, nothing)
    print(f"ckpt={folder} (the newest that fits)")
    return folder


@dataclass(frozen=True)
class Parent:
    """The checkpoint a stage starts from."""

    checkpoint: Checkpoint
    identity: str  # as it enters the hash: its run's name, or its weights
    folder: str | None  # the run's name, if it is a run
    label: str
    row: str  # the label without the seed
    facts: dict[str, Any]  # what its result.json says, or {}

    @classmethod
    def of(cls, stage: Stage) -> "Parent":
        """A stage as its followers see it; of an unfinished one only what names them."""
        run = stage.run
        if run.result is not None:
            return cls.open(run.folder)
        return cls(stage.leaves, run.name, run.name, run.label, run.row, {"seed": stage.seed})

    @classmethod
    def open(cls, path: Path) -> "Parent":
        checkpoint = port.read(path)
        folder = path if path.is_dir() else path.parent
        result = read_result(folder) if path.is_dir() or path.name == "model.pt" else None
        if result is not None:
            name = result["name"]
            return cls(checkpoint, name, name, result["label"], result["row"], result)
        digest = weights_digest(checkpoint.weights)
        return cls(checkpoint, digest, None, path.stem, path.stem, {})

    def extended(
        self, entry: dict[str, Any], keep: dict[str, list[int]] | None = None
    ) -> Checkpoint:
        """The checkpoint of a child: one more line of history, and perhaps fewer channels."""
        history = [*self.checkpoint.history, entry]
        return replace(
            self.checkpoint, history=history, keep=self.checkpoint.keep if keep is None else keep
        )

    def data(self, cfg: DictConfig, hardware: Hardware) -> Data:
        """The data set asked for, or the one the checkpoint was trained on.

        Raises:
            ValueError: none is known, or its images don't fit the network.
        """
        known = [entry["data"] for entry in self.checkpoint.history if "data" in entry]
        asked = plain(cfg.get("data"))
        if asked is None and not known:
            raise ValueError("the checkpoint doesn't say which data it is for: add data=...")
        if asked is None:  # a checkpoint may come from a stranger: it can name data, not fetch them
            asked = {key: value for key, value in known[-1].items() if key != "download"}
        data = load_data(asked, hardware)
        if data.input_shape != self.checkpoint.input_shape:
            raise ValueError(
                f"the network reads images of shape {self.checkpoint.input_shape}, but "
                f"{data.name} has {data.input_shape}"
            )
        return port.normalised(data, self.checkpoint)

    def model(self, cfg: DictConfig, data: Data, hardware: Hardware) -> nn.Module:
        """The network, placed.

        Raises:
            ValueError: it tells other classes apart than the data have.
        """
        model = hardware.place(artifact.restore(self.checkpoint, tuple(cfg.allow)))
        check_outputs("the network", model, data)
        return model


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
    cfg: DictConfig,
    data: Data,
    hardware: Hardware,
    target: str,
    parent: Parent | None = None,
) -> dict[str, Any]:
    """What every result.json says about its run; a child says what its parent said."""
    inherited = ("seed", "recipe", "strength", "method", "ratio", "target", "pass")
    known = parent.facts if parent else {}
    return {
        "stage": run.stage,
        "row": run.row,
        "parent": parent.folder if parent else None,
        "dataset": data.name,
        "device": str(hardware.device),
        **hardware.identity,
        "model": target.rpartition(".")[2],
        **{key: known.get(key) for key in inherited},
        **({} if "seed" in known else {"seed": cfg.seed}),
    }


def history_entry(run: Run, cfg: DictConfig, **more: Any) -> dict[str, Any]:
    """One line of a checkpoint's past."""
    data = {} if cfg.get("data") is None else {"data": plain(cfg.data)}
    return {"stage": run.stage, "name": run.name, "commit": run.commit, **data, **more}
