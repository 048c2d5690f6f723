"""The edge of every script: Hydra, and errors as one sentence."""

import functools
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.cli.sentences import CONF, sentence_of
from utils.cli.words import recipe_words
from utils.training import distributed

ROOT = CONF.parent
FLAGS = ("--cfg", "-c", "--info", "-i", "--package", "-p")  # of Hydra: their value comes after
FLAGS += ("--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd")


_looked_in: set[str] = set()  # the model_path of this process


class Failed(Exception):
    """A job that has said what went wrong; the sweep's others go on. Its text: see `_note`."""


def script(
    config: str,
    positional: str | None = None,
    after_dry_run: Callable[[Path], None] | None = None,
) -> Callable:
    """Make `main(cfg)` a Hydra script that reads `conf/<config>.yaml`.

    Args:
        positional: the option that a bare word on the command line stands for, so that
            `report.py runs/` means `report.py runs_dir=runs/`.
        after_dry_run: called once, after all jobs of a dry run, with the folder hydra.sweep.dir,
            which is a temporary one then.

    Any error ends in one sentence on stderr and exit code 1; HYDRA_FULL_ERROR=1 shows where it
    happened. An interrupted job ends with 130.
    """

    def wrap(main: Callable[[Any], Any]) -> Callable[[], None]:
        @functools.wraps(main)
        def run() -> None:
            try:
                import hydra  # heavy imports stay inside, for a quick --help and completion
            except ModuleNotFoundError as error:
                advice = "`make install`, then `source .venv/bin/activate`"
                sys.exit(_say(f"{error.name} is not installed for this Python: {advice}", 1))
            from utils.cli.schema import register

            register()
            distributed.hush()
            show_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
            os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints tracebacks itself
            sys.argv[1:] = _own_network(recipe_words(_expand(sys.argv[1:], positional)))
            # Other processes, where a launcher starts them, find our modules from any folder.
            paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            os.environ["PYTHONPATH"] = os.pathsep.join(paths)
            job = _job(main, config, show_all, [*sys.argv], failures_file(os.getpid()))
            start = hydra.main(config_path=str(CONF), config_name=config, version_base="1.3")(job)
            try:
                if "dry_run=true" in map(str.lower, sys.argv):
                    _dry(start, after_dry_run)
                else:
                    _start(start)
            except KeyboardInterrupt as error:
                sys.exit(_say(str(error) or "stopped", 130))
            except Exception as error:
                if show_all:
                    raise
                sys.exit(_say(sentence_of(error), 1))

        return run

    return wrap


def _start(start: Callable[[], Any]) -> None:
    try:
        start()
    except Failed as error:
        sys.exit(name_failures(Path(str(error))))


def _dry(start: Callable[[], Any], after: Callable[[Path], None] | None) -> None:
    """Start a dry run: what Hydra writes for a sweep goes to a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        place = [word.lower() for word in sys.argv].index("dry_run=true")  # overrides in a row
        sys.argv.insert(place, f"hydra.sweep.dir='{folder}'")
        try:
            _start(start)
        finally:
            if after is not None:
                after(Path(folder))


def typed(name: str) -> bool:
    """Whether this job's command line says `name=...` or `name.option=...`."""
    from hydra.core.hydra_config import HydraConfig

    said = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return any(re.match(rf"\W*{re.escape(name)}\b(?!@)", override) for override in said)


