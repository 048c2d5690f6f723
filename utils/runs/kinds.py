"""What a run's files hold, as data: the type of every value that anything here reads.

A kind is a function (value, its name) -> what is wrong with it, as "seed is a whole number; got
'x'", or None.
"""

import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from utils.training.strength import EDGES

Kind = Callable[[Any, str], str | None]
LARGEST = 2**63 - 1  # of a whole number in a table


def parse(text: str) -> Any:
    """JSON as its standard has it.

    Raises:
        ValueError: it is broken, or holds NaN, Infinity, or a number that is too large for one.
    """
    try:
        return json.loads(
            text, parse_constant=_refuse, parse_int=_finite(int), parse_float=_finite(float)
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _finite(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if math.isinf(float(text)):
            raise ValueError(f"{text[:9]}... is too large a number")
        return kind(text)

    return read


def _kind(words: str, fits: Callable[[Any], bool]) -> Kind:
    def look(value: Any, name: str) -> str | None:
        return None if fits(value) else f"{name} is {words}; got {_short(value)}"

    return look


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def number(words: str, low: float = -1e300, high: float = 1e300, whole: bool = False) -> Kind:
    """true is no number; neither is what would overflow."""
    types = (int,) if whole else (int, float)
    return _kind(words, lambda value: type(value) in types and low <= value <= high)


def maybe(kind: Kind) -> Kind:
    """null as well."""
    return lambda value, name: None if value is None else kind(value, name)


def each(kind: Kind) -> Kind:
    """A mapping from any names."""
    return lambda value, name: (
        MAPPING(value, name) or _first(kind(item, f"{name}.{key}") for key, item in value.items())
    )


def several(kind: Kind, count: int | None = None) -> Kind:
    """A list, of `count` values where there is one."""
    words = "a list" if count is None else f"a list of {count}"
    whole = _kind(words, lambda v: isinstance(v, list) and count in (None, len(v)))
    return lambda value, name: (
        whole(value, name) or _first(kind(item, f"{name}[{i}]") for i, item in enumerate(value))
    )


def fields(needed: Mapping[str, Kind], known: Mapping[str, Kind] | None = None) -> Kind:
    """A mapping with these names; `known` ones may be missing, and others may be there."""
    kinds = {**needed, **(known or {})}

    def look(value: Any, name: str) -> str | None:
        if wrong := MAPPING(value, name or "it"):
            return wrong
        before = f"{name}." if name else ""
        if missing := [before + key for key in needed if key not in value]:
            return f"lacks {', '.join(missing)}"
        return _first(kind(value[key], before + key) for key, kind in kinds.items() if key in value)

    return look


def _first(problems: Any) -> str | None:
    return next(filter(None, problems), None)


def _is_date(value: Any) -> bool:
    try:
        return math.isfinite(datetime.fromisoformat(value).timestamp())
    except (TypeError, ValueError, OverflowError, OSError):
        return False


ANY = _kind("anything", lambda value: True)
TEXT = _kind("a text", lambda value: isinstance(value, str))
FLAG = _kind("true or false", lambda value: isinstance(value, bool))
DATE = _kind("a date such as 2026-01-31T12:00:00+00:00", _is_date)
MAPPING = _kind("a mapping", lambda value: isinstance(value, dict))
NUMBER = number("a number")
AMOUNT = number("a number, 0 or more", 0)
SHARE = number("a number from 0 to 1", 0, 1)
COUNT = number("a whole number, 0 or more", 0, LARGEST, whole=True)
INTEGER = number("a whole number", -LARGEST, LARGEST, whole=True)

ACCURACY = fields({"test": SHARE}, {"val": maybe(SHARE)})
MACHINE = fields({}, {"threads": maybe(COUNT), "cores": maybe(COUNT)})
CONFIG = fields(
    {},
    {
        "data": maybe(fields({}, {"val_size": maybe(COUNT)})),
        **dict.fromkeys(("recipe", "method", "model", "hardware", "finetune"), maybe(MAPPING)),
    },
)
LAYER = fields({"params": COUNT, "macs": COUNT, "channels": maybe(COUNT)})
RESULT = fields(
    {
        **dict.fromkeys(("name", "stage", "dataset", "model"), TEXT),
        "seed": INTEGER,
        "params": COUNT,
        "macs": COUNT,
        "accuracy": ACCURACY,
        "channels": fields({"kept": COUNT, "total": COUNT}),
    },
    {
        **dict.fromkeys(("label", "row", "scratch", "compensate", "commit"), TEXT),
        **dict.fromkeys(("parent", "recipe", "finetune_recipe", "method", "network"), maybe(TEXT)),
        **dict.fromkeys(("device", "precision", "instructions", "command", "code"), maybe(TEXT)),
        **dict.fromkeys(("weights", "parent_weights"), maybe(TEXT)),
        **dict.fromkeys(("bytes", "flops_paper", "threads", "recalibrate"), COUNT),
        **dict.fromkeys(("macs_thop", "epochs", "pass", "processes"), maybe(COUNT)),
        "seconds": AMOUNT,
        **dict.fromkeys(("strength", "growth"), maybe(AMOUNT)),
        **dict.fromkeys(("ratio", "safe_ratio"), maybe(SHARE)),
        **dict.fromkeys(("sync_batchnorm", "channels_last"), maybe(FLAG)),
        **dict.fromkeys(("recipe_changes", "finetune_recipe_changes"), maybe(MAPPING)),
        **dict.fromkeys(("plan", "certificate"), maybe(MAPPING)),
        **dict.fromkeys(("folded", "shortfalls", "begun_with"), several(ANY)),
        "finished": DATE,
        "target": maybe(each(NUMBER)),
        "variants": maybe(each(ACCURACY)),
        "config": CONFIG,
        "widths": each(several(COUNT, 2)),
        "gammas": each(several(NUMBER)),
        "layers": each(LAYER),
        "images": each(COUNT),
        "versions": each(maybe(TEXT)),
        "machine": maybe(MACHINE),
    },
)
POINT = _kind(
    "[layer, channels, removed, accuracy]",
    lambda value: isinstance(value, list) and [type(one) for one in value] in POINTS,
)
POINTS = ([str, int, int, float], [str, int, int, int])
SENSITIVITY = fields(
    {"schema": COUNT, "name": TEXT, "points": several(POINT), "begun_with": several(ANY)},
    {"finished": DATE, "parent": maybe(TEXT), "parent_weights": maybe(TEXT)},
)
QUARTILES = fields({}, dict.fromkeys(("median_ms", "q1_ms", "q3_ms"), AMOUNT))
LATENCY = fields({"machine": MACHINE, "batch": each(QUARTILES)})
ROW = fields(
    {"epoch": COUNT},
    {
        **dict.fromkeys(("lr", "penalty", "train/loss", "val/loss"), NUMBER),
        **dict.fromkeys(("train/accuracy", "val/accuracy"), SHARE),
        **dict.fromkeys(("gamma_below_1e-3", "gamma_below_1e-2"), SHARE),
        "gamma_histogram": each(several(COUNT, len(EDGES) - 1)),
        "gammas": fields({"layer": TEXT, "values": several(NUMBER)}),
    },
)
