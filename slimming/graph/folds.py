"""Which BatchNorm alone reads what a layer makes: only then can it be folded into the layer."""

from collections import Counter
from typing import TYPE_CHECKING

from torch import nn

from slimming.graph.twin import stored
from slimming.rules.call import Call
from slimming.rules.norms import ROLES

if TYPE_CHECKING:
    from slimming.graph.assemble import Run

PASSING = ("t", "transpose", "detach", "alias")  # give the same tensor another view


def find_folds(model: nn.Module, run: "Run") -> dict[str, str]:
    """{layer: the BatchNorm behind it}, both called once and nothing between them.

    Other layers may hold the same weight, as they keep it; but nobody else may look at it.
    """
    found, names = run.found, _names(model)
    made_by: dict[int, Call] = {}
    readers: Counter[int] = Counter(id(output) for output in run.outputs)
    used: dict[str, list[str]] = {}  # stored tensor -> the modules that work with it
    for record in run.records:
        call = record.call
        readers.update({id(t): 1 for t in call.inputs})
        if call.name not in PASSING:
            for tensor in call.inputs:
                if (name := found.source(tensor)) is not None:
                    used.setdefault(name, []).append(call.layer)
        if call.name in ("convolution", "addmm", "mm") and len(call.outputs) == 1:
            made_by[id(call.output)] = call

    def only_of(layer: str, stored: str | None) -> bool:
        owners = {name.rpartition(".")[0] for name in names.get(stored, ())}
        users = used.get(stored, [])
        return layer in owners and set(users) <= owners and users.count(layer) == 1

    folds = {}
    for record in run.records:
        call = record.call
        maker = made_by.get(id(call.get("input")))
        if "batch_norm" not in call.name or maker is None or readers[id(call["input"])] != 1:
            continue
        weight = found.source(maker.get("weight", maker.get("mat2")))
        own = [found.name(call.get(role)) for role in ROLES]
        alone = only_of(maker.layer, weight) and any(own)
        if alone and all(name is None or only_of(call.layer, name) for name in own):
            folds[maker.layer] = call.layer
    return folds


def _names(model: nn.Module) -> dict[str, list[str]]:
    """{each name of a stored tensor: all of its names}."""
    same: dict[int, list[str]] = {}
    for name, tensor in stored(model).items():
        same.setdefault(id(tensor), []).append(name)
    return {name: of for of in same.values() for name in of}
