"""The stages through the user's door: what they leave, compute again, and refuse."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from door import config, tiny
from evaluate import evaluate_checkpoint
from export import export
from finetune import finetune
from pipeline import pipeline
from prune import prune
from slimming import checkpoint as artifact
from slimming import load, slim, trace
from slimming.checkpoint import read
from train import train
from utils.runs.identity import digest, essence

SPARSE = ("method.strength=2.0", "epochs=4")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A runs folder that holds one sparse training; tests may add to it."""
    folder = tmp_path_factory.mktemp("runs")
    train(tiny("train", folder, *SPARSE))
    return folder


@pytest.fixture(scope="module")
def sparse(runs) -> Path:
    return train(tiny("train", runs, *SPARSE))


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_the_pipeline_is_the_three_scripts(runs, tmp_path, sparse):
    folders = pipeline(tiny("pipeline", tmp_path, *SPARSE, "ratio=0.5", "finetune.epochs=2"))
    cut = prune(tiny("prune", runs, f"ckpt={sparse}", "ratio=0.5"))
    tuned = finetune(tiny("finetune", runs, f"ckpt={cut}", "epochs=2"))
    assert [folder.name for folder in folders] == [sparse.name, cut.name, tuned.name]
    for ours, theirs in zip(folders, (sparse, cut, tuned)):
        a, b = read(ours).weights, read(theirs).weights
        assert all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


def test_a_result_says_everything_that_trust_needs(runs, sparse):
    after = ("compensate=expected", "recalibrate=64")
    cut = prune(tiny("prune", runs, f"ckpt={sparse}", "ratio=0.5", *after))
    said = result(cut)
    model = load(cut)
    assert said["schema"] == 1 and said["stage"] == "prune" and said["parent"] == sparse.name
    assert said["params"] == sum(p.numel() for p in model.parameters())
    assert said["flops_paper"] == 2 * said["macs"]
    assert said["bytes"] == (cut / "model.pt").stat().st_size
    for key in ("params", "macs"):
        assert sum(layer[key] for layer in said["layers"].values()) == said[key]
    convs = [name for name, module in model.named_modules() if hasattr(module, "out_channels")]
    assert list(said["layers"]) == [*convs, "classifier", "other"]
    assert [layer["channels"] for layer in said["layers"].values()][: len(convs)] == [
        kept for kept, _ in said["widths"].values()
    ]
    assert said["images"] == {"train": 192, "val": 0, "test": 96}
    total = said["channels"]["total"]
    assert said["channels"]["kept"] == total - total // 2 == said["plan"]["kept"]
    assert [kept for kept, _ in said["widths"].values()] == [
        len(kept) for kept in said["plan"]["keep"].values()
    ]
    assert said["certificate"]["holds"] and said["certificate"]["relative"] <= 1e-9
    assert set(said["variants"]) == {"masked", "cut", "compensated", "recalibrated"}
    assert said["variants"]["masked"] == said["variants"]["cut"]
    assert said["accuracy"] == said["variants"]["recalibrated"]
    for key in ("commit", "command", "versions", "threads", "machine", "seconds", "config", "seed"):
        assert said[key] is not None, key
    assert said["device"] == "cpu" and said["precision"] == "fp32"
    history = read(cut).history
    assert [entry["stage"] for entry in history] == ["train", "prune"]


def test_without_ckpt_the_newest_fitting_run_is_taken(tmp_path, sparse):
    shutil.copytree(sparse, tmp_path / sparse.name)
    train(tiny("train", tmp_path, "method.strength=0", "epochs=1"))  # newer, but nothing to slim
    cut = prune(tiny("prune", tmp_path, "ratio=0.5"))
    assert result(cut)["parent"] == sparse.name
    tuned = finetune(tiny("finetune", tmp_path, "epochs=1"))
    assert result(tuned)["parent"] == cut.name


@pytest.mark.parametrize(
    ("stage", "advice"), [(prune, "python train.py"), (finetune, "python prune.py")]
)
def test_with_no_run_it_says_what_to_run_first(tmp_path, stage, advice):
    with pytest.raises(FileNotFoundError, match=advice):
        stage(tiny(stage.__name__, tmp_path))


def test_the_commit_is_that_of_the_code_that_was_loaded(tmp_path, monkeypatch):
    """A training takes hours; the files may have changed when it writes its result."""
    commits = iter(["before", "after", "much later"])
    monkeypatch.setattr("utils.runs.environment.commit", lambda: next(commits))
    folder = train(tiny("train", tmp_path, "epochs=1"))
    assert result(folder)["commit"] == read(folder).history[0]["commit"] == "before"


