"""What can be cut, by us and by the strongest peer: many networks, one budget.

    pip install -e '.[scripts,peer]'
    python benchmarks/coverage.py                        # all rows; goes on where it was stopped
    python benchmarks/coverage.py --only resnet50 swin_t --tools ours --again

Each row is a process of its own with one thread and a time limit, so that a crash or a hang is a
row and not the end; failures are printed as they are. Rows of the same commit are kept. Writes
coverage.json and README.md.

    traced    the tool took the network
    can cut   BatchNorm channels that it can cut, of all
    cut       BatchNorm channels that are gone
    MACs      what is left of the dense network's; met: at most the budget, and within 1 % of it
    equal     the thin network computes what the original computes without the removed channels, in
              float64 within 1e-9 of the largest output (coverage_oracle.py: no tool's graph)
    eval, train   the thin network's forward runs in this mode
    reloads   from a weights_only file into a freshly built network, to the same outputs
    s         CPU seconds for tracing, planning and cutting together, on one thread; what
              torch itself loads at a first trace, and counting MACs on the way, aside
"""

import argparse
import copy
import json
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from benchmarks.coverage_networks import NETWORKS, Network
from benchmarks.coverage_oracle import TOLERANCE, CannotTell, difference
from benchmarks.coverage_tools import TOOLS
from slimming.artifact import write_atomically
from utils.cost import count_macs
from utils.runs import commit, machine, versions

ROOT = Path(__file__).resolve().parents[1]
BUDGET, CLOSE = 0.5, 0.99  # share of the dense MACs; met from CLOSE x BUDGET on
PEER = "1.6.1"  # of torch-pruning
LIMIT = 180  # CPU seconds a row may take, checks included; PATIENCE times that by the clock
PATIENCE = 8

Row = dict[str, Any]


def measure(name: str, tool: str, file: Path) -> None:
    """One row, written to `file` as it grows: what is known outlives a kill."""
    row: Row = {}

    def report(**facts: Any) -> None:
        row.update(facts)
        write_atomically(file, lambda out: out.write(json.dumps(row).encode()))

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    network = NETWORKS[name]
    model = network.build()
    report(all=sum(norm.num_features for norm in _norms(model)), cuttable=0)
    try:
        thin, reload = TOOLS[tool](network, model, BUDGET, report)
    except Exception as error:
        report(error=_sentence(error))
        return
    _examine(network, model, thin, reload, report)
    report(done=True)


