"""How long a report of 1000 runs takes: copies of made-up results, with metrics.jsonl.

    python benchmarks/report.py                 # 1000 runs
    python benchmarks/report.py runs=100 epochs=160

Prints seconds and the size of the page. A quarter-width VGG-19 with the paper's 160 epochs has rows
of about 8 kB; the default is a sweep as people make it: 20 epochs, 10 seeds, 5 lambdas, 9 ratios.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.training.strength import EDGES  # noqa: E402

WIDTHS = [16, 16, 32, 32, 64, 64, 64, 64, *[128] * 8]  # VGG-19 at quarter width
LAYERS = {f"features.{3 * k + 1}": width for k, width in enumerate(WIDTHS)}

CONFIG = {
    "seed": 0, "device": "auto", "epochs": 20, "compensate": "none", "recalibrate": 2048,
    "data": {"_target_": "utils.data.cifar10", "root": "data", "val_size": 5000},
    "model": {"_target_": "models.vgg.VGG", "depth": 19, "width": 0.25},
    "method": {"_target_": "slimming.methods.slimming.Slimming", "strength": None},
    "recipe": {
        "name": "fast", "epochs": 20, "batch_size": 64,
        "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        "schedule": {"_target_": "utils.training.schedules.one_cycle", "_partial_": True},
    },
    "hardware": {"_target_": "utils.training.hardware.choose", "precision": "auto"},
}  # fmt: skip


def make(folder: Path, runs: int, epochs: int) -> int:
    """Write so many finished runs, 10 seeds of each; return how many there are."""
    made, rng = 0, random.Random(0)
    for strength in (0, 1e-5, 1e-4, 1e-3, 1e-2, *(k / 1000 for k in range(2, 10))):
        for seed in range(10):
            train = _run(folder, rng, "train", strength, None, seed, None, epochs)
            made += 1
            for ratio in (k / 10 for k in range(1, 10)):
                if made >= runs:
                    return made
                cut = _run(folder, rng, "prune", strength, ratio, seed, train, epochs)
                _run(folder, rng, "finetune", strength, ratio, seed, cut, epochs)
                made += 2
    return made


def _run(folder, rng, stage, strength, ratio, seed, parent, epochs) -> str:
    share = 1 if ratio is None else 1 - ratio
    kept = {name: max(1, round(share * width)) for name, width in LAYERS.items()}
    row = f"vgg19-w0.25-cifar10-l{strength:g}" + ("" if ratio is None else f"-r{ratio:g}")
    row += {"train": "", "prune": "-rc2048", "finetune": "-rc2048-ft"}[stage]
    name = f"{row}-s{seed}-{rng.randrange(16**8):08x}"

    def accuracy() -> dict:
        return {"test": rng.uniform(0.8, 0.9), "val": rng.uniform(0.8, 0.9)}

    result = {
        "schema": 1, "name": name, "label": f"{row}-s{seed}", "stage": stage, "row": row,
        "parent": parent, "dataset": "cifar10", "model": "VGG", "seed": seed, "recipe": "fast",
        "strength": strength, "ratio": ratio, "target": None, "precision": "bf16", "device": "cpu",
        "epochs": None if stage == "prune" else epochs, "accuracy": accuracy(), "pass": 1,
        "params": round(1_250_000 * share**2), "macs": round(25e6 * share**2), "bytes": 5_000_000,
        "macs_thop": 1, "flops_paper": 2, "seconds": 100.0, "command": "python pipeline.py -m ...",
        "channels": {"kept": sum(kept.values()), "total": sum(LAYERS.values())},
        "widths": {layer: [kept[layer], width] for layer, width in LAYERS.items()},
        "gammas": {layer: _gammas(rng, width) for layer, width in kept.items()},
        "config": CONFIG,
        "commit": "0123456789", "versions": {"python": "3.11", "torch": "2.15"},
        "machine": {"cpu": "a CPU", "cores": 2, "threads": 2, "gpu": None, "system": "Linux"},
    }  # fmt: skip
    if stage == "prune":
        result["variants"] = {step: accuracy() for step in ("masked", "cut", "recalibrated")}
    here = folder / name
    here.mkdir(parents=True)
    (here / "config.yaml").write_text("seed: 0\n")
    (here / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    if stage != "prune":
        rows = [_epoch(rng, epoch, kept) for epoch in range(1, epochs + 1)]
        (here / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def _gammas(rng: random.Random, count: int) -> list[float]:
    return [float(f"{rng.lognormvariate(-3, 2):.4g}") for _ in range(count)]


def _epoch(rng: random.Random, epoch: int, kept: dict[str, int]) -> dict:
    layer = list(kept)[11]
    bins = len(EDGES) - 1
    return {
        "epoch": epoch, "lr": 0.1, "train/loss": rng.uniform(0.9, 1.1) / epoch,
        "train/accuracy": 0.5, "val/accuracy": rng.uniform(0.8, 0.9), "val/loss": 1.0,
        "gamma_histogram": {name: [n // bins] * bins for name, n in kept.items()},
        "gammas": {"layer": layer, "values": _gammas(rng, kept[layer])},
    }  # fmt: skip


def main(*options: str) -> None:
    import subprocess

    given = {"runs": 1000, "epochs": 20, **{k: int(v) for k, v in (o.split("=") for o in options)}}
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder), given["runs"], given["epochs"])
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        start, before = time.perf_counter(), sum(_cpu())
        subprocess.run([sys.executable, "report.py", folder], cwd=ROOT, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        page = Path(folder, "report", "index.html").stat().st_size
        print(
            f"{made} runs ({size / 1e6:.0f} MB): {time.perf_counter() - start:.1f} s on the clock, "
            f"{sum(_cpu()) - before:.1f} s of processor time; the page has {page / 1e6:.1f} MB"
        )


def _cpu() -> tuple[float, float]:
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime, used.ru_stime


if __name__ == "__main__":
    main(*sys.argv[1:])
