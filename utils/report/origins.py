"""By which code, on which machine and by which command the runs of a table were made."""

from collections import Counter
from collections.abc import Iterable, Mapping
from string import ascii_uppercase
from typing import Any

from utils.report.table import machine

Run = Mapping[str, Any]


def commit(run: Run) -> str:
    return str(run.get("commit") or "unknown")


def letters(runs: Iterable[Run]) -> dict[str, str]:
    """{commit: a letter for it}, the most frequent first; {} where there is only one."""
    counts = Counter(map(commit, runs))
    if len(counts) < 2:
        return {}
    names = [*ascii_uppercase, *(f"A{letter}" for letter in ascii_uppercase)]
    ordered = [name for name, _ in counts.most_common()]
    return {name: names[k] if k < len(names) else f"#{k}" for k, name in enumerate(ordered)}


def commits(runs: Iterable[Run]) -> str:
    """By which commits of the code the runs were made; a warning where there are several."""
    counts = Counter(map(commit, runs))
    if len(counts) < 2:
        return f"Made by commit {''.join(counts)} of the code."
    said = ", ".join(f"{name} ({count} runs)" for name, count in counts.most_common(5))
    more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
    changed = " A + means: with changes that were not committed." if "+" in said else ""
    return f"Made by {len(counts)} commits of the code: {said}{more}.{changed}"


def environments(runs: Iterable[Run]) -> list[tuple[str, int]]:
    """[(machine and versions, number of runs)], the most frequent first."""
    said = []
    for run in runs:
        versions = ", ".join(f"{name} {of}" for name, of in (run.get("versions") or {}).items())
        parts = [machine(run.get("machine") or {}), (run.get("machine") or {}).get("system")]
        precision = f"{run['precision']} on {run['device']}" if run.get("precision") else None
        said.append("; ".join(part for part in [*parts, precision, versions] if part))
    return Counter(said).most_common()
