"""Every experiment, by the user's door: it says what was published, composes, and runs."""

import functools
import json
import re
from pathlib import Path

import pytest
from hydra import initialize_config_dir

from door import config
from pipeline import pipeline
from terminal import refusal, terminal
from utils.cli.experiments import composed
from utils.cli.known import compare, options
from utils.cli.schema import register
from utils.cli.script import CONF
from utils.report.paper import rows as paper

NAMES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
ROWS = {
    row["experiment"]: row
    for table in paper.published()["tables"]
    for row in paper.rows(table)
    if "experiment" in row
}
FIGURES = [name for one in paper.published()["figures"].values() for name in one["experiments"]]
OF_THE_PAPER = sorted([*ROWS, *FIGURES])
# The smallest network of each kind.
SMALLEST = {
    "VGG": ("model.depth=11", "model.width=0.0625"),
    "PreResNet": ("model.depth=11", "model.width=0.25"),
    "ResNet": ("model.depth=8", "model.width=0.25"),
    "DenseNet": ("model.depth=7", "model.width=0.25"),
    "MLP": ("model.width=0.05",),
    "VGGA": ("model.width=0.0625", "model.pool_size=1"),
}
# Two steps of training a stage on made-up images of the same shape.
STEPS = ("epochs=1", "recipe.batch_size=8", "finetune.recipe.batch_size=8", "logger=none")
STEPS += ("data=fake", "data.num_train=16", "data.num_test=8", "hardware.precision=fp32")
SHAPES = {
    "mnist": ("data.size=28", "data.channels=1"),
    "cifar100": ("data.num_classes=100",),
    "imagenet": ("data.num_classes=1000", "data.size=64"),
}


@functools.cache
def whole(name: str, twin: str | None = None) -> dict:
    register()
    return composed(name, twin)


def data_of(cfg: dict) -> str:
    return cfg["data"]["_target_"].rpartition(".")[2]


def kind_of(cfg: dict) -> str:
    return cfg["model"]["_target_"].rpartition(".")[2]


def run(name: str, runs: Path, twin: str | None = None) -> list[dict]:
    """The results of an experiment's stages; of several passes, the first two."""
    cfg = whole(name, twin)
    words = [f"experiment={name}", *([f"twin={twin}"] if twin else []), *STEPS]
    words += [*SMALLEST[kind_of(cfg)], *SHAPES.get(data_of(cfg), ()), f"runs_dir={runs}"]
    # Two steps of the paper's lambda move nothing; a baseline, or a method without one, stays so.
    words += ["method.strength=1e-3"] if cfg["method"].get("strength", 0) != 0 else []
    words += ["finetune.epochs=1", f"passes={min(cfg['passes'], 2)}"]
    folders = pipeline(config("pipeline", *words))
    return [json.loads((folder / "result.json").read_text()) for folder in folders]


