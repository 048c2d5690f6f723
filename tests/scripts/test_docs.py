"""Commands in texts are commands: each `python SCRIPT.py ...` composes, so no text can rot."""

import ast
import itertools
import re
import shlex
from functools import lru_cache
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from omegaconf import DictConfig

from door import CONF, ROOT, config
from utils.cli.words import FLAGS, translated

COMMAND = re.compile(r"(?:\bpython|\btorchrun(?: --[\w-]+(?:=\w+)?)*) ([\w/]+)\.py\b([^`\n#|&;]*)")
PLACEHOLDER = re.compile(r"[A-Z]+(_[A-Z]+)*|\.\.\.")  # NAME, FILE, N; of experiments, networks, ...
SCRIPTS = {path.stem for path in ROOT.glob("*.py") if "@script(" in path.read_text("utf-8")}


def commands(path: Path) -> list[tuple[str, str]]:
    """[(script, what follows it), ...] as they stand in the text, lines put together."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    text = re.sub(r"\\\n\s*", " ", text)
    # In prose a command may go over the end of a line; blocks stay as they are.
    text = re.sub(r"(?<!`)`(?!`)[^`]+`", lambda found: found[0].replace("\n", " "), text)
    return [(script, rest.strip()) for script, rest in COMMAND.findall(text)]


OURS = [path for path in ROOT.glob("*.py") if path.name != "thin.py"]  # the README has one written
TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *OURS, *CONF.rglob("*.yaml")]
TEXTS = [path for path in TEXTS if commands(path)]  # of code the head, of yaml also the help
TEXTS.remove(ROOT / "docs" / "extending.md")  # of what isn't here: tests/scripts/test_extending.py


def jobs(script: str, rest: str) -> list[list[str]]:
    """The overrides of each job: a sweep's values come one after the other, not crosswise."""
    words = shlex.split(re.sub(r"<\w+>", "NAME", rest))
    words = [w for before, w in zip(["", *words], words, strict=False) if before not in FLAGS]
    options = [word for word in words if not word.startswith("-")]
    values, several = [], False
    for word in translated(options, script):
        parsed = OverridesParser.create().parse_override(word)
        key, choices = parsed.get_key_element(), [word]
        if isinstance(parsed.value(), Glob):
            names = parsed.value().filter([path.stem for path in (CONF / key).glob("*.yaml")])
            choices = [f"{key}={name}" for name in names]
        elif parsed.is_sweep_override():
            choices = [f"{key}={value}" for value in parsed.sweep_string_iterator()]
        # Of numbers the first stands for all; every choice of a group is tried.
        values.append(choices if (CONF / key).is_dir() else choices[:1])
        several = several or len(choices) > 1
    sweeps = any(word in ("-m", "--multirun") for word in words)
    assert sweeps or not several, "several values, but no -m"
    longest = max(map(len, values), default=1)
    return [list(job) for job in itertools.islice(zip(*map(itertools.cycle, values)), longest)]


@lru_cache
def plain(script: str) -> DictConfig:
    return config(script)


def stands_for_something(script: str, word: str) -> bool:
    """`key=NAME`: there is such a key, whatever the reader puts there."""
    key, _, value = word.lstrip("+").partition("=")
    if not PLACEHOLDER.fullmatch(value.strip("'\"")):
        return False
    node = plain(script)
    for part in key.split("."):
        assert part in node or (CONF / key).is_dir(), f"there is no option {key}"
        node = node.get(part) if part in node else {}
        node = {} if node is None or not hasattr(node, "get") else node
    return True


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_text_composes(path):
    broken = []
    for script, rest in dict.fromkeys(commands(path)):
        if script not in SCRIPTS:
            made = f"to={script}.py" in path.read_text()  # by the command before
            if not (made or (ROOT / f"{script}.py").exists() or PLACEHOLDER.fullmatch(script)):
                broken.append(f"{script}.py: there is no such script")
            continue
        try:
            for job in jobs(script, rest) or [[]]:
                config(script, *(word for word in job if not stands_for_something(script, word)))
        except Exception as error:
            broken.append(f"python {script}.py {rest}: {' '.join(str(error).split())[:300]}")
    assert broken == []


def test_there_are_commands_and_a_wrong_one_is_found(tmp_path):
    assert len(commands(ROOT / "docs" / "reproduce.md")) > 10 and {"train", "report"} <= SCRIPTS
    for wrong in ("epoch=3", "data=cifar11", "ratio=0.3,0.5", "method.strenght=X", "epochs=many"):
        text = tmp_path / "wrong.md"
        text.write_text(f"Try `python pipeline.py {wrong}` today.\n")
        with pytest.raises(AssertionError):
            test_every_command_of_a_text_composes(text)
