"""Operations that give entries another place: they are run on the channel ids themselves.

Where channels then share their fate, as the equal halves of a split do, they are tied.
"""

import math
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

from slimming.rules.call import Call, Found, Planes
from slimming.rules.channel_ids import NONE, spread, squeezed, varying
from slimming.rules.registry import rule


@rule("clone", "alias", "detach", "_to_copy", "lift_fresh", "lift", "contiguous", "view_as_real")
@rule("lift_fresh_copy", "_conj", "conj", "resolve_conj", "resolve_neg", "view.dtype")
def same(call: Call, found: Found) -> Planes:
    """Every entry stays where it is."""
    return found.planes(call.inputs[0])


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy")
def view(call: Call, found: Found) -> Planes:
    """Only dimensions that are merged or split are looked at, however large the others are."""
    old, new = call["self"], call.output
    blocks = _blocks(old.shape, new.shape)
    asked = list(call["size"])
    return [_reshaped(call, found, plane, blocks, old, new, asked) for plane in found.planes(old)]


def _blocks(old: Iterable[int], new: Iterable[int]) -> list[tuple[list[int], list[int]]]:
    """[(old dims, new dims)] of equal size, the smallest there are, in order."""
    old, new = list(old), list(new)
    i = j = 0
    blocks = []
    while i < len(old) or j < len(new):
        mine, yours = [], []
        a = b = 1
        while True:
            if i < len(old) and (a <= b or j == len(new)):
                a *= old[i]
                mine.append(i)
                i += 1
            elif j < len(new):
                b *= new[j]
                yours.append(j)
                j += 1
            if a == b or (i == len(old) and j == len(new)):
                break
        blocks.append((mine, yours))
    return blocks


def _reshaped(call, found, plane, blocks, old, new, asked) -> Tensor:
    wide, shape = [1] * old.dim(), [1] * new.dim()
    splits = []
    for mine, yours in blocks:
        moving = [d for d in mine if plane.shape[d] > 1]
        if not moving:
            continue
        for d in mine:
            wide[d] = old.shape[d]
        for d in yours:
            shape[d] = new.shape[d]
        if sum(new.shape[d] > 1 for d in yours) > 1:
            splits.append([d for d in yours if new.shape[d] > 1])
    plane = squeezed(plane.expand(wide).reshape(shape))
    for dims in splits:
        plane = _split(call, found, plane, dims, asked)
    return plane


def _split(call: Call, found: Found, plane: Tensor, dims: list[int], asked: list[int]) -> Tensor:
    """One dimension became several, of which one follows the number of channels: which one, the
    code says by -1, or trying it out will tell. Along the others, channels go together.
    """
    moving = [d for d in dims if plane.shape[d] > 1]
    if len(moving) < 2:
        return plane
    said = [d for d in moving if d < len(asked) and asked[d] == -1]
    follows = said[0] if said else found.choice(call, moving[::-1])
    others = [d for d in moving if d != follows]
    return found.together(plane, others, f"{call} parts its channels into groups")


@rule("permute", "transpose", "t", "unsqueeze", "movedim", "swapaxes", "flip", "roll")
@rule("numpy_T", "mT", "permute_copy", "transpose_copy", "unsqueeze_copy", "t_copy")
def moved(call: Call, found: Found) -> Planes:
    """The very same operation, where size 1 means the same as any size."""
    x = call["self"]
    planes = found.planes(x)
    if call.name == "roll":
        dims = {dim % x.dim() for dim in call["dims"]} or set(range(x.dim()))
        round_ = [plane for plane in planes if dims & set(varying(plane))]
        found.pin(round_, f"{call} moves its channels by a number")
        planes = [plane for plane in planes if not dims & set(varying(plane))]
        return planes
    return [call.on(plane) for plane in planes]


@rule("squeeze", "squeeze_copy")
def squeeze(call: Call, found: Found) -> Planes:
    """Dimensions of size 1 go."""
    x, dim = call["self"], call.get("dim")
    dims = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = [d % x.dim() for d in dims if x.shape[d % x.dim()] == 1]
    planes = []
    for plane in found.planes(x):
        if {d % x.dim() for d in dims} & set(varying(plane)):
            found.ids.pin(plane, f"{call} would remove the dimension of channels if one were left")
        else:
            planes.append(torch.squeeze(plane, gone))
    return planes


