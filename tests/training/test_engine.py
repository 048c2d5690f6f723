"""Training: resume is exact, interruptions save, divergence is told, schedules are pure."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn, optim

import engine
from door import ROOT, TINY, tiny
from engine import Interrupted
from slimming.checkpoint import read
from slimming.methods.base import Method, Training
from train import train
from utils.training.hardware import choose
from utils.training.recipe import Recipe, parameter_groups
from utils.training.schedules import one_cycle, steps
from utils.training.strength import EDGES, choose_strength, describe_gammas


def bits(folder: Path) -> tuple:
    weights = read(folder).weights
    return (
        {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
        (folder / "metrics.jsonl").read_bytes(),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """The weights and metrics of a training that nothing interrupted."""
    return bits(train(tiny("train", tmp_path_factory.mktemp("whole"))))


def test_the_same_command_gives_the_same_bits(tmp_path, whole):
    assert bits(train(tiny("train", tmp_path / "again"))) == whole


def test_another_seed_gives_another_network(tmp_path, whole):
    assert bits(train(tiny("train", tmp_path, "seed=1")))[0] != whole[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_every_step_it_ends_with_the_same_bits(tmp_path, whole, number, monkeypatch):
    real = engine._step

    def step_and_signal(*arguments):
        os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(engine, "_step", step_and_signal)
    cfg, stops = tiny("train", tmp_path), 0
    while True:
        try:
            folder = train(cfg)
            break
        except Interrupted as stop:
            assert "same command goes on" in str(stop)
            assert not list(tmp_path.glob("*/result.json"))
            stops += 1
    assert stops == 9  # 3 epochs of 3 steps
    assert bits(folder) == whole


@pytest.mark.long
def test_killed_with_sigkill_it_ends_with_the_same_bits(tmp_path):
    """Two kills at arbitrary moments of a real process, then the same command again."""
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "epochs=12", "data.num_train=512"]
    whole = subprocess.run([*command, f"runs_dir={tmp_path / 'whole'}"], cwd=ROOT, check=True)
    assert whole.returncode == 0
    killed = [*command, f"runs_dir={tmp_path / 'killed'}"]
    for rows in (2, 6):
        process = subprocess.Popen(killed, cwd=ROOT)
        while not _rows(tmp_path / "killed") >= rows:
            assert process.poll() is None, "it finished before it could be killed"
            time.sleep(0.002)
        process.kill()
        process.wait()
    subprocess.run(killed, cwd=ROOT, check=True)
    (a,), (b,) = (list((tmp_path / which).glob("[!.]*")) for which in ("whole", "killed"))
    assert a.name == b.name
    assert bits(a) == bits(b)


def test_killed_hard_inside_an_epoch_it_goes_on_from_there(tmp_path, whole, capsys):
    """As by a power cut in the fifth of nine steps: no handler runs, nothing is said or saved."""
    cut = (
        "import os, engine, door, train\n"
        "real, calls = engine._step, []\n"
        "def step(*arguments):\n"
        "    calls.append(1)\n"
        "    return real(*arguments) if len(calls) < 6 else os._exit(9)\n"
        "engine._step = step\n"
        f"train.train(door.tiny('train', {str(tmp_path)!r}, 'hardware.save_minutes=0'))\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    threads = {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.run([sys.executable, "-c", cut], env={**os.environ, **threads})
    assert process.returncode == 9
    folder = train(tiny("train", tmp_path))  # another save_minutes is the same run
    assert "going on at epoch 2, step 3" in capsys.readouterr().out
    assert bits(folder) == whole


def test_how_often_to_save_is_a_time():
    with pytest.raises(ValueError, match="save_minutes is a time, 0 or more; got -1"):
        choose(save_minutes=-1)


def _rows(folder: Path) -> int:
    return max((len(p.read_text().splitlines()) for p in folder.glob("*/metrics.jsonl")), default=0)


def test_resuming_uses_the_threads_the_run_began_with(tmp_path, monkeypatch, capsys):
    real = engine._step

    def stop_first(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(engine, "_step", stop_first)
            train(tiny("train", tmp_path))
        torch.set_num_threads(2)
        folder = train(tiny("train", tmp_path))
        assert torch.get_num_threads() == 2, "the next job of a sweep has its own number"
        assert "using 1 threads" in capsys.readouterr().out
        assert json.loads((folder / "result.json").read_text())["threads"] == 1
    finally:
        torch.set_num_threads(before)


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(tmp_path):
    with pytest.raises(ValueError, match=r"training has diverged. Lower recipe.optimizer.lr"):
        train(tiny("train", tmp_path, "recipe.optimizer.lr=1e12"))
    assert not list(tmp_path.glob("*/result.json"))


def test_two_processes_on_one_run_train_once(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "epochs=8", f"runs_dir={tmp_path}"]
    first, second = (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    texts = [process.communicate()[0] for process in (first, second)]
    assert first.returncode == second.returncode == 0
    assert sum("epoch 8/8" in text for text in texts) == 1
    assert sum("is finished" in text for text in texts) == 1
    (folder,) = tmp_path.glob("[!.]*")
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 8


def test_metrics_tell_the_penalty_and_the_small_gammas(tmp_path):
    folder = train(tiny("train", tmp_path, "method.strength=0.02", "data.val_size=32"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    last = rows[-1]
    scales = read(folder).weights
    scales = {k: v for k, v in scales.items() if k.endswith(".weight") and v.dim() == 1}
    total = sum(gamma.abs().double().sum().item() for gamma in scales.values())
    assert last["penalty"] == pytest.approx(0.02 * total, rel=1e-5)
    everything = torch.cat(list(scales.values())).abs()
    assert last["gamma_below_1e-2"] == pytest.approx((everything < 1e-2).float().mean().item())
    counts = last["gamma_histogram"]
    assert [sum(c) for c in counts.values()] == [len(gamma) for gamma in scales.values()]
    assert 0 <= last["val/accuracy"] <= 1
    assert not any("second" in key or "img" in key for key in last), "a clock would break the bits"


def test_an_exact_zero_is_in_the_first_bin_of_the_histogram():
    norm = nn.BatchNorm1d(3)
    norm.weight.data = torch.tensor([0.0, -1e-4, 50.0])
    counts = describe_gammas(nn.Sequential(norm), 1.0)["gamma_histogram"]["0"]
    assert counts[0] == 1 and counts[-1] == 1 and sum(counts) == 3
    assert len(counts) == len(EDGES) - 1


def test_one_layers_gammas_are_kept_whole():
    norms = [nn.BatchNorm1d(n) for n in range(1, 17)]
    kept = describe_gammas(nn.Sequential(*norms), 0.0)["gammas"]
    assert kept == {"layer": "10", "values": [1.0] * 11}, "the 11th of 16, as in the paper's Fig. 6"
    assert describe_gammas(nn.Sequential(norms[0]), 0.0)["gammas"]["layer"] == "0"


def test_late_and_nothing_small_it_says_raise_lambda(tmp_path, capsys):
    train(tiny("train", tmp_path, "method.strength=1e-7"))
    assert "raise method.strength" in capsys.readouterr().out


def test_the_reach_of_the_penalty_is_said_at_the_start(tmp_path, capsys):
    train(tiny("train", tmp_path, "method.strength=0.02"))
    assert "can move a gamma by" in capsys.readouterr().out


def test_a_lambda_left_open_reaches_what_the_recipe_says():
    recipe = Recipe(10, 64, partial(optim.SGD, lr=0.1, momentum=0.9), lambda progress: 1.0)
    # 10 epochs of 100 steps at 0.1: sum(lr) = 100, and momentum makes it tenfold.
    assert choose_strength(recipe, "subgradient", 100, 2.0) == pytest.approx(2.0 / 1000)
    assert choose_strength(recipe, "proximal", 100, 2.0) == pytest.approx(2.0 / 100)
    short = Recipe(1, 64, partial(optim.SGD, lr=0.1, momentum=0.9), lambda progress: 1.0)
    assert choose_strength(short, "subgradient", 3, 2.0) == 0.02, "0.67 would drown the loss"
    adam = Recipe(10, 64, partial(optim.AdamW, lr=0.1), lambda progress: 1.0)
    with pytest.raises(ValueError, match="set method.strength"):
        choose_strength(adam, "subgradient", 100, 2.0)


@pytest.mark.parametrize("epochs", [1, 5, 7, 30, 50, 90, 160, 161])
def test_milestones_work_for_every_number_of_epochs(epochs):
    """Peer bug B4: `epoch in [epochs * 0.5, ...]` never fires for odd or unlucky numbers."""
    total = epochs * 100
    factors = [steps(k / total, (0.5, 0.75)) for k in range(total)]
    assert sorted(set(factors), reverse=True) == pytest.approx([1, 0.1, 0.01])
    assert factors.index(pytest.approx(0.1)) == math.ceil(total * 0.5)
    assert factors.index(pytest.approx(0.01)) == math.ceil(total * 0.75)


def test_one_cycle_rises_to_one_and_falls_towards_zero():
    values = [one_cycle(k / 1000) for k in range(1000)]
    assert max(values) == pytest.approx(1.0) and values.index(max(values)) == 200
    assert values[0] == pytest.approx(0.05) and values[-1] < 1e-4


def test_weight_decay_can_leave_gammas_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert len(parameter_groups(model, True)) == 1
    rest, scales = parameter_groups(model, False)
    assert scales["weight_decay"] == 0.0 and scales["params"][0] is model[1].weight
    assert len(rest["params"]) == 3


def test_a_method_without_a_penalty_leaves_gradients_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    t = Training(model, optim.SGD(model.parameters(), lr=0.1))
    loss, _, logits = Method().loss(t, (torch.randn(4, 2), torch.tensor([0, 1, 0, 1])))
    loss.backward()
    before = model[1].weight.grad.clone()
    Method().after_backward(t)
    assert torch.equal(model[1].weight.grad, before) and logits.shape == (4, 2)


@pytest.mark.parametrize(("asked", "expected"), [(None, True), (False, False), (True, True)])
def test_the_layout_is_a_rule_that_can_be_overruled(asked, expected):
    """By rule, not by timing: a timed choice could make the second run differ from the first."""
    images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    hardware = choose(device="cpu", precision="fp32", channels_last=asked)
    placed = hardware.place(images)[0].weight
    assert placed.is_contiguous(memory_format=torch.channels_last) == expected
    assert not choose(device="cpu").lays_channels_last(nn.Linear(2, 2))


def test_bf16_only_where_the_processor_has_it(monkeypatch, tmp_path):
    import utils.training.hardware

    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(utils.training.hardware, "Path", lambda _: info)
    for flags, precision in [("fpu sse avx2", "fp32"), ("fpu avx512_bf16", "bf16")]:
        info.write_text(f"flags : {flags}\n")
        assert choose(device="cpu").precision == precision
    info.unlink()
    assert choose(device="cpu").precision == "fp32"
    with pytest.raises(ValueError, match="auto, fp32 or bf16"):
        choose(device="cpu", precision="fp8")
    with pytest.raises(ValueError, match="try device=cpu"):
        choose(device="quantum")


def test_a_signal_between_the_steps_stops_too(tmp_path, whole, monkeypatch):
    """While the last epoch is being closed there is no further step that could notice it."""
    real = engine.describe_gammas

    def close_and_signal(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    cfg = tiny("train", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "describe_gammas", close_and_signal)
        for epochs in (1, 2, 3):
            with pytest.raises(Interrupted, match=f"after {epochs} of 3 epochs"):
                train(cfg)
    assert bits(train(cfg)) == whole


def test_weights_that_the_last_step_broke_are_not_saved(tmp_path, monkeypatch):
    real, calls = engine._step, []

    def break_last(t, *arguments):
        result = real(t, *arguments)
        calls.append(1)
        if len(calls) == 6:  # the last step of the second epoch
            next(t.model.parameters()).data.fill_(float("nan"))
        return result

    cfg = tiny("train", tmp_path)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="has diverged. Lower"):
        patch.setattr(engine, "_step", break_last)
        train(cfg)
    (folder,) = tmp_path.glob("[!.]*")
    assert not (folder / "model.pt").exists()
    assert torch.load(folder / "resume.pt", weights_only=True)["epoch"] == 1
    assert read(train(cfg)).weights["classifier.weight"].isfinite().all()


def test_the_seconds_of_all_interruptions_add_up(tmp_path, monkeypatch):
    real = engine._step

    def stop(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    cfg = tiny("train", tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(engine, "_step", stop)
        train(cfg)
    (folder,) = tmp_path.glob("[!.]*")
    saved = torch.load(folder / "resume.pt", weights_only=True)
    torch.save({**saved, "seconds": 1000.0}, folder / "resume.pt")
    assert json.loads((train(cfg) / "result.json").read_text())["seconds"] > 1000


class Bare(nn.Sequential):
    def __init__(self, num_classes: int):
        super().__init__(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))


def test_what_cannot_be_trained_is_said(tmp_path):
    with pytest.raises(ValueError, match="at least 2 images"):
        train(tiny("train", tmp_path, "data.num_train=1"))
    cfg = tiny("train", tmp_path, "method.strength=0.1")
    cfg.model = {"_target_": "test_engine.Bare"}
    with pytest.raises(ValueError, match="has no BatchNorm with a gamma"):
        train(cfg)