def test_a_run_that_fails_at_once_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="depth 11, 13, 16, 19"):
        train(tiny("train", tmp_path, "model.depth=12"))
    assert not list(tmp_path.iterdir())


def test_a_finished_stage_costs_nothing(runs, sparse, capsys):
    before = (sparse / "result.json").stat().st_mtime_ns
    assert train(tiny("train", runs, *SPARSE)) == sparse
    assert "is finished" in capsys.readouterr().out
    assert (sparse / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "change",
    [
        *("seed=1", "epochs=5", "method.strength=2.1", "method.mode=proximal", "recipe=paper"),
        *("data.val_size=10", "data.seed=1", "data.pad=2", "data.flip=false", "model.width=0.125"),
        *("recipe.optimizer.lr=0.2", "recipe.batch_size=32", "++recipe.schedule.warmup=0.3"),
        *("hardware.precision=bf16", "method.weight_decay_on_gamma=false"),
        "data.val_size=10 data.split_seed=1",
    ],
)
def test_what_matters_makes_a_new_stage(runs, sparse, change):
    assert train(tiny("train", runs, *SPARSE, *change.split(), "dry_run=true")) != sparse


@pytest.mark.parametrize(
    "change",
    [
        *("device=cpu", "logger=wandb", "hardware.threads=1", "method.strength=2", "epochs=4"),
        *("recipe.optimizer.lr=1e-1", "recipe.optimizer.dampening=0", "recipe.schedule.warmup=0.2"),
        *("allow=[mine]", "recipe.name=other", "data.pad_raw=false"),
    ],
)
def test_what_does_not_matter_makes_none(runs, sparse, change):
    change = change if change.split("=")[0] in ("device", "logger") else f"++{change}"
    threads = torch.get_num_threads()
    assert train(tiny("train", runs, *SPARSE, change, "dry_run=true")) == sparse
    torch.set_num_threads(threads)


def test_the_place_of_the_runs_does_not_matter(tmp_path, sparse):
    assert train(tiny("train", tmp_path, *SPARSE, "dry_run=true")).name == sparse.name


def test_known_hashes_stay():
    """A change of these makes every published folder name stale: bump SCHEMA if it must be."""
    assert digest({"lr": 1e-4, "n": 3}) == digest({"n": 3.0, "lr": 0.0001}) == "08aa7f3d"
    sgd = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "nesterov": True}
    assert digest({"o": sgd}) == digest({"o": {**sgd, "dampening": 0}}) == "a35d00c2"
    assert essence(True) is True and essence(1) == 1.0


