"""Whether refit is better than recalibration before fine-tuning, beyond the ratio that is safe.

    python benchmarks/refit_default.py                    # digits: minutes
    python benchmarks/refit_default.py data.root=FOLDER   # CIFAR-10: a day of a few cores
    python benchmarks/refit_default.py runs_dir=FOLDER    # whatever is finished there is found

Two networks, four ratios from the safe one (that empties no layer) to 0.2 more, three seeds,
through `pipeline.py`. A table of test accuracies right after the cut and after fine-tuning, and of
the differences to recalibration, paired by seed.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1, 2)
BEYOND = (0.0, 0.05, 0.1, 0.2)
DIGITS = {"vgg11": ["model=vgg11_quarter"], "resnet20": ["model=resnet20"]}
CIFAR10 = {
    "vgg11": ["experiment=cifar10_vgg11_fast"],
    "resnet20": ["experiment=cifar10_resnet20_fast", "target.macs=null"],
}
REPAIRS = {
    "recalibrated": ["compensate=none"],
    "refit, 1.5": ["compensate=refit", "growth=1.5", "recalibrate=0"],
    "refit, 1.5, recalibrated": ["compensate=refit", "growth=1.5"],
    "refit, unbounded": ["compensate=refit", "growth=1e9", "recalibrate=0"],
}
Run = dict[str, Any]


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    runs_dir = Path(given.get("runs_dir", "runs/refit_default")).absolute()
    data = [f"data.root={Path(given['data.root']).absolute()}"] if "data.root" in given else []
    print("| network | ratio | repair | after the cut | fine-tuned | difference |")
    print("|---|---:|---|---:|---:|---:|")
    for options in (CIFAR10 if data else DIGITS).values():
        options = [*options, *data]
        trained = _run(runs_dir, "pipeline.py", [*options, "passes=0"])
        safe = min(_safe(runs_dir, run) for run in trained)
        ratios = [min(round(safe + more, 2), 0.99) for more in BEYOND]
        compare(runs_dir, options, ratios)


def compare(runs_dir: Path, options: list[str], ratios: list[float]) -> None:
    """Print the rows of one network."""
    sweep = f"ratio={','.join(map(str, ratios))}"
    runs = {k: _run(runs_dir, "pipeline.py", [*options, *o, sweep]) for k, o in REPAIRS.items()}
    for ratio in ratios:
        first = _by_seed(runs["recalibrated"], ratio)
        for repair, found in runs.items():
            here = _by_seed(found, ratio)
            cut = [100 * _read(runs_dir / run["parent"])["accuracy"]["test"] for run in here]
            tuned = [100 * run["accuracy"]["test"] for run in here]
            gaps = [t - 100 * run["accuracy"]["test"] for t, run in zip(tuned, first)]
            name = here[0]["network"]
            print(
                f"| {name} | {ratio:g} | {repair} | {_said(cut)} | {_said(tuned)} | {_said(gaps)} |"
            )


def _by_seed(runs: list[Run], ratio: float) -> list[Run]:
    tuned = [run for run in runs if run["stage"] == "finetune" and run["ratio"] == ratio]
    return sorted(tuned, key=lambda run: run["seed"])


def _safe(runs_dir: Path, trained: Run) -> float:
    """The highest ratio that empties no layer, rounded down to hundredths."""
    ckpt = f"ckpt={runs_dir / trained['name']}"
    (cut,) = _run(runs_dir, "prune.py", [ckpt, "ratio=0.01", "recalibrate=0"], sweep=False)
    return int(100 * cut["safe_ratio"]) / 100


def _run(runs_dir: Path, script: str, options: list[str], sweep: bool = True) -> list[Run]:
    """The results at the end of what this command runs, or finds."""
    seeds = ["-m", f"seed={','.join(map(str, SEEDS))}"] if sweep else []
    command = [sys.executable, script, *seeds, *options, f"runs_dir={runs_dir}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    told = re.findall(rf"^{re.escape(str(runs_dir))}/([^\s:]+)", done.stdout, re.MULTILINE)
    names = dict.fromkeys(told)
    runs = [_read(runs_dir / name) for name in names]
    parents = {run.get("parent") for run in runs}
    return [run for run in runs if run["name"] not in parents]


def _read(folder: Path) -> Run:
    return json.loads((folder / "result.json").read_text("utf-8"))


def _said(values: list[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


if __name__ == "__main__":
    main()
