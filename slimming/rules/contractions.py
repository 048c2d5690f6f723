"""Sums of products: layers read channels and make new ones.

What a layer is, is told by its weight: a stored tensor, or one that is computed from stored tensors
alone. Where both factors depend on the input, no weight reads the channels that are summed up.
"""

from math import prod

import torch
from torch import Tensor

from slimming.rules.call import Call, Found, Planes, Product
from slimming.rules.channel_ids import NONE, RAW, spread, varying
from slimming.rules.registry import rule


@rule("convolution")
def convolution(call: Call, found: Found) -> Planes:
    x, weight, out = call["input"], call["weight"], call.output
    transposed, groups = bool(call.get("transposed")), call["groups"]
    name = found.source(weight)
    in_groups = groups > 1 or name in found.ids.in_groups  # one group may be left
    if in_groups and name is not None:
        found.ids.in_groups.add(name)
    read, made = (0, 1) if transposed else (1, 0)
    if found.is_live(weight) or (name is None and not found.is_live(x)):
        found.pin_inputs(call, f"{call} has a kernel that is computed from its input")
        return []
    positions = (x if transposed else out).numel() // (x if transposed else out).shape[1]
    _count(call, found, weight, positions * prod(weight.shape[2:]), read, made, in_groups)
    ids = found.axis(x, 1)
    if in_groups:
        own = _grouped(call, found, ids, weight, transposed)
    else:
        _read(call, found, ids, x.shape[1], weight, read)
        own = _write(found, weight, made)
    if call.get("bias") is not None:
        found.ids.tie(own, found.along(call["bias"], 0), f"the bias of {layer(found, weight)}")
    beside = [p for p in found.planes(x) if p.shape[1] == 1]
    over = [p for p in beside if varying(p) not in ([], [0])]
    found.pin(over, f"{call} runs over its channels")
    return [spread(own, 1, out.dim()), *(p for p in beside if varying(p) == [0])]


def layer(found: Found, weight: Tensor) -> str:
    """What to call the layer with this weight."""
    name = found.name(weight)
    if name is None:
        owners = [o for p in found.planes(weight) for o in found.ids.owners(p)]
        name = owners[0][0].partition(".parametrizations.")[0] if owners else "a layer"
    path, _, last = name.rpartition(".")
    return path if last in ("weight", "kernel") and path else name


def _read(
    call: Call, found: Found, ids: Tensor | None, size: int, weight: Tensor, dim: int
) -> None:
    """The weight reads these channels along its dimension `dim`."""
    own, name = found.axis(weight, dim), layer(found, weight)
    ids = torch.full((size,), NONE) if ids is None else ids
    if own is None:
        computed = found.source(weight) is None and found.planes(weight)
        kind = "that is computed from all of its entries" if computed else "of a fixed size"
        found.ids.pin(ids, f"'{name}' reads it with a weight {kind}")
        return
    found.reads.update(dict.fromkeys(found.ids.owners(own)))
    if not found.value(weight).zero:
        reason = f"'{name}' reads it with a weight that is computed from all of its entries"
        found.ids.pin(torch.cat([own, ids]), reason)
    found.ids.tie(own, ids, f"'{name}' also reads values that are no channels")
    found.readers.append((ids, name))


def _write(found: Found, weight: Tensor, dim: int) -> Tensor:
    own = found.along(weight, dim)
    found.writes.update(dict.fromkeys(found.ids.owners(own)))
    found.ids.mark(own, RAW)
    return own


