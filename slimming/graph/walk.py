"""Pushes channel numbers through a traced network, node by node.

Every value gets labels: a tensor of its shape that holds the number of each entry's channel.
What a layer does with them is in `layers.py`, what an operation does in `operations.py`.
"""

from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from slimming.graph import layers, operations
from slimming.graph.labels import NONE, Labels, is_blank, varying_dims
from slimming.graph.selection import SELECTING

Coupled = Literal["prune", "keep"]


class Walk(fx.Interpreter):
    """Runs a traced network on the meta device and labels every value.

    After `run`, `labels` holds what was numbered and united, and the attributes below the rest.
    """

    def __init__(self, traced: fx.GraphModule, labels: Labels, batch: int, coupled: Coupled):
        super().__init__(traced)
        self.labels = labels
        self.batch = batch  # images in the example
        self.coupled = coupled  # what happens to channels that are added to others
        self.reads: dict[tuple[str, int], None] = {}  # weight dimensions that read channels
        self.norm_inputs: dict[str, list[Tensor]] = {}  # BatchNorm -> channels it normalises
        self.readers: list[tuple[Tensor, str]] = []  # channels -> the layer that reads them
        self.uses: dict[str, int] = {}  # weight -> multiplications with each entry, for one image
        self.folds: dict[str, str] = {}  # layer -> BatchNorm that reads its output, alone
        self.outside: set[str] = set()  # tensors that are used outside their layer
        self.of: dict[fx.Node, Any] = {}  # node -> labels, in the structure of its value
        self._doubled: dict[fx.Node, Any] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        self.of[node] = self._label(node, value)
        if node.op in ("call_function", "call_method") and not has_tensors(value):
            self._doubled[node] = self._double(node)
        return value

    def call_module(self, target: str, args: tuple, kwargs: dict) -> Any:
        """A BatchNorm changes no shape; on the meta device it would take half of the time."""
        module = self.fetch_attr(target)
        if type(module) in SELECTING and len(args) == 1 and isinstance(args[0], Tensor):
            module._check_input_dim(args[0])
            if args[0].shape[1] == module.num_features:
                return torch.empty_like(args[0])
        return super().call_module(target, args, kwargs)

    def _label(self, node: fx.Node, value: Any) -> Any:
        inputs = self.inputs(node)
        if node.op == "output":
            return self.refuse(inputs, None, "it is the network's output")
        if node.op == "get_attr":
            self.outside.add(node.target)
        if node.op == "call_module":
            return layers.label(self, node, inputs, value)
        if not has_tensors(value) or all(is_blank(labels) for labels in inputs):
            return tree_map(_blank, value)
        return operations.label(self, node, inputs, value)

    def inputs(self, node: fx.Node) -> list[Tensor]:
        """The labels of every tensor among the arguments, in order."""
        leaves = [leaf for source in node.all_input_nodes for leaf in tree_leaves(self.of[source])]
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def refuse(self, inputs: list[Tensor], value: Any, reason: str) -> Any:
        """Whatever comes in stays at full width; nothing is known of what comes out."""
        for labels in inputs:
            self.labels.fix(labels, reason)
        return tree_map(_blank, value)

    def arguments(self, node: fx.Node) -> tuple[tuple, dict]:
        """The node's arguments with tensors replaced by their labels."""

        def concrete(source: fx.Node) -> Any:
            value = self.env[source]
            return self.of[source] if has_tensors(value) else value

        return fx.node.map_arg(node.args, concrete), fx.node.map_arg(node.kwargs, concrete)

    def doubled_arguments(self, node: fx.Node) -> tuple[tuple, dict]:
        """The node's arguments if the network had twice as many channels.

        A size that the code computes from its input doubles too; one written as a number doesn't.
        """

        def doubled(source: fx.Node) -> Any:
            value = self.env[source]
            if not isinstance(value, Tensor):
                return self._doubled.get(source, value)
            grow = varying_dims(self.of[source])
            shape = [2 * size if dim in grow else size for dim, size in enumerate(value.shape)]
            return value.new_empty(shape)

        return fx.node.map_arg(node.args, doubled), fx.node.map_arg(node.kwargs, doubled)

    def follows_channels(self, node: fx.Node) -> bool:
        """Whether a number among the arguments depends on how many channels there are."""
        numbers = [n for n in node.all_input_nodes if not has_tensors(self.env[n])]
        return any(self._doubled.get(n, self.env[n]) != self.env[n] for n in numbers)

    def _double(self, node: fx.Node) -> Any:
        args, kwargs = self.doubled_arguments(node)
        try:
            return getattr(self, node.op)(node.target, args, kwargs)
        except Exception:  # whatever a network's own code raises on a size it doesn't expect
            return None


def has_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _blank(value: Any) -> Any:
    return torch.tensor(NONE).expand(value.shape) if isinstance(value, Tensor) else None
