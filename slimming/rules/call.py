"""What a rule sees of a network: one operation, and all that was found so far."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from slimming.rules.channel_ids import (
    NONE,
    SCORED,
    Ids,
    blank,
    narrow,
    spread,
    squeezed,
    varying,
)

Planes = list[Tensor]
# Arguments that say how large something is, or where: what they do to the channels shows in these.
SIZES = {"size", "start", "end", "groups", "split_size", "split_sizes", "repeats", "pad", "shifts"}
SIZES |= {"group", "N", "C", "HxW", "normalized_shape", "length", "index", "padding_mode"}


@dataclass(frozen=True)
class Call:
    """One operation as it ran."""

    name: str  # of the ATen operation, without a trailing underscore: "convolution"
    run: Callable[..., Any]  # the operation itself
    arguments: dict[str, Any]  # by the names of the operation's schema, defaults filled in
    output: Any
    layer: str  # path of the module that runs; "" outside
    where: str  # "file.py:12", the line of the user's code

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def get(self, argument: str, default: Any = None) -> Any:
        return self.arguments.get(argument, default)

    @property
    def tags(self) -> Collection[Any]:
        return getattr(self.run, "tags", ())

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """The arguments that are neither tensors nor sizes or places."""
        said = {k: v for k, v in self.arguments.items() if k not in SIZES}
        return {k: v for k, v in said.items() if _is_number(v)}

    @cached_property
    def inputs(self) -> list[Tensor]:
        """Every tensor among the arguments, in order."""
        return _tensors(self.arguments)

    @cached_property
    def outputs(self) -> list[Tensor]:
        return _tensors(self.output)

    def on(self, plane: Tensor) -> Tensor:
        """The same operation on ids."""
        return self.run(*[plane, *list(self.arguments.values())[1:]])

    def __str__(self) -> str:
        """For reasons: what ran, and where."""
        return f"'{self.name}' ({self.where})" if self.where else f"'{self.name}'"


@dataclass
class Value:
    """What is known of a tensor."""

    tensor: Tensor  # held, so that its identity isn't given to another one
    planes: Planes
    zero: bool = False  # where a stored weight is zero, this is


@dataclass(frozen=True)
class Product:
    """Multiplications: `times` for each combination of one entry out of each factor."""

    times: float  # per image
    factors: tuple[Tensor, ...]  # ids


@dataclass
class Found:
    """What the operations of a network have told so far."""

    batch: int  # images in the example
    ids: Ids = field(default_factory=Ids)
    values: dict[int, Value] = field(default_factory=dict)
    stored: dict[int, list[tuple[str, Tensor]]] = field(default_factory=dict)  # storage -> tensors
    live: set[int] = field(default_factory=set)  # storages whose values depend on the input
    reads: dict[tuple[str, int], None] = field(default_factory=dict)  # dims that read channels
    writes: dict[tuple[str, int], None] = field(default_factory=dict)  # dims that make channels
    readers: list[tuple[Tensor, str]] = field(default_factory=list)  # ids -> the layer reading them
    norm_inputs: dict[str, list[Tensor]] = field(default_factory=dict)  # norm -> ids, call by call
    norms: dict[str, dict[str, str]] = field(default_factory=dict)  # norm -> {role: tensor name}
    grouped: list[Tensor] = field(default_factory=list)  # ids that grouped convolutions make
    picked: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # value -> source, ids
    unscored: list[tuple[Tensor, str]] = field(default_factory=list)  # ids that nothing scores
    joined: list[tuple[Tensor, str]] = field(default_factory=list)  # ids that are added to others
    uses: dict[str, int] = field(default_factory=dict)  # weight -> how often a layer multiplies it
    products: list[Product] = field(default_factory=list)
    loose: set[str] = field(default_factory=set)  # lines whose reading a single try doesn't prove
    choices: dict[str, int] = field(default_factory=dict)  # line of code -> which of its readings
    readings: dict[str, int] = field(default_factory=dict)  # line of code -> how many there are

    # What is stored and what depends on the input

    def store(self, name: str, tensor: Tensor) -> None:
        """A parameter or buffer: an id for each index along each of its dimensions."""
        known = self.stored.setdefault(_storage(tensor), [])
        if any(tensor is other for _, other in known):
            return  # under a second name
        known.append((name, tensor))
        self._number(name, tensor)

    def _number(self, name: str, tensor: Tensor) -> Value:
        rank, sizes = tensor.dim(), [(d, n) for d, n in enumerate(tensor.shape) if n > 1]
        planes = [spread(self.ids.number(name, d, n), d, rank) for d, n in sizes]
        return self.values.setdefault(id(tensor), Value(tensor, planes, zero=True))

    def name(self, tensor: Any) -> str | None:
        """What a tensor is called, if it is one that is stored, as it is."""
        if not isinstance(tensor, Tensor):
            return None
        for name, known in self.stored.get(_storage(tensor), ()):
            same = tensor.shape == known.shape and tensor.stride() == known.stride()
            if same and tensor.storage_offset() == known.storage_offset():
                return name
        return None

    def source(self, tensor: Tensor) -> str | None:
        """The stored tensor of which this is another view, transposed or reshaped."""
        known = self.stored.get(_storage(tensor), ())
        return next((name for name, t in known if t.numel() == tensor.numel()), None)

    def is_live(self, tensor: Tensor) -> bool:
        return _storage(tensor) in self.live

    def enliven(self, tensor: Tensor) -> None:
        self.live.add(_storage(tensor))

    # Planes

    def value(self, tensor: Tensor) -> Value:
        known = self.values.get(id(tensor))
        if known is None and (name := self.name(tensor)) is not None:
            known = self._number(name, tensor)  # the same tensor, wrapped anew
        return known or Value(tensor, [])

    def planes(self, tensor: Any) -> Planes:
        return self.value(tensor).planes if isinstance(tensor, Tensor) else []

    def give(self, tensor: Tensor, planes: Iterable[Tensor], zero: bool = False) -> None:
        kept = [squeezed(plane) for plane in planes]
        self.values[id(tensor)] = Value(tensor, [p for p in kept if not blank(p)], zero)

    def axis(self, tensor: Tensor, dim: int) -> Tensor | None:
        """(size,) the channel at each index of `dim`; None: no index is one.

        What varies along further dimensions is read position by position with the same weight, so
        the channels of all positions are cut together.
        """
        name, dim = self.name(tensor), dim % tensor.dim()
        if name is not None:
            return self.ids.number(name, dim, tensor.shape[dim])
        found = None
        for plane in self.planes(tensor):
            others = [d for d in varying(plane) if d != dim]
            if plane.shape[dim] == 1 and (others or tensor.shape[dim] > 1):
                continue
            first = narrow(plane, others)
            if others:
                self.ids.tie(first, plane, "it is mixed with other channels over positions")
            ids = first.flatten()
            if found is not None:
                self.ids.tie(found, ids, "it belongs to channels of several kinds")
            found = ids if found is None else torch.where(found == NONE, ids, found)
        return found

    def along(self, tensor: Tensor, dim: int) -> Tensor:
        """As `axis`, with -1 for what is no channel."""
        found = self.axis(tensor, dim)
        return torch.full((tensor.shape[dim],), NONE) if found is None else found

    # Ties and pins

    def choice(self, call: Call, options: Sequence[Any]) -> Any:
        """One of several readings of the code: the first, until it proves wrong."""
        self.readings[call.where] = max(len(options), self.readings.get(call.where, 0))
        return options[min(self.choices.get(call.where, 0), len(options) - 1)]

    def pin(self, planes: Iterable[Tensor], reason: str) -> None:
        for plane in planes:
            self.ids.pin(plane, reason)

    def pin_inputs(self, call: Call, reason: str) -> None:
        for tensor in call.inputs:
            self.pin(self.planes(tensor), reason)

    def carry(self, planes: Planes, to: Mapping[int, int], rank: int, reason: str) -> Planes:
        """Planes of a value whose dimension d is dimension `to[d]` of another, of this rank.

        What varies along other dimensions is mixed there: it stays, for this reason.
        """
        carried = []
        for plane in planes:
            if not set(varying(plane)) <= to.keys():
                self.ids.pin(plane, reason)
                continue
            shape = [1] * rank
            for dim, target in to.items():
                shape[target] = plane.shape[dim]
            carried.append(plane.permute(_order(to, plane.dim())).reshape(shape))
        return carried

    def together(
        self, plane: Tensor, dims: Iterable[int], reason: str, joins: bool = False
    ) -> Tensor:
        """Along these dimensions, channels become one: they are cut together.

        joins: their values are added up, or the like.
        """
        first = narrow(plane, dims)
        self.ids.tie(first, plane, reason)
        if joins:
            self._chosen(*torch.broadcast_tensors(first, plane), reason, False, True)
        return first

    def merge(
        self,
        operands: Iterable[tuple[Sequence[int], Planes]],
        shape: Sequence[int],
        reason: str,
        product: bool = False,
        joins: bool = False,
    ) -> Planes:
        """Planes of a value each of whose entries is made of one entry of each operand.

        Args:
            operands: shapes that broadcast to `shape`, and planes.
            product: a factor that is zero makes it zero; else it is a sum, a choice, ...
            joins: it makes one stream of two.
        """
        rank, merged = len(shape), []
        operands = [
            (_aligned(of, rank), [_align(p, rank) for p in planes]) for of, planes in operands
        ]
        wide = {d for _, planes in operands for plane in planes for d in varying(plane)}
        for sizes, planes in operands:
            for plane in planes:
                if not varying(plane) and any(sizes[d] == 1 for d in wide):
                    self.ids.pin(plane, f"{reason} many channels with one")
                else:
                    self._merge_into(merged, plane, reason, product, joins)
        kept = []
        for plane in merged:
            if any(_has_no_channels(*of, set(varying(plane))) for of in operands):
                self.ids.pin(plane, f"{reason} a tensor of a fixed size")
            else:
                kept.append(plane)
        return kept

    def _merge_into(
        self, merged: Planes, plane: Tensor, reason: str, product: bool, joins: bool
    ) -> None:
        here = set(varying(plane))
        for i, other in enumerate(merged):
            there = set(varying(other))
            if here & there or not here or not there:
                self.ids.tie(other, plane, f"{reason} values of a fixed size")
                pair = torch.broadcast_tensors(other, plane)
                merged[i] = self._chosen(*pair, reason, product, joins)
                return
        merged.append(plane)

    def _chosen(self, a: Tensor, b: Tensor, reason: str, product: bool, joins: bool) -> Tensor:
        """Of two ids that were tied, the one that says more about where the values come from."""
        if a is b or torch.equal(a, b):
            return a
        origin = self.ids.origin
        of_a, of_b = origin[a.clamp(min=0)], origin[b.clamp(min=0)]
        if not product:
            odd = (of_a != of_b) & (of_a > 0) & (of_b > 0) & (a != NONE) & (b != NONE)
            if odd.any():
                ids = torch.cat([a[odd], b[odd]])
                raw = self.ids.owners(ids[origin[ids] != SCORED])
                names = sorted({name.rpartition(".")[0] for name, _ in raw}) or ["a layer"]
                self.unscored.append((ids, f"'{names[0]}', which no BatchNorm scores, adds to it"))
            if joins:
                self.joined.append((torch.cat([a[a != b], b[a != b]]), f"{reason} others"))
        # In a sum the worst counts: RAW before SCORED; in a product the best.
        weight = torch.tensor([0, 1, 2] if product else [0, 2, 1])
        second = (a == NONE) | ((b != NONE) & (weight[of_b.long()] > weight[of_a.long()]))
        return torch.where(second, b, a)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for inner in value for tensor in _tensors(inner)]


def _is_number(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_number, value))
    return isinstance(value, (int, float, bool, str, complex))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _has_no_channels(sizes: list[int], planes: Planes, dims: set[int]) -> bool:
    """Whether an operand has a size along these dimensions, and no channels there."""
    met = any(not varying(p) or dims & set(varying(p)) for p in planes)
    return not met and any(sizes[dim] > 1 for dim in dims)


def _order(to: Mapping[int, int], rank: int) -> list[int]:
    """Dimensions that are kept in the order of their targets, then the others (of size 1)."""
    kept = sorted(to, key=lambda dim: to[dim])
    return kept + [dim for dim in range(rank) if dim not in to]


def _aligned(shape: Iterable[int], rank: int) -> list[int]:
    shape = list(shape)
    return [1] * (rank - len(shape)) + shape


def _align(plane: Tensor, rank: int) -> Tensor:
    return plane if plane.dim() == rank else plane.reshape(_aligned(plane.shape, rank))
