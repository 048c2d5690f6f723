"""The three stages in a row: train, prune, finetune. Each is cached in its own run folder.

    python pipeline.py                                          # handwritten digits
    python pipeline.py -m ratio=0.3,0.5,0.7 seed=0,1,2          # 3 trainings, 9 cuts
    python pipeline.py passes=3 ratio=0.5 floor=0.5 refill=false  # multi-pass, the paper's Table 4
    python pipeline.py -m ratio=0.3,0.5,0.7 dry_run=true        # what would run, and how long

The unit of every table and sweep: what is finished costs nothing, what was interrupted goes on.
"""

from utils.cli.script import begin, script

if __name__ == "__main__":  # --help doesn't wait for what is imported next
    begin("pipeline")

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf, open_dict

import finetune
import prune
import stages
import train
from utils.cli import configured, search, sweep, trial
from utils.runs.folder import read_result
from utils.runs.forecast import Forecast, forecast, total

Step = tuple[Any, stages.Stage]  # a stage, and the config that its own script would have


def pipeline(cfg) -> list[Path]:
    """Run what is missing; return the folders of the stages, pass after pass.

    Every stage is named, and whether it can work at all is checked, before the first one computes.

    Raises:
        ValueError: an option of any stage is wrong, or the network can't be cut.
    """
    if cfg.dry_run:
        return [folder for folder, _ in _expected(cfg)]
    steps = list(_named(cfg))
    for own, stage in steps:
        stages.try_out(own, stage)
    folders: list[Path] = []
    for number, module in enumerate(_modules(cfg.passes)):
        own, stage = steps[number] if number < len(steps) else _late(cfg, module, stage)
        folders.append(stages.complete(own, stage))
    if cfg.passes > 1:
        _summarise(folders)
    return folders


def _modules(passes: int) -> list[ModuleType]:
    """The scripts whose stages come one after the other; without a pass, a training alone."""
    if not isinstance(passes, int) or passes < 0:
        raise ValueError(f"passes is a number from 1 on, or 0 to train only; got {passes}")
    return [train, prune, finetune] * passes or [train]


def _named(cfg) -> Iterator[Step]:
    """Every stage, as far as it has a name before those in front of it are finished."""
    parent = None
    for module in _modules(cfg.passes):
        own = _for_stage(cfg, module is finetune, parent)
        try:
            stage = module.describe(own, parent)
        except stages.NotYet as reason:
            if cfg.dry_run:
                print(f"the stages that follow have no name yet: {reason}")
            return
        yield own, stage
        parent = stage.as_parent()


def _late(cfg, module: ModuleType, before: stages.Stage) -> Step:
    """A stage that had no name until the one before was finished."""
    parent = before.as_parent().opened()
    own = _for_stage(cfg, module is finetune, parent)
    return own, module.describe(own, parent)


def _expected(cfg) -> Iterator[tuple[Path, Forecast | bool | None]]:
    """Say what each stage would do; nothing is computed or written.

    Yields:
        Each stage's folder, and whether it is finished (True) or how long it would take (None where
        nothing tells).
    """
    for number, (own, stage) in enumerate(list(_named(cfg))):
        before = f"pass {number // 3 + 1}: " if cfg.passes > 1 else ""
        stages.try_out(own, stage)
        done = stage.run.result is not None
        time = done or forecast(stage, configured.plain(own))
        told = "" if done else f" ({time or 'time unknown: no finished run is like it'})"
        print(f"{before}{stage.run.folder} {stage.run.status()}{told}")
        yield stage.run.folder, time


def _for_stage(cfg, tuning: bool, parent: stages.Parent | None):
    """The config as a stage's own script would have it."""
    new = copy.deepcopy(cfg)
    target = OmegaConf.to_container(cfg.model).get("_target_", "")
    with open_dict(new):
        if tuning:
            new.update(configured.tuning(configured.plain(cfg)))
        if parent is not None:
            new.ckpt = str(parent.path)
        # A class named on this command line is trusted.
        new.allow = [*cfg.allow, str(target).rpartition(".")[0]]
    return new


def _summarise(folders: list[Path]) -> None:
    """Both columns of the paper's table, and what is left, pass after pass."""
    for number in range(1, len(folders) // 3 + 1):
        trained, _, tuned = (read_result(folder) for folder in folders[3 * number - 3 :][:3])
        first, last = (100 * result["accuracy"]["test"] for result in (trained, tuned))
        print(
            f"pass {number}: trained {first:.2f} %, fine-tuned {last:.2f} %; "
            f"{tuned['channels']['kept']} of {tuned['channels']['total']} channels, "
            f"{tuned['params']:,} parameters, {tuned['macs']:,} MACs"
        )


def _note(expected: Iterable[tuple[Path, Any]]) -> None:
    """Leave what is to be computed for `_sum_up`: a sweep's jobs may be other processes."""
    times = [(str(folder), time and vars(time)) for folder, time in expected if time is not True]
    sweep.note(expected=times)


def _sum_up(expected: list[tuple[str, Any]]) -> None:
    """At the end of a dry run: all jobs' stages, each counted once."""
    print(total(time and Forecast(**time) for time in dict(expected).values()))


@script("pipeline", after_dry_run=_sum_up, searches=True)
def main(cfg) -> Any:
    train.from_checkpoint(cfg)
    finetune.refuse_epochs_of_scratch(cfg.finetune.scratch, "finetune.epochs")
    if search.is_on():
        search.check(cfg)
    if cfg.dry_run:
        _note(_expected(cfg))
        return None
    folders = trial.run(pipeline, cfg)
    return search.objective(folders[-1]) if search.is_on() else None


if __name__ == "__main__":
    main()
