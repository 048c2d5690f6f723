"""What can be cut, by us and by the strongest peer: many networks, one budget.

    pip install -e '.[scripts,peer,zoo]'
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
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from benchmarks.coverage_networks import NETWORKS, Network
from benchmarks.coverage_oracle import CannotTell, difference
from benchmarks.coverage_table import BUDGET, Row, cells, page
from benchmarks.coverage_tools import TOOLS, channels
from slimming.checkpoint import write_atomically
from utils.networks.cost import count_macs
from utils.runs.environment import commit, machine, versions

ROOT = Path(__file__).resolve().parents[1]
PEER = "1.6.1"  # of torch-pruning
LIMIT = 180  # CPU seconds a row may take, checks included; PATIENCE times that by the clock
PATIENCE = 8


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
    report(all=channels(model), cuttable=0)
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

    gone = channels(dense) - channels(thin)
    report(gone=gone)
    checks: dict[str, Callable[[], Any]] = {
        "macs_share": lambda: count_macs(thin, network.shape) / count_macs(dense, network.shape),
        "eval": lambda: runs(False),
        "train": lambda: runs(True),
        "difference": lambda: difference(dense, thin, x[:2]),
        "reloads": reloads,
    }
    if not gone:
        del checks["difference"]
    for name, check in checks.items():
        try:
            report(**{name: check()})
        except Exception as error:
            report(**{name: _sentence(error)})


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
        before, late = _cpu_seconds(), f"not done after {limit:g} s"
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
    return {**row, "cpu_seconds": _cpu_seconds() - before}


def _cpu_seconds() -> float:
    """Of all rows so far, the start of Python and the checks included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
            there = rows.get(key, {}).get("commit", "").rstrip("+")  # writing the page adds the +
            if there == code.rstrip("+") and not options.again:
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
            print(" | ".join(cells(name, tool, rows)), flush=True)


if __name__ == "__main__":
    main()
