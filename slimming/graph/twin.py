"""A copy of a network that runs without numbers."""

import contextlib
import copy
import gc
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

LOG = "torch._subclasses.fake_tensor"
BATCH = 2  # images, where the example has one: a BatchNorm in training mode refuses that


@dataclass(frozen=True)
class Example:
    """What a network is called with."""

    args: tuple
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, example: Any) -> "Example":
        """A tensor, (args...), or {"args": (...), "kwargs": {...}}."""
        if isinstance(example, cls):
            return example
        if isinstance(example, dict) and example and example.keys() <= {"args", "kwargs"}:
            return cls(tuple(example.get("args", ())), dict(example.get("kwargs", {})))
        return cls(tuple(example) if isinstance(example, (tuple, list)) else (example,), {})

    @property
    def tensors(self) -> list[Tensor]:
        return [x for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor)]

    def map(self, function) -> "Example":
        args, kwargs = tree_map(function, (self.args, self.kwargs))
        return Example(args, kwargs)

    @property
    def batch(self) -> int:
        sizes = [x.shape[0] for x in self.tensors if x.dim()]
        return sizes[0] if sizes else 1

    def __str__(self) -> str:
        shapes = self.map(lambda x: tuple(x.shape) if isinstance(x, Tensor) else x)
        args = f"{list(shapes.args)}"
        return f"{args} and {shapes.kwargs}" if shapes.kwargs else args


KINDS = ("meta", "fake", "real")


class Twin:
    """A copy of a network that runs without numbers.

    On `meta` tensors, which have a shape and a type and nothing else: fast. On `fake` ones, which
    also know a device, and the values of constants, where the code wants that. Or with `real`
    numbers, where it looks at values.
    """

    def __init__(self, model: nn.Module, example: Example, kind: str):
        first = next((p for p in model.parameters() if p.is_floating_point()), None)
        self.kind, self.modes = kind, _MODES[kind]()
        with contextlib.ExitStack() as stack:
            for mode in self.modes:
                stack.enter_context(mode)
            stack.enter_context(_Copying(kind, self.modes))
            self.model = copy.deepcopy(model)
            self.example = example.map(lambda x: self._input(x, first, example.batch, kind))
        self.batch = self.example.batch

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Attention is computed step by step; no layer takes a shortcut that hides its steps."""
        fast = torch.backends.mha.get_fastpath_enabled()
        level, log = logging.getLogger(LOG).level, logging.getLogger(LOG)
        log.setLevel(logging.CRITICAL)  # what fails is told by us
        torch.backends.mha.set_fastpath_enabled(False)
        fused = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        try:
            with (
                contextlib.ExitStack() as stack,
                torch.no_grad(),
                sdpa_kernel(SDPBackend.MATH),
            ):
                for mode in self.modes:
                    stack.enter_context(mode)
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            torch._C._set_mkldnn_enabled(fused)
            log.setLevel(level)

    def run(self, training: bool) -> Any:
        self.model.train(training)
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()  # SyncBatchNorm would wait for other processes
        return self.model(*self.example.args, **self.example.kwargs)

    def _input(self, x: Any, like: Tensor | None, batch: int, kind: str) -> Any:
        if not isinstance(x, Tensor):
            return x
        if batch == 1 and x.dim() and x.shape[0] == 1:
            x = x.expand(BATCH, *x.shape[1:])
        dtype = like.dtype if like is not None and x.is_floating_point() else x.dtype
        if kind == "real":
            return x.to(like.device if like is not None else x.device, dtype)
        device = "meta" if kind == "meta" else x.device if like is None else like.device
        return torch.empty(x.shape, dtype=dtype, device=device)


_MODES = {
    "meta": lambda: [torch.device("meta")],
    "fake": lambda: [FakeTensorMode(allow_non_fake_inputs=True)],
    "real": lambda: [],
}


class _Copying(TorchFunctionMode):
    """A deep copy of a network copies no numbers."""

    def __init__(self, kind: str, modes: list):
        super().__init__()
        self._kind, self._modes = kind, modes

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        if self._kind != "real" and func in (torch.Tensor.__deepcopy__, torch._C.TensorBase.clone):
            source = args[0]
            if self._kind == "fake":
                copied = self._modes[0].from_tensor(source, static_shapes=True)
            else:
                copied = torch.empty_strided(
                    source.shape, source.stride(), dtype=source.dtype, device="meta"
                )
            if func is torch.Tensor.__deepcopy__:
                args[1][id(source)] = copied
            return copied
        return func(*args, **(kwargs or {}))


def stored(model: nn.Module) -> Mapping[str, Tensor]:
    """{name: parameter or buffer}, each under all of its names."""
    parameters, buffers = {}, {}  # ten times as fast as asking named_parameters
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for tensors, held in ((parameters, module._parameters), (buffers, module._buffers)):
            tensors.update({f"{prefix}{n}": x for n, x in held.items() if x is not None})
    return {**parameters, **buffers}


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Many small objects are made and kept: the garbage collector would look at all of them, and at
    all of torch, again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
