"""Runs a network and sees every operation: its channels are numbered as it goes."""

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from slimming.graph.twin import Twin
from slimming.modules.selection import Select
from slimming.rules import MODULES, RULES, keeps_zero, pointwise
from slimming.rules.call import Call, Found, Planes
from slimming.rules.channel_ids import spread

ALWAYS = {"convolution", "embedding"}
SILENT = {"device", "sym_size", "sym_numel", "sym_stride", "sym_storage_offset", "stride", "size"}
SILENT |= {"is_same_size", "layout", "is_pinned", "numel", "dim", "is_nonzero", "prim_layout"}
MOST = 4 << 30  # bytes of values, where a network needs them
OURS, TORCH = f"{Path(__file__).parents[1]}/", f"{Path(torch.__file__).parent}/"


@dataclass(frozen=True)
class Record:
    """One operation, and what was known of its tensors when it had run."""

    call: Call
    before: list[Planes]  # of each input
    after: list[Planes]  # of each output
    shapes: list[torch.Size]  # of each output: transpose_ changes that of a tensor later

    @classmethod
    def of(cls, call: Call, before: list[Planes], after: list[Planes]) -> "Record":
        return cls(call, before, after, [t.shape for t in call.outputs])


class Recorder(TorchDispatchMode):
    """Numbers the channels of whatever runs inside of it.

    After the run, `records` holds the operations in order and `found` what they told.
    """

    def __init__(self, found: Found, picks: Mapping[str, Tensor]):
        """picks: {path of a channel selection: the channels that it selects}."""
        super().__init__()
        self.found, self._picks = found, picks
        self.records: list[Record] = []
        self._layers: list[str] = [""]
        self._silent = 0
        self._held: dict[int, int] | None = None  # storage -> bytes, where there are numbers

    def __torch_dispatch__(self, run, types, args=(), kwargs=None) -> Any:
        name, *_ = _schema(run)
        if name == "native_batch_norm" or name == "_native_batch_norm_legit_no_training":
            output = _normalised(run, args, kwargs or {})
        else:
            output = run(*args, **(kwargs or {}))
        if not self._silent and name not in SILENT:
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                self._see(_call(run, args, kwargs or {}, output, self._layers[-1]))
        return output

    def _see(self, call: Call) -> None:
        found = self.found
        before = [found.planes(t) for t in call.inputs]
        live = any(found.is_live(t) for t in call.inputs)
        planes = self._apply(call, before)
        after = list(planes) if isinstance(planes, tuple) else [planes] * len(call.outputs)
        after += [[]] * (len(call.outputs) - len(after))
        zero = not live and keeps_zero(call, found)
        for tensor, of in zip(call.outputs, after):
            found.give(tensor, of, zero)
            if live:
                found.enliven(tensor)
        after = [found.planes(t) for t in call.outputs]
        self.records.append(Record.of(call, before, after))
        if self._held is not None:
            self._weigh(call.outputs)

    def _weigh(self, tensors: list[Tensor]) -> None:
        """All values are held to the end, which must not fill the memory."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._held[storage._cdata] = storage.nbytes()
        if sum(self._held.values()) > MOST:
            gib = MOST >> 30
            raise ValueError(
                f"its code looks at values, and all of them together take more than {gib} GiB: "
                f"give a smaller example"
            )

    def _apply(self, call: Call, before: list[Planes]) -> Planes | tuple[Planes, ...]:
        rule = RULES.get(call.name)
        if rule is None and torch.Tag.pointwise in call.tags:
            rule = pointwise
        if rule is not None:
            try:
                return rule(call, self.found)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
                what = f"{call} is used in a way that isn't known ({type(error).__name__})"
                self.found.pin_inputs(call, what)
                return []
        self.found.pin_inputs(call, f"{call} may mix its channels")
        return []

    def run(self, twin: Twin, training: bool) -> list[Tensor]:
        """Its outputs.

        Raises:
            ValueError: it needs numbers, and more of them than fit.
        """
        self._held = {} if twin.kind == "real" else None
        for tensor in twin.example.tensors:
            self.found.enliven(tensor)
        with self.listening(twin.model), self:
            return _tensors(twin.run(training))

    # Modules

    @contextlib.contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Know which module runs; what a module's own rule says stands for all that it does."""
        handles = []
        for path, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks
            enter, leave = self._hooks(path, module)
            handles.append(module.register_forward_pre_hook(enter, prepend=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, path: str, module: nn.Module):
        rule = self._pick if isinstance(module, Select) else MODULES.get(type(module))

        def enter(module: nn.Module, args: tuple) -> None:
            self._layers.append(path)
            self._silent += rule is not None

        def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            self._layers.pop()
            self._silent -= rule is not None
            if rule is not None and not self._silent and output is not None:
                with _disable_current_modes(), torch._C.DisableTorchFunction():
                    self._see_module(path, module, rule, args, kwargs, output)

        return enter, leave

    def _pick(self, call: Call, found: Found) -> Planes:
        """A channel selection: what it selects among is a stream that others read too."""
        x = call.inputs[0]
        source = found.along(x, 1)
        found.picked[id(call.output)] = x, source
        return [spread(source[self._picks[call.layer]], 1, x.dim())]

    def _see_module(self, path, module, rule, args, kwargs, output) -> None:
        tensors = {str(i): x for i, x in enumerate(tree_leaves((args, kwargs)))}
        arguments = {**tensors, "module": module}
        call = Call(type(module).__name__, module.forward, arguments, output, path, _where())
        found, before = self.found, [self.found.planes(t) for t in call.inputs]
        live = any(found.is_live(t) for t in call.inputs)
        planes = rule(call, found)
        after = list(planes) if isinstance(planes, tuple) else [planes] * len(call.outputs)
        for tensor, of in zip(call.outputs, after):
            found.give(tensor, of)
            if live:
                found.enliven(tensor)
        if rule != self._pick:
            after = [found.planes(t) for t in call.outputs]
            self.records.append(Record.of(call, before, after))


def _call(run, args: tuple, kwargs: dict, output: Any, layer: str) -> Call:
    name, arguments, defaults = _schema(run)
    given = {**defaults, **dict(zip(arguments, args)), **kwargs}
    given = {argument: given[argument] for argument in arguments if argument in given}
    return Call(name, run, given, output, layer, _where())


@functools.cache
def _schema(run) -> tuple[str, list[str], dict[str, Any]]:
    """ "relu" of aten::relu_.default, the names of its arguments, and their defaults."""
    name = run._schema.name.rpartition("::")[2]
    name = name.rstrip("_") if not name.startswith("__") else name
    arguments = run._schema.arguments
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    return name, [a.name for a in arguments], defaults


def _normalised(run, args: tuple, kwargs: dict) -> Any:
    """A BatchNorm changes no shape; on fake tensors it would take most of the time."""
    x, weight, fixed = args[0], args[1], "no_training" in str(run) or args[5] is False
    numbers = not (isinstance(x, FakeTensor) or x.is_meta)
    if numbers or not fixed or weight is None or len(weight) != x.shape[1]:
        return run(*args, **kwargs)
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


def _tensors(output: Any) -> list[Tensor]:
    """Those in lists, dicts and the attributes of objects."""
    leaves = tree_leaves(output)
    inner = [leaf for x in leaves if hasattr(x, "__dict__") for leaf in tree_leaves(vars(x))]
    found = [x for x in (*leaves, *inner) if isinstance(x, Tensor)]
    return list({id(x): x for x in found}.values())


def _where() -> str:
    """The line of the user's code that runs, as "file.py:12"."""
    frame = sys._getframe(1)
    while frame is not None and _whose(frame.f_code.co_filename) == "ours":
        frame = frame.f_back
    while frame is not None:
        file = frame.f_code.co_filename
        if _whose(file) != "torch":
            return f"{file.rpartition('/')[2]}:{frame.f_lineno}" if _whose(file) == "user" else ""
        frame = frame.f_back
    return ""  # we, who called for the trace


@functools.cache
def _whose(file: str) -> str:
    if file.startswith(OURS):
        return "ours"
    return "torch" if file.startswith((TORCH, "<")) else "user"
