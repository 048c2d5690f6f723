"""What the page and report.md have to say, as plain data; their templates make sentences of it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from utils.report.label import label, uncut
from utils.report.origins import commit
from utils.report.story import Story
from utils.report.summary import Point
from utils.report.table import machine
from utils.report.together import regime
from utils.runs.results import STAGES
from utils.runs.units import duration, si

CALLED = dict(zip(STAGES, ("training", "cut", "fine-tuning"), strict=True))
HEADLINES = 3  # of several sweeps
LAYERED = 300  # runs whose layers are told one by one


def title(story: Story) -> str:
    """What all runs are about, as far as they agree."""
    networks = {row["network"] for row in story.rows}
    data = {row["data"] for row in story.rows}
    network = networks.pop() if len(networks) == 1 else f"{len(networks)} networks"
    return f"{network} on {data.pop() if len(data) == 1 else f'{len(data)} data sets'}"


def summary(story: Story) -> str:
    """ "18 trainings, 54 cuts and 54 fine-tunings of vgg11 on digits, seeds 0 to 2, ..." """
    counts = Counter(run["stage"] for run in story.runs)
    said = [
        f"{counts[stage]} {name}{'s' if counts[stage] > 1 else ''}"
        for stage, name in CALLED.items()
        if counts[stage]
    ]
    what = list(dict.fromkeys((row["network"], row["data"]) for row in story.rows))
    names = [f"{network} on {data}" for network, data in what[:4]]
    names += [f"{len(what) - 4} more"] if len(what) > 4 else []
    seeds = len({run["seed"] for run in story.runs})
    seconds = sum(run.get("seconds") or 0 for run in story.runs)
    return (
        f"{_list(said)} of {_list(names)}, with {seeds} seed{'s' if seeds > 1 else ''}; "
        f"{duration(seconds)} of computing in all."
    )


def _list(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def headlines(story: Story) -> list[tuple[str, list[tuple[str, str]]]]:
    """[(what it is about, [(number, words)])]: a suggested network beside the one it came from.

    Suggestions are made on validation images; a single thin network needs none. Where there are
    several and no such images, nothing is put forward: the test set chooses nothing.
    """
    found = [
        (f"{sweep.title}: {sweep.names[sweep.knee.point]}", sweep.knee.point)
        for sweep in story.sweeps
        if sweep.knee
    ]
    thin = [line.end for line in story.lines if not uncut(line.end)]
    if not found and len(thin) == 1:
        found = [(label(thin[0]), thin[0])]
    return [(about, _cards(story, point)) for about, point in found[:HEADLINES]]


def _cards(story: Story, thin: Point) -> list[tuple[str, str]]:
    before = story.dense.get(regime(thin)) or next(
        (line.end for line in story.lines if uncut(line.end) and regime(line.end) == regime(thin)),
        None,
    )
    done = f"and {thin.what}" if thin["stage"] == "finetune" else "but not fine-tuned"
    told = [(_accuracy(thin), f"test accuracy{_validated(thin)}, cut {done}")]
    if before is None:
        return told
    name = "without a penalty" if not before["lambda"] else f"with λ {before['lambda']:g}"
    told.insert(0, (_accuracy(before), f"test accuracy{_validated(before)}, uncut, {name}"))
    for column, words in (("params", "parameters"), ("macs", "multiply-accumulates")):
        share = thin.mean(column) / before.mean(column) if before.mean(column) else 1
        numbers = f"{si(thin.mean(column))} of {si(before.mean(column))}"
        told.append((f"{100 * share:.1f} %", f"of the {words} are left: {numbers}"))
    return told


def _accuracy(point: Point) -> str:
    n = f" (n = {point.n})" if point.n > 1 else ""
    return f"{point.percent()} %{n}"


def _validated(point: Point) -> str:
    return "" if point.mean("val") is None else f" ({point.percent('val')} % on validation images)"


def commands(story: Story) -> dict[str, int]:
    """{command: how many runs it made}"""
    return Counter(str(run.get("command")) for run in story.runs)


def numbered(story: Story) -> dict[str, int]:
    """{command: its number on the page}"""
    return {command: number for number, command in enumerate(commands(story), start=1)}


def methods(story: Story) -> list[str]:
    return sorted({line.end["method"] for line in story.lines if not uncut(line.end)})


def lambdas(story: Story) -> list[float]:
    return sorted({line.end["lambda"] for line in story.lines})


def details(story: Story) -> dict[str, Any]:
    """What the page shows of one run, and of two beside each other.

    Settings that most runs of a stage share are told once, commands and machines by number.
    """
    usual = {stage: _usual(story, stage) for stage in STAGES}
    told = {run["run"]: _run(story, run, usual) for run in story.runs}
    for run in story.runs[:LAYERED]:
        told[run["run"]]["layers"] = _layers(story, run)
    texts = {}
    for kind in ("command", "machine"):
        texts[kind] = list(dict.fromkeys(own[kind] for own in told.values() if kind in own))
        places = {text: place for place, text in enumerate(texts[kind])}
        for own in told.values():
            own |= {kind: places[own[kind]]} if kind in own else {}
    return {"usual": usual, "texts": texts, "runs": told}


def _usual(story: Story, stage: str) -> dict[str, Any]:
    own = [story.settings[run["run"]] for run in story.runs if run["stage"] == stage]
    counts = Counter((name, repr(value)) for settings in own for name, value in settings.items())
    found: dict[str, Any] = {}
    for settings in own[:1]:
        found = {n: v for n, v in settings.items() if 2 * counts[n, repr(v)] > len(own)}
    return found


def _run(story: Story, run: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    settings, shared = story.settings[run["run"]], usual[run["stage"]]
    own = {name: value for name, value in settings.items() if shared.get(name) != value}
    own |= dict.fromkeys(shared.keys() - settings.keys())
    said = {
        "stage": run["stage"],
        "parent": run.get("parent"),
        "test": run["accuracy"]["test"],
        "val": run["accuracy"].get("val"),
        "seed": run["seed"],
        "params": run["params"],
        "macs": run["macs"],
        "command": run.get("command"),
        "commit": commit(run),
        "machine": machine(run.get("machine") or {}),
        "finished": run.get("finished"),
        "seconds": run.get("seconds"),
        "settings": own,
    }
    return {name: value for name, value in said.items() if value is not None}


def _layers(story: Story, run: Mapping[str, Any]) -> list[list[Any]]:
    """[layer, channels, params, MACs] now, and what it had at first where that is known.

    Of older runs only the channels of BatchNorms are known.
    """
    now = run.get("layers")
    if not now:
        return [[name, kept, total] for name, (kept, total) in (run.get("widths") or {}).items()]
    before = story.paths[run["run"]][0].get("layers") or {}
    kinds = ("channels", "params", "macs")
    return [
        [name, *(n for kind in kinds for n in (own.get(kind), before.get(name, {}).get(kind)))]
        for name, own in now.items()
    ]