@rule("expand", "expand_copy")
def expand(call: Call, found: Found) -> Planes:
    """Along a dimension that is stretched all entries are equal: any number of them will do."""
    x, out = call["self"], call.output
    more = out.dim() - x.dim()
    planes = [plane.reshape([1] * more + list(plane.shape)) for plane in found.planes(x)]
    wild = _wild(found, out, [1] * more + list(x.shape))
    return _beside(call, found, planes, wild) + wild


@rule("repeat", "tile")
def repeat(call: Call, found: Found) -> Planes:
    x, out = call["self"], call.output
    more = out.dim() - x.dim()
    planes = []
    for plane in found.planes(x):
        plane = plane.reshape([1] * more + list(plane.shape))
        times = [n if size > 1 else 1 for n, size in zip(call["repeats"], plane.shape)]
        planes.append(plane.repeat(times))
    wild = _wild(found, out, [1] * more + list(x.shape))
    return _beside(call, found, planes, wild) + wild


def _beside(call: Call, found: Found, planes: Planes, wild: Planes) -> Planes:
    """The planes of what is stretched: a single channel that stands for many stays."""
    single = [plane for plane in planes if wild and not varying(plane)]
    found.pin(single, f"{call} stretches it over other channels")
    return [plane for plane in planes if not wild or varying(plane)]


def _wild(found: Found, out: Tensor, before: list[int]) -> Planes:
    """Ids of nothing along dimensions that had one entry."""
    grown = [d for d, size in enumerate(before) if size == 1 and out.shape[d] > 1]
    return [spread(found.ids.fresh(out.shape[d]), d, out.dim()) for d in grown]


@rule("slice", "slice_copy")
def sliced(call: Call, found: Found) -> Planes:
    """A part: where it ends, the channels before and behind are cut in step."""
    x, dim, step = call["self"], call["dim"] % call["self"].dim(), call["step"]
    start, stop, _ = slice(call.get("start"), call.get("end")).indices(x.shape[dim])
    if (start, stop, step) == (0, x.shape[dim], 1):
        return found.planes(x)
    planes = []
    for plane in found.planes(x):
        if plane.shape[dim] > 1:
            if varying(plane) == [dim]:
                plane = _in_step(call, found, plane, dim, [start, stop], step)
            plane = plane[(slice(None),) * dim + (slice(start, stop, step),)]
        planes.append(plane)
    return planes


def _in_step(call, found, plane: Tensor, dim: int, bounds: list[int], step: int = 1) -> Tensor:
    """Tie what has to go together for parts that begin and end at these bounds."""
    size = plane.shape[dim]
    runs = found.ids.run_of(plane.flatten())
    inside = [at for at in bounds if 0 < at < size]
    if step == 1 and all(runs[at - 1] != runs[at] for at in inside):
        return plane  # where a concatenation joined them
    part = math.gcd(size, *inside)
    if step == 1 and part == 1 and size > 2 and "slice" in call.name:
        found.loose.add(call.where)
        return plane  # nothing could go; perhaps the bounds follow: trying it out will tell
    if step == 1 and part == 1:  # fewer channels than parts would be fewer parts
        found.ids.pin(plane, f"{call} parts its channels by numbers")
        return plane
    if step > 1:
        part = step
        if size % step or any(at % step for at in inside if at >= step):
            found.ids.pin(plane, f"{call} picks channels by numbers")
            return plane
        pieces = plane.unflatten(dim, (-1, step))
        found.together(pieces, [dim + 1], f"{call} picks every {step}th channel")
        return plane
    pieces = plane.unflatten(dim, (-1, part))
    found.together(pieces, [dim], f"{call} parts its channels")
    return plane


