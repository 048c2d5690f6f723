"""What the stages share: each is named before anything is computed, then found or run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
from slimming.surgery.builder import factory_of
from utils.cli.configured import load_data, plain
from utils.cli.sentences import sentence_of
from utils.data import Data
from utils.networks import port
from utils.networks.build import check_outputs
from utils.networks.cost import count
from utils.networks.initial import weights_digest
from utils.networks.own_code import source_of
from utils.runs.folder import GONE, Run, newest, read_result
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
    parent: "Parent | None"
    hardware: Hardware
    epochs: int | None = None  # None: nothing is trained
    preview: Callable[[], Any] | None = None  # shows more of what `work` would do


def complete(cfg: DictConfig, stage: Stage, checked: bool = False) -> Path:
    """Return the finished stage's folder: at once if it is done, else after its work."""
    run = stage.run
    if run.result is None and not checked:
        stage.check()
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
    with run.locked():
        if (done := run.result) is not None:  # by the process we waited for
            return _finished(stage, done)
        distributed.from_leader(True)
        config = _with_parent(plain(cfg), stage)
        run.begin(OmegaConf.to_yaml({"stage": run.stage, **config}))
        try:
            result = _work(cfg, stage, config)
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


def _work(cfg: DictConfig, stage: Stage, config: dict[str, Any]) -> dict[str, Any]:
    logger = instantiate(cfg.logger, _convert_="all")
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
    """The config with the parent that was found, so that an unfinished folder tells it, too."""
    if config.get("ckpt") is not None or stage.parent is None or stage.parent.folder is None:
        return config
    return {**config, "ckpt": str(stage.run.folder.with_name(stage.parent.folder))}


def _leave(stage: Stage, outcome: Outcome, config: dict[str, Any]) -> dict[str, Any]:
    """Save the network, then write everything a reader needs to trust the numbers."""
    run, parent = stage.run, stage.parent
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
    widths = {name: len(gamma) for name, gamma in gammas(dense).items()}
    return {**{name: len(gamma) for name, gamma in scales.items()}, **widths}


def find_parent(cfg: DictConfig, fits: Callable[[dict], bool], advice: str) -> Path:
    """`ckpt`, or the newest finished run whose result `fits`."""
    if cfg.ckpt is not None:
        path = Path(cfg.ckpt).expanduser()
        if not str(cfg.ckpt).strip() or not path.exists():
            raise FileNotFoundError(f"there is no checkpoint at ckpt={cfg.ckpt}{_like(path)}")
        return path
    nothing = f"no finished run to start from in {cfg.runs_dir}/: {advice}, or say ckpt=..."
    folder = newest(cfg.runs_dir, fits, nothing)
    print(f"ckpt={folder} (the newest that fits)")
    return folder


def _like(path: Path) -> str:
    """What a pattern would find: the shell expands those that aren't behind a =."""
    found = sorted(path.parent.glob(path.name)) if "*" in path.name else []
    named = ", ".join(map(str, found[:3])) + (", ..." if len(found) > 3 else "")
    return f"; the pattern fits {named}" if found else ""


