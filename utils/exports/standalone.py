"""A network as a Python file that needs nothing but torch, and its weights beside it.

The file is the torch.fx trace of the network in eval mode, written down: one line per layer in
`__init__`, and fx's own code, one line per step, in `forward`. What can't be written down is
refused.
"""

import builtins
import copy
import operator
import re
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

from slimming.checkpoint import write_atomically
from slimming.modules.bypass import stands_in
from slimming.modules.layers import SCORED, own_forward
from slimming.modules.selection import selects
from slimming.surgery.builder import reason_of
from utils.exports import program_text
from utils.exports.layers import CONSTANT, Layers
from utils.exports.program_text import MARK, Program

NOTHING = (nn.Identity, StochasticDepth)  # in eval mode they return what they get


def convert(model: nn.Module, input_shape: Sequence[int]) -> Program:
    """Write a network in eval mode down; `save` puts it into files.

    Raises:
        ValueError: it does something that can't be written down; the message says what.
    """
    name = type(model).__name__
    try:
        # A copy, because the tracer leaves tensors that the code makes in the network.
        return _convert(name, copy.deepcopy(model), tuple(input_shape))
    except Exception as error:  # tracing runs the network's own code
        raise ValueError(
            f"{name} can't be written as a Python file ({reason_of(error)}); "
            f"to=NAME.safetensors holds any network"
        ) from error


def _convert(name: str, model: nn.Module, input_shape: tuple[int, ...]) -> Program:
    with torch.no_grad():
        outputs = model(torch.zeros(2, *input_shape))
    kinds = [kind for kind in program_text.SHOW if isinstance(outputs, kind)]
    if not kinds:
        raise ValueError(f"it returns a {type(outputs).__name__}")
    graph, layers = _Tracer().trace(model), Layers(model)
    _rename(graph, layers)
    forward = graph.python_code("self")
    text = forward.src[forward.src.index("def forward(") :]  # before it stands what fx wraps
    text = text.replace("torch._C._nn.", "torch.nn.functional.")
    body = [
        *(CONSTANT.splitlines() if any("= Constant(" in line for line in layers.lines) else []),
        "",
        "",
        "class Network(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        {line}" for line in layers.lines),
        "",
        *(f"    {line}".rstrip() for line in text.strip().splitlines()),
    ]
    imports = _imports("\n".join(body), forward.globals)
    return Program(name, input_shape, imports, body, kinds[0], layers.tensors)


def _rename(graph: fx.Graph, layers: Layers) -> None:
    """Bring the graph to the layers' new names, in place, and drop what does nothing."""
    for node in list(graph.nodes):
        node.type = None  # annotations may name a stranger's types
        if node.op == "get_attr":
            node.target = layers.tensor(node.target)
        elif node.op == "call_module":
            module = layers.model.get_submodule(node.target)
            if isinstance(module, NOTHING):
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph.erase_node(node)
                continue
            if selects(module):
                with graph.inserting_before(node):
                    index = graph.get_attr(layers.tensor(f"{node.target}.index"))
                    picked = graph.call_method("index_select", (node.args[0], 1, index))
                node.args = (picked, *node.args[1:])
            node.target = layers.layer(node.target)
    for node in reversed(graph.nodes):  # anything else may work in place
        if not node.users and node.target in (getattr, operator.getitem):
            graph.erase_node(node)


def _imports(text: str, names: Mapping[str, Any]) -> list[str]:
    """What the text needs beside torch.

    Raises:
        ValueError: something that neither torch nor Python has.
    """
    lines = []
    for name, value in names.items():
        module = str(getattr(value, "__module__", "")).lstrip("_")
        if not re.search(rf"\b{name}\b", text) or vars(builtins).get(name) is value:
            continue
        if isinstance(value, float):
            lines.append(f"from math import {name}")
        elif value is torch.device or module in ("math", "operator"):
            lines.append(f"from {module} import {value.__name__} as {name}")
        elif not isinstance(value, ModuleType):
            raise ValueError(f"it calls {module}.{value.__name__}, which is no function of torch")
    if other := re.search(r"\btorch\.ops\.(?!aten\b)\w+", text):
        raise ValueError(f"it calls {other[0]}, which is no function of torch")
    return sorted(lines)


def save(
    path: Path,
    program: Program,
    facts: Mapping[str, Any],
    told: Mapping[str, Any],
    half: bool = False,
) -> None:
    """Write `path` and the weights beside it, with `facts` as JSON in the docstring.

    Args:
        told: what a deployment needs, as `slimming.checkpoint.deployment` gives it.
    """
    weights = path.with_suffix(".weights.pt")
    text = program_text.write(program, path.name, weights.name, facts, told)
    tensors = {
        name: tensor.half() if half and tensor.is_floating_point() else tensor
        for name, tensor in program.weights.items()
    }
    write_atomically(weights, lambda file: torch.save(tensors, file))
    write_atomically(path, lambda file: file.write(text.encode()))


def check_name(path: Path) -> None:
    """Refuse a name that Python or torch uses itself, and to replace a file that isn't ours.

    Raises:
        ValueError: either of them.
    """
    if path.stem in {*sys.stdlib_module_names, "torch", "numpy"}:
        raise ValueError(f"{path.name} would hide Python's or torch's own module: choose another")
    if path.exists() and not path.read_bytes().startswith(MARK.encode()):
        raise ValueError(f"{path} is no export but a program of yours: choose another name")


def open_file(path: Path) -> Callable[[Tensor], Any]:
    """The network of a file that `save` wrote. It is run as a program: only for our own files."""
    try:
        return runpy.run_path(str(path))["load"]()
    except Exception as error:
        raise ValueError(f"{path.name} would not run ({reason_of(error)})") from error


class _Tracer(fx.Tracer):
    """torch's own layers are leaves, and so are those that a cut made of them."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        made_by_a_cut = selects(module) or stands_in(module)
        plain = isinstance(module, SCORED) and not own_forward(module)
        known = made_by_a_cut or plain or isinstance(module, NOTHING)
        return known or super().is_leaf_module(module, name)
