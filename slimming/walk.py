"""Pushes channel numbers through a traced network, operation by operation."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_flatten, tree_map

from slimming.labels import NONE, Labels, along, spread, varying_dims

# Each output entry depends on one input entry, so channels pass through untouched.
POINTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign),
    *(nn.Identity, nn.Dropout),
)
# Each channel is treated by itself; the other dimensions may shrink or grow.
PER_CHANNEL_MODULES = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d),
    *(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d),
)
POINTWISE = {
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "hardswish"),
    *("sigmoid", "tanh", "hardtanh", "hardsigmoid", "softplus", "dropout", "contiguous", "clone"),
    *("float", "to", "neg", "abs", "sqrt", "exp", "square", "clamp", "detach"),
}
BINARY = {"add", "iadd", "add_", "sub", "isub", "sub_", "mul", "imul", "mul_"}
BINARY |= {"truediv", "itruediv", "div", "div_", "maximum", "minimum", "pow"}
PER_CHANNEL = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"}
PER_CHANNEL |= {"max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "interpolate", "dropout2d"}
MOVES = {"flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "cat"}
MOVES |= {"concat", "stack"}
REDUCTIONS = {"mean", "sum", "amax", "amin"}


class Walk(fx.Interpreter):
    """Runs a traced network on the meta device and labels every value.

    After `run`, `labels` holds what was numbered and united, and the attributes below the rest.
    """

    def __init__(self, traced: fx.GraphModule, labels: Labels, batch: int):
        super().__init__(traced)
        self.labels = labels
        self.batch = batch  # images in the example
        self.reads: dict[tuple[str, int], None] = {}  # weight dimensions that read channels
        self.norm_inputs: dict[str, list[Tensor]] = {}  # BatchNorm -> channels it normalises
        self.readers: list[tuple[Tensor, str]] = []  # channels -> the layer that reads them
        self.uses: dict[str, int] = {}  # weight -> multiplications with each entry, for one image
        self.folds: dict[str, str] = {}  # layer -> BatchNorm that reads its output, alone
        self._of: dict[fx.Node, Any] = {}  # node -> labels, in the structure of its value

    # -- plumbing ---------------------------------------------------------------------------------

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        labels = self._label(node, value)
        self._of[node] = labels
        return value

    def _in(self, node: fx.Node) -> list[tuple[Tensor, Tensor]]:
        """(value, labels) of every tensor among the arguments, in order."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for source in node.all_input_nodes:
            values = tree_flatten(self.env.get(source))[0]
            for value, label in zip(values, tree_flatten(self._of[source])[0], strict=True):
                if isinstance(value, Tensor):
                    pairs.append((value, label))
        return pairs

    def _label(self, node: fx.Node, value: Any) -> Any:
        if node.op == "output":
            for _, labels in self._in(node):
                self.labels.fix(labels, "it is the network's output")
            return None
        if node.op == "get_attr":
            return tree_map(_blank, value)
        inputs = self._in(node)
        if not any((labels != NONE).any() for _, labels in inputs) and node.op != "call_module":
            return tree_map(_blank, value)
        if node.op == "call_module":
            return self._module(node, self.fetch_attr(node.target), inputs, value)
        name = node.target if isinstance(node.target, str) else node.target.__name__
        return self._function(node, name, inputs, value)

    def _refuse(self, inputs: list, value: Any, reason: str) -> Any:
        """Whatever comes in stays at full width; nothing is known of what comes out."""
        for _, labels in inputs:
            self.labels.fix(labels, reason)
        return tree_map(_blank, value)

    # -- modules ----------------------------------------------------------------------------------

    def _module(self, node: fx.Node, module: nn.Module, inputs: list, value: Any) -> Any:
        name = node.target
        if len(inputs) == 1 and isinstance(value, Tensor):
            labels = inputs[0][1]
            if isinstance(module, _ConvNd):
                return self._conv(name, module, labels, value)
            if isinstance(module, nn.Linear):
                return self._linear(name, module, labels, value)
            if isinstance(module, _BatchNorm):
                return self._norm(node, module, labels, value)
            if isinstance(module, POINTWISE_MODULES):
                return labels
            if isinstance(module, PER_CHANNEL_MODULES):
                return self._per_channel(name, labels, value)
            if isinstance(module, nn.Flatten):
                return self._move(node, module, value)
        return self._refuse(inputs, value, f"{type(module).__name__} '{name}' may mix its channels")

    def _consume(self, name: str, dim: int, channels: Tensor | None, labels: Tensor) -> None:
        """The layer's weight reads `channels` along its dimension `dim`."""
        weight = f"{name}.weight"
        size = self.fetch_attr(name).weight.shape[dim]
        own = self.labels.number(weight, dim, size)
        self.reads[weight, dim] = None
        if channels is None:
            reason = f"'{name}' reads channels that are mixed over positions"
            self.labels.fix(labels, reason)
            self.labels.fix(own, reason)
            return
        self.labels.unite(own, channels, f"'{name}' also reads values that are no channels")
        self.readers.append((channels, name))

    def _produce(self, name: str, module: nn.Module, dim: int) -> Tensor:
        numbers = self.labels.number(f"{name}.weight", dim, module.weight.shape[dim])
        if module.bias is not None:
            self.labels.dims[f"{name}.bias", 0] = numbers
        return numbers

    def _conv(self, name: str, module: _ConvNd, labels: Tensor, value: Tensor) -> Tensor:
        transposed = isinstance(module, _ConvTransposeNd)
        self._count_uses(name, labels if transposed else value, 1)
        channels = along(labels, 1)
        if module.groups > 1:
            return self._grouped(name, module, labels, value)
        self._consume(name, 0 if transposed else 1, channels, labels)
        out = self._produce(name, module, 1 if transposed else 0)
        return spread(out, 1, value.shape)

    def _grouped(self, name: str, module: _ConvNd, labels: Tensor, value: Tensor) -> Tensor:
        """A group of a grouped convolution goes as a whole: what it reads and what it writes."""
        channels = along(labels, 1)
        if channels is None or isinstance(module, _ConvTransposeNd):
            return self._refuse([(None, labels)], value, f"'{name}' is grouped in a way not known")
        out = self._produce(name, module, 0)
        if (channels == NONE).any():
            self.labels.fix(torch.cat([channels, out]), f"'{name}' reads values of a fixed size")
        else:
            blocks = torch.cat([channels.view(module.groups, -1), out.view(module.groups, -1)], 1)
            first = blocks[:, :1].expand_as(blocks)
            self.labels.unite(first, blocks, "")
        return spread(out, 1, value.shape)

    def _linear(self, name: str, module: nn.Linear, labels: Tensor, value: Tensor) -> Tensor:
        self._count_uses(name, value, -1)
        self._consume(name, 1, along(labels, -1), labels)
        return spread(self._produce(name, module, 0), -1, value.shape)

    def _norm(self, node: fx.Node, module: _BatchNorm, labels: Tensor, value: Tensor) -> Tensor:
        name = node.target
        channels = along(labels, 1)
        if channels is None:
            self.labels.fix(labels, f"BatchNorm '{name}' reads channels mixed over positions")
            channels = torch.full((module.num_features,), NONE)
        numbers = self.labels.number(name, 0, module.num_features)
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module, tensor) is not None:
                self.labels.dims[f"{name}.{tensor}", 0] = numbers
        index = getattr(module, "index", None)
        if index is not None:  # a channel selection from an earlier cut
            self.labels.dims[f"{name}.index", 0] = numbers
        self.norm_inputs.setdefault(name, []).append(channels)
        self.readers.append((channels, name))
        source = node.all_input_nodes[0]
        if index is None and self._once(source) and self._once(node) and len(source.users) == 1:
            self.folds[source.target] = name
        return spread(numbers, 1, value.shape)

    def _once(self, node: fx.Node) -> bool:
        """Whether this is the only call of a module."""
        calls = [n for n in self.graph.nodes if n.op == "call_module" and n.target == node.target]
        return len(calls) == 1

    def _per_channel(self, name: str, labels: Tensor, value: Tensor) -> Tensor:
        channels = along(labels, 1)
        if channels is None:
            return self._refuse([(None, labels)], value, f"'{name}' mixes channels over positions")
        return spread(channels, 1, value.shape)

    def _count_uses(self, name: str, value: Tensor, channel_dim: int) -> None:
        weight, positions = f"{name}.weight", value.numel() // value.shape[channel_dim]
        self.uses[weight] = self.uses.get(weight, 0) + positions // self.batch

    # -- functions and tensor methods -------------------------------------------------------------

    def _function(self, node: fx.Node, name: str, inputs: list, value: Any) -> Any:
        if not any(isinstance(leaf, Tensor) for leaf in tree_flatten(value)[0]):
            return tree_map(_blank, value)  # sizes and the like
        if name in BINARY:
            return self._binary(name, inputs, value)
        if len(inputs) == 1 and name in POINTWISE:
            return inputs[0][1]
        if len(inputs) == 1 and name in PER_CHANNEL:
            return self._per_channel(name, inputs[0][1], value)
        if len(inputs) == 1 and name in REDUCTIONS:
            return self._reduce(node, name, inputs, value)
        if name in MOVES:
            return self._move(node, None, value)
        return self._refuse(inputs, value, f"the operation '{name}' may mix its channels")

    def _binary(self, name: str, inputs: list, value: Tensor) -> Tensor:
        aligned = [
            labels.reshape([1] * (value.dim() - labels.dim()) + list(labels.shape))
            for _, labels in inputs
        ]
        kept: list[Tensor] = []
        for i, labels in enumerate(aligned):
            channel_dims = {d for j, o in enumerate(aligned) if j != i for d in varying_dims(o)}
            if any(labels.shape[d] == 1 and value.shape[d] > 1 for d in channel_dims):
                self.labels.fix(labels, f"'{name}' stretches it over other channels")
                continue
            kept.append(labels.expand(value.shape))
        if not kept:
            return torch.full(value.shape, NONE)
        for labels in kept[1:]:
            reason = f"'{name}' combines it with a tensor of a fixed size"
            self.labels.unite(kept[0], labels, reason)
        return torch.stack(kept).amax(0) if len(kept) > 1 else kept[0]

    def _reduce(self, node: fx.Node, name: str, inputs: list, value: Tensor) -> Tensor:
        """Run on the smallest and the largest number: where they differ, channels are mixed."""
        labels = inputs[0][1]
        args, kwargs = self._concrete(node, lambda _: labels)
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        keepdim = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        if dims is None or not isinstance(value, Tensor):
            return self._refuse(inputs, value, f"'{name}' mixes its channels")
        low, high = labels.amin(dims, keepdim), labels.amax(dims, keepdim)
        if not torch.equal(low, high):
            return self._refuse(inputs, value, f"'{name}' mixes its channels")
        return low

    def _move(self, node: fx.Node, module: nn.Module | None, value: Any) -> Any:
        """Entries change their place: do the same to their numbers."""
        inputs = self._in(node)
        args, kwargs = self._concrete(node, lambda source: self._of[source])
        if module is not None:
            labels = module(*args, **kwargs)
        elif node.target == "view":  # numbers are stretched views themselves: they may need a copy
            labels = args[0].reshape(*args[1:], **kwargs)
        elif node.op == "call_method":
            labels = getattr(args[0], node.target)(*args[1:], **kwargs)
        else:
            labels = node.target(*args, **kwargs)
        if not isinstance(labels, Tensor) or labels.shape != value.shape:
            return self._refuse(inputs, value, f"'{node.name}' moves channels in a way not known")
        written = {a for a in tree_flatten((node.args, node.kwargs))[0] if isinstance(a, int)}
        varying = varying_dims(labels)
        if node.target in ("view", "reshape", torch.reshape):
            if any(labels.shape[dim] in written for dim in varying):
                size = next(labels.shape[d] for d in varying if labels.shape[d] in written)
                reason = f"its size {size} is written as a number in '{node.name}'"
                return self._refuse(inputs, value, reason)
            if len(varying) > 1:
                reason = f"'{node.name}' splits its channels over two dimensions"
                return self._refuse(inputs, value, reason)
        return labels

    def _concrete(self, node: fx.Node, labels_of: Any) -> tuple[tuple, dict]:
        """The node's arguments with tensors replaced by their labels."""

        def concrete(source: fx.Node) -> Any:
            value = self.env[source]
            return labels_of(source) if isinstance(value, Tensor) else value

        return fx.node.map_arg(node.args, concrete), fx.node.map_arg(node.kwargs, concrete)


def _blank(value: Any) -> Any:
    return torch.full(value.shape, NONE) if isinstance(value, Tensor) else None
