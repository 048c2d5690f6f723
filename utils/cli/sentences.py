"""Errors as one sentence in the user's words, with the way out."""

import difflib
import re
from pathlib import Path
from typing import Any

CONF = Path(__file__).resolve().parents[2] / "conf"
EXPECTED = (ValueError, OSError, RuntimeError, ImportError)  # a user's mistake or the machine's


def sentence_of(error: Exception, cfg: Any = None) -> str:
    """The error in one line; for a misspelt option or choice, with the near ones."""
    if type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        if isinstance(error.__cause__, TypeError) and cfg is not None:
            return _wrong_type(error, cfg)
        return sentence_of(error.__cause__)
    text = str(error).strip()
    if re.match("there is no network .* No module named [^;]*$", text):
        text += "; model_path=FOLDER says where your own modules lie"
    if type(error).__module__.startswith(("hydra", "omegaconf")):
        return _of_config(text, error)
    if isinstance(error, EXPECTED) and text:
        return " ".join(text.split())
    first = " ".join(text.split())[:300]
    return (
        f"{type(error).__name__}: {first} (not foreseen: set HYDRA_FULL_ERROR=1 to see where, "
        f"and please report it)"
    )


def _wrong_type(error: Exception, cfg: Any) -> str:
    """An object of the config that can't be made: its options as they stand, and why."""
    from omegaconf import OmegaConf

    key = re.search(r"full_key: (\S+)", str(error))
    node = OmegaConf.select(cfg, key.group(1)) if key else None
    options = {} if node is None else OmegaConf.to_container(node, resolve=True)
    said = ", ".join(f"{name}={value}" for name, value in options.items() if name[0] != "_")
    return f"{key.group(1) if key else 'an option'} can't be made of {said}: {error.__cause__}"


def _of_config(text: str, error: Exception) -> str:
    text = f"{text} {error.__cause__ or ''}"
    full_key = re.search(r"full_key: (\S+)", text)
    if missing := re.search(r"Could not find '([\w@:]+)/([^']+)'", text):
        group, choice = missing.groups()
        choices = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        near = _near(choice, choices)
        return f"there is no {group}={choice}{near}; there are: {', '.join(choices)}"
    if unknown := re.search(r"Key '([^']+)' is not in struct", text):
        key = full_key.group(1) if full_key else unknown.group(1)
        return f"there is no option '{key}'{_near(key, _option_names())}; --help lists them"
    if refused := re.search(r"(Value '.*' of type '\w+' could not be converted to \w+)", text):
        return f"{full_key.group(1) if full_key else 'an option'}: {refused.group(1)}"
    return " ".join(text.split())


def _near(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _option_names() -> list[str]:
    """Every option of every yaml, as it is written on the command line."""
    import yaml

    names: set[str] = set()
    for path in CONF.rglob("*.yaml"):
        content = yaml.safe_load(path.read_text()) or {}
        group = path.parent.relative_to(CONF).as_posix().removesuffix("/base")
        prefix = "" if group in (".", "experiment") else f"{group}."
        names |= {f"{prefix}{key}" for key in content if not key.startswith(("_", "hydra"))}
    return sorted(names - {"defaults"})
