"""The three stages in a row: train, prune, finetune. Each is cached in its own run folder.

    python pipeline.py                                          # handwritten digits
    python pipeline.py -m ratio=0.3,0.5,0.7 seed=0,1,2          # 3 trainings, 9 cuts
    python pipeline.py passes=3 ratio=0.5 floor=0.5 refill=false  # multi-pass, the paper's Table 4
    python pipeline.py -m ratio=0.3,0.5,0.7 dry_run=true        # what would run, and how long

The unit of every table and sweep: what is finished costs nothing, what was interrupted goes on.
"""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import finetune
import prune
import train
from utils.cli.script import script


def pipeline(cfg) -> list[Path]:
    """Run what is missing; return the folders of the stages, pass after pass."""
    if not isinstance(cfg.passes, int) or cfg.passes < 0:
        raise ValueError(f"passes is a number from 1 on, or 0 to train only; got {cfg.passes}")
    if cfg.dry_run:
        return [folder for folder, _ in _expected(cfg)]
    folders: list[Path] = []
    for module, stage in _stages(cfg.passes):
        parent = str(folders[-1]) if folders else cfg.ckpt
        folders.append(stage(_for_stage(cfg, module is finetune, parent)))
    if cfg.passes > 1:
        _summarise(folders)
    return folders


def _stages(passes: int) -> list[tuple[Any, Any]]:
    """(script, its stage), one after the other; without a pass, a training alone."""
    one = [(train, train.train), (prune, prune.prune), (finetune, finetune.finetune)]
    return one * passes or one[:1]


def _expected(cfg) -> Iterator[tuple[Path, Any]]:
    """Say what each stage would do; nothing is computed or written.

    Yields:
        Each stage's folder, and whether it is finished (True) or how long it would take (a
        `utils.runs.forecast.Forecast`, or None where nothing tells).
    """
    import stages
    from utils.cli import configured
    from utils.runs.forecast import forecast

    parent = None
    for number, (module, _) in enumerate(_stages(cfg.passes)):
        before = f"pass {number // 3 + 1}: " if cfg.passes > 1 else ""
        try:
            own = _for_stage(cfg, module is finetune, cfg.ckpt)
            stage = module.describe(own, parent)
        except stages.NotYet as reason:
            print(f"{before}the stages that follow have no name yet: {reason}")
            return
        done = stage.run.result is not None
        time = done or forecast(stage, configured.plain(own))
        told = "" if done else f" ({time or 'time unknown: no finished run is like it'})"
        print(f"{before}{stage.run.folder} {stage.run.status()}{told}")
        yield stage.run.folder, time
        parent = stages.Parent.of(stage)


def _for_stage(cfg, tuning: bool, parent: str | None):
    """The config as a stage's own script would have it."""
    from omegaconf import OmegaConf, open_dict

    new = copy.deepcopy(cfg)
    target = OmegaConf.to_container(cfg.model).get("_target_", "")
    with open_dict(new):
        if tuning:
            new.update(cfg.finetune)
        new.ckpt = parent
        # A class named on this command line is trusted.
        new.allow = [*cfg.allow, str(target).rpartition(".")[0]]
    return new


def _summarise(folders: list[Path]) -> None:
    """Both columns of the paper's table, and what is left, pass after pass."""
    from utils.runs.folder import read_result

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
    from utils.cli import sweep

    times = [(str(folder), time and vars(time)) for folder, time in expected if time is not True]
    sweep.note(expected=times)


def _sum_up(expected: list[tuple[str, Any]]) -> None:
    """At the end of a dry run: all jobs' stages, each counted once."""
    from utils.runs.forecast import Forecast, total

    print(total(time and Forecast(**time) for time in dict(expected).values()))


@script("pipeline", after_dry_run=_sum_up, searches=True)
def main(cfg) -> Any:
    from utils.cli import search, trial

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
