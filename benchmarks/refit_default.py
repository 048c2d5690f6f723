"""Whether refit is better than recalibration before fine-tuning, beyond the ratio that is safe.

    python benchmarks/refit_default.py                    # digits: minutes
    python benchmarks/refit_default.py runs_dir=FOLDER data=cifar10 data.root=FOLDER \\
        data.val_size=5000 epochs=8 finetune.epochs=4     # options of pipeline.py: hours

Two networks, four ratios from the safe one (that empties no layer) to 0.2 more, three seeds,
through `pipeline.py`: whatever is finished in `runs_dir` is found, so that the same command goes
on after an interruption. A table of accuracies right after the cut and after fine-tuning, and of
the differences to recalibration, paired by seed: on the validation split, where there is one.
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
NETWORKS = ("vgg11_quarter", "resnet20")
REPAIRS = {
    "recalibrated": ["compensate=none"],
    "refit, 1.5": ["compensate=refit", "growth=1.5", "recalibrate=0"],
    "refit, unbounded": ["compensate=refit", "growth=1e9", "recalibrate=0"],
}
Run = dict[str, Any]


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    runs_dir = Path(given.pop("runs_dir", "runs/refit_default")).absolute()
    more = [f"{option}={value}" for option, value in given.items()]
    print("| network | ratio | repair | after the cut | fine-tuned | difference |")
    print("|---|---:|---|---:|---:|---:|", flush=True)
    for network in NETWORKS:
        options = [f"model={network}", *more]
        trained = _run(runs_dir, "pipeline.py", [*options, "passes=0"])
        safe = min(_safe(runs_dir, run) for run in trained)
        ratios = dict.fromkeys(min(round(safe + more, 2), 0.99) for more in BEYOND)
        compare(runs_dir, options, [*ratios])


def compare(runs_dir: Path, options: list[str], ratios: list[float]) -> None:
    """Print the rows of one network."""
    sweep = f"ratio={','.join(map(str, ratios))}"
    runs = {k: _run(runs_dir, "pipeline.py", [*options, *o, sweep]) for k, o in REPAIRS.items()}
    for ratio in ratios:
        first = _by_seed(runs["recalibrated"], ratio)
        for repair, found in runs.items():
            here = _by_seed(found, ratio)
            cut = [_accuracy(_read(runs_dir / run["parent"])) for run in here]
            tuned = [_accuracy(run) for run in here]
            gaps = [t - _accuracy(run) for t, run in zip(tuned, first, strict=True)]
            said = " | ".join(map(_said, (cut, tuned, gaps)))
            print(f"| {here[0]['network']} | {ratio:g} | {repair} | {said} |", flush=True)


def _accuracy(run: Run) -> float:
    """In %; a default is chosen by it, so the test set has no say where there are other images."""
    reached = run["accuracy"]
    return 100 * (reached["test"] if reached["val"] is None else reached["val"])


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
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
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
