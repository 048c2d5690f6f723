"""What a story has to say in tables: the networks, the contests, the runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from utils.report import table
from utils.report.compare import Contest, Difference, is_control, paired
from utils.report.label import again, common, labels, limited, parts, penalty, uncut
from utils.report.origins import commit, letters
from utils.report.render import Column, Table
from utils.report.story import Story
from utils.report.summary import Line, Point
from utils.report.together import regime
from utils.runs.units import duration, si

ACCURACY = "Accuracy in %, of the last epoch; ± is the standard deviation over n seeds."
DENSE = (
    "vs dense: points of test accuracy against the same training without a penalty, uncut, seed by "
    "seed; ± is half of the 95 % confidence interval (Student's t)."
)
PAIRED = (
    "difference: points of test accuracy over pairs of equal seeds, ± half of the 95 % confidence "
    "interval of their mean (Student's t). Fewer than three seeds, or an interval that holds 0, "
    "can't tell. Each interval is a 95 % one by itself: of twenty, one misses by chance."
)


def results(story: Story) -> list[Table]:
    """One for each network, data set and recipe: a line for each training and each thin network."""
    subjects: dict[tuple, list[Line]] = {}
    for line in story.lines:
        key = tuple(line.end[column] for column in ("network", "data", "recipe"))
        subjects.setdefault(key, []).append(line)
    return [_results(story, sorted(lines, key=_order)) for lines in subjects.values()]


def _order(line: Line) -> tuple:
    """Training by training: uncut networks, then ratios upward and budgets downward."""
    end = line.end
    cut = () if uncut(end) or again(end) else (limited(end), *_falling(end))
    choice = (end["method"] != "slimming", end["method"], end["lambda"], end["repair"])
    return (end["pass"], regime(end), not uncut(end), cut, choice, is_control(end), end.what)


def _falling(point: Point) -> tuple[float, ...]:
    if point["target"] is None:
        return (point["ratio"],)
    return tuple(-float(limit.rpartition(" ")[2]) for limit in point["target"].split(", "))


def _results(story: Story, lines: Sequence[Line]) -> Table:
    ends = [line.end for line in lines]
    names, knees = labels(ends), {sweep.knee.point for sweep in story.sweeps if sweep.knee}
    dense = [story.dense.get(regime(end)) for end in ends]
    against = [_against(end, whole) for end, whole in zip(ends, dense, strict=True)]
    seeds = {end.n for end in ends}
    before = [
        _percents(name, [_before(line, name) for line in lines], minor)
        for name, minor in (("repaired", 4), ("cut", 5), ("trained", 6))
    ]
    columns = [
        Column("network", [names[end] for end in ends], words=True),
        _percents("test %", ends, 0),
        Column("n", [f"{end.n}" for end in ends], [end.n for end in ends], minor=1),
        _percents("val %", ends, 1, "val"),
        Column(
            "vs dense",
            [f"{found}" if found else "-" for found in against],
            [found.mean if found and found.n else None for found in against],
            minor=3,
        ),
        _costs("params", ends, dense, 2),
        _costs("macs", ends, dense, 1, "MACs"),
        _numbers("ms / 64", ends, "latency_64_ms", "{:.3g}".format, 4),
        *before[::-1],
        Column("commit", _commits(story, ends), words=True, minor=9),
    ]
    hidden = {"n"} if len(seeds) == 1 else set()
    n = f" (n = {seeds.pop()})" if len(seeds) == 1 else ""
    rows = [
        {
            "run": str(end["run"]),
            "label": names[end],
            "method": "uncut" if uncut(end) else str(end["method"]),
            "penalty": penalty(end),
            **({"knee": "true"} if end in knees else {}),
        }
        for end in ends
    ]
    notes = [ACCURACY, *([DENSE] if any(against) else []), *_unseen(ends), *_timed_on(ends)]
    shown = [column for column in columns if column.name not in hidden]
    return Table(shown, common(ends) + n, notes, rows).told()


def _before(line: Line, name: str) -> Point | None:
    """The step of that name on the way to a network, unless it is where it ends."""
    kinds: dict[str, Callable[[str], bool]] = {
        "trained": lambda what: what == "trained",
        "cut": lambda what: what == "cut",
        "repaired": lambda what: what.startswith("cut + "),
    }
    able = [point for what, point in line.steps.items() if kinds[name](what)]
    return able[-1] if able and able[-1] is not line.end else None


def _against(end: Point, dense: Point | None) -> Difference | None:
    return None if dense is None or end is dense else paired(end.by_seed(), dense.by_seed())


def _percents(
    name: str, points: Sequence[Point | None], minor: int, column: str = "test"
) -> Column:
    means = [None if point is None else point.mean(column) for point in points]
    texts = ["-" if point is None else point.percent(column) for point in points]
    return Column(name, texts, [None if m is None else 100 * m for m in means], minor=minor)


def _costs(
    column: str, ends: Sequence[Point], dense: Sequence[Point | None], minor: int, name: str = ""
) -> Column:
    """With the share of what the network cost before."""
    texts = []
    for end, whole in zip(ends, dense, strict=True):
        text, mean = "-", end.mean(column)
        if mean is not None:
            text = si(mean)
            if whole is not None and not uncut(end) and whole.mean(column):
                share = 100 * mean / whole.mean(column)
                text += f" ({share:.{1 if share >= 10 else 2}f} %)"
        texts.append(text)
    return Column(name or column, texts, [end.mean(column) for end in ends], minor=minor)


def _numbers(
    name: str, ends: Sequence[Point], column: str, convert: Callable[[float], str], minor: int
) -> Column:
    """Of those seeds that have a value: not every network has been timed."""
    means = [fmean(values) if (values := end.values(column)) else None for end in ends]
    return Column(name, ["-" if m is None else convert(m) for m in means], means, minor=minor)


def _unseen(ends: Sequence[Point]) -> list[str]:
    lost = [str(end.settings["unseen"]) for end in ends if "unseen" in end.settings]
    if not lost:
        return []
    names = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
    return [
        f"Of networks whose training isn't here nobody knows how it went, so they are averaged and "
        f"compared with nothing but what stands on the same run. Copy the runs beside them that "
        f"they stand on: {names}."
    ]


def _timed_on(ends: Sequence[Point]) -> list[str]:
    machines = sorted({row["timed_on"] for end in ends for row in end.rows if row["timed_on"]})
    if not machines:
        return []
    several = " Times of different machines can't be compared." if len(machines) > 1 else ""
    return [f"Times are medians, measured on {'; '.join(machines)}.{several}"]


def _commits(story: Story, ends: Sequence[Point]) -> list[str]:
    """Letters, where several commits made what the page shows."""
    named = letters(story.runs)
    made = [{commit(story.by_name[row["run"]]) for row in end.rows} for end in ends]
    return [" ".join(sorted(named[name] for name in own)) or "-" if named else "-" for own in made]


def means(story: Story) -> Table:
    """The same as numbers: a line per network, a column per fact."""
    ends = [line.end for line in story.lines]
    told = [*parts(ends).values()]
    against = [_against(end, story.dense.get(regime(end))) for end in ends]
    facts: dict[str, list[Any]] = {
        **{name: [own[name] for own in told] for name in (told[0] if told else ())},
        "n": [end.n for end in ends],
        "seeds": [" ".join(f"{row['seed']}" for row in end.rows) for end in ends],
    }
    for column in ("test", "val"):
        facts[column] = [end.mean(column) for end in ends]
        facts[f"{column}_std"] = [end.spread(column) for end in ends]
    facts |= {
        "vs_dense": [found.mean if found and found.n else None for found in against],
        "vs_dense_half_width": [found.half_width if found else None for found in against],
        "vs_dense_pairs": [found.n if found else None for found in against],
    }
    for column in ("params", "macs", "kept", "total", "bytes", "latency_64_ms"):
        facts[column] = [end.mean(column) for end in ends]
    return Table([_raw(name, values) for name, values in facts.items()])


def _raw(name: str, values: Sequence[Any]) -> Column:
    return Column(name, ["" if v is None else str(v) for v in values], values)


def every_accuracy(rows: Sequence[Mapping[str, Any]]) -> Table:
    """`table.rows` as they are."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    return Table([_raw(name, [row[name] for row in rows]) for name in names])


