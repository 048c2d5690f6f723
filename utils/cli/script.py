"""The edge of every script: Hydra, and errors as one sentence."""

import functools
import os
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from utils.cli.output import say, steady
from utils.cli.sentences import CONF, sentence_of
from utils.cli.words import takes_away, translated
from utils.training import distributed

ROOT = CONF.parent
HELP = ("--help", "-h")
ASKING = (*HELP, "--hydra-help", "--version", "--cfg", "-c", "--info", "-i")
ASKING += ("--shell-completion", "-sc")  # with one of these, Hydra runs nothing

_looked_in: set[str] = set()  # the model_path of this process


class Failed:
    """What a job of a sweep returns that has said what went wrong. It is no number, so a search
    doesn't choose it; and no exception, to which Hydra would add its own words."""


def begin(config: str) -> None:
    """To be called by a script before its heavy imports: torch alone takes more than a second.

    What only asks (--help, --cfg, shell completion, ...) is answered here, and the process ends.
    """
    missing = [name for name in ("hydra", "torch") if find_spec(name) is None]
    if missing and not _help(config):
        advice = "`make install`, then `source .venv/bin/activate`"
        sys.exit(say(f"{missing[0]} is not installed for this Python: {advice}", 1))
    if any(word in ASKING for word in sys.argv[1:]):
        _nothing.__module__ = config  # as Hydra calls the job
        script(config)(_nothing)()
        sys.exit()
    distributed.hush()


def _nothing(cfg: Any) -> None: ...


def script(
    config: str,
    after_dry_run: Callable[[list], None] | None = None,
    searches: bool = False,
) -> Callable:
    """Make `main(cfg)` a Hydra script that reads `conf/<config>.yaml`.

    Args:
        after_dry_run: called once, after all jobs, with what they have left by
            `sweep.note(expected=[...])`.
        searches: whether `main` returns what a sweeper that searches makes large.

    Any error ends in one sentence on stderr and exit code 1; HYDRA_FULL_ERROR=1 shows where it
    happened. An interrupted job ends with 128 and the number of the signal.
    """

    def wrap(main: Callable[[Any], Any]) -> Callable[[], None]:
        @functools.wraps(main)
        def run() -> None:
            steady()
            if not _help(config):
                _run(main, config, after_dry_run, searches)

        return run

    return wrap


def _help(config: str) -> bool:
    """Print a script's help, if that is asked for: Hydra itself would take a second to."""
    words, other = sys.argv[1:], ("-cn", "-cp", "--config-n", "--config-p", "hydra.")
    if not {*words} & {*HELP} or any(word.startswith(other) for word in words):
        return False
    text = (CONF / f"{config}.yaml").read_text("utf-8")
    print(yaml.safe_load(text)["hydra"]["help"]["template"])
    return True


def _run(main: Callable, config: str, sum_up: Callable | None, searches: bool) -> None:
    import hydra  # heavy, like all that follows here

    from utils.cli import schema, sweep

    schema.register()
    distributed.hush()
    show_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints tracebacks itself
    # Other processes, where a launcher starts them, find our modules from any folder.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    sweep.command = sweep.Command(searches=searches)
    try:
        if (needed := takes_away(sys.argv[1:])) is not None:
            raise ValueError(f"{needed} is needed: leave out ~{needed}")
        sys.argv[1:] = translated(sys.argv[1:], config)
        job = _job(main, config, show_all, [*sys.argv], sweep.command.notes)
        hydra.main(config_path=str(CONF), config_name=config, version_base="1.3")(job)()
        code = sweep.end(sum_up)
    except KeyboardInterrupt as error:
        code = say(str(error) or "stopped", getattr(error, "code", 130))
    except Exception as error:
        if show_all:
            raise
        sweep.end(None)
        code = say(sentence_of(error), 1)
    finally:
        sweep.tidy()
    if code:
        sys.exit(code)


def typed(name: str) -> bool:
    """Whether this job's command line says `name=...` or `name.option=...`, or chooses it from a
    group: `optimizer@recipe.optimizer=...` is a word about recipe.optimizer."""
    from hydra.core.hydra_config import HydraConfig

    said = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    about = re.compile(rf"(\W*|[^=]*@){re.escape(name)}\b(?!@)")
    return any(about.match(override) for override in said)


def _job(
    main: Callable[[Any], Any], config: str, show_all: bool, words: list[str], notes: str
) -> Callable[[Any], Any]:
    """What Hydra calls for every job of the command `words`, in this process or in another."""

    @functools.wraps(main)
    def job(cfg: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from utils.cli import known, schema, sweep

        sys.argv[:] = words
        steady()
        sweep.command.notes = notes
        several, failed, told = HydraConfig.get().mode == RunMode.MULTIRUN, None, ""
        try:
            told = sweep.announce() if several else ""
            known.check(cfg)
            schema.settle(cfg)
            cfg = _without_default_network(cfg, config)
            find_modules_in(cfg.get("model_path"))
            return main(cfg)
        except Exception as error:
            if show_all:
                raise
            failed = sentence_of(error, cfg)
            say(failed, 1)
            if not several or distributed.count() > 1:
                sys.exit(1)
            return Failed()
        finally:
            if several:
                sweep.note(ended=told, failed=failed)

    return job


def _without_default_network(cfg: Any, config: str) -> Any:
    """An experiment's class, too, doesn't get the arguments of the default network's yaml."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    if hydra.runtime.choices.get("model") != "default":
        return cfg
    if cfg.model._target_ == _default_network():
        return cfg
    return compose(config, [*hydra.overrides.task, "model=own"])


@functools.cache
def _default_network() -> str:
    from hydra import compose

    return compose("model/default").model._target_


def find_modules_in(folder: str | None) -> None:
    """Look for modules in `folder` before those that are installed; this project's come first.

    Raises:
        ValueError: it is no folder, or this process has looked in another one (Python keeps the
            modules it has loaded, so a module of the same name would be the wrong one).
    """
    if folder is None:
        return
    path = str(Path(folder).expanduser().resolve())
    if not Path(path).is_dir():
        raise ValueError(f"model_path={folder} is no folder")
    if _looked_in and path not in _looked_in:
        raise ValueError(f"model_path={folder}: a sweep can have one model_path only")
    if path not in sys.path:
        sys.path.insert(sys.path.index(str(ROOT)) + 1 if str(ROOT) in sys.path else 0, path)
    _looked_in.add(path)
