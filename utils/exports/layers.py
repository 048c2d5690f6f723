"""Layers as the lines of `__init__` that make them, and their tensors under new names."""

import inspect
import keyword
import math
import re

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slimming.modules.bypass import stands_in
from slimming.modules.selection import norm_of

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
    """Everything that `forward` names, in order of first use; nothing is nested any more."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.lines: list[str] = []
        self.tensors: dict[str, Tensor] = {}  # of the new network's state_dict
        self._names: dict[str, str] = {}  # old name -> new name
        self._taken = set(dir(nn.Module()))

    def layer(self, path: str) -> str:
        """The new name of a layer."""
        if path not in self._names:
            module = norm_of(self.model.get_submodule(path))
            code, tensors = constructor(module), module.state_dict()
            if stands_in(module):  # without a constant only the size of the map matters
                tensors = {"value": tensors.get("constant", torch.zeros(1))}
            name = self._name(path)
            self.lines.append(f"self.{name} = {code}")
            self.tensors |= {f"{name}.{key}": value for key, value in tensors.items()}
        return self._names[path]

    def tensor(self, path: str) -> str:
        """The new name of a tensor that `forward` reads by itself."""
        if path not in self._names:
            owner, _, attribute = path.rpartition(".")
            value = getattr(self.model.get_submodule(owner), attribute)
            if not isinstance(value, Tensor):
                raise ValueError(f"it uses '{path}', a {type(value).__name__}")
            name = self._name(path)
            empty = f"torch.empty({tuple(value.shape)}, dtype={value.dtype})"
            if isinstance(value, nn.Parameter):
                self.lines.append(f"self.{name} = nn.Parameter({empty})")
            else:
                self.lines.append(f'self.register_buffer("{name}", {empty})')
            self.tensors[name] = value.detach()
        return self._names[path]

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
    if any(getattr(module, name) for name in ("_forward_hooks", "_forward_pre_hooks")):
        raise ValueError(f"a {called} has a hook")
    if stands_in(module):
        constant = getattr(module, "constant", torch.zeros(1))
        more = f", steps={module.steps}" if module.steps else ""
        return f"Constant({len(constant)}{more}{', linear=True' if module.linear else ''})"
    if getattr(nn, kind.__name__, None) is not kind or kind is nn.Module:
        raise ValueError(f"{called} is no layer of torch")
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
            words.append(repr(value))
        elif type(value) is not type(parameter.default) or value != parameter.default:
            words.append(f"{name}={value!r}")
    return words


def _layout(module: nn.Module) -> tuple:
    """What tells two layers of one kind apart, but for their weights."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return shapes, module.extra_repr()