def contests(story: Story) -> list[Table]:
    """One for each; how to read them stands below the last."""
    made = [_contest(one) for one in story.contests]
    return [*made[:-1], *(replace(one, notes=[PAIRED]) for one in made[-1:])]


def _contest(one: Contest) -> Table:
    """A row per network and what it is compared with; what is compared with nothing comes first."""
    alone = [point for point in one.entrants if not one.references(point)]
    lines = [(point, None) for point in alone] + one.pairs
    found = [
        None if other is None else paired(ours.by_seed(), other.by_seed()) for ours, other in lines
    ]
    ends = [ours for ours, _ in lines]
    columns = [
        Column("network", [_versus(one, *pair) for pair in lines], words=True),
        Column(
            "difference",
            [f"{each}" if each else "-" for each in found],
            [each.mean if each and each.n else None for each in found],
        ),
        Column("verdict", [each.verdict if each else "-" for each in found], words=True),
        _percents("test %", ends, 1),
        Column("n", [f"{end.n}" for end in ends], [end.n for end in ends], minor=2),
        _numbers("params", ends, "params", si, 4),
        _numbers("MACs", ends, "macs", si, 3),
    ]
    rows = [
        {
            "run": str(ours["run"]),
            "label": _versus(one, ours, other),
            "method": str(ours["method"]),
            "penalty": penalty(ours),
        }
        for ours, other in lines
    ]
    return Table(columns, one.title, rows=rows)


