"""One name for a network: how tables, plots and pages call it, alone (`label`) or among others."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from utils.report import groups, table
from utils.report.summary import Point
from utils.report.together import TRAINING, kept, regime
from utils.runs.units import si

PARTS = ("network", "recipe", "training", "lambda", "method", "cut", "pass", "repair", "then")
PARTS += ("epochs",)
UNSEEN = "its training isn't here"
OF_CUTS = {"method", "repair", "then"}
UNITS = {"macs": "MACs", "params": "parameters", "latency": "time"}


def labels(points: Sequence[Point]) -> dict[Point, str]:
    """{point: its name among these points}: what all of them share is left out.

    Where words don't tell two apart, the settings do in which they differ. `label` names one alone.
    """
    told = parts(points)
    shown = [name for name in PARTS if len(_values(told, name)) > 1]
    said: dict[str, list[Point]] = {}
    for point, own in told.items():
        text = _joined(own, shown)
        said.setdefault(text or own["cut"], []).append(point)
    return {
        point: ", ".join([text, *more])
        for text, several in said.items()
        for point, more in zip(several, _unique(several), strict=True)
    }


def label(point: Point) -> str:
    """ "vgg11-w0.25 on cifar10, fast recipe, λ 0.0008, slimming, keep 50 % MACs, fine-tuned" """
    return _joined(_parts(point), PARTS)


def common(points: Sequence[Point]) -> str:
    """What all of them share, as a title for what `labels` tells apart."""
    return _shared(parts(points))


def _shared(told: Mapping[Point, dict[str, str]]) -> str:
    values = {name: _values(told, name) for name in PARTS}
    shared = {name: text for name, texts in values.items() for text in texts if len(texts) == 1}
    return _joined(shared, [*shared])


def _joined(own: Mapping[str, str], names: Sequence[str]) -> str:
    """ "fine-tuned" goes without saying where its epochs are said."""
    told = [name for name in names if own[name]]
    if "epochs" in told and own.get("then") == "fine-tuned":
        told = [name for name in told if name != "then"]
    return ", ".join(own[name] for name in told)


def titles(several: Sequence[Sequence[Point]]) -> list[str]:
    """What the points of each panel share; where panels share all of it, what tells them apart."""
    told = parts([point for points in several for point in points])
    said = [_shared({point: told[point] for point in points}) for points in several]
    for more in (_by, _constant):
        same: dict[str, list[int]] = {}
        for place, text in enumerate(said):
            same.setdefault(text, []).append(place)
        for text, places in same.items():
            found = more([several[place] for place in places]) if len(places) > 1 else ()
            for place, words in zip(places, found):
                said[place] = ", ".join([text, *words])
    return said


def _by(several: Sequence[Sequence[Point]]) -> list[list[str]]:
    """What each panel's cuts limit: "by MACs"; nothing where that is the same everywhere."""
    limits = [sorted({limited(p) for p in own if not uncut(p) and not again(p)}) for own in several]
    if any(len(own) != 1 for own in limits) or all(own == limits[0] for own in limits):
        return [[] for _ in several]
    return [[f"by {UNITS.get(own, own)}"] for (own,) in limits]


def _constant(several: Sequence[Sequence[Point]]) -> list[list[str]]:
    """Settings that differ between panels and within none, at most three."""
    vary = {name for own in several for name in groups.differing([kept(p, ()) for p in own])}
    settings = [
        {name: value for name, value in kept(own[0], ()).items() if name not in {*vary, "stages"}}
        for own in several
    ]
    found = _first_three(groups.differing(settings))
    return [[_said(name, own.get(name)) for name in found] for own in settings]


def parts(points: Sequence[Point]) -> dict[Point, dict[str, str]]:
    """All that names each of them, part by part: {"network": ..., "lambda": ..., "cut": ...}."""
    told = {point: _parts(point) for point in points}
    for point, text in _trainings(told).items():
        told[point]["training"] = text
    return told


def _values(told: Mapping[Point, dict[str, str]], name: str) -> set[str]:
    """What is said of a part; of what was not cut there is no repair to speak of."""
    if name == "epochs":
        return {own[name] for own in told.values() if own[name]} or {""}
    return {own[name] for point, own in told.items() if name not in OF_CUTS or not uncut(point)}


def _trainings(told: Mapping[Point, dict[str, str]]) -> dict[Point, str]:
    """How trainings of one network and recipe differ: "8 epochs, data.val_size 5000"; or ""."""
    subjects: dict[tuple, dict[str, list[Point]]] = {}
    for point, own in told.items():
        same = subjects.setdefault((own["network"], own["recipe"]), {})
        same.setdefault(regime(point), []).append(point)
    said: dict[Point, str] = {}
    for regimes in subjects.values():
        texts = _apart([several[0] for several in regimes.values()], TRAINING)
        for text, several in zip(texts, regimes.values(), strict=True):
            said |= dict.fromkeys(several, ", ".join(text))
    return said


