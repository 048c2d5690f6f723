"""What is typed after SCRIPT.py, as Hydra reads it: bare words, short names, flags anywhere."""

import re
from pathlib import Path

from utils.cli.sentences import CONF, close, option_names

# What a bare word stands for, so that `report.py runs/` means `report.py runs_dir=runs/`.
POSITIONAL = {"evaluate": "ckpt", "export": "ckpt", "report": "runs_dir"}
# Parts of the recipe that are a choice: conf/optimizer/, conf/schedule/.
PARTS = ("optimizer", "schedule")
# What such a part takes is its callable's own business, so that any argument may be given.
ARGUMENT = re.compile(rf"(finetune\.)?recipe\.({'|'.join(PARTS)})\.\w+(\.\w+)*=")
FREE = ("finetune.recipe.", "finetune.method.")  # what is taken over may lack it
TRAINING = ("train", "finetune", "pipeline")
DATA_OF_CHECKPOINT = ("prune", "sensitivity", "finetune", "evaluate", "export")

# Hydra's flags whose value comes after.
FLAGS = ("--cfg", "-c", "--info", "-i", "--package", "-p", "--experimental-rerun")
FLAGS += ("--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd")


def translated(words: list[str], config: str) -> list[str]:
    """The command line of the script `config` in Hydra's own grammar.

    Raises:
        ValueError: a word is no option, or one bare word too many.
    """
    words = flags_first(words)
    if not set(words) & {"-sc", "--shell-completion"}:
        words = _named(words, config)
    if config == "finetune":  # where no method is said, any argument of one may be
        words = [_forced(word) if key_of(word).startswith("method.") else word for word in words]
    words = _own_network(words)
    return _data_of_checkpoint(recipe_words(words) if config in TRAINING else words, config)


def flags_first(words: list[str]) -> list[str]:
    """argparse takes flags in front of the options, or after them, but not among them."""
    flags, options, rest = [], [], iter(words)
    for word in rest:
        if not word.startswith("-"):
            options.append(word)
            continue
        flags.append(word)
        if word in FLAGS and (value := next(rest, None)) is not None:
            is_option = word in ("--info", "-i") and "=" in value  # its value can be left out
            flags += ["all"] if is_option else [value]
            options += [value] if is_option else []
    return flags + options


def _named(words: list[str], config: str) -> list[str]:
    """The bare word becomes `positional='word'`; options, and what follows flags, stay."""
    positional, found, named = POSITIONAL.get(config), [], []
    for before, word in zip(["", *words], words, strict=False):
        is_option = word.startswith(("-", "+", "~")) or "=" in word
        if before in FLAGS or (is_option and not (positional and Path(word).exists())):
            named.append(word)
            continue
        found.append(word)
        if positional is None:
            raise ValueError(_no_option(word))
        if len(found) > 1 or positional in map(key_of, words):
            other = found[0] if len(found) > 1 else f"{positional}=..."
            out = f"did you mean to={word}?" if config == "export" else "leave one out"
            raise ValueError(f"{other} and {word} both stand for {positional}=...: {out}")
        quoted = word.replace("\\", "\\\\").replace("'", "\\'")
        named.append(f"{positional}='{quoted}'")
    return named


def _no_option(word: str) -> str:
    groups = sorted({path.parent.name for path in CONF.rglob(f"{word}.yaml")} - {"conf", "base"})
    if groups:
        return f"an option is NAME=VALUE: did you mean {groups[0]}={word}?"
    if word in option_names():
        return f"an option is NAME=VALUE: {word} has no value, {word}=..."
    near = close(word, [path.stem for path in CONF.rglob("*.yaml")] + option_names())
    return f"an option is NAME=VALUE, but '{word}' has no '='{near}; --help lists the options"


def key_of(word: str) -> str:
    """What `word` sets, or "" if it sets nothing."""
    key, equals, _ = word.lstrip("+").partition("=")
    return key if equals else ""


def _own_network(words: list[str]) -> list[str]:
    """Where a class is typed, no yaml's arguments come along, and any argument may be given."""
    keys = [key_of(word) for word in words]
    own = "model._target_" in keys or "experiment" in keys  # which may name one
    # A sweep is composed without what is swept first: the default data may lack an option.
    swept = any(key == "experiment" and "," in word for key, word in zip(keys, words))
    made = []
    for key, word in zip(keys, words, strict=True):
        if key == "model._target_" and "model" not in keys:
            made.append("model=own")
        added = key == "model_path" or (own and key.startswith("model."))
        made.append(_forced(word) if added or (swept and key.startswith("data.")) else word)
    return made


def recipe_words(words: list[str]) -> list[str]:
    """`optimizer=adamw` and `schedule=cosine`, which replace a part of the recipe, and arguments of
    these parts, also such as no yaml names; what fine-tuning does otherwise; all else stays.

        >>> recipe_words(["optimizer=adamw", "schedule.warmup=0.1", "seed=1"])
        ['optimizer@recipe.optimizer=adamw', '++recipe.schedule.warmup=0.1', 'seed=1']
    """
    whole = any(word.startswith(("finetune.recipe=", "recipe@finetune.recipe=")) for word in words)
    made = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in PARTS:
            word = f"{key}@recipe.{key}={value}"
        elif equals and key.partition(".")[0] in PARTS:
            word = f"recipe.{word}"
        elif equals and key in ("finetune.recipe", "finetune.method"):
            word = f"{key.partition('.')[2]}@{key}={value}"
        elif equals and key in (f"finetune.{part}" for part in PARTS):
            part = key.partition(".")[2]  # a whole recipe has its own already, which is replaced
            word = f"{'' if whole else '+'}{part}@finetune.recipe.{part}={value}"
        free = ARGUMENT.match(word) or key_of(word).startswith(FREE)
        made.append(_forced(word) if free else word)
    return made


def _data_of_checkpoint(words: list[str], config: str) -> list[str]:
    """Where the data are the checkpoint's, data.x=y changes their description, which isn't here."""
    keys = dict(zip(map(key_of, words), words))
    theirs = config in DATA_OF_CHECKPOINT and "data" not in keys
    further = keys.get("ckpt", "=null").partition("=")[2] not in ("null", "")
    if config in TRAINING and further and not {"data", "experiment"} & keys.keys():
        theirs = any(key.startswith("data.") for key in keys)
        words = ["~data", *words] if theirs and config != "finetune" else words
    return [_forced(w) if theirs and key_of(w).startswith("data.") else w for w in words]


def _forced(word: str) -> str:
    return f"++{word.lstrip('+')}"


def takes_away(words: list[str]) -> str | None:
    """The first top-level option that a "~" takes away, such as "~recipe"."""
    found = (re.fullmatch(r"~([\w@]+)(=.*)?", word) for word in words)
    return next((match.group(1) for match in found if match), None)