def _job(
    main: Callable[[Any], Any], config: str, show_all: bool, words: list[str], failures: str
) -> Callable[[Any], Any]:
    """What Hydra calls for every job of the command `words`, in this process or in another."""

    @functools.wraps(main)
    def job(cfg: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from utils.cli import schema

        sys.argv[:] = words
        try:
            schema.round_floats(cfg)
            cfg = _without_default_network(cfg, config)
            find_modules_in(cfg.get("model_path"))
            return main(cfg)
        except Exception as error:
            if show_all:
                raise
            sentence = sentence_of(error, cfg)
            _say(sentence, 1)
            if HydraConfig.get().mode == RunMode.RUN or distributed.count() > 1:
                sys.exit(1)
            raise Failed(_note(sentence, failures)) from None

    return job


def _note(sentence: str, failures: str) -> str:
    """Add this job to the file of those that failed; its path. Jobs may be other processes.

    A job is called by what sets it apart: what doesn't stand on the command line as it is.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    own = [override for override in hydra.overrides.task if override not in sys.argv]
    path = Path(hydra.sweep.dir) / failures
    with path.open("a") as file:
        file.write(f"{' '.join(own) or f'job {hydra.job.num}'}\t{sentence}\n")
    return str(path)


def failures_file(process: int) -> str:
    """Of a sweep that `process` started: one line per job that failed, in hydra.sweep.dir."""
    return f"failed-{process}.txt"


def name_failures(notes: Path) -> int:
    """Say which jobs failed, and why; the exit code."""
    lines = [line.split("\t") for line in notes.read_text().splitlines()]
    jobs: dict[str, list[str]] = {}
    for job, reason in lines:
        jobs.setdefault(reason, []).append(job)
    told = "; ".join(f"{', '.join(same)} ({reason})" for reason, same in jobs.items())
    return _say(f"{len(lines)} of the sweep's jobs failed: {told}", 1)


def _own_network(arguments: list[str]) -> list[str]:
    """Where a class is typed, no yaml's arguments come along, and any argument may be given."""
    keys = [_key(argument) for argument in arguments]
    own = "model._target_" in keys or "experiment" in keys  # which may name one
    # A sweep is composed without what is swept first: the default data may lack an option.
    swept = any(key == "experiment" and "," in word for key, word in zip(keys, arguments))
    words = []
    for key, word in zip(keys, arguments, strict=True):
        if key == "model._target_" and "model" not in keys:
            words.append("model=own")
        added = key == "model_path" or (own and key.startswith("model."))
        added |= swept and key.startswith("data.")
        words.append(f"++{word.lstrip('+')}" if added else word)
    return words


def _key(argument: str) -> str:
    key, equals, _ = argument.lstrip("+").partition("=")
    return key if equals else ""


def _without_default_network(cfg: Any, config: str) -> Any:
    """The same for an experiment's class: the default network's arguments don't come along."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    if hydra.runtime.choices.get("model") != "default":
        return cfg
    if cfg.model._target_ == compose("model/default").model._target_:
        return cfg
    return compose(config, [*hydra.overrides.task, "model=own"])


def find_modules_in(folder: str | None) -> None:
    """Look for modules in `folder` before those that are installed; this project's come first.

    Raises:
        ValueError: it is no folder, or this process has looked in another one (Python keeps the
            modules it has loaded, so a module of the same name would be the wrong one).
    """
    if folder is None:
        return
    path = str(Path(str(folder)).expanduser().resolve())
    if not Path(path).is_dir():
        raise ValueError(f"model_path={folder} is no folder")
    if _looked_in and path not in _looked_in:
        raise ValueError(f"model_path={folder}: a sweep can have one model_path only")
    if path not in sys.path:
        sys.path.insert(sys.path.index(str(ROOT)) + 1 if str(ROOT) in sys.path else 0, path)
    _looked_in.add(path)


def _expand(arguments: list[str], positional: str | None) -> list[str]:
    """Bare words become `positional='word'`; options, and what follows Hydra's flags, stay."""
    expanded = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option = argument.startswith(("-", "+", "~")) or "=" in argument
        if positional is None or before in FLAGS or (option and not Path(argument).exists()):
            expanded.append(argument)
        else:
            quoted = argument.replace("'", "\\'")
            expanded.append(f"{positional}='{quoted}'")
    return expanded


def _say(sentence: str, code: int) -> int:
    if distributed.is_first_to_end():
        print(f"error: {sentence}" if code == 1 else sentence, file=sys.stderr, flush=True)
    return code