def differences(story: Story) -> Table:
    """All contests as numbers: a line per pair, a column per fact."""
    lines = []
    for one in story.contests:
        for ours, other in one.pairs:
            found = paired(ours.by_seed(), other.by_seed())
            lines.append(
                {
                    "contest": one.title,
                    "network": one.names[ours],
                    "against": one.names[other],
                    "difference": found.mean if found.n else None,
                    "half_width": found.half_width,
                    "pairs": found.n,
                    "verdict": found.verdict,
                    "test": ours.mean("test"),
                    "test_against": other.mean("test"),
                    "params": ours.mean("params"),
                    "macs": ours.mean("macs"),
                }
            )
    names = list(lines[0]) if lines else ["contest"]
    return Table([_raw(name, [line[name] for line in lines]) for name in names])


def _versus(one: Contest, ours: Point, other: Point | None) -> str:
    return one.names[ours] + (f" against {one.names[other]}" if other else "")


def every_run(story: Story, commands: Mapping[str, int]) -> Table:
    """A line per run, with the number of its command."""
    runs = story.runs
    seconds = [run.get("seconds") for run in runs]

    def percent(which: str) -> Column:
        values = [run["accuracy"].get(which) for run in runs]
        texts = ["-" if v is None else f"{100 * v:.2f}" for v in values]
        return Column(f"{which} %", texts, [None if v is None else 100 * v for v in values])

    return Table(
        [
            Column("run", [run["run"] for run in runs], words=True),
            percent("test"),
            percent("val"),
            Column("stage", [run["stage"] for run in runs], words=True),
            Column("seed", [f"{run['seed']}" for run in runs], [run["seed"] for run in runs]),
            Column("commit", [commit(run) for run in runs], words=True),
            Column("finished", [str(run.get("finished") or "-") for run in runs], words=True),
            Column("time", ["-" if s is None else duration(s) for s in seconds], seconds),
            Column("command", [f"{commands[str(run.get('command'))]}" for run in runs]),
        ],
        rows=[{"run": run["run"], "label": run["run"], **_kind(story, run)} for run in runs],
    ).told()


def _kind(story: Story, run: Mapping[str, Any]) -> dict[str, str]:
    path = story.paths[run["run"]]
    strength = table.strength(path)
    return {
        "method": table.method(path) if any(r["stage"] == "prune" for r in path) else "uncut",
        "penalty": f"λ {strength:g}" if strength else "no penalty",
    }