@functools.cache
def known() -> dict:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return options("pipeline")


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_says_nothing_that_nobody_reads(name):
    compare(whole(name), known(), "", name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


def one_of_each(names: list[str]) -> list:
    """Rows that differ in data and ratio alone run the same code: all but the first are long."""
    seen, marked = set(), []
    for name in names:
        kind = re.sub(r"cifar100?|svhn", "images", re.sub(r"_\d\d(?=_|$)", "", name))
        marked.append(pytest.param(name, marks=[pytest.mark.long] if kind in seen else []))
        seen.add(kind)
    return marked


@pytest.mark.parametrize("name", one_of_each(NAMES))
def test_an_experiment_runs(runs, name):
    cfg, results = whole(name), run(name, runs)
    stages = ["train", "prune", "finetune"] * min(cfg["passes"], 2) or ["train"]
    assert [result["stage"] for result in results] == stages
    assert bool(results[0]["strength"]) == (cfg["method"].get("strength", 0) != 0)
    for trained, cut in zip(results[0::3], results[1::3]):
        assert cut["method"] == cfg["method"]["name"] and set(cut["variants"]) >= {"cut"}
        assert cut["params"] < trained["params"] and cut["recalibrate"] <= cfg["recalibrate"]
    for tuned in results[2::3]:
        assert tuned["scratch"] == cfg["finetune"]["scratch"]


TWINS = ["cifar10_vgg19_70", "cifar100_densenet40_60", "svhn_resnet164_60", "mnist_mlp_80"]
TWINS += ["rethinking_cifar10_vgg19_70", "rethinking_cifar10_vgg19_70_scratch_b"]
TWINS += ["imagenet_vgg_a_50", "cifar10_vgg19_multipass", "cifar10_vgg19_l1_norm"]


@pytest.mark.parametrize("name", one_of_each(TWINS))
def test_a_twin_runs(runs, name):
    end = run(name, runs, "fast")[-1]
    assert end["stage"] == "finetune" and end["recipe"] == "fast*"


OTHERS = sorted({name for name in NAMES if name not in OF_THE_PAPER})


@pytest.mark.parametrize("name", one_of_each(OTHERS))
def test_what_is_no_published_row_has_no_twin(name):
    said = refusal("pipeline", f"experiment={name}", "twin=fast", "data=fake", "dry_run=true")
    assert (
        said.startswith("twin=fast shortens a row of a published table") and "leave it out" in said
    )


def test_a_sweep_over_experiments_takes_the_options_of_their_data(tmp_path):
    sweep = ("-m", "experiment=cifar10_vgg19_baseline,cifar100_vgg19_50", "logger=none")
    code, _, err = terminal("pipeline", *sweep, "data.root=nowhere", f"runs_dir={tmp_path}")
    assert code == 1 and "nowhere/cifar-10-batches-py" in err and "2 of the sweep's jobs" in err


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_the_head_says_what_was_published(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    *head, command = text[: len(paper.head(name)) + 2]
    assert head == ["# @package _global_", *paper.head(name)]
    assert command.startswith("# python pipeline.py ") and command.endswith(f"experiment={name}")


def test_every_row_has_an_experiment_and_no_other_experiment_claims_a_source():
    assert set(OF_THE_PAPER) <= set(NAMES)
    for name in set(NAMES) - set(OF_THE_PAPER):
        assert "Liu et al." not in (CONF / "experiment" / f"{name}.yaml").read_text()


LAMBDA = {"VGG": 1e-4, "PreResNet": 1e-5, "DenseNet": 1e-5, "MLP": 1e-4, "VGGA": 1e-5}
EPOCHS = {"cifar10": 160, "cifar100": 160, "svhn": 20, "mnist": 30, "imagenet": 60}


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_a_row_is_trained_and_cut_as_published(name):
    """Sections 4.2 and 4.3; Rethinking as its code does."""
    cfg, rethinking = whole(name), name.startswith("rethinking")
    kind, data, plain = kind_of(cfg), data_of(cfg), name.endswith(("baseline", "l1_norm", "da_0"))
    middle = name == "figure4_lambda_1e-5"
    assert cfg["method"].get("strength", 0) == (0 if plain else 1e-5 if middle else LAMBDA[kind])
    assert cfg["epochs"] == (90 if rethinking and data == "imagenet" else EPOCHS[data])
    assert cfg["recalibrate"] == 0 and cfg["compensate"] == "none" and cfg["model"]["width"] == 1
    assert cfg["recipe"]["optimizer"]["nesterov"] == (not rethinking or data == "imagenet")
    assert kind != "DenseNet" or cfg["model"]["stem"] == (24 if rethinking else 16)
    trained_only = name.endswith("baseline") or name.startswith(("figure4", "figure6"))
    assert cfg["passes"] == (0 if trained_only else 6 if name.endswith("multipass") else 1)
    if cfg["ratio"] is not None and cfg["passes"] == 1:
        assert f", {100 * cfg['ratio']:g} %" in "".join(paper.head(name))


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_a_row_is_fine_tuned_as_published(name):
    """As trained, but for 5 epochs on ImageNet and 40 (ImageNet: 20) in Rethinking, at 1e-3."""
    cfg, rethinking = whole(name), name.startswith("rethinking")
    imagenet, tuning = data_of(cfg) == "imagenet", cfg["finetune"]["recipe"]
    short = cfg["finetune"]["scratch"] == "none" and cfg["passes"] and (rethinking or imagenet)
    if short:
        epochs = {(True, False): 40, (True, True): 20, (False, True): 5}[rethinking, imagenet]
        assert cfg["finetune"]["epochs"] == epochs
        assert tuning["optimizer"]["lr"] == 1e-3 and tuning["schedule"]["milestones"] == []
    else:
        assert tuning["optimizer"] == cfg["recipe"]["optimizer"]
        assert tuning["schedule"] == cfg["recipe"]["schedule"]
        assert cfg["finetune"]["epochs"] == cfg["epochs"]
    assert tuning["optimizer"]["nesterov"] == cfg["recipe"]["optimizer"]["nesterov"]
    assert tuning["batch_size"] == cfg["recipe"]["batch_size"]


@pytest.mark.parametrize("name", one_of_each(OF_THE_PAPER))
def test_its_twin_is_the_same_row_for_a_laptop(name):
    row, twin = whole(name), whole(name, "fast")
    for same in ("passes", "ratio", "target", "floor", "refill", "scope", "recalibrate"):
        assert twin[same] == row[same], same
    assert {**twin["data"], "size": 0} == {**row["data"], "size": 0}
    assert twin["model"] == {**row["model"], "width": 0.25}
    assert twin["recipe"]["name"] == twin["finetune"]["recipe"]["name"] == "fast"
    assert twin["finetune"]["epochs"] <= twin["epochs"] <= row["epochs"] / 3
    if row["method"].get("strength"):  # lambda follows from the reach, in proportion
        assert twin["method"]["strength"] is None
        assert twin["recipe"]["reach"] == (0.24 if name == "figure4_lambda_1e-5" else 2.4)
    else:
        assert twin["method"] == row["method"]