@rule("select", "select_copy")
def select(call: Call, found: Found) -> Planes:
    """One entry: of a dimension of channels, it is picked by its number."""
    x, dim = call["self"], call["dim"] % call["self"].dim()
    index, planes = call["index"], []
    for plane in found.planes(x):
        if varying(plane) == [dim]:
            found.ids.pin(plane, f"{call} picks a channel by its number")
        elif plane.shape[dim] > 1:
            planes.append(plane.select(dim, index))
        else:
            planes.append(plane.select(dim, 0))
    return planes


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk")
@rule("unsafe_chunk", "tensor_split", "split_with_sizes_copy", "split_copy")
def split(call: Call, found: Found) -> tuple[Planes, ...]:
    x = call["self"]
    dim = call["dim"] % x.dim()
    sizes = [part.shape[dim] for part in call.outputs]
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts: list[Planes] = [[] for _ in sizes]
    for plane in found.planes(x):
        if varying(plane) == [dim]:
            plane = _in_step(call, found, plane, dim, ends)
        for i, (start, stop) in enumerate(pairwise([0, *ends])):
            part = plane.narrow(dim, start, stop - start) if plane.shape[dim] > 1 else plane
            parts[i].append(part)
    return tuple(parts)


@rule("unbind", "unbind_copy")
def unbind(call: Call, found: Found) -> tuple[Planes, ...]:
    x = call["self"]
    dim, parts = call["dim"] % x.dim(), [[] for _ in call.outputs]
    for plane in found.planes(x):
        if varying(plane) == [dim]:
            found.ids.pin(plane, f"{call} takes its channels one by one")
            continue
        for i, part in enumerate(parts):
            part.append(plane.select(dim, i if plane.shape[dim] > 1 else 0))
    return tuple(parts)


@rule("cat", "concat", "concatenate")
def cat(call: Call, found: Found) -> Planes:
    """Side by side: along the joined dimension each keeps its own channels."""
    tensors = [t for t in call["tensors"] if t.dim() == call.output.dim()]
    return _joined(call, found, tensors, call["dim"] % call.output.dim())


@rule("stack")
def stack(call: Call, found: Found) -> Planes:
    dim = call["dim"] % call.output.dim()
    planes = [[p.unsqueeze(dim) for p in found.planes(t)] for t in call["tensors"]]
    return _rows(call, found, planes, [1] * len(planes), dim)


def _joined(call: Call, found: Found, tensors: list[Tensor], dim: int) -> Planes:
    sizes = [t.shape[dim] for t in tensors]
    if all(size == 1 for size in sizes):  # a stack, written as a concatenation
        return _rows(call, found, [found.planes(t) for t in tensors], sizes, dim)
    along, beside = [], []
    for tensor in tensors:
        planes = found.planes(tensor)
        along.append([p for p in planes if p.shape[dim] > 1 or not varying(p)])
        beside.append([p for p in planes if p.shape[dim] == 1 and varying(p)])
    shapes = [[1 if d == dim else n for d, n in enumerate(t.shape)] for t in tensors]
    others = found.merge(zip(shapes, beside), shapes[0], f"{call} joins it with")
    return _rows(call, found, along, sizes, dim) + others


def _rows(call: Call, found: Found, planes: list[Planes], sizes: list[int], dim: int) -> Planes:
    """Planes of all parts that vary along the same dimensions, one after the other along `dim`."""
    kinds = [{tuple(d for d in varying(p) if d != dim): p for p in of} for of in planes]
    for of, kind in zip(planes, kinds):
        rest = [p for p in of if all(p is not other for other in kind.values())]
        found.pin(rest, f"{call} joins channels of several kinds")
    joined = []
    nothing = torch.full([1] * call.output.dim(), NONE)
    for which in dict.fromkeys(which for kind in kinds for which in kind):
        parts = [kind.get(which, nothing) for kind in kinds]
        shape = [max(sizes) for sizes in zip(*(part.shape for part in parts))]
        rows = [
            part.expand([size if d == dim else n for d, n in enumerate(shape)])
            for part, size in zip(parts, sizes)
        ]
        joined.append(torch.cat(rows, dim))
    return joined