def _grouped(
    call: Call, found: Found, ids: Tensor | None, weight: Tensor, transposed: bool
) -> Tensor:
    """A group of a grouped convolution goes as a whole: what it reads and what it writes.

    The weight's first dimension holds the outputs; the inputs, where it is transposed.
    """
    groups, name, own = call["groups"], layer(found, weight), found.along(weight, 0)
    inside = found.axis(weight, 1)
    if inside is not None:
        found.ids.pin(inside, f"'{name}' has it in each of its groups")
    if not transposed:
        found.writes.update(dict.fromkeys(found.ids.owners(own)))
    if ids is None:
        found.ids.pin(own, f"'{name}' reads values of a fixed size")
        found.ids.mark(own, RAW)
        ids = torch.full((groups,), NONE)
    blocks = torch.cat([ids.view(groups, -1), own.view(groups, -1)], 1)
    first = found.together(blocks, [1], f"'{name}' reads and writes it in one group")
    made = first.repeat(1, call.output.shape[1] // groups).flatten()
    if transposed:
        return made
    found.grouped.append(own)
    return own if NONE in ids else _like(found, own, made)


def _like(found: Found, own: Tensor, source: Tensor) -> Tensor:
    """`own`, whose values come from where those of `source` come from."""
    found.ids.origin[own[own != NONE]] = found.ids.origin[source[own != NONE]]
    return own


# The dimensions of the factors: b, of a batch; m and n, which stay; k, which is summed up.
SHAPES = {"mm": ("mk", "kn"), "addmm": ("mk", "kn"), "mv": ("mk", "k"), "addmv": ("mk", "k")}
SHAPES |= {"dot": ("k", "k"), "bmm": ("bmk", "bkn"), "baddbmm": ("bmk", "bkn"), "vdot": ("k", "k")}
ARGUMENTS = (("mat1", "mat2"), ("self", "mat2"), ("batch1", "batch2"), ("mat", "vec"))
ARGUMENTS += (("self", "vec"), ("self", "tensor"), ("self", "other"))


@rule(*SHAPES)
def product(call: Call, found: Found) -> Planes:
    """Matrix products, also of a batch of matrices."""
    pair = next(
        pair for pair in ARGUMENTS if pair[0] in call.arguments and pair[1] in call.arguments
    )
    a, b = call[pair[0]], call[pair[1]]
    of_a, of_b = SHAPES[call.name]
    ka, kb = of_a.index("k"), of_b.index("k")
    live = found.is_live(a), found.is_live(b)
    left, right = found.axis(a, ka), found.axis(b, kb)
    if "mm" in call.name:  # as torch.utils.flop_counter counts, which leaves vectors out
        _count_product(call, found, (a, of_a), (b, of_b), any(live))
    out = "".join(d for d in "bmn" if d in of_a + of_b)
    if live[0] != live[1]:
        (x, weight), dim = ((a, b), kb) if live[0] else ((b, a), ka)
        _read(call, found, left if live[0] else right, x.shape[ka if live[0] else kb], weight, dim)
    else:
        reason = f"{call} sums over it in a product of two values, neither of which is a weight"
        found.pin([p for p in (left, right) if p is not None], reason)
    operands = []
    for tensor, dims, is_live in ((a, of_a, live[0]), (b, of_b, live[1])):
        kept = [d for d in dims if d != "k"]
        if any(live) and not is_live:
            for dim in (
                dims.index(d) for d in kept if d != "b" and tensor.shape[dims.index(d)] > 1
            ):
                _write(found, tensor, dim)
        planes = [p for p in _planes(found, tensor) if p.shape[dims.index("k")] == 1]
        shape = [tensor.shape[dims.index(d)] if d in kept else 1 for d in out]
        to = {dims.index(d): out.index(d) for d in kept}
        operands.append((shape, found.carry(planes, to, len(out), str(call))))
    planes = _meet(found, operands, call)
    if call.name in ("addmm", "baddbmm", "addmv"):
        bias = call["self"]
        owner = (call.output.shape, planes), (bias.shape, found.planes(bias))
        planes = found.merge(owner, call.output.shape, f"{call} adds to it")
    return planes


def _planes(found: Found, tensor: Tensor) -> Planes:
    """Those of a weight also where it has a single row."""
    name = found.name(tensor)
    if name is None:
        return found.planes(tensor)
    ids = [found.ids.number(name, d, n) for d, n in enumerate(tensor.shape)]
    return [spread(own, d, tensor.dim()) for d, own in enumerate(ids) if tensor.shape[d] > 1]


def _meet(found: Found, operands: list, call: Call) -> Planes:
    """Rows of one factor and columns of the other lie across each other; batches lie together."""
    shape = [max(sizes) for sizes in zip(*(of for of, _ in operands))]
    return found.merge(operands, shape, f"{call} combines it with", product=True)


def _use(found: Found, weight: Tensor) -> None:
    name = found.source(weight)
    if name is not None:
        found.uses[name] = found.uses.get(name, 0) + 1


def _count(call, found, weight, times, read, made, in_groups: bool) -> None:
    _use(found, weight)
    factors = [found.along(weight, 0 if in_groups else made)]
    if not in_groups:
        factors.append(found.along(weight, read))
    else:
        times *= weight.shape[1]
    found.products.append(Product(times / found.batch, tuple(factors)))


def _count_product(call, found, first, second, live: bool) -> None:
    for tensor, _ in (first, second):
        _use(found, tensor)
    sizes, factors, times = {}, {}, 1
    for tensor, dims in (first, second):
        for dim, letter in enumerate(dims):
            sizes[letter] = tensor.shape[dim]
            ids = found.axis(tensor, dim) if _clean(found, tensor, dim) else None
            if ids is not None:
                factors[letter] = ids
    for letter, size in sizes.items():
        times *= 1 if letter in factors else size
    found.products.append(Product(times / (found.batch if live else 1), tuple(factors.values())))


def _clean(found: Found, tensor: Tensor, dim: int) -> bool:
    """Whether nothing that varies along `dim` varies along others too."""
    return all(varying(p) == [dim] for p in found.planes(tensor) if p.shape[dim] > 1)


@rule("embedding")
def embedding(call: Call, found: Found) -> Planes:
    own = _write(found, call["weight"], 1)
    return [spread(own, call.output.dim() - 1, call.output.dim())]


@rule("deform_conv2d")
def deformable(call: Call, found: Found) -> Planes:
    """torchvision's: the offsets and the mask say where to read, so their channels stay."""
    x, weight, bias = call["input"], call["weight"], call["bias"]
    for name in ("offset", "mask"):
        found.pin(found.planes(call[name]), f"'{layer(found, weight)}' reads where it says")
    positions = call.output.numel() // call.output.shape[1]
    _count(call, found, weight, positions * prod(weight.shape[2:]), 1, 0, call["groups"] > 1)
    ids = found.axis(x, 1)
    if call["groups"] > 1 or call["offset_groups"] > 1:
        found.pin_inputs(call, f"{call} is a deformable convolution with groups")
        return []
    _read(call, found, ids, x.shape[1], weight, 1)
    own = _write(found, weight, 0)
    found.ids.tie(own, found.along(bias, 0), f"the bias of {layer(found, weight)}")
    return [spread(own, 1, call.output.dim())]


@rule("mkldnn_rnn_layer", "lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(call: Call, found: Found) -> tuple[Planes, ...]:
    """Reads channels; what it makes of them has none of its own."""
    found.pin_inputs(call, f"{call} mixes its channels")
    return ()
