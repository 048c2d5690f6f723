"""Errors as one sentence in the user's words, with the way out."""

import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).resolve().parents[2] / "conf"
EXPECTED = (ValueError, OSError, RuntimeError, ImportError, yaml.YAMLError)  # not ours to mend


def sentence_of(error: Exception, cfg: Any = None) -> str:
    """The error in one line; for a misspelt option or choice, with the near ones."""
    if type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        if isinstance(error.__cause__, TypeError) and cfg is not None:
            return _wrong_type(error, cfg)
        return sentence_of(error.__cause__)
    text = str(error).strip()
    if re.match("there is no network .* No module named [^;]*$", text):
        text += "; model_path=FOLDER says where your own modules lie"
    if re.search(r"Interpolation key 'twin\.\w+' not found", text):
        return (
            "twin=fast shortens a row of a published table, such as experiment=cifar10_vgg19_70; "
            "this is none: leave it out"
        )
    if type(error).__module__.startswith(("hydra", "omegaconf")):
        return _of_config(text, error)
    if isinstance(error, UnicodeDecodeError) and (files := _not_utf8(error.object)):
        return f"{files[0]} isn't written in UTF-8 ({error.reason}): save it as UTF-8"
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
    known = [name for name in options if name[0] != "_"]
    if key and (unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error.__cause__))):
        return f"there is no option '{key.group(1)}.{unknown.group(1)}'" + close(
            f"{key.group(1)}.{unknown.group(1)}", option_names()
        )
    said = ", ".join(f"{name}={options[name]}" for name in known)
    return f"{key.group(1) if key else 'an option'} can't be made of {said}: {error.__cause__}"


def _of_config(text: str, error: Exception) -> str:
    text = f"{text} {error.__cause__ or ''}"
    full_key = re.search(r"full_key: (\S+)", text)
    if type(error).__name__ == "OverrideParseException":
        return _unreadable(error)
    if missing := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        return _no_choice(*missing.groups(), text)
    if other := re.search(r"Could not override '([\w/@.]+)'\. No match in the defaults list", text):
        return _no_group(other.group(1))
    if unknown := re.search(r"Key '([^']+)' is not in struct", text):
        return _no_option(full_key.group(1) if full_key else unknown.group(1))
    if refused := re.search(r"(Value '.*' of type '\w+' could not be converted to \w+)", text):
        return f"{full_key.group(1) if full_key else 'an option'}: {refused.group(1)}"
    if refused := re.search(r"(\w+) '[^']*' is not a primitive type|Cannot convert '(\w+)'", text):
        kind = refused.group(1) or refused.group(2)
        return f"{full_key.group(1) if full_key else 'an option'}: one text, not a {kind}"
    return " ".join(text.split())


def _unreadable(error: Any) -> str:
    """A word that Hydra's grammar doesn't know: most often a text with special characters."""
    key, equals, value = (error.override or "").partition("=")
    if not equals or not value or value[0] in "[{'\"":
        return f"can't read {error.override}: {' '.join(str(error).split('See http')[0].split())}"
    return f"can't read {error.override}: quote the text, '{key}=\"{value}\"'"


def _no_choice(group: str, choice: str, text: str) -> str:
    listed = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)*)", text)
    choices = listed.group(1).split() if listed else []
    there = f"there are: {', '.join(choices)}" if choices else "there is no such group"
    return f"there is no {group}={choice}{close(choice, choices)}; {there}"


def _no_group(group: str) -> str:
    """A group of other scripts, or of none."""
    script = Path(sys.argv[0]).name
    if (CONF / group).is_dir():
        return f"{script} has no {group}=: leave it out; --help lists the options"
    return f"there is no option '{group}'{close(group, option_names())}; --help lists them"


def _no_option(key: str) -> str:
    names, (group, _, option) = option_names(), key.partition(".")
    if any(re.fullmatch(rf"~{re.escape(key)}(=.*)?", word) for word in sys.argv):
        return f"{key} is needed: leave out ~{key}"
    if key in names and option:  # another choice of the group has it
        chosen = [word for word in sys.argv if re.match(rf"\+?{re.escape(group)}=", word)]
        return f"{chosen[-1] if chosen else f'this {group}'} has no option '{option}': leave it out"
    return f"there is no option '{key}'{close(key, names)}; --help lists them"


def close(word: str, words: list[str]) -> str:
    """ " (did you mean seed?)", or nothing where nothing is near."""
    near = difflib.get_close_matches(word, sorted({*words} - {word}), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def option_names() -> list[str]:
    """Every option of every yaml, as it is written on the command line."""
    names: set[str] = set()
    for path in CONF.rglob("*.yaml"):
        content = yaml.safe_load(path.read_text("utf-8")) or {}
        group = path.parent.relative_to(CONF).as_posix().removesuffix("/base")
        if group.startswith(("hydra", "sweep")):
            continue
        whole = group in (".", "experiment", "twin")
        prefix = "" if whole else f"{group}."
        names |= {f"{prefix}{key}" for key in _keys(content)}
    return sorted(names)


def _keys(node: dict, before: str = "") -> Iterator[str]:
    for key, value in node.items():
        if before or not str(key).startswith(("_", "hydra", "defaults", "twin", "override")):
            yield f"{before}{key}"
            if isinstance(value, dict):
                yield from (k for k in _keys(value, f"{before}{key}.") if "._" not in k)


def _not_utf8(content: bytes) -> list[Path]:
    """The yaml files that can't be read, of ours and of the user's own folder of configs."""
    words = zip(sys.argv, sys.argv[1:])
    own = [Path(value) for flag, value in words if flag in ("-cd", "--config-dir")]
    files = (path for folder in (CONF, *own) for path in folder.rglob("*.yaml"))
    return [path for path in files if content[:64] == path.read_bytes()[: len(content[:64])]]