@rule("constant_pad_nd")
def constant_pad(call: Call, found: Found) -> Planes:
    """Around positions anything may be put; constants beside channels are no channels."""
    x, planes = call["self"], []
    widths = call["pad"]
    around = {x.dim() - 1 - i // 2: widths[i : i + 2] for i in range(0, len(widths), 2)}
    for plane in found.planes(x):
        if any(min(around.get(d, [0])) < 0 for d in varying(plane)):
            found.ids.pin(plane, f"{call} cuts off channels by numbers")
            continue
        here = [n if plane.shape[x.dim() - 1 - i // 2] > 1 else 0 for i, n in enumerate(widths)]
        planes.append(torch.constant_pad_nd(plane, here, NONE) if any(here) else plane)
    return planes


@rule("index", "index_select", "take_along_dim")
def index(call: Call, found: Found) -> Planes:
    """Positions may be picked by any numbers; channels may not."""
    x = call["self"]
    given = call.get("indices")
    if given is None:
        given = [None] * (call["dim"] % x.dim()) + [call["index"]]
    looked = {d for d, i in enumerate(given) if i is not None}
    if any(i is not None and i.dtype == torch.bool for i in given):
        found.pin_inputs(call, f"{call} picks entries by their values")
        return []
    planes = []
    for plane in found.planes(x):
        if looked & set(varying(plane)):
            found.ids.pin(plane, f"{call} picks channels by numbers")
            continue
        wide = plane.expand([2 if d in looked else n for d, n in enumerate(plane.shape)])
        zeros = [None if i is None else torch.zeros(i.shape, dtype=torch.long) for i in given]
        planes.append(wide[tuple(slice(None) if z is None else z for z in zeros)])
    return planes


@rule("gather")
def gather(call: Call, found: Found) -> Planes:
    x, dim, out = call["self"], call["dim"] % max(call["self"].dim(), 1), call.output
    to = {d: d for d in range(x.dim()) if d != dim and x.shape[d] == out.shape[d]}
    return found.carry(found.planes(x), to, out.dim(), f"{call} picks its channels by numbers")


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle")
def shuffle(call: Call, found: Found) -> Planes:
    """Channels that become positions of one channel, or change places in turn, go together."""
    x, rank = call["self"], call.output.dim()
    ids = found.axis(x, -3 if call.name.startswith("pixel") else 1)
    dim = rank - 3 if call.name.startswith("pixel") else 1
    if ids is None:
        return []
    if call.name == "pixel_unshuffle":
        return [spread(ids.repeat_interleave(call["downscale_factor"] ** 2), dim, rank)]
    if call.name == "pixel_shuffle":
        blocks = ids.view(-1, call["upscale_factor"] ** 2)
        first = found.together(blocks, [1], f"{call} makes positions of one channel of them")
        return [spread(first.flatten(), dim, rank)]
    rows = ids.view(call["groups"], -1)
    found.together(rows, [0], f"{call} groups it with others")
    return [spread(rows.T.reshape(-1), dim, rank)]


@rule("im2col")
def patches(call: Call, found: Found) -> Planes:
    """(N, C, H, W) -> (N, C x kernel, L)."""
    kernel = math.prod(call["kernel_size"])
    ids = found.axis(call["self"], -3)
    return [] if ids is None else [spread(ids.repeat_interleave(kernel), -2, call.output.dim())]


@rule("col2im")
def from_patches(call: Call, found: Found) -> Planes:
    kernel, ids = math.prod(call["kernel_size"]), found.axis(call["self"], -2)
    if ids is None:
        return []
    first = found.together(ids.view(-1, kernel), [1], f"{call} adds up the entries of a patch")
    return [spread(first.flatten(), -3, call.output.dim())]


@rule("unfold", "unfold_copy")
def windows(call: Call, found: Found) -> Planes:
    """(..., L, ...) -> (..., windows, ..., size)."""
    x = call["self"]
    dim = call["dimension"] % x.dim()
    to = {d: d for d in range(x.dim()) if d != dim}
    return found.carry(found.planes(x), to, call.output.dim(), f"{call} runs over its channels")


@rule("diagonal", "diagonal_copy", "tril", "triu")
def diagonal(call: Call, found: Found) -> Planes:
    x, out = call["self"], call.output
    first = call.get("dim1", -2) % x.dim(), call.get("dim2", -1) % x.dim()
    rest = [d for d in range(x.dim()) if d not in first]
    return found.carry(
        found.planes(x), {d: i for i, d in enumerate(rest)}, out.dim(), f"{call} looks at places"
    )
