"""Operations that run over some dimensions: pooling, resizing, reductions, softmax, sorting."""

from collections.abc import Sequence

from torch import Tensor

from slimming.rules.call import Call, Found, Planes
from slimming.rules.channel_ids import varying
from slimming.rules.registry import rule

SPATIAL = {  # operation -> the last dimensions that it runs over
    **dict.fromkeys(("max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "upsample_nearest1d"), 1),
    **dict.fromkeys(("upsample_linear1d", "reflection_pad1d", "replication_pad1d"), 1),
    **dict.fromkeys(("_upsample_nearest_exact1d", "max_pool1d_with_indices"), 1),
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices", "avg_pool2d"), 2),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"), 2),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"), 2),
    **dict.fromkeys(("_upsample_nearest_exact2d", "_upsample_bilinear2d_aa"), 2),
    **dict.fromkeys(("_upsample_bicubic2d_aa", "reflection_pad2d", "replication_pad2d"), 2),
    **dict.fromkeys(("max_unpool2d", "grid_sampler_2d", "fractional_max_pool2d", "rot90"), 2),
    **dict.fromkeys(("mkldnn_max_pool2d", "mkldnn_adaptive_avg_pool2d", "inverse"), 2),
    **dict.fromkeys(("max_pool3d", "max_pool3d_with_indices", "avg_pool3d"), 3),
    **dict.fromkeys(("_adaptive_avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d"), 3),
    **dict.fromkeys(("upsample_nearest3d", "upsample_trilinear3d", "reflection_pad3d"), 3),
    **dict.fromkeys(("_upsample_nearest_exact3d", "replication_pad3d", "max_unpool3d"), 3),
    **dict.fromkeys(("grid_sampler_3d", "fractional_max_pool3d"), 3),
}
REDUCTIONS = ("mean", "sum", "amax", "amin", "max", "min", "prod", "std", "var", "var_mean", "all")
REDUCTIONS += ("any", "argmax", "argmin", "logsumexp", "norm", "linalg_vector_norm", "nansum")
REDUCTIONS += ("median", "nanmedian", "mode", "aminmax", "count_nonzero", "nanmean", "std_mean")
ALONG = ("_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "cumprod", "sort", "topk")
ALONG += ("logcumsumexp", "cummax", "cummin", "_fft_r2c", "_fft_c2r", "_fft_c2c", "argsort")
ALONG += ("kthvalue", "renorm", "_safe_softmax", "fft_fftshift", "msort")


@rule(*SPATIAL)
def spatial(call: Call, found: Found) -> Planes:
    """Each channel by itself; the last dimensions may shrink or grow."""
    x, out = call.inputs[0], call.outputs[0]
    to = {d: d for d in range(x.dim() - SPATIAL[call.name])}
    for other in call.inputs[1:]:
        if call.name.startswith("grid"):
            found.pin(found.planes(other), f"{call} reads where it says")
    return found.carry(found.planes(x), to, out.dim(), f"{call} runs over its channels")


@rule("roi_align", "roi_pool", "ps_roi_align")
def regions(call: Call, found: Found) -> Planes:
    """torchvision's: (N, C, H, W) and boxes -> (boxes, C, h, w)."""
    x = call.inputs[0]
    if call.name.startswith("ps"):
        found.pin_inputs(call, f"{call} runs over its channels")
        return []
    found.pin(found.planes(call.inputs[1]), f"{call} reads where it says")
    return found.carry(found.planes(x), {1: 1}, call.outputs[0].dim(), f"{call} picks images")


@rule(*REDUCTIONS)
def reduction(call: Call, found: Found) -> Planes:
    """Over positions channels pass. Where each position has channels of its own, as in a stack of
    tensors, it is an addition of them; over the channels alone it mixes them.
    """
    x, out = call.inputs[0], call.outputs[0]
    dims = _dims(call, x)
    keepdim = out.dim() == x.dim() and out.dim() > 0
    planes = []
    for plane in found.planes(x):
        plane = _without(call, found, plane, dims)
        if plane is None:
            continue
        planes.append(plane if keepdim else plane.squeeze(tuple(dims)))
    return planes


@rule(*ALONG)
def along(call: Call, found: Found) -> Planes:
    """Mixes the entries of some dimensions and keeps their number."""
    x = call.inputs[0]
    dims = _dims(call, x)
    planes = (_without(call, found, plane, dims) for plane in found.planes(x))
    return [plane for plane in planes if plane is not None]


def _dims(call: Call, x: Tensor) -> list[int]:
    said = call.get("dim", call.get("dims"))
    if said is None or said == []:
        return list(range(x.dim()))
    return [d % max(x.dim(), 1) for d in (said if isinstance(said, Sequence) else [said])]


def _without(call: Call, found: Found, plane: Tensor, dims: list[int]) -> Tensor | None:
    """The plane where these dimensions are mixed; None: its channels are."""
    mixed = set(varying(plane)) & set(dims)
    if not mixed:
        return plane
    if set(varying(plane)) <= set(dims):
        found.ids.pin(plane, f"{call} mixes its channels")
        return None
    return found.together(plane, mixed, f"{call} combines it with", joins=True)
