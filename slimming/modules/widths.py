"""Widths that a network has written down: `self.width = 26`, `self.splits = [12, 12]`.

Code that parts its channels by such a number fails where it is thinner, unless the number follows.
Which tensor it follows is a guess, from the channels that meet there; the second run judges it.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from slimming.modules.layers import SCORED

Axis = tuple[str, int]  # tensor, dim
Width = Axis | int  # an axis whose size it is, or a number that stays
Widths = dict[tuple[str, str], Width | tuple[Width, ...]]  # (module, attribute) -> what it follows


def guess(
    model: nn.Module, dims: Mapping[Axis, Tensor], met: Mapping[str, Iterable[Tensor]]
) -> Widths:
    """What the numbers of some modules follow: the channels that meet in the code which fails.

    Args:
        dims: of the ChannelGraph.
        met: {module: channels along one dimension of what the code works on}.
    """
    axes = {tuple(ids.tolist()): axis for axis, ids in reversed(dims.items())}
    widths: Widths = {}
    for path, channels in met.items():
        module = model.get_submodule(path)
        here = [tuple(ids.tolist()) for ids in channels]
        near = {len(ids): axes[ids] for ids in here if ids in axes}
        for attribute, value in vars(module).items() if not isinstance(module, SCORED) else ():
            if _is_width(value) and value in near:
                widths[path, attribute] = near[value]
            elif _are_widths(value) and near.keys() & set(value):
                rows = [[axes[i] for i in here if len(i) == n and i in axes] for n in value]
                widths[path, attribute] = tuple(r[0] if r else n for r, n in zip(rows, value))
    return widths


def _is_width(value: object) -> bool:
    return type(value) is int and value > 1


def _are_widths(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_width, value))


def follow(network: nn.Module, widths: Widths, tensors: Mapping[str, Tensor]) -> None:
    """Set the numbers of a thin network, in place, from the sizes of its tensors."""
    found: dict[str, dict[str, int | list[int]]] = {}
    for (path, attribute), width in widths.items():
        axis = isinstance(width, int) or isinstance(width[0], str)
        sizes = _size(width, tensors) if axis else [_size(one, tensors) for one in width]
        found.setdefault(path, {})[attribute] = sizes
    for path, values in found.items():
        set_widths(network.get_submodule(path), values)


def set_widths(module: nn.Module, values: Mapping[str, int | list[int]]) -> None:
    """Set numbers of a module, which its state_dict's metadata tell from now on.

    Raises:
        ValueError: it has no such number, or what is given is none.
    """
    for attribute, value in values.items():
        old = vars(module).get(attribute)
        several = isinstance(old, (list, tuple))
        numbers = list(value) if several and isinstance(value, (list, tuple)) else [value]
        known = list(old) if several else [old]
        if not all(type(n) is int for n in known + numbers) or len(known) != len(numbers):
            raise ValueError(f"'{attribute}' is {old!r} and can't become {value!r}")
        setattr(module, attribute, type(old)(numbers) if several else numbers[0])
    if not hasattr(module, "cut_widths"):
        module.register_state_dict_post_hook(_tell)
    module.cut_widths = sorted({*getattr(module, "cut_widths", ()), *values})


def _tell(module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    values = {name: getattr(module, name) for name in module.cut_widths}
    plain = {n: list(v) if isinstance(v, (list, tuple)) else v for n, v in values.items()}
    local_metadata["edit"] = ["widths", plain]


def _size(width: Width, tensors: Mapping[str, Tensor]) -> int:
    return width if isinstance(width, int) else tensors[width[0]].shape[width[1]]
