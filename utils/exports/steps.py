"""A traced graph as the lines of `forward`."""

import builtins
import importlib
import keyword
import math
import operator
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from utils.exports.layers import Layers, literal

BINARY = {
    **{operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/"},
    **{operator.floordiv: "//", operator.mod: "%", operator.pow: "**", operator.matmul: "@"},
    **{operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<="},
    **{operator.gt: ">", operator.ge: ">=", operator.and_: "&", operator.or_: "|"},
}
PLACES = {"F": F, "torch": torch, "operator": operator, "math": math, "": builtins}
NAMES_FOR = {"getattr": "size", "getitem": "part", "add": "total"}
RESERVED = {"self", "nn", *PLACES, *dir(builtins)}


class Steps:
    """The graph's nodes as statements.

    A value takes over the name of an argument that nobody reads afterwards: `x = self.conv(x)`.
    """

    def __init__(self, graph: fx.Graph, layers: Layers):
        self.layers = layers
        self.lines: list[str] = []
        self.arguments: list[str] = []
        self.imports: set[str] = set()
        self._text: dict[fx.Node, str] = {}  # what stands for a value while it is needed
        self._age: dict[str, int] = {}  # variable -> when it was first used
        self._last = {used: node for node in graph.nodes for used in node.all_input_nodes}
        for node in graph.nodes:
            self._write(node)

    def _write(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            name = self._fresh(node.target.lstrip("*"))
            self._text[node] = name
            self.arguments.append(f"{name}={self._put(node.args[0])}" if node.args else name)
        elif node.op == "get_attr":
            self._text[node] = f"self.{self.layers.tensor(node.target)}"
        elif node.op == "output":
            self.lines.append(f"return {self._put(node.args[0])}")
        else:
            self._assign(node)

    def _assign(self, node: fx.Node) -> None:
        expression = self._expression(node)
        ended = [used for used in node.all_input_nodes if self._last[used] is node]
        free = [self._text.pop(used) for used in ended if used.op != "get_attr"]
        if node.users:
            self._text[node] = (
                min(free, key=self._age.__getitem__) if free else self._fresh(_base(node))
            )
            self.lines.append(f"{self._text[node]} = {expression}")
        elif node.target not in (getattr, operator.getitem):  # else it may work in place
            self.lines.append(expression)

    def _expression(self, node: fx.Node) -> str:
        if node.op == "call_module":
            name, index = self.layers.layer(node.target)
            words = self._words(node)
            if index is not None:
                words = f"{words}.index_select(1, self.{index})"
            return f"self.{name}({words})"
        if node.op == "call_method":
            return f"{self._put(node.args[0])}.{node.target}({self._words(node, 1)})"
        target, args = node.target, node.args
        if target in BINARY:
            return f"{self._operand(args[0])} {BINARY[target]} {self._operand(args[1])}"
        if target is operator.getitem:
            return f"{self._operand(args[0])}[{self._index(args[1])}]"
        if target is getattr and len(args) == 2:
            return f"{self._put(args[0])}.{args[1]}"
        return f"{self._function(target)}({self._words(node)})"

    def _function(self, target: Any) -> str:
        """How a function is called, once it is sure that the name leads to it."""
        name, module = target.__name__, getattr(target, "__module__", None) or ""
        for place, found in PLACES.items():
            if getattr(found, name, None) is target:
                self.imports.add(place)
                return f"{place}.{name}".lstrip(".")
        public = module.startswith("torch.")
        if public and getattr(importlib.import_module(module), name, None) is target:
            self.imports.add(module)
            return f"{module}.{name}"
        raise ValueError(f"it calls {module}.{name}, which is no function of torch")

    def _words(self, node: fx.Node, start: int = 0) -> str:
        words = [self._put(value) for value in node.args[start:]]
        return ", ".join([*words, *(f"{key}={self._put(v)}" for key, v in node.kwargs.items())])

    def _operand(self, value: Any) -> str:
        text = self._put(value)
        return f"({text})" if text.startswith("-") else text

    def _index(self, value: Any) -> str:
        if isinstance(value, tuple) and value:
            return ", ".join(map(self._index, value)) + ("," if len(value) == 1 else "")
        if isinstance(value, slice):
            ends = [value.start, value.stop] + ([value.step] if value.step is not None else [])
            return ":".join("" if end is None else self._put(end) for end in ends)
        return self._put(value)

    def _put(self, value: Any) -> str:
        """An argument as text, values by their variables."""
        return literal(value, self._text)

    def _fresh(self, base: str) -> str:
        base = f"{base}_" if keyword.iskeyword(base) or base in RESERVED else base
        taken, name, number = set(self._text.values()), base, 2
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        self._age.setdefault(name, len(self._age))
        return name


def _base(node: fx.Node) -> str:
    """A word for a new variable: the part of the network or the function that it comes from."""
    name = node.target if isinstance(node.target, str) else node.target.__name__
    parts = [part for part in name.split(".") if not part.isdigit()]
    word = re.sub(r"\W", "_", parts[-1] if parts else "y").strip("_")
    return NAMES_FOR.get(word, word) or "y"
