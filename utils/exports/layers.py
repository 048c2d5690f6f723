"""Layers as the lines of `__init__` that make them, and their tensors under new names."""

import inspect
import keyword
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from slimming.graph.bypass import stands_in
from slimming.graph.selection import selects

CONSTANT = '''

class Constant(nn.Module):
    """What is left of a layer that was cut away: one value per channel, all over its map.

    `steps` holds (padding on both sides, extent of the kernel, stride) of each spatial dimension.
    """

    def __init__(self, channels, steps=None, linear=False):
        super().__init__()
        self.register_buffer("value", torch.empty(channels))
        self.steps, self.linear = steps, linear

    def forward(self, x):
        if self.linear:
            return self.value.expand(*x.shape[:-1], -1).clone()
        sizes = list(x.shape[2:])
        if self.steps is not None:
            sizes = [(n + pad - span) // by + 1 for n, (pad, span, by) in zip(sizes, self.steps)]
        value = self.value.view(-1, *[1] * len(sizes))
        return value.expand(len(x), -1, *sizes).clone()
'''


class Layers:
    """Everything that the steps of `forward` name, in order of first use."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.lines: list[str] = []
        self.tensors: dict[str, Tensor] = {}  # of the new network's state_dict
        self.constants = False  # whether `Constant` is needed
        self._names: dict[str, str] = {}  # old name -> new name
        self._taken = set(dir(nn.Module()))

    def layer(self, path: str) -> tuple[str, str | None]:
        """(the new name of a layer, that of the index buffer which it selects by first)."""
        module = self.model.get_submodule(path)
        index = self.tensor(f"{path}.index") if selects(module) else None
        if path not in self._names:
            name = self._name(path)
            if stands_in(module):
                code, tensors = self._constant(module)
            else:
                code, tensors = constructor(module), module.state_dict()
            tensors = {key: value for key, value in tensors.items() if key != "index"}
            self.lines.append(f"self.{name} = {code}")
            self.tensors |= {f"{name}.{key}": value for key, value in tensors.items()}
        return self._names[path], index

    def tensor(self, path: str) -> str:
        """The new name of a tensor that `forward` reads by itself."""
        if path not in self._names:
            owner, _, attribute = path.rpartition(".")
            value = getattr(self.model.get_submodule(owner), attribute)
            if not isinstance(value, Tensor):
                raise ValueError(f"it uses '{path}', a {type(value).__name__}")
            name = self._name(path)
            empty = f"torch.empty({tuple(value.shape)}, dtype={value.dtype})"
            made = f"nn.Parameter({empty})" if isinstance(value, nn.Parameter) else None
            line = f"self.{name} = {made}" if made else f'self.register_buffer("{name}", {empty})'
            self.lines.append(line)
            self.tensors[name] = value.detach()
        return self._names[path]

    def _constant(self, module: nn.Module) -> tuple[str, dict[str, Tensor]]:
        self.constants = True
        value = getattr(module, "constant", None)  # else only the size of the map matters
        value = torch.zeros(1) if value is None else value.detach()
        more = f", steps={module.steps}" if module.steps is not None else ""
        more += ", linear=True" if module.linear else ""
        return f"Constant({len(value)}{more})", {"value": value}

    def _name(self, path: str) -> str:
        name = re.sub(r"\W", "_", path)
        name = f"layer_{name}" if not name.isidentifier() or keyword.iskeyword(name) else name
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        self._names[path] = name
        return name


def constructor(module: nn.Module) -> str:
    """'nn.Conv2d(3, 17, 3, padding=1)': the call that makes such a layer, checked by making it.

    Raises:
        ValueError: it isn't a layer of torch, or has something that its arguments don't tell.
    """
    kind = next(k for k in type(module).__mro__ if k.__module__.startswith("torch.nn."))
    called = type(module).__name__
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    if getattr(nn, kind.__name__, None) is not kind or kind is nn.Module:
        raise ValueError(f"{called} is no layer of torch")
    if any(getattr(module, name) for name in hooks):
        raise ValueError(f"a {called} has a hook")
    code = f"nn.{kind.__name__}({', '.join(_arguments(kind, module))})"
    try:
        with torch.device("meta"):
            twin = eval(code, {"nn": nn, "torch": torch, "inf": math.inf, "nan": math.nan})
    except Exception as error:
        raise ValueError(f"a {called} doesn't say how it was made: {error}") from error
    if _layout(twin) != _layout(module):
        raise ValueError(f"a {called} has more than its arguments tell")
    return code


def _arguments(kind: type[nn.Module], module: nn.Module) -> list[str]:
    words = []
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name in ("self", "device", "dtype") or not hasattr(module, name):
            continue
        value = getattr(module, name)
        if name == "bias" and not getattr(module, "affine", True):
            continue  # older versions of torch don't know the argument
        if name == "bias" and not isinstance(value, bool):
            value = value is not None
        if isinstance(module, _ConvNd) and isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]  # (3, 3) is what became of 3
        if parameter.default is inspect.Parameter.empty:
            words.append(literal(value))
        elif not _same(value, parameter.default):
            words.append(f"{name}={literal(value)}")
    return words


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default


def _layout(module: nn.Module) -> Any:
    """What tells two layers of one kind apart, but for their weights."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    shapes = {name: shape for name, shape in shapes.items() if name != "index"}
    return shapes, module.extra_repr()


def literal(value: Any, names: Mapping[fx.Node, str] | None = None) -> str:
    """A plain value as Python text; nodes of a graph by their names.

    Raises:
        ValueError: it isn't plain.
    """
    if isinstance(value, fx.Node):
        return (names or {})[value]
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or value is Ellipsis or type(value) in (bool, int, float, str):
        return repr(value)
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value)
    if isinstance(value, torch.device):
        return f"torch.{value!r}"
    if isinstance(value, slice):
        ends = (value.start, value.stop, value.step)
        return f"slice({', '.join(literal(end, names) for end in ends)})"
    if type(value) in (tuple, torch.Size):
        inside = ", ".join(literal(item, names) for item in value)
        return f"({inside}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(literal(item, names) for item in value)}]"
    if isinstance(value, dict):
        pairs = (f"{literal(key)}: {literal(item, names)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    raise ValueError(f"it holds a {type(value).__name__}")
