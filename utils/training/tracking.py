"""Weights & Biases as an additional sink: nothing it does can stop a run.

`metrics.jsonl` and `result.json` are always written; tables are made from those.
What is logged where, and how to send it: docs/wandb.md.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

NAME, TAG = 128, 64  # characters that W&B allows in names and in tags


class WandB:
    """A W&B run in a stage's folder. After its first failure it warns once and keeps silent.

    Args:
        mode: offline (files only; `wandb sync <folder>/wandb/offline-run-*` sends them later),
            online (falls back to offline when the server can't be reached), or disabled.
            None: what WANDB_MODE says, or offline.
        project, entity, tags: as in W&B; network, data, method and recipe become tags, too.
        artifacts: also record model.pt and result.json as a W&B artifact.
        timeout: seconds to wait for the server.
    """

    def __init__(
        self,
        mode: str | None = None,
        project: str = "network-slimming",
        entity: str | None = None,
        tags: tuple[str, ...] = (),
        artifacts: bool = False,
        timeout: float = 20.0,
    ):
        name = "logger.mode"
        if mode is None:
            name, said = "WANDB_MODE", os.environ.get("WANDB_MODE") or "offline"
            mode = {"dryrun": "offline", "run": "online"}.get(said, said)  # W&B's older words
        if mode not in ("offline", "online", "disabled"):
            raise ValueError(f"{name} is offline, online or disabled; got {mode!r}")
        if not isinstance(artifacts, bool):
            raise ValueError(f"logger.artifacts is true or false; got {artifacts!r}")
        self.mode, self.project, self.entity, self.tags = mode, project, entity, list(tags)
        self.artifacts, self.timeout = artifacts, timeout
        self._run: Any = None
        self._broken = False

    def start(self, folder: Path, name: str, group: str, stage: str, config: Mapping) -> None:
        """Open (or continue: the id is the folder's name) the W&B run of a stage."""
        self._broken = False
        self._folder, self._config = folder, dict(config)
        self._run = self._guard(self._init, self.mode, name, group, stage)
        if self._run is None and self.mode == "online":
            print("W&B: going on offline; `wandb sync` can send this run later")
            self._broken = False
            self._run = self._guard(self._offline_after_all, name, group, stage)

    def _offline_after_all(self, *arguments: str) -> Any:
        import wandb

        wandb.teardown()  # the failed attempt still holds the run's id
        return self._init("offline", *arguments)

    def _init(self, mode: str, name: str, group: str, stage: str) -> Any:
        if mode != "online":  # else even an offline run sends W&B statistics about itself
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if not os.path.isdir(os.environ.get("HOME", "")):  # else it logs there, or on the terminal
            os.environ.setdefault("WANDB_CACHE_DIR", str(self._folder.resolve() / "wandb"))
        import wandb

        quiet = wandb.Settings(silent=True, console="off")
        if mode == "online":  # offline there is no server to wait for, only a slow machine
            quiet.init_timeout = self.timeout
        # The agent of a sweep has its own run, project and entity, and W&B takes those.
        resume = None if "WANDB_SWEEP_ID" in os.environ else "allow"
        facts = _facts({"row": group}, self._config)
        run = wandb.init(
            mode=mode, project=self.project, entity=self.entity, id=_short(name), name=_short(name),
            group=_short(group), job_type=stage, config={**self._config, **facts},
            tags=_tags(self.tags, {}, self._config, facts), dir=str(self._folder), settings=quiet,
            resume=resume, reinit="create_new",
        )  # fmt: skip
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        return run

    def log(self, row: Mapping[str, Any], gammas: Mapping[str, Tensor]) -> None:
        """One epoch: its numbers, and a histogram of |gamma| per layer."""
        if self._run is not None:
            self._guard(self._log, row, gammas)

    def _log(self, row: Mapping[str, Any], gammas: Mapping[str, Tensor]) -> None:
        import wandb

        histograms = {
            f"gamma/{name}": wandb.Histogram(gamma.detach().abs().float().cpu().numpy())
            for name, gamma in gammas.items()
        }
        numbers = {key: value for key, value in row.items() if isinstance(value, (int, float))}
        # The epoch is W&B's step, too: what it has already, it doesn't take again.
        self._run.log({**numbers, **histograms}, step=row.get("epoch"), commit=True)

    def finish(self, result: Mapping[str, Any]) -> None:
        """The stage's summary, its plan, perhaps its files; closes the W&B run."""
        if self._run is not None:
            self._guard(self._finish, result)
            self.close(0)

    def _finish(self, result: Mapping[str, Any]) -> None:
        import wandb

        facts = _facts(result, self._config)
        # What a sweep's agent has set is locked, and the same anyway.
        news = {key: fact for key, fact in facts.items() if self._run.config.get(key) != fact}
        self._run.config.update(news, allow_val_change=True)
        self._run.tags = _tags(self.tags, result, self._config, facts)
        self._run.summary.update(_numbers(result))
        if "plan" in result:
            rows = [[name, kept, of, kept / of] for name, (kept, of) in result["widths"].items()]
            with _kept_in(self._folder / "wandb"):
                table = wandb.Table(["layer", "kept", "of", "share"], rows)
                self._run.log({"plan": table})
        if self.artifacts:
            artifact = wandb.Artifact(_short(result["name"]), "model", metadata=facts)
            for name in ("model.pt", "result.json"):
                # Immutable: W&B reads the run folder's file when it sends it, and keeps no copy.
                artifact.add_file(str((self._folder / name).resolve()), policy="immutable")
            self._run.log_artifact(artifact)

    def close(self, exit_code: int = 1) -> None:
        """Close the W&B run; it counts as failed unless it was finished."""
        if self._run is not None:
            self._guard(self._run.finish, exit_code)
        self._run = None

    def _guard(self, call: Any, *args: Any) -> Any:
        if self._broken:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return call(*args)
        except Exception as error:  # whatever goes wrong there must not stop a training run
            self._broken = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"W&B: {reason} (training goes on; its numbers are in the run folder)")
            return None


class NoLogger:
    """`logger=none`: the run folder only."""

    def start(self, folder: Path, name: str, group: str, stage: str, config: Mapping) -> None: ...

    def log(self, row: Mapping[str, Any], gammas: Mapping[str, Tensor]) -> None: ...

    def finish(self, result: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


@contextmanager
def _kept_in(folder: Path) -> Iterator[None]:
    """Where W&B keeps a table until it is sent: with the run, unless the user says; not at home."""
    said = "WANDB_DATA_DIR" in os.environ
    os.environ.setdefault("WANDB_DATA_DIR", str(folder.resolve()))
    try:
        yield
    finally:
        if not said:
            del os.environ["WANDB_DATA_DIR"]


def _facts(result: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What people filter by, flat: the result's word, or before there is one, the config's.

    A finished stage knows more: the lambda that was chosen, the network and data of its parent.
    """
    method, data = config.get("method") or {}, config.get("data") or {}
    dataset = result.get("dataset") or data.get("_target_", "").rpartition(".")[2]
    network, found, _ = str(result.get("row")).partition(f"-{dataset}-l")
    return {
        "network": network if dataset and found else result.get("model"),
        "dataset": dataset or None,
        "lambda": result.get("strength", method.get("strength")),
        "ratio": result.get("ratio", config.get("ratio")),
    }


def _tags(more: list[str], result: Mapping, config: Mapping, facts: Mapping) -> list[str]:
    """The user's tags, network, data, method and recipe, as far as they are known."""
    found = [facts["network"], facts["dataset"]]
    for key in ("method", "recipe"):  # names in a result, groups in a config
        found.append(result.get(key) or (config.get(key) or {}).get("name"))
    return [_short(str(tag), TAG) for tag in dict.fromkeys([*more, *filter(None, found)])]


def _numbers(result: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """{"accuracy/test": 0.91, ...}: the numbers of a nested result."""
    flat: dict[str, float] = {}
    for key, value in result.items():
        if isinstance(value, Mapping) and key not in ("config", "plan", "layers"):
            flat |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            flat[f"{prefix}{key}"] = value
    return flat


def _short(text: str, limit: int = NAME) -> str:
    """The text, or as much of it as W&B allows, and a hash of all of it."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
