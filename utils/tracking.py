"""Weights & Biases as an additional sink: nothing it does can stop a run.

`metrics.jsonl` and `result.json` are always written (`utils.runs`); tables are made from those.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


class WandB:
    """A W&B run in a stage's folder. After its first failure it warns once and keeps silent.

    Args:
        mode: offline (files only; `wandb sync <folder>/wandb/offline-run-*` sends them later),
            online (falls back to offline when the server can't be reached), or disabled.
        project, entity, tags: as in W&B.
        timeout: seconds to wait for the server.
    """

    def __init__(
        self,
        mode: str = "offline",
        project: str = "network-slimming",
        entity: str | None = None,
        tags: tuple[str, ...] = (),
        timeout: float = 20.0,
    ):
        if mode not in ("offline", "online", "disabled"):
            raise ValueError(f"logger.mode is offline, online or disabled; got {mode!r}")
        self.mode, self.project, self.entity, self.tags = mode, project, entity, list(tags)
        self.timeout = timeout
        self._run: Any = None
        self._broken = False

    def start(self, folder: Path, name: str, group: str, stage: str, config: Mapping) -> None:
        """Open (or continue: the id is the folder's name) the W&B run of a stage."""
        self._broken = False
        arguments = (folder, name, group, stage, dict(config))
        self._run = self._guard(self._init, self.mode, *arguments)
        if self._run is None and self.mode == "online":
            print("W&B: going on offline; `wandb sync` can send this run later")
            self._broken = False
            self._run = self._guard(self._offline_after_all, *arguments)

    def _offline_after_all(self, *arguments: Any) -> Any:
        import wandb

        wandb.teardown()  # the failed attempt still holds the run's id
        return self._init("offline", *arguments)

    def _init(
        self, mode: str, folder: Path, name: str, group: str, stage: str, config: dict
    ) -> Any:
        import wandb

        quiet = wandb.Settings(silent=True, console="off", init_timeout=self.timeout)
        run = wandb.init(
            mode=mode, project=self.project, entity=self.entity, tags=self.tags, id=name, name=name,
            group=group, job_type=stage, config=config, dir=str(folder), settings=quiet,
            resume="allow" if mode == "online" else None, reinit="create_new",
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
        self._run.log({**numbers, **histograms})

    def finish(self, result: Mapping[str, Any]) -> None:
        """The stage's summary; closes the W&B run."""
        if self._run is not None:
            self._guard(self._run.summary.update, _numbers(result))
            self.close()

    def close(self) -> None:
        """Close the W&B run, also one that was interrupted."""
        if self._run is not None:
            self._guard(self._run.finish)
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


def _numbers(result: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """{"accuracy/test": 0.91, ...}: the numbers of a nested result."""
    flat: dict[str, float] = {}
    for key, value in result.items():
        if isinstance(value, Mapping) and key not in ("config", "plan"):
            flat |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            flat[f"{prefix}{key}"] = value
    return flat
