"""docs/extending.md, followed word by word in a copy of the repository: it runs, and is tested."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from door import ROOT

TEXT = (ROOT / "docs" / "extending.md").read_text("utf-8")
FILES = dict(re.findall(r"^`([\w/]+\.(?:py|yaml))`:\n\n```\w+\n(.*?)^```$", TEXT, re.M | re.S))
COMMANDS = [
    line.split()
    for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.M | re.S)
    for line in block.splitlines()
]
FOLLOW = """
import json, sys
sys.path[:0] = [".", "tests"]
from terminal import terminal
for _, script, *words in json.loads(sys.argv[1]):
    quick = [] if script == "prune.py" else ["logger=none"]
    code, out, err = terminal(script[:-3], *words, *quick, "hardware.threads=1", "runs_dir=runs")
    print(out, flush=True)
    if code:
        sys.exit(f"{script} {words}: {err}")
"""
NAMES = [Path(name).stem for name in FILES if name.startswith("conf/")]
# Those that look at every model, method, data set, schedule and folder.
LOOK = ("networks/test_models", "slimming/test_methods", "data/test_sources")
LOOK += ("training/test_recipe", "scripts/test_rooms")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The repository, and the files of the text in it."""
    folder = tmp_path_factory.mktemp("fresh") / "repository"
    for part in ("conf", "docs", "hydra_plugins", "models", "slimming", "tests", "utils"):
        shutil.copytree(ROOT / part, folder / part)
    for file in [*ROOT.glob("*.py"), *ROOT.glob("*.md"), ROOT / "pyproject.toml"]:
        shutil.copy(file, folder)
    for name, text in FILES.items():
        assert not (folder / name).exists(), f"{name} is there already"
        (folder / name).write_text(text, "utf-8")
    return folder


def python(folder: Path, *words: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_each_of_them_is_one_file_and_one_yaml():
    kinds = ("models", *4 * ("slimming/methods",), "utils/data/sets")
    kinds += ("utils/training/schedules",)
    assert [str(Path(name).parent) for name in FILES if name.endswith(".py")] == [*kinds]
    assert len(FILES) == 2 * len(kinds) and len(set(NAMES)) == len(kinds)


def test_each_command_does_what_it_says(copy):
    """One after the other, as they are read; in one process, which imports torch once."""
    for words in COMMANDS:
        assert words[0] == "python" and words[1].endswith(".py")
    said = python(copy, "-c", FOLLOW, json.dumps(COMMANDS))
    assert said.count("would be computed") == 3 * 2 * 3, "dry: seeds, methods, stages"


@pytest.mark.long
def test_the_tests_find_what_is_new_and_ask_nothing_else_of_it(copy):
    files = [f"tests/{name}.py" for name in LOOK]
    said = python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", *files,
                  "-k", " or ".join([*NAMES, "folder", "room"]))  # fmt: skip
    for name in NAMES:
        assert f"[{name}]" in said, f"no test looked at {name}"
    written = [name for name in FILES if name.endswith(".py")]
    python(copy, "-m", "ruff", "check", "--no-cache", *written)
    python(copy, "-m", "ruff", "format", "--no-cache", "--check", *written)
