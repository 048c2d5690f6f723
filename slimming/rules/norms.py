"""Normalisations: a BatchNorm scores channels, others mix what they normalise over."""

from torch import Tensor

from slimming.rules.call import Call, Found, Planes
from slimming.rules.channel_ids import SCORED, spread, varying
from slimming.rules.registry import rule

ROLES = ("weight", "bias", "running_mean", "running_var")


@rule("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm")
@rule("_native_batch_norm_legit_no_training", "_batch_norm_impl_index", "miopen_batch_norm")
@rule("_batch_norm_with_update", "_batch_norm_no_update")
def batch_norm(call: Call, found: Found) -> tuple[Planes, ...]:
    """The gate: its gammas score the channels that it reads."""
    x = call["input"]
    named = {role: found.name(call.get(role)) for role in ROLES}
    affine = [call.get(role) for role in ROLES if isinstance(call.get(role), Tensor)]
    own = None
    for tensor in affine:
        ids = found.axis(tensor, 0)
        if ids is not None and own is not None:
            found.ids.tie(own, ids, "it belongs to one BatchNorm")
        own = ids if own is None else own
    _, source = found.picked.get(id(x), (x, None))
    channels = found.along(x, 1) if source is None else source
    if own is None:  # normalises without numbers of its own: each channel by itself
        return _with_statistics(call, channels, _per_channel(x, found, channels, call))
    stored = named["weight"] or named["running_mean"]
    if stored is None or (call.get("weight") is not None and named["weight"] is None):
        found.ids.tie(own, channels, f"{call} normalises values of a fixed size")
        return _with_statistics(call, own, [spread(own, 1, x.dim())])
    name = norm_name(stored)
    found.norms.setdefault(name, {}).update({k: v for k, v in named.items() if v is not None})
    found.norm_inputs.setdefault(name, []).append(channels)
    found.readers.append((channels, name))
    found.ids.mark(own, SCORED)
    return _with_statistics(call, own, [spread(own, 1, x.dim())])


def _with_statistics(call: Call, ids: Tensor, planes: Planes) -> tuple[Planes, ...]:
    """The means and deviations that it also returns are one per channel."""
    others = [[ids] if t.shape == ids.shape else [] for t in call.outputs[1:]]
    return planes, *others


def norm_name(stored: str) -> str:
    """What a BatchNorm is called: its module's path, or its gamma's where no module is one."""
    path, _, last = stored.rpartition(".")
    return path if last in ROLES and path else stored


def _per_channel(x: Tensor, found: Found, channels: Tensor, call: Call) -> Planes:
    beside = [p for p in found.planes(x) if varying(p) and p.shape[1] == 1]
    found.pin(beside, f"{call} averages over it")
    return [spread(channels, 1, x.dim())]


@rule("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(call: Call, found: Found) -> tuple[Planes, ...]:
    """Over the last dimensions: channels elsewhere pass."""
    x = call["input"]
    last = x.dim() - len(call["normalized_shape"])
    to = {d: d for d in range(last)}
    planes = found.carry(found.planes(x), to, x.dim(), f"{call} mixes its channels")
    for name in ("weight", "bias"):
        found.pin(found.planes(call.get(name)), f"{call} mixes its channels")
    return planes, planes, planes


@rule("native_group_norm", "group_norm")
def group_norm(call: Call, found: Found) -> tuple[Planes, ...]:
    """Channels that are normalised together go together."""
    x, groups = call["input"], call["group"]
    ids = found.along(x, 1)
    for name in ("weight", "bias"):
        if call.get(name) is not None:
            found.ids.tie(ids, found.along(call[name], 0), f"{call} also reads a fixed size")
    rows = ids.view(groups, -1)
    first = found.together(rows, [1], f"{call} mixes it with others of its group").flatten()
    statistics = [spread(first, 1, 2)]
    return [spread(ids, 1, x.dim())], statistics, statistics


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(call: Call, found: Found) -> Planes | tuple[Planes, ...]:
    """Each slice of the weight along `dim` gets a length of its own."""
    v, g, dim = call["v"], call["g"], call["dim"] % call["v"].dim()
    others = [p for p in found.planes(v) if varying(p) != [dim]]
    found.pin(others, f"{call} computes it from all of its entries")
    found.ids.tie(found.along(v, dim), found.along(g, dim), f"{call} scales it")
    own = spread(found.along(v, dim), dim, v.dim())
    return ([own],) * len(call.outputs)  # with the lengths, if they are kept