def _unique(several: Sequence[Point]) -> list[list[str]]:
    """What tells points of one name apart: settings, else the seed, else the name of a run."""
    if len(several) == 1:
        return [[]]
    texts = [text if text != [UNSEEN] else [] for text in _apart(several)]
    if len({tuple(text) for text in texts}) == len(texts):
        return texts
    if len({point["seed"] for point in several}) == len(several):
        return [[*text, f"seed {point['seed']}"] for text, point in zip(texts, several)]
    return [[*text, str(point["run"])] for text, point in zip(texts, several, strict=True)]


def _apart(several: Sequence[Point], axes: Sequence[str] = ()) -> list[list[str]]:
    """The settings in which points differ, at most three: "8 epochs", "data.val_size 5000"."""
    settings = [kept(point, ["stages", *axes]) for point in several]
    known = [own for own in settings if "unseen" not in own]
    found = groups.differing(known) if known else {}
    found = _first_three(found)
    return [
        [_said(name, own.get(name)) for name in found] if "unseen" not in own else [UNSEEN]
        for own in settings
    ]


def _first_three(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: not name.endswith(": epochs"))[:3]


def _said(name: str, setting: Any) -> str:
    name = name.partition(": ")[2] or name
    return _epochs(setting) if name == "epochs" else groups.told(name, setting)


def _epochs(number: float | None) -> str:
    return "-" if number is None else f"{number:g} epoch{'' if number == 1 else 's'}"


def _parts(point: Point) -> dict[str, str]:
    """All that names a network; "" where something was not done to it."""
    tuned = point["stage"] == "finetune"
    own_epochs = tuned and point["epochs"] is not None and not point.what.startswith("scratch")
    changes = table.changed(point.chain[0].get("recipe_changes"))
    said = {
        "network": f"{point['network']} on {point['data']}",
        "recipe": f"{point['recipe']} recipe" + (f" ({changes})" if changes else ""),
        "lambda": penalty(point) + _trained_by(point),
        "method": "" if uncut(point) else point["method"],
        "cut": goal(point),
        "pass": f"pass {point['pass']:g}" if point["pass"] > 1 else "",
        "repair": point["repair"],
        "then": point.what if tuned else "not fine-tuned" if point["stage"] == "prune" else "",
        # Those of a control of equal computation follow from its network.
        "epochs": f"{_epochs(point['epochs'])} of fine-tuning" if own_epochs else "",
    }
    return {name: said.get(name, "") for name in PARTS}


def penalty(point: Point) -> str:
    return f"λ {point['lambda']:g}" if point["lambda"] else "no penalty"


def _trained_by(point: Point) -> str:
    """ ", trained by polarization", where that isn't the paper's way, or none at all."""
    target = str(point.settings.get("train: method._target_") or "")
    if not target or target.endswith(".Slimming"):
        cost, power = (point.settings.get(f"train: method.{key}") for key in ("cost", "cost_power"))
        return f" by {cost}^{power:g}" if cost not in (None, "none") and point["lambda"] else ""
    asked = (point.chain[0].get("config") or {}).get("method") or {}
    return f", trained by {asked.get('name') or target.rpartition('.')[2]}"


def uncut(point: Point) -> bool:
    """Of later passes even what was just trained is thin."""
    return point["ratio"] is None and point["target"] is None and not again(point)


def again(point: Point) -> bool:
    """Whether a thin network was just trained once more: it was asked for by an earlier cut."""
    return point["stage"] == "train" and point["pass"] > 1


def limited(point: Point) -> str:
    """What the goal of a cut is about: "channels", "macs", "params, latency"."""
    if point["target"] is None:
        return "channels"
    return ", ".join(limit.rpartition(" ")[0] for limit in point["target"].split(", "))


def goal(point: Point) -> str:
    """What a cut was asked for: "cut 70 % channels", "keep 50 % MACs", or "uncut"."""
    if uncut(point):
        return "uncut"
    if again(point):
        return "trained again"
    if point["target"] is None:
        return f"cut {100 * point['ratio']:.4g} % channels"
    limits = (limit.rpartition(" ") for limit in point["target"].split(", "))
    return "keep " + " and ".join(_limit(name, float(limit)) for name, _, limit in limits)


def _limit(name: str, limit: float) -> str:
    """A share of what the network cost before, or how much."""
    unit = UNITS.get(name, name)
    return f"{100 * limit:.4g} % {unit}" if limit <= 1 else f"{si(limit)} {unit}"
