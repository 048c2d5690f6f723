"""What a run is, as eight digits: a hash of all that is asked for and can change its result."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from utils.networks.own_code import source_of


def essence(value: Any) -> Any:
    """A value as it enters the hash: numbers are numbers, defaults are left out.

    An object's description {"_target_": ..., argument: ...} loses the arguments that equal the
    callable's own defaults, so a new option at its default changes no old hash; and it gains the
    source of what it names, unless that is a part of torch.
    """
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _essence_of_call(value)
        return {str(key): essence(item) for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [essence(item) for item in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return value


def _essence_of_call(node: Mapping[str, Any]) -> dict[str, Any]:
    from hydra.utils import get_object

    target = get_object(node["_target_"])
    parameters = inspect.signature(target).parameters
    arguments = {key: essence(item) for key, item in node.items() if not key.startswith("_")}
    kept = {
        key: item
        for key, item in sorted(arguments.items())
        if key not in parameters or essence(parameters[key].default) != item
    }
    return {"target": node["_target_"], "arguments": kept, **source_of(target)}


def digest(identity: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for everything that can change the result."""
    try:
        text = json.dumps(essence(identity), sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"nan and infinity are no options of a run: {dict(identity)}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:8]
