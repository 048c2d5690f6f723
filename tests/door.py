"""The user's door: configs as the command line composes them, scripts as the shell runs them."""

import os
import subprocess
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from utils.cli.schema import register
from utils.cli.script import CONF
from utils.cli.words import translated

ROOT = CONF.parent
# A whole run in a second: made-up images that can be learned, the smallest VGG, plain float32.
TINY = [
    "data=fake",
    "data.size=8",
    "data.num_train=192",
    "data.num_test=96",
    "data.num_classes=4",
    "data.pad=1",
    "model=vgg11",
    "model.width=0.0625",
    "epochs=3",
    "logger=none",
    "hardware.precision=fp32",
]


def config(script: str, *overrides: str) -> DictConfig:
    """The config of `python <script>.py <overrides>`."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(script, translated(list(overrides), script))


def tiny(script: str, runs_dir: Path, *overrides: str) -> DictConfig:
    """The same for a run of a second; options the script doesn't have are left out."""
    known = config(script)
    fits = [o for o in TINY if o.split("=")[0].split(".")[0] in known and _has(known, o)]
    return config(script, *fits, f"runs_dir={runs_dir}", *overrides)


def _has(known: DictConfig, override: str) -> bool:
    key = override.split("=")[0]
    return not (key.startswith("data") and known.get("data") is None)


def shell(script: str, *arguments: str, env: dict[str, str] | None = None, **options):
    """Run `python <script>.py <arguments>` and return the finished process."""
    return subprocess.run(
        [sys.executable, str(ROOT / f"{script}.py"), *arguments],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **(env or {})}, **options,
    )  # fmt: skip
