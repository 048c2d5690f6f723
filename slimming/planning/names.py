"""Layers by name: globs such as "layer4.*" over BatchNorms, layers and the modules around them."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from slimming.graph import ChannelGraph
from slimming.planning.layers import Layer

Globs = str | Sequence[str]


def patterns(name: str, globs: Globs) -> tuple[str, ...]:
    """The globs of an option, one or several.

    Raises:
        ValueError: they are none.
    """
    found = (globs,) if isinstance(globs, str) else globs
    whole = isinstance(found, Iterable) and not isinstance(found, Mapping)
    if not whole or not all(isinstance(glob, str) and glob for glob in found):
        raise ValueError(
            f"{name} is a list of layers' names, such as [layer4.*] or ['*.bn3']; got {globs!r}"
        )
    return tuple(found)


def named(glob: str, name: str) -> bool:
    """Whether a glob fits a layer's name, or that of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: i + 1]), glob) for i in range(len(parts)))


def staying(
    graph: ChannelGraph, layers: Sequence[Layer], exclude: Globs = (), only: Globs = ()
) -> set[int]:
    """The layers of which nothing may go.

    Those that share a gate or a writer with what is excluded; and those of which anything that has
    to go too, a norm or what writes them, is outside `only`.

    Raises:
        ValueError: a glob fits nothing that could be cut, or no layer is left to cut.
    """
    out, inside = patterns("exclude", exclude), patterns("only", only)
    for option, globs in (("exclude", out), ("only", inside)):
        for glob in globs:
            check_named(option, glob, graph, layers)
    stay = {i for i, layer in enumerate(layers) if _any(out, layer.names)}
    if inside:
        stay |= {i for i, layer in enumerate(layers) if not _within(inside, layer)}
    if layers and len(stay) == len(layers):
        raise ValueError(_nothing_left(layers, out, inside))
    return stay


def check_named(option: str, glob: str, graph: ChannelGraph, layers: Sequence[Layer]) -> None:
    """
    Raises:
        ValueError: the glob names no layer that could lose channels.
    """
    names = dict.fromkeys(name for layer in layers for name in layer.names)
    if _any([glob], names):
        return
    known = dict.fromkeys(tensor.rpartition(".")[0] for tensor in graph.shapes)
    if _any([glob], known) or _any([glob], graph.fixed):
        reasons = [why for norm, why in graph.fixed.items() if named(glob, norm)]
        why = f" ({reasons[0]})" if reasons else ""
        raise ValueError(
            f"{option}={glob} changes nothing: no channel there could be cut anyway{why}"
        )
    parents = filter(None, (name.rpartition(".")[0] for name in names))
    near = difflib.get_close_matches(glob.rstrip(".*"), {**names, **dict.fromkeys(parents)}, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join([*names][:3])}"
    raise ValueError(f"{option}={glob} fits no layer of this network: {hint}")


def _any(globs: Iterable[str], names: Iterable[str]) -> bool:
    return any(named(glob, name) for name in names for glob in globs)


def _within(globs: Sequence[str], layer: Layer) -> bool:
    """Whether all of its gates are named, or all that writes it: they go together."""
    return any(
        members and all(_any(globs, [name]) for name in members)
        for members in (layer.gates, layer.writers)
    )


def _nothing_left(layers: Sequence[Layer], out: Sequence[str], inside: Sequence[str]) -> str:
    asked = [f"{key}={','.join(g)}" for key, g in (("exclude", out), ("only", inside)) if g]
    tied = next((one for one in layers if _any(inside, one.names) and not _any(out, one.names)), 0)
    why = f": {' and '.join(tied.names)} go together, so `only` has to name all" if tied else ""
    leave = "leaves" if len(asked) == 1 else "leave"
    return f"{' and '.join(asked)} {leave} nothing that may be cut{why}"
