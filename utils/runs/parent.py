"""What a stage starts from: a checkpoint, which may have to be computed first."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from slimming import checkpoint as artifact
from slimming.checkpoint import Checkpoint
from slimming.surgery.builder import factory_of
from utils.data import Data
from utils.data.load import load_data
from utils.networks import port
from utils.networks.build import check_outputs
from utils.networks.initial import weights_digest
from utils.networks.own_code import source_of
from utils.runs.folder import GONE, Run, newest, read_result
from utils.training.hardware import Hardware

THOSE = "those it was finished with"


@dataclass(frozen=True)
class Parent:
    """A checkpoint as those see it that stand on it."""

    checkpoint: Checkpoint  # of a run that isn't opened: without weights and kept channels
    identity: Any  # as it enters the hash: its run's name, or what its file holds
    folder: str | None  # the run's name, if it is a run
    label: str
    row: str  # the label without the seed
    path: Path | None = None  # the run's folder
    run: Run | None = None  # where it may have to be computed first
    expected: dict[str, Any] = field(default_factory=dict)  # its facts, as long as it is unfinished

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
            held = weights_digest(checkpoint.weights)
            if result.get("weights", held) != held:
                print(f"warning: the weights in {folder} are not {THOSE}")
            checkpoint = replace(checkpoint, history=_located(checkpoint.history, result))
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

    @property
    def is_thin(self) -> bool:
        return any(entry.get("stage") == "prune" for entry in self.checkpoint.history)

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
        held = weights_digest(self.opened().checkpoint.weights)  # which says so itself
        if self.weights not in (None, held):
            run.insist(f"the weights in {self.path} are not {THOSE}")

    def compare(self, weights: str | None, run: Run) -> None:
        """Say where `run` stands on other weights than these.

        Raises:
            ValueError: it does, and strict=true.
        """
        if weights is None or self.weights in (None, weights):
            return
        words = f"{run.folder} stands on other weights than {self.folder} has now"
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

    def data(self, asked: Mapping[str, Any] | None, hardware: Hardware) -> Data:
        """The data set asked for, or the one the checkpoint was trained on.

        Options without a data set, such as data.root=..., replace those of the checkpoint's.

        Raises:
            ValueError: none is known, or its images don't fit the network.
        """
        known = [entry["data"] for entry in self.checkpoint.history if "data" in entry]
        asked = asked or {}
        if "_target_" not in asked:
            if not known:
                raise ValueError("the checkpoint doesn't say which data it is for: add data=...")
            # A checkpoint may come from a stranger: it can name data, not fetch them.
            theirs = {key: value for key, value in known[-1].items() if key != "download"}
            if self.folder is None and "root" in theirs and "root" not in asked:
                print(f"data: {theirs['root']}, as the checkpoint says (data.root=... elsewhere)")
            asked = {**theirs, **asked}
        data = load_data(asked, hardware.device)
        if data.input_shape != self.checkpoint.input_shape:
            raise ValueError(
                f"the network reads images of shape {self.checkpoint.input_shape}, but "
                f"{data.name} has {data.input_shape}"
            )
        return port.normalised(data, self.checkpoint)

    def model(self, allow: tuple[str, ...], data: Data, hardware: Hardware) -> nn.Module:
        """The network, placed; of a run that isn't finished, with new weights.

        Raises:
            ValueError: it tells other classes apart than the data have.
        """
        named = (self.checkpoint.target, self.checkpoint.arguments)
        if self.checkpoint.weights:
            model = artifact.restore(self.checkpoint, allow)
        else:
            model = artifact.build(*named, allow).eval()
        model = hardware.place(model)
        check_outputs("the network", model, data)
        return model


def _located(history: list[dict[str, Any]], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A run's history with the folder its data lie in, which only its result names."""
    data = (result.get("config") or {}).get("data") or {}
    if "_target_" not in data or not history:
        return history
    return [*history[:-1], {**history[-1], "data": data}]


def find_parent(ckpt: str | None, runs_dir: str, fits: Any, advice: str) -> Path:
    """`ckpt`, or the newest finished run whose result `fits`.

    Raises:
        FileNotFoundError: there is none.
    """
    if ckpt is not None:
        path = Path(ckpt).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"there is no checkpoint at ckpt={ckpt}")
        return path
    nothing = f"no finished run to start from in {runs_dir}/: {advice}, or say ckpt=..."
    folder = newest(runs_dir, fits, nothing)
    print(f"ckpt={folder} (the newest that fits)")
    return folder