def test_a_users_own_model_counts_with_its_code_but_not_its_comments(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for i, source in enumerate(["X = 1\n", "# a comment\nX = 1\n\n", "X = 2\n"]):
        (tmp_path / f"own{i}.py").write_text(source + "class Net:\n    pass\n")
        described = essence({"_target_": f"own{i}.Net"})
        hashes.append(described["source"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_pruned_checkpoint_is_pruned_again_and_indices_compose(runs, sparse):
    once = prune(tiny("prune", runs, f"ckpt={sparse}", "ratio=0.4", "compensate=none"))
    twice = prune(tiny("prune", runs, f"ckpt={once}", "ratio=0.5", "compensate=none"))
    said = result(twice)
    assert said["parent"] == once.name and said["certificate"]["holds"]
    assert said["channels"]["total"] == result(sparse)["channels"]["total"]
    assert said["channels"]["kept"] == said["plan"]["kept"]
    dense, thin = load(sparse), read(twice)
    graph = trace(dense, torch.zeros(2, *thin.input_shape))
    keep = {gate: torch.tensor(kept) for gate, kept in thin.keep.items()}
    assert {k: v.shape for k, v in slim(dense, graph, keep).state_dict().items()} == {
        k: v.shape for k, v in thin.weights.items()
    }


def test_several_ratios_share_one_training(tmp_path):
    folders = {
        folder
        for ratio in (0.3, 0.6)
        for folder in pipeline(tiny("pipeline", tmp_path, f"ratio={ratio}", "finetune.epochs=1"))
    }
    assert sorted(result(f)["stage"] for f in folders) == ["finetune"] * 2 + ["prune"] * 2 + [
        "train"
    ]


def test_scratch_trains_the_same_shape_from_other_weights(runs, sparse):
    cut = prune(tiny("prune", runs, f"ckpt={sparse}", "ratio=0.5"))
    e = finetune(tiny("finetune", runs, f"ckpt={cut}", "scratch=E", "epochs=1"))
    b = finetune(tiny("finetune", runs, f"ckpt={cut}", "scratch=B", "epochs=1"))
    shapes = {name: tensor.shape for name, tensor in read(cut).weights.items()}
    for folder in (e, b):
        assert {name: tensor.shape for name, tensor in read(folder).weights.items()} == shapes
        assert result(folder)["params"] == result(cut)["params"]
    assert result(e)["epochs"] == 4, "as many epochs as the unpruned network had"
    expected = int(4 * result(sparse)["macs"] / result(cut)["macs"])
    assert result(b)["epochs"] == expected > 4
    with pytest.raises(ValueError, match="none, E, B"):
        finetune(tiny("finetune", runs, f"ckpt={cut}", "scratch=C"))


def test_a_fine_tuned_network_knows_its_shape_without_the_pruned_one(runs, sparse, tmp_path):
    """Peer bug B7: fine-tuned checkpoints can't be rebuilt from their own file."""
    cut = prune(tiny("prune", runs, f"ckpt={sparse}", "ratio=0.5"))
    tuned = finetune(tiny("finetune", runs, f"ckpt={cut}", "epochs=1"))
    alone = shutil.copy(tuned / "model.pt", tmp_path / "alone.pt")
    said = evaluate_checkpoint(config("evaluate", f"ckpt={alone}", "hardware.precision=fp32"))
    assert said["accuracy"] == result(tuned)["accuracy"]
    assert said["params"] == result(tuned)["params"]
    again = prune(tiny("prune", tmp_path, f"ckpt={alone}", "ratio=0.5"))
    assert result(again)["certificate"]["holds"]


@pytest.mark.parametrize(("half", "close"), [("false", 0.0), ("true", 0.02)])
def test_an_exported_file_evaluates_like_its_source(runs, sparse, tmp_path, half, close):
    cut = prune(tiny("prune", runs, f"ckpt={sparse}", "ratio=0.5"))
    to = tmp_path / "thin.safetensors"
    export(config("export", f"ckpt={cut}", f"to={to}", f"half={half}"))
    said = evaluate_checkpoint(config("evaluate", f"ckpt={to}", "hardware.precision=fp32"))
    assert said["params"] == result(cut)["params"]
    assert abs(said["accuracy"]["test"] - result(cut)["accuracy"]["test"]) <= close
    with pytest.raises(ValueError, match="to=NAME.safetensors"):
        export(config("export", f"ckpt={cut}"))


def test_the_table_comes_before_the_cut_and_dry_run_stops_there(runs, sparse, capsys):
    folder = prune(tiny("prune", runs, f"ckpt={sparse}", "ratio=0.45", "dry_run=true"))
    said = capsys.readouterr().out
    assert "what stays" in said and "empties no layer" in said and "would be computed" in said
    assert not folder.exists()


def test_a_failed_certificate_saves_nothing(runs, sparse, monkeypatch):
    def wrong(model, graph, keep):
        thin = slim(model, graph, keep)
        thin.classifier.weight.data.add_(0.01)
        return thin

    monkeypatch.setattr("prune.slim", wrong)
    cfg = tiny("prune", runs, f"ckpt={sparse}", "ratio=0.35")
    with pytest.raises(RuntimeError, match="first in 'classifier': nothing was saved"):
        prune(cfg)
    monkeypatch.undo()
    folder = prune(tiny("prune", runs, f"ckpt={sparse}", "ratio=0.35", "dry_run=true"))
    assert {file.name for file in folder.iterdir()} == {"config.yaml", "error.txt"}
    assert "nothing was saved" in (folder / "error.txt").read_text()


@pytest.mark.parametrize("ratio", ["-0.1", "1", "1.5", "nan"])
def test_a_ratio_that_is_none_is_refused(runs, ratio):
    with pytest.raises(ValueError, match="0 <= ratio < 1"):
        prune(tiny("prune", runs, f"ratio={ratio}"))


@pytest.mark.parametrize(
    "option",
    ["compensate=magic", "floor=-1", "round_to=0", "scope=everywhere", "recalibrate=-5"],
)
def test_other_wrong_options_of_a_cut_are_refused(runs, option):
    with pytest.raises(ValueError, match=option.split("=")[0]):
        prune(tiny("prune", runs, "ratio=0.5", option))


def test_data_that_do_not_fit_the_network_are_refused(runs, sparse):
    for change, words in [
        ("data.size=12", "reads images of shape"),
        ("data.channels=1", "reads images of shape"),
        ("data.num_classes=3", "tells 4 classes apart"),
    ]:
        other = ("data=fake", "data.size=8", "data.num_classes=4", "data.num_train=64", change)
        with pytest.raises(ValueError, match=words):
            prune(tiny("prune", runs, f"ckpt={sparse}", *other))
    with pytest.raises(ValueError, match="model.num_classes=7, but fake has 4"):
        train(tiny("train", runs, "model.num_classes=7"))


def test_a_checkpoint_can_name_no_data_but_ours(runs, sparse, tmp_path):
    checkpoint = read(sparse)
    checkpoint.history[0]["data"] = {"_target_": "os.system", "command": f"touch {tmp_path}/ran"}
    artifact.save(tmp_path / "evil.pt", checkpoint)
    with pytest.raises(ValueError, match="none of our data sets"):
        prune(tiny("prune", tmp_path, f"ckpt={tmp_path / 'evil.pt'}"))
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_class_is_refused_by_every_stage(sparse, tmp_path):
    evil = dataclasses.replace(read(sparse), target="subprocess.run", arguments={"args": "true"})
    artifact.save(tmp_path / "evil.pt", evil)
    ways = [(prune,), (finetune,), (finetune, "scratch=E"), (finetune, "scratch=B")]
    for stage, *options in ways:
        with pytest.raises(ValueError, match="not among the networks that may be built"):
            stage(tiny(stage.__name__, tmp_path, f"ckpt={tmp_path / 'evil.pt'}", *options))


def test_a_checkpoint_cannot_start_a_download(sparse, tmp_path):
    checkpoint = read(sparse)
    wanted = {"_target_": "utils.data.cifar10", "root": str(tmp_path / "x"), "download": True}
    checkpoint.history[0]["data"] = wanted
    artifact.save(tmp_path / "evil.pt", checkpoint)
    with pytest.raises(FileNotFoundError, match="cifar10 is neither at"):
        prune(tiny("prune", tmp_path, f"ckpt={tmp_path / 'evil.pt'}"))
    assert not (tmp_path / "x").exists()


def test_a_users_own_model_goes_through_the_whole_pipeline(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self, out):\n"
    layers = "nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)"
    source += f"        super().__init__({layers}, nn.Flatten(), nn.Linear(8, out))\n"
    (tmp_path / "their_net.py").write_text(source)
    cfg = tiny("pipeline", tmp_path / "runs", "epochs=1", "finetune.epochs=1", "ratio=0.5")
    cfg.model = {"_target_": "their_net.Net", "out": 4}
    folders = pipeline(cfg)
    assert result(folders[-1])["channels"] == {"kept": 4, "total": 8}
    with pytest.raises(ValueError, match=r"allow=\[their_net\]"):
        load(folders[-1])


def test_a_damaged_result_is_named_with_the_way_out(tmp_path, capsys):
    folder = train(tiny("train", tmp_path, *SPARSE))
    whole = (folder / "result.json").read_text()
    (folder / "result.json").write_text(whole[: len(whole) // 2])
    for stage, *more in ((train, *SPARSE), (prune, f"ckpt={folder}")):
        with pytest.raises(ValueError, match=r"result\.json is broken: delete it"):
            stage(tiny(stage.__name__, tmp_path, *more))
    (folder / "result.json").write_text('{"schema": 1}')
    for stage, *more in ((train, *SPARSE), (prune, f"ckpt={folder}")):
        with pytest.raises(ValueError, match=r"result\.json lacks name, stage.* or delete it"):
            stage(tiny(stage.__name__, tmp_path, *more))
    with pytest.raises(FileNotFoundError, match=r"python train\.py"):
        prune(tiny("prune", tmp_path))
    assert "is not a result of this version" in capsys.readouterr().err


def test_an_export_that_fails_its_check_leaves_the_old_file(sparse, tmp_path):
    big = read(sparse)
    big.weights["classifier.bias"][0] = 1e6  # more than float16 can hold
    artifact.save(tmp_path / "big.pt", big)
    (tmp_path / "old.safetensors").write_bytes(b"precious")
    with pytest.raises(RuntimeError, match="was not written.*half=false"):
        to = tmp_path / "old.safetensors"
        export(config("export", f"ckpt={tmp_path / 'big.pt'}", f"to={to}", "half=true"))
    assert (tmp_path / "old.safetensors").read_bytes() == b"precious"
    assert not list(tmp_path.glob(".trial*"))


def test_a_truncated_checkpoint_is_named(sparse, tmp_path):
    whole = (sparse / "model.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.pt .*(broken|can't be opened)"):
        finetune(tiny("finetune", tmp_path, f"ckpt={tmp_path / 'half.pt'}"))


def test_a_broken_resume_file_is_named(runs, sparse, tmp_path):
    folder = train(tiny("train", tmp_path, *SPARSE, "dry_run=true"))
    folder.mkdir()
    (folder / "resume.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"resume\.pt is broken.*delete it"):
        train(tiny("train", tmp_path, *SPARSE))
