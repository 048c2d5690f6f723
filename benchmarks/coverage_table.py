"""The page that `coverage.py` makes of its rows."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.coverage_networks import NETWORKS
from benchmarks.coverage_oracle import TOLERANCE
from benchmarks.coverage_tools import TOOLS

BUDGET, CLOSE = 0.5, 0.99  # share of the dense MACs; met from CLOSE x BUDGET on

Row = dict[str, Any]


def met(row: Row) -> bool:
    share = row.get("macs_share")
    return isinstance(share, float) and CLOSE * BUDGET <= share <= BUDGET


def equal(row: Row) -> bool:
    value = row.get("difference")
    return isinstance(value, float) and value <= TOLERANCE and bool(row.get("gone"))


def _commits(rows: Mapping[str, Row]) -> str:
    """Of the code that made the rows, with how many where they differ."""
    counts = Counter(row["commit"] for row in rows.values())
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({number} rows)" for name, number in counts.most_common())


def page(result: Mapping[str, Any]) -> str:
    """The table, its sums, and everything that failed in its own words."""
    about, rows = result["about"], result["rows"]
    head = ["network", "tool", "traced", "can cut", "cut", "MACs", "met", "equal"]
    head += ["eval", "train", "reloads", "s"]
    lines = [
        "# What can be cut, by us and by the strongest peer",
        "",
        f"Half of the MACs (at most {BUDGET:.0%}, at least {CLOSE * BUDGET:.1%}), "
        f"ranked by the BatchNorm scales. `{about['command']}`, commit {_commits(rows)}, "
        f"torch-pruning {about['versions']['torch-pruning']}, torch {about['versions']['torch']}, "
        f"torchvision {about['versions']['torchvision']}, {about['machine']['cpu']}.",
        "What the columns mean: `benchmarks/coverage.py`. -: never came to it, or nothing to say.",
        "",
        *_table(["", *TOOLS], _sums(rows)),
        "",
        *_table(head, [cells(name, tool, rows) for name in NETWORKS for tool in TOOLS]),
        "",
        "## In their own words",
        "",
        *_words(rows),
    ]
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows]]


def _sums(rows: Mapping[str, Row]) -> list[list[str]]:
    """Of the networks that have a BatchNorm."""
    questions: dict[str, Callable[[Row], bool]] = {
        "traced": lambda row: bool(row.get("traced")),
        "something cut": lambda row: bool(row.get("gone")),
        "budget met": met,
        "thin computes what the masked one does": equal,
        "runs in eval mode": lambda row: bool(row.get("gone")) and row.get("eval") is True,
        "runs in train mode": lambda row: bool(row.get("gone")) and row.get("train") is True,
        "reloads": lambda row: bool(row.get("gone")) and row.get("reloads") is True,
        "all of it": lambda row: met(row) and equal(row) and all(
            row.get(word) is True for word in ("eval", "train", "reloads")
        ),
    }  # fmt: skip
    mine = {tool: [row for row in _of(rows, tool).values() if row.get("all", 1)] for tool in TOOLS}
    table = [
        [question, *(f"{sum(map(holds, mine[tool]))} of {len(mine[tool])}" for tool in TOOLS)]
        for question, holds in questions.items()
    ]
    times = {tool: [row["seconds"] for row in mine[tool] if "seconds" in row] for tool in TOOLS}
    shown = [f"{statistics.median(t):.1f} / {max(t):.1f}" if t else "-" for t in times.values()]
    return [*table, ["CPU seconds, median / longest", *shown]]


def _of(rows: Mapping[str, Row], tool: str) -> dict[str, Row]:
    return {name: rows[f"{name} | {tool}"] for name in NETWORKS if f"{name} | {tool}" in rows}


def cells(name: str, tool: str, rows: Mapping[str, Row]) -> list[str]:
    row = rows.get(f"{name} | {tool}", {})
    share, gap, gone = row.get("macs_share"), row.get("difference"), row.get("gone")
    known = isinstance(share, float)
    if isinstance(gap, float):
        same = "yes" if gap <= TOLERANCE else f"**no** ({gap:.0e})"
    else:
        same = "can't be told" if gap and gone else "-"
    return [
        name,
        tool,
        "yes" if row.get("traced") else "**no**",
        f"{row['cuttable']:,} of {row['all']:,}" if "all" in row else "-",
        f"{gone:,}" if gone is not None else "-",
        f"{share:.1%}" if known else "-",
        "-" if not row.get("all") else "yes" if met(row) else "**no**",
        same,
        *(_yes(row.get(word)) for word in ("eval", "train", "reloads")),
        f"{row['seconds']:.1f}" if "seconds" in row else "-",
    ]


def _yes(value: Any) -> str:
    return "-" if value is None else "yes" if value is True else "**no**"


def _words(rows: Mapping[str, Row]) -> list[str]:
    lines = []
    for key, row in rows.items():
        said = [f"{k}: {v}" for k, v in row.items() if isinstance(v, str) and k != "commit"]
        said += row.get("shortfalls", [])
        lines += [f"- {key.replace(' | ', ', ')}: {sentence}" for sentence in said]
    return lines
