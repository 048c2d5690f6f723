"""Whether options are of the types that a function asks for: to YAML, `maybe` is fine."""

from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def check_types(before: str, function: Callable, arguments: Mapping[str, Any]) -> None:
    """
    Args:
        before: what the options are called by on the command line, such as "data.".
        function: its annotations say the types; what they leave open isn't judged.

    Raises:
        ValueError: an argument is of another type.
    """
    for name, kind in _types(function).items():
        wanted = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        if name not in arguments or not {*wanted} <= {*WORDS, NoneType}:
            continue
        if not any(_is(arguments[name], one) for one in wanted):
            words = " or ".join(WORDS[one] for one in wanted if one is not NoneType)
            null = ", or null" if NoneType in wanted else ""
            raise ValueError(f"{before}{name} is {words}{null}; got {arguments[name]!r}")


def _types(function: Callable) -> dict[str, Any]:
    made = function.__init__ if isinstance(function, type) else function
    hints = get_type_hints(made)
    rest = get_args(hints.pop("options", None))  # **options: Unpack[Options]
    more = get_type_hints(rest[0]) if rest and is_typeddict(rest[0]) else {}
    return {
        name: kind
        for name, kind in {**more, **hints}.items()
        if name != "return" and get_origin(kind) is not Literal
    }


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
