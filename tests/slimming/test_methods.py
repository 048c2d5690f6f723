"""Every method of conf/method by the user's door; what each score means; one baseline for all."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object

import engine
from door import config, tiny
from engine import Interrupted
from finetune import finetune
from models.densenet import DenseNet
from models.mobilenet import MobileNetV2
from models.preresnet import PreResNet
from models.resnet import ResNet
from models.vgg import VGG
from pipeline import pipeline
from prune import prune
from slimming import Slimming, plan, trace
from slimming.methods.base import Method
from slimming.methods.l1_norm import L1Norm
from slimming.methods.random import Random
from terminal import refusal
from train import train
from utils.cli.script import CONF
from utils.training.method import make, name_of


def scores_of(name: str):
    return get_object(config("train", f"method={name}").method._target_).scores


ALL = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
# Those that can choose channels.
METHODS = [name for name in ALL if scores_of(name) is not Method.scores]
# Of these more is known than what holds for every method.
KNOWN = ("l1_norm", "random", "slimming", "gamma_local")
SHORT = ("recipe.strength=0.5", "epochs=2", "finetune.epochs=1", "target.macs=0.5")


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def chains(runs) -> dict[str, list[Path]]:
    """{method: folders of train, prune, finetune}"""
    return {name: pipeline(tiny("pipeline", runs, f"method={name}", *SHORT)) for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_through_the_pipeline(chains, name):
    trained, cut, tuned = map(result, chains[name])
    assert cut["method"] == tuned["method"] == name_of(config("train", f"method={name}").method)
    assert cut["certificate"]["holds"]
    assert 0.45 <= cut["macs"] / trained["macs"] <= 0.5, "equal MACs make them comparable"


class Ramp(Slimming):
    """A method that remembers something: its lambda grows with the steps it has seen."""

    def __init__(self, strength: float = 0.1, **more):
        super().__init__(strength, **more)
        self.seen, self.full = [0], strength

    def after_backward(self, t):
        self.seen[0] += 1
        self.strength = self.full * self.seen[0] / 4
        super().after_backward(t)


@pytest.mark.parametrize("name", [*ALL, "slimming method._target_=test_methods.Ramp"])
def test_every_method_goes_on_from_where_it_was_stopped(tmp_path, monkeypatch, name):
    def told(folder: str):
        words = (*f"method={name}".split(), "recipe.strength=0.5", "epochs=2")
        return tiny("train", tmp_path / folder, *words, "data.num_train=128")

    def step_and_stop(*arguments):
        steps.append(1)
        if len(steps) == 3:  # of 4: inside the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    whole, real, steps = train(told("whole")), engine._step, []
    monkeypatch.setattr(engine, "_step", step_and_stop)
    with pytest.raises(Interrupted):
        train(told("stopped"))
    again = train(told("stopped"))
    assert again.name == whole.name
    for file in ("metrics.jsonl", "model.pt"):
        assert (again / file).read_bytes() == (whole / file).read_bytes()


def test_networks_trained_without_a_penalty_are_one_and_the_same_run(runs, chains):
    baseline = train(tiny("train", runs, "method.strength=0", "epochs=2", "dry_run=true"))
    assert chains["l1_norm"][0] == chains["random"][0] == baseline
    assert chains["slimming"][0] == chains["gamma_local"][0] != baseline
    for change in ("method.mode=proximal", "method=l1_norm", "method=gamma_local"):
        penalty = () if change == "method=l1_norm" else ("method.strength=0",)
        told = tiny("train", runs, change, *penalty, "epochs=2", "dry_run=true")
        assert train(told) == baseline, change


def test_the_cuts_are_different_runs_of_different_channels(chains):
    names = {chains[name][1].name for name in KNOWN}
    assert len(names) == len(KNOWN)
    for name in ("l1_norm", "random", "gamma_local"):
        assert f"-{name}-layer-" in chains[name][1].name
    kept = {json.dumps(result(chains[name][1])["plan"]["keep"]) for name in KNOWN}
    assert len(kept) == len(KNOWN)


@pytest.mark.parametrize("name", ["l1_norm", "random", "gamma_local"])
def test_the_layerwise_methods_keep_the_same_share_of_every_layer(chains, name):
    widths = result(chains[name][1])["widths"].values()
    total = sum(kept for kept, _ in widths) / sum(of for _, of in widths)
    assert all(abs(kept - total * of) <= 1.5 for kept, of in widths)
    free = result(chains["slimming"][1])["widths"].values()
    assert any(abs(kept - total * of) > 1.5 for kept, of in free)


def test_slimming_cuts_a_network_that_was_trained_without_penalty(runs, chains):
    baseline = chains["random"][0]
    cut = prune(tiny("prune", runs, f"ckpt={baseline}", "ratio=0.3"))
    assert result(cut)["parent"] == baseline.name and result(cut)["method"] == "slimming"
    sparse = prune(tiny("prune", runs, f"ckpt={chains['slimming'][0]}", "method=l1_norm"))
    assert result(sparse)["method"] == "l1_norm", "and norms rank a sparse network"


def test_without_ckpt_a_method_without_penalty_takes_any_training(tmp_path, capsys):
    baseline = train(tiny("train", tmp_path, "method.strength=0", "epochs=1"))
    assert result(prune(tiny("prune", tmp_path, "method=random")))["parent"] == baseline.name
    with pytest.raises(FileNotFoundError, match="no finished run to start from"):
        prune(tiny("prune", tmp_path))


@pytest.mark.parametrize("scratch", ["E", "B"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_controls(runs, chains, name, scratch):
    told = tiny("finetune", runs, f"ckpt={chains[name][1]}", f"scratch={scratch}", "epochs=1")
    said = result(finetune(told))
    assert said["scratch"] == scratch and said["method"] == result(chains[name][1])["method"]
    assert said["epochs"] >= 2 if scratch == "E" else said["epochs"] >= 4, "half of the MACs each"


def test_random_scores_depend_on_the_seed_and_nothing_else(runs, chains):
    again = prune(tiny("prune", runs.parent / "again", f"ckpt={chains['random'][0]}",
                       "method=random", "target.macs=0.5", "recalibrate=0"))  # fmt: skip
    assert result(again)["plan"]["keep"] == result(chains["random"][1])["plan"]["keep"]
    other = pipeline(tiny("pipeline", runs, "method=random", "seed=1", *SHORT))[1]
    assert result(other)["plan"]["keep"] != result(again)["plan"]["keep"]


def test_the_norm_of_a_channel_is_that_of_its_filter():
    model = VGG(depth=11, width=0.125, num_classes=4)
    graph = trace(model, torch.zeros(2, 3, 32, 32))
    scores = L1Norm().scores(model, graph)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    for score, layer in zip(scores.values(), convolutions, strict=True):
        expected = layer.weight.detach().double().abs().sum((1, 2, 3))
        torch.testing.assert_close(score, expected)


@pytest.mark.parametrize(
    "model",
    [
        PreResNet(depth=29, width=0.5, num_classes=4),
        DenseNet(depth=16, num_classes=4),
        ResNet(depth=20, width=0.5, num_classes=4),
        MobileNetV2(width=0.25, num_classes=4),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.parametrize("method", [L1Norm(), Random()], ids=["l1_norm", "random"])
def test_every_gate_has_scores_and_coupled_ones_agree(model, method):
    graph = trace(model, torch.zeros(2, 3, 32, 32))
    scores = method.scores(model, graph)
    assert scores.keys() == graph.gates.keys()
    of_channel = {}
    for gate, channels in graph.gates.items():
        assert scores[gate].shape == channels.shape and (scores[gate] > 0).all()
        for channel, score in zip(channels.tolist(), scores[gate].tolist()):
            assert of_channel.setdefault(channel, score) == score
    assert plan(graph, scores, 0.5, scope="layer").kept < graph.num_channels


def test_a_selected_channel_weighs_what_reads_it():
    model = PreResNet(depth=29, width=0.5, num_classes=4)
    graph = trace(model, torch.zeros(2, 3, 32, 32))
    gate = graph.selecting[0]
    reader = next(n for n, d in graph.reads if graph.dims[n, d].equal(graph.gates[gate]))
    expected = model.state_dict()[reader].double().abs().sum((0, 2, 3))
    torch.testing.assert_close(L1Norm().scores(model, graph)[gate], expected)


def test_a_method_that_acts_while_training_is_never_taken_for_a_baseline():
    class Acts(Method):
        def after_epoch(self, t):
            t.model = t.model

    assert Method().trains_plainly and L1Norm().trains_plainly and not Acts().trains_plainly
    assert Slimming(0.0).trains_plainly and not Slimming(1e-4).trains_plainly


def test_the_name_is_for_tables_only():
    node = {"_target_": "slimming.methods.slimming.Slimming", "name": "mine", "strength": 0.1}
    assert make(node).strength == 0.1 and make(node, strength=0.0, seed=3).strength == 0.0


def test_a_penalty_for_a_method_that_has_none_is_refused(tmp_path):
    said = refusal("train", "method=l1_norm", "method.strength=1e-4", f"runs_dir={tmp_path}")
    assert "method=l1_norm has no option 'strength': leave it out" in said


def test_the_comparison_composes_for_every_method():
    for name in METHODS:
        cfg = config("pipeline", "experiment=compare_cifar10", f"method={name}")
        assert cfg.target.macs == 0.3 and name_of(cfg.method)
        if name in KNOWN:
            assert cfg.scope == ("global" if name == "slimming" else "layer")


class Judged(L1Norm):
    """Cuts the layer alone that costs least on validation images."""

    def choose(self, model, graph, scores, evaluate=None, **goal):
        plans = [plan(graph, scores, **{**goal, "only": [g]}) for g in ("features.5", "features.8")]
        self.reached = [evaluate(keep) for keep in plans]
        print("reached", self.reached)
        return plans[self.reached.index(max(self.reached))]


def test_a_method_may_choose_by_what_a_cut_does_to_validation_images(runs, tmp_path, capsys):
    told = ("method=l1_norm", "method._target_=test_methods.Judged", "ratio=0.8", "epochs=1")
    held_out = pipeline(tiny("pipeline", tmp_path, *told, "data.val_size=64"))[1]
    said = re.search(r"reached \[(.*), (.*)\]", capsys.readouterr().out)
    best = max(map(float, said.groups()))
    found = result(held_out)
    assert found["accuracy"]["val"] == best, "of the thin network that is saved"
    assert sum(kept < of for kept, of in found["widths"].values()) == 1
    with pytest.raises(ValueError, match="a choice is made on validation images"):
        pipeline(tiny("pipeline", tmp_path, *told))
