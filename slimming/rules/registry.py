"""Which rule says what an operation does with channel ids."""

from collections.abc import Callable

from torch import nn

from slimming.rules.call import Call, Found, Planes

# Planes of the output; a tuple of them: one entry for each output tensor.
Rule = Callable[[Call, Found], Planes | tuple[Planes, ...]]
RULES: dict[str, Rule] = {}
MODULES: dict[type[nn.Module], Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Mark a function as the rule of these ATen operations."""

    def mark(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return mark


def register(operation: str | type[nn.Module], function: Rule) -> None:
    """Say what an operation of one's own does with channels.

    Args:
        operation: the name of an operation that torch dispatches ("my_library::blur"), or the class
            of a module; then nothing inside it is looked at.
        function: (call, found) -> planes of the output, such as `slimming.rules.pointwise`.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(operation, type) and issubclass(operation, nn.Module):
        MODULES[operation] = function
    elif isinstance(operation, str) and operation:
        RULES[operation.rpartition("::")[2].partition(".")[0]] = function
    else:
        raise TypeError(f"an operation is a name or a class of modules; got {operation!r}")
