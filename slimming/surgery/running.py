"""A network is run to be compared: in one precision, without chance, layer by layer."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from slimming.graph.twin import Example
from slimming.modules.layers import SCORED
from slimming.modules.selection import gate_of

WIDE = {torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64}
WIDE[torch.complex64] = torch.complex128
CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)
# What a drawn number is replaced by, where nothing may be left to chance.
DRAWS = dict.fromkeys(("rand", "randn", "rand_like", "randn_like", "normal"), 0.5)
DRAWS |= dict.fromkeys(("uniform_", "normal_", "log_normal_", "exponential_", "cauchy_"), 0.5)
DRAWS |= dict.fromkeys(("bernoulli", "bernoulli_"), 1)
DRAWS |= dict.fromkeys(("randint", "randint_like", "random_", "multinomial", "poisson"), 0)


class Double(TorchFunctionMode):
    """Everything is computed in float64, whatever the code says."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        func = Tensor.double if func in CASTS else func
        args, kwargs = tree_map(_widened, (args, kwargs or {}))
        return _widened(func(*args, **kwargs))


def _widened(x: Any) -> Any:
    if isinstance(x, torch.dtype):
        return WIDE.get(x, x)
    return x.to(WIDE[x.dtype]) if isinstance(x, Tensor) and x.dtype in WIDE else x


class Calm(TorchFunctionMode):
    """Dropout drops nothing, and what would be drawn at random is a constant."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if "dropout" in name:
            return args[0] if args else kwargs["input"]
        if kwargs.get("dropout_p"):
            kwargs["dropout_p"] = 0.0
        output = func(*args, **kwargs)
        if name == "randperm":
            return output.sort().values
        return output.fill_(DRAWS[name]) if name in DRAWS else output


@dataclass
class Seen:
    """What a network gave."""

    outputs: list[Tensor] = field(default_factory=list)
    layers: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # (layer, call): 1st image
    drew: bool = False  # random numbers


class Runner:
    """Runs copies of networks on the same inputs, in one precision and on one device."""

    def __init__(self, example: Example, dtype: torch.dtype, device: torch.device | str):
        self.dtype, self.device, self.calm = dtype, device, False
        self.example = example.map(self._moved)

    def _moved(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)

    def copy(self, model: nn.Module) -> nn.Module:
        return copy.deepcopy(model).to(self.device, self.dtype).eval()

    def run(self, model: nn.Module, seed: int = 0) -> Seen:
        """`model`, a copy, with the random numbers of this seed; the global ones stay."""
        seen = Seen()
        inputs = self.example.map(lambda x: x.clone() if isinstance(x, Tensor) else x)
        modes = [Double()] if self.dtype == torch.float64 else []
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            state = torch.manual_seed(seed).get_state()
            stack.enter_context(_listening(model, seen))
            for mode in [*modes, *([Calm()] if self.calm else [])]:
                stack.enter_context(mode)
            output = model(*inputs.args, **inputs.kwargs)
            seen.drew = not torch.equal(torch.get_rng_state(), state)
        seen.outputs = list(tensors(output))
        return seen


@contextlib.contextmanager
def _listening(model: nn.Module, seen: Seen) -> Iterator[None]:
    calls: dict[str, int] = {}

    def listen(name: str):
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            calls[name] = number = calls.get(name, 0) + 1
            if isinstance(output, Tensor) and output.dim():
                seen.layers[name, number] = output[:1].clone()  # what follows may work in place

        return hook

    layers = [(gate_of(model, n), m) for n, m in model.named_modules() if isinstance(m, SCORED)]
    hooks = [module.register_forward_hook(listen(name)) for name, module in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def tensors(value: Any, within: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """All tensors in what a network returns: in lists, dictionaries, dataclasses, own objects."""
    if isinstance(value, Tensor):
        yield value
    elif not isinstance(value, (nn.Module, type)) and id(value) not in within:
        for part in _parts(value):
            yield from tensors(part, (*within, id(value)))


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    if is_dataclass(value):
        return [getattr(value, part.name) for part in fields(value)]
    return list(getattr(value, "__dict__", {}).values())


def place_of_failure(runner: Runner, model: nn.Module) -> str:
    """The innermost module that raises when `model` runs; "" is the network itself."""
    inside: list[str] = []

    def enter(name: str):
        return lambda module, args: inside.append(name)

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        inside.pop()

    for name, module in model.named_modules():
        module.register_forward_pre_hook(enter(name))
        module.register_forward_hook(leave)
    with contextlib.suppress(Exception):
        runner.run(model)
    return inside[-1] if inside else ""
