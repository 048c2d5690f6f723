"""target.latency is a share of the time in the runtime that will be used."""

import json

import pytest
import torch
from torch import nn

from door import tiny
from pipeline import pipeline
from prune import prune
from train import train
from utils.exports import onnx_file, runtimes
from utils.exports.runtimes import timed_against
from utils.report.groups import settings
from utils.runs.folder import read_result

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tiny("train", tmp_path_factory.mktemp("runs"), "epochs=1"))


@pytest.fixture
def clock(monkeypatch):
    """A clock of our own: time is what was asked to run, one tick per call."""
    timed = []

    def latency(models, input_shape, sizes, repeats, device):
        timed.append(dict(models))
        median = {"dense": 1.0, "thin": 0.5}
        return {name: {str(sizes[0]): {"median_ms": median[name]}} for name in models}

    monkeypatch.setattr(runtimes, "latency", latency)
    return timed


def test_onnxruntime_is_what_is_timed_where_it_is_asked_for(trained, clock):
    cfg = tiny("prune", trained.parent, "target.latency=0.7", "runtime=onnxruntime")
    folder = prune(cfg)
    assert "-onnxruntime-" in folder.name
    assert read_result(folder)["plan"]["latency"] == 0.5
    assert clock and not any(isinstance(m, nn.Module) for pair in clock for m in pair.values())
    assert len({id(pair["dense"]) for pair in clock[:-1]}) == 1  # written once
    image = torch.zeros(1, 3, 8, 8)
    assert all(len(model(image)[0]) == 1 for model in clock[0].values())
    assert settings(read_result(folder))["runtime"] == "onnxruntime"


def test_torch_as_it_is_is_the_default_and_no_new_name(trained, clock):
    plain = prune(tiny("prune", trained.parent, "target.latency=0.7"))
    assert prune(tiny("prune", trained.parent, "target.latency=0.7", "runtime=eager")) == plain
    assert all(isinstance(m, nn.Module) for pair in clock for m in pair.values())
    found = read_result(plain)
    assert settings(found)["runtime"] == "eager"
    found["config"].pop("runtime")  # an older result
    assert settings(found)["runtime"] == "eager"


def test_compiled_networks_are_compiled_anew_each_time(monkeypatch, clock):
    events = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: events.append("reset"))
    monkeypatch.setattr(torch, "compile", lambda model: events.append(model) or model)
    dense, thin = nn.Linear(4, 2), nn.Linear(4, 1)
    measure = timed_against(dense, "compiled", (4,), 64, CPU)
    assert measure(thin, 2) == measure(thin, 2) == (1.0, 0.5)
    assert events == ["reset", dense, thin] * 2


def test_what_cannot_be_compiled_is_a_sentence(monkeypatch):
    class Picky(nn.Linear):
        def forward(self, x):
            raise RuntimeError("no compiler found")

    monkeypatch.setattr(torch, "compile", lambda model: model)
    with pytest.raises(ValueError, match="runtime=compiled can't compile Picky: no compiler"):
        timed_against(Picky(4, 2), "compiled", (4,), 2, CPU)(nn.Linear(4, 2), 2)


def test_what_cannot_be_compiled_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    def broken(model):
        def call(x):
            raise RuntimeError("no compiler found")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ValueError, match="runtime=compiled can't compile VGG: no compiler found"):
        pipeline(tiny("pipeline", tmp_path, "target.latency=0.5", "runtime=compiled"))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_the_search_goes_on_until_the_runtime_is_fast_enough(trained, monkeypatch, share):
    """Here: one in which a parameter takes a millisecond."""

    def latency(models, input_shape, sizes, repeats, device):
        assert sizes == (64,) and device == CPU
        widths = {n: [p.numel() for p in m.parameters()] for n, m in models.items()}
        return {n: {"64": {"median_ms": float(sum(w))}} for n, w in widths.items()}

    monkeypatch.setattr(runtimes, "latency", latency)
    monkeypatch.setattr(runtimes, "prepare", lambda model, *_: model)
    wish = (f"target.latency={share}", "runtime=compiled")
    found = read_result(prune(tiny("prune", trained.parent, *wish)))
    assert share - 0.1 < found["plan"]["latency"] <= share
    assert found["params"] / read_result(trained)["params"] == found["plan"]["latency"]


@pytest.mark.long
def test_a_network_is_really_compiled(trained):
    made = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    dense, thin = timed_against(made, "compiled", (4,), 8, CPU)(nn.Linear(4, 2), 4)
    assert dense > 0 and thin > 0


def test_without_a_latency_target_it_changes_nothing_and_says_so(trained, capsys):
    plain = prune(tiny("prune", trained.parent, "ratio=0.3"))
    assert prune(tiny("prune", trained.parent, "ratio=0.3", "runtime=onnxruntime")) == plain
    said = capsys.readouterr().out
    assert "note: runtime=onnxruntime changes nothing without target.latency" in said
    assert "runtime" not in settings(json.loads((plain / "result.json").read_text()))


@pytest.mark.parametrize("goal", ["target.latency=0.5", "ratio=0.5"])
def test_an_unknown_runtime_is_refused_before_anything_is_trained(tmp_path, goal):
    with pytest.raises(ValueError, match="runtime is one of eager, compiled, onnxruntime"):
        pipeline(tiny("pipeline", tmp_path, goal, "runtime=tensorrt"))
    assert not [*tmp_path.iterdir()]


def test_a_runtime_that_is_not_there_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    def missing(wish):
        raise ImportError(f"{wish} needs three more packages")

    monkeypatch.setattr(onnx_file, "check_installed", missing)
    with pytest.raises(ImportError, match="runtime=onnxruntime needs three more packages"):
        pipeline(tiny("pipeline", tmp_path, "target.latency=0.5", "runtime=onnxruntime"))
    assert not [*tmp_path.iterdir()]


def test_onnxruntime_is_of_the_cpu():
    with pytest.raises(ValueError, match="timed on the CPU, not on cuda:0: device=cpu"):
        runtimes.check_runtime("onnxruntime", torch.device("cuda:0"))