def _examine(
    network: Network,
    dense: nn.Module,
    thin: nn.Module,
    reload: Callable[[Path], nn.Module],
    report: Callable[..., None],
) -> None:
    x = torch.randn(4, *network.shape)

    @torch.no_grad()
    def runs(train: bool) -> bool:
        copy.deepcopy(thin).train(train)(x)
        return True

    def reloads() -> bool:
        with tempfile.TemporaryDirectory() as folder:
            again = reload(Path(folder) / "thin.pt").eval()
        same = copy.deepcopy(thin).eval()
        with torch.no_grad():
            pairs = zip(tree_leaves(same(x)), tree_leaves(again(x)), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    report(gone=_channels(dense) - _channels(thin))
    checks: dict[str, Callable[[], Any]] = {
        "macs_share": lambda: count_macs(thin, network.shape) / count_macs(dense, network.shape),
        "eval": lambda: runs(False),
        "train": lambda: runs(True),
        "difference": lambda: difference(dense, thin, x[:2]),
        "reloads": reloads,
    }
    for name, check in checks.items():
        try:
            report(**{name: check()})
        except Exception as error:
            report(**{name: _sentence(error)})


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _channels(model: nn.Module) -> int:
    return sum(norm.num_features for norm in _norms(model))


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    kind = "can't be told" if isinstance(error, CannotTell) else type(error).__name__
    return f"{kind}: {lines[0]}"[:300]


def run(name: str, tool: str, limit: float) -> Row:
    """A row, measured in a process of its own that is ended after `limit` CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        words = [sys.executable, __file__, "--row", name, tool, str(file), "--limit", str(limit)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        start, late = time.perf_counter(), f"not done after {limit:g} s"
        try:
            done = subprocess.run(
                words, env=env, timeout=PATIENCE * limit, capture_output=True, text=True
            )
            end = (done.stderr.strip().splitlines() or ["no word"])[-1]
            failure = f"the process ended with {done.returncode}: {end}"[:300]
            failure = late if done.returncode == -signal.SIGXCPU else failure
        except subprocess.TimeoutExpired:
            done, failure = None, late
        row = json.loads(file.read_text()) if file.exists() else {}
    if done is None or done.returncode:
        row["error"] = failure
    return {**row, "wall_seconds": time.perf_counter() - start}


def met(row: Row) -> bool:
    share = row.get("macs_share")
    return isinstance(share, float) and CLOSE * BUDGET <= share <= BUDGET


def equal(row: Row) -> bool:
    value = row.get("difference")
    return isinstance(value, float) and value <= TOLERANCE and bool(row.get("gone"))


def page(result: Mapping[str, Any]) -> str:
    """The table, its sums, and everything that failed in its own words."""
    about, rows = result["about"], result["rows"]
    head = ["network", "tool", "traced", "can cut", "cut", "MACs", "met", "equal"]
    head += ["eval", "train", "reloads", "s"]
    lines = [
        "# What can be cut, by us and by the strongest peer",
        "",
        f"Half of the MACs (at most {BUDGET:.0%}, at least {CLOSE * BUDGET:.1%}), "
        f"ranked by the BatchNorm scales. `{about['command']}`, commit {about['commit']}, "
        f"torch-pruning {about['versions']['torch-pruning']}, torch {about['versions']['torch']}, "
        f"torchvision {about['versions']['torchvision']}, {about['machine']['cpu']}.",
        "What the columns mean: `benchmarks/coverage.py`. -: never came to it, or nothing to say.",
        "",
        *_table(["", *TOOLS], _sums(rows)),
        "",
        *_table(head, [_cells(name, tool, rows) for name in NETWORKS for tool in TOOLS]),
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


def _cells(name: str, tool: str, rows: Mapping[str, Row]) -> list[str]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--limit", type=float, default=LIMIT, help="CPU seconds per row")
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "coverage")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        name, tool, file = options.row
        seconds = math.ceil(options.limit)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        return measure(name, tool, Path(file))
    if version("torch-pruning") != PEER:
        sys.exit(f"the comparison is with torch-pruning {PEER}: pip install torch-pruning=={PEER}")
    options.out.mkdir(parents=True, exist_ok=True)
    file, code = options.out / "coverage.json", commit()
    rows: dict[str, Row] = json.loads(file.read_text())["rows"] if file.exists() else {}
    torch.set_num_threads(1)
    about = {
        "command": "python benchmarks/coverage.py",
        "commit": code,
        "budget": {"macs": BUDGET},
        "limit_seconds": options.limit,
        "versions": {**versions(), "torch-pruning": PEER},
        "machine": machine(),
    }
    for name in options.only:
        for tool in options.tools:
            key = f"{name} | {tool}"
            if rows.get(key, {}).get("commit") == code and not options.again:
                continue
            rows[key] = {**run(name, tool, options.limit), "commit": code}
            ordered = {k: rows[k] for n in NETWORKS for t in TOOLS if (k := f"{n} | {t}") in rows}
            result = {"about": about, "rows": ordered}
            text = json.dumps(result, indent=1)
            write_atomically(file, lambda out, text=text: out.write(text.encode()))
            text = page(result)
            write_atomically(
                options.out / "README.md", lambda out, text=text: out.write(text.encode())
            )
            print(" | ".join(_cells(name, tool, rows)), flush=True)


if __name__ == "__main__":
    main()
