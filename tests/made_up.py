"""Results as `find_runs` returns them, made up: what a report says of any folder can be tried."""

from pathlib import Path
from typing import Any
from zlib import crc32

from utils.report.story import Story
from utils.runs.results import find_runs


def run(name: str, stage: str = "train", parent: str | None = None, **facts: Any) -> dict:
    """A finished run; `test` and `val` are its accuracies."""
    accuracy = {"test": facts.pop("test", 1 / 3), "val": facts.pop("val", None)}
    facts = {"strength": 0.01, "ratio": None, "recipe": "fast", "seed": 0, "method": None, **facts}
    return {
        "run": name, "name": name, "stage": stage, "parent": parent, "dataset": "digits",
        "model": "VGG", "row": "vgg11-w0.25-digits-l0.01", "latency": None, "epochs": 1,
        "accuracy": accuracy, "channels": {"kept": 5, "total": 10}, "schema": 1,
        "widths": {"bn": [5, 10]}, "gammas": {"bn": [0.0, -0.5, 1e-9]}, "params": 1, "macs": 2,
        **facts,
    }  # fmt: skip


def chain(
    seed: int = 0, training: dict | None = None, cut: dict | None = None, tuned: dict | None = None
) -> list[dict]:
    """A training, its cut and its fine-tuning, named after what they are."""
    training, cut = {"strength": 0.01, "test": 0.8, **(training or {})}, cut or {}
    goal = {"ratio": 0.5} if "target" not in cut else {"ratio": 0.4}
    cut = {"method": "slimming", "test": 0.3, **goal, **cut}
    name = f"t{_tag(training)}-s{seed}"
    inherited = {key: cut.get(key) for key in ("ratio", "target", "method")}
    inherited["strength"] = training["strength"]
    tuned = {"scratch": "none", "finetune_recipe": "fast", "test": 0.7, **(tuned or {})}
    more, tail = _tag(cut), _tag(tuned)
    return [
        run(name, seed=seed, **training),
        run(f"{name}-p{more}", "prune", name, seed=seed, **{**inherited, **cut}),
        run(f"{name}-p{more}-f{tail}", "finetune", f"{name}-p{more}", seed=seed,
            **{**inherited, **tuned}),
    ]  # fmt: skip


def _tag(facts: dict) -> str:
    """Equal facts make one run; accuracy is none of them."""
    asked = {name: value for name, value in facts.items() if name not in ("test", "val")}
    return f"{crc32(repr(sorted(asked.items(), key=str)).encode()):08x}"


def story(*runs: dict | list[dict]) -> Story:
    """Each run once, whichever chains it is in."""
    flat = [
        one for several in runs for one in (several if isinstance(several, list) else [several])
    ]
    return Story([*{one["run"]: one for one in flat}.values()])


def read(folder: Path) -> Story:
    return Story(find_runs(folder))