@dataclass(frozen=True)
class Parent:
    """The checkpoint a stage starts from; it may have to be computed first."""

    checkpoint: Checkpoint  # of a run that isn't opened: without weights and kept channels
    identity: Any  # as it enters the hash: its run's name, or what its file holds
    folder: str | None  # the run's name, if it is a run
    label: str
    row: str  # the label without the seed
    path: Path | None = None  # the run's folder
    run: Run | None = None  # where it may have to be computed first
    expected: dict[str, Any] = field(default_factory=dict)  # its facts, as long as it is unfinished

    @classmethod
    def of(cls, stage: Stage) -> "Parent":
        """A stage as its followers see it, whether it is finished or not."""
        run = stage.run
        known = {"seed": stage.seed}
        return cls(stage.leaves, run.name, run.name, run.label, run.row, run.folder, run, known)

    @classmethod
    def open(cls, path: Path) -> "Parent":
        """
        Raises:
            FileNotFoundError: there is no checkpoint, or a run's weights were deleted.
            ValueError: it is broken, or none.
        """
        folder = path if path.is_dir() else path.parent
        result = read_result(folder) if path.is_dir() or path.name == "model.pt" else None
        if result is not None and not (folder / "model.pt").is_file():
            raise FileNotFoundError(f"{folder} is finished, but {GONE}, asked for as at first")
        checkpoint = port.read(path)
        if result is not None:
            name = result["name"]
            return cls(checkpoint, name, name, result["label"], result["row"], folder)
        past = [entry["normalise"] for entry in checkpoint.history if "normalise" in entry]
        held = {
            "weights": weights_digest(checkpoint.weights),
            "class": checkpoint.target,
            "arguments": checkpoint.arguments,
            "normalise": past[-1:],
        }
        return cls(checkpoint, held, None, path.stem, path.stem)

    @property
    def facts(self) -> dict[str, Any]:
        """What its result.json says; of an unfinished run or a mere file, what is known."""
        return (self.path and read_result(self.path)) or self.expected

    @property
    def weights(self) -> str | None:
        """A digest of its weights: as its result.json says it, or as the file holds them."""
        return self.facts.get("weights") if self.folder else self.identity["weights"]

    def source(self, allow: tuple[str, ...]) -> dict[str, str]:
        """The source of its network, as it enters the hash of what stands on it; {} for torch's."""
        return source_of(factory_of(self.checkpoint.target, allow))

    def opened(self) -> "Parent":
        """With its weights and the channels it keeps, if it is finished.

        Raises:
            FileNotFoundError: they were deleted.
        """
        if self.checkpoint.weights or self.run is None or self.run.result is None:
            return self
        return Parent.open(self.path)

    def insist(self, run: Run) -> None:
        """Before something is computed from it: say what it was computed with that isn't so here.

        Raises:
            ValueError: there is something, and strict=true.
        """
        if self.path is None or (result := read_result(self.path)) is None:
            return
        if other := run.unlike(result):
            run.insist(f"{self.path} was computed with {other}")
            print(f"{self.path} was computed with {other}")
        held = weights_digest(self.opened().checkpoint.weights)
        self.compare(held, run, f"the weights in {self.path} are not those it was finished with")

    def compare(self, weights: str | None, run: Run, words: str = "") -> None:
        """Say where `run` stands on other weights than these.

        Raises:
            ValueError: it does, and strict=true.
        """
        if weights is None or self.weights in (None, weights):
            return
        words = words or f"{run.folder} stands on other weights than {self.folder} has now"
        run.insist(words)
        print(f"warning: {words}")

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

        Options without a data set, such as data.root=..., replace those of the checkpoint's.

        Raises:
            ValueError: none is known, or its images don't fit the network.
        """
        known = [entry["data"] for entry in self.checkpoint.history if "data" in entry]
        asked = plain(cfg.get("data")) or {}
        if "_target_" not in asked:
            if not known:
                raise ValueError("the checkpoint doesn't say which data it is for: add data=...")
            # A checkpoint may come from a stranger: it can name data, not fetch them.
            theirs = {key: value for key, value in known[-1].items() if key != "download"}
            if self.folder is None and "root" in theirs and "root" not in asked:
                print(f"data: {theirs['root']}, as the checkpoint says (data.root=... elsewhere)")
            asked = {**theirs, **asked}
        data = load_data(asked, hardware)
        if data.input_shape != self.checkpoint.input_shape:
            raise ValueError(
                f"the network reads images of shape {self.checkpoint.input_shape}, but "
                f"{data.name} has {data.input_shape}"
            )
        return port.normalised(data, self.checkpoint)

    def model(self, cfg: DictConfig, data: Data, hardware: Hardware) -> nn.Module:
        """The network, placed; of a run that isn't finished, with new weights.

        Raises:
            ValueError: it tells other classes apart than the data have.
        """
        allow = tuple(cfg.allow)
        if self.checkpoint.weights:
            model = artifact.restore(self.checkpoint, allow)
        else:
            model = artifact.build(self.checkpoint.target, self.checkpoint.arguments, allow).eval()
        model = hardware.place(model)
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
        **hardware.identity,
        "model": target.rpartition(".")[2],
        **{key: known.get(key) for key in INHERITED},
    }


def history_entry(run: Run, cfg: DictConfig, **more: Any) -> dict[str, Any]:
    """One line of a checkpoint's past."""
    data = {} if "_target_" not in (cfg.get("data") or {}) else {"data": plain(cfg.data)}
    commit = run.environment["commit"]
    return {"stage": run.stage, "name": run.name, "commit": commit, **data, **more}
