"""Operations that make each entry of one entry of each input: what meets is tied."""

import torch
from torch import Tensor

from slimming.rules.call import Call, Found, Planes
from slimming.rules.channel_ids import spread
from slimming.rules.registry import rule

PRODUCTS = {"mul", "div", "true_divide", "glu"}  # a zero in the first factor makes a zero
JOINING = {"add", "sub", "rsub", "maximum", "minimum", "where", "lerp", "fmax", "fmin", "sum"}
# Where a weight is zero, what these make of it is zero: a hidden reader stays hidden.
KEEPS_ZERO = {"mul", "div", "neg", "abs", "relu", "tanh", "sign", "sqrt", "square", "_to_copy"}
KEEPS_ZERO |= {"clone", "detach", "alias", "contiguous", "hardtanh", "sin", "expm1", "log1p"}
KEEPS_ZERO |= {"add", "sub", "lift_fresh", "round", "floor", "trunc", "erf", "silu", "gelu"}
# What torch doesn't tag as pointwise although it is.
ALSO_POINTWISE = ("hardswish", "clamp", "where", "masked_fill", "fill", "copy", "celu", "elu")
ALSO_POINTWISE += ("native_dropout", "bernoulli", "dropout", "rrelu_with_noise", "zero", "normal")
ALSO_POINTWISE += ("uniform", "random", "exponential", "prelu", "_prelu_kernel", "threshold")
ALSO_POINTWISE += ("mish", "log_sigmoid_forward", "hardsigmoid", "softplus", "softshrink")
ALSO_POINTWISE += ("hardshrink", "rrelu", "gelu", "isfinite", "copysign", "nan_to_num", "lerp")
ALSO_POINTWISE += ("cauchy", "log_normal", "geometric", "bernoulli_p", "complex", "polar")
ALSO_POINTWISE += ("fake_quantize_per_tensor_affine_cachemask", "isclose", "real", "imag")


@rule(*ALSO_POINTWISE)
def pointwise(call: Call, found: Found) -> Planes:
    """Entries that meet belong to one channel."""
    out = call.outputs[0]
    operands = [(t.shape, found.planes(t)) for t in call.inputs if t.dim() <= out.dim()]
    reason = f"{call} combines it with"
    first = found.planes(call.inputs[0]) if call.inputs else []
    product = call.name in PRODUCTS and (call.name == "mul" or bool(first))
    return found.merge(operands, out.shape, reason, product, call.name in JOINING)


def keeps_zero(call: Call, found: Found) -> bool:
    """Whether the output is zero wherever a stored weight, of which it is made, is zero."""
    tensors = call.inputs
    zero = [found.value(tensor).zero for tensor in tensors]
    if call.name in ("mul", "mm", "bmm", "matmul"):
        return any(zero)
    if call.name == "div":
        return bool(zero) and zero[0]
    if call.name in ("add", "sub"):
        return all(zero) and len(tensors) == 2
    moves = torch.Tag.pointwise not in call.tags and call.name not in ALSO_POINTWISE
    return all(zero) and bool(zero) and (moves or call.name in KEEPS_ZERO)


@rule("glu")
def glu(call: Call, found: Found) -> Planes:
    """One half gates the other."""
    x = call["self"]
    dim, planes = call["dim"] % x.dim(), []
    for plane in found.planes(x):
        if plane.shape[dim] > 1:
            halves = plane.unflatten(dim, (2, -1))
            plane = found.together(halves, [dim], f"{call} gates it with others").squeeze(dim)
        planes.append(plane)
    return planes


@rule("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like")
@rule("randint_like")
def like(call: Call, found: Found) -> Planes:
    """In the shape of another tensor: as many channels, whatever they are."""
    return found.planes(call["self"])


@rule("new_empty", "new_zeros", "new_ones", "new_full", "empty", "zeros", "ones", "full", "rand")
@rule("randn", "empty_strided", "new_empty_strided", "bernoulli_out")
def made(call: Call, found: Found) -> Planes:
    """In a size that the code says: which channels it follows, what it meets will tell."""
    out: Tensor = call.output
    sizes = enumerate(out.shape)
    return [spread(found.ids.fresh(size), d, out.dim()) for d, size in sizes if size > 1]


@rule("arange", "linspace", "eye", "scalar_tensor", "_local_scalar_dense", "randperm", "equal")
@rule("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "logspace", "hann_window")
def numbers(call: Call, found: Found) -> Planes:
    """Numbers that stand for places: what they are combined with can't lose channels."""
    return []
