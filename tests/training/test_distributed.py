"""One training over two processes: as one process that normalises each half by itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from door import ROOT, TINY, tiny
from train import _anew, train
from utils.cli.configured import recipe_of
from utils.training import distributed
from utils.training.hardware import choose
from utils.training.smoothing import Average, soften

# Batches of 33, 33, 33 and 3 images: unequal halves, and a rest that is too small to share.
UNEQUAL = ("data.num_train=102", "recipe.batch_size=33", "epochs=2", "method.strength=0.05")

# train.py, with an eye on each process. FAILS and STOPS: "rank step", counted from 1.
WATCHED = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from utils.cli.script import begin, script
begin("train")
import train
rank, out, steps = os.environ["RANK"], {{out!r}}, []

def watch():
    import signal, torch, engine
    real, real_step = train.fit, engine._step
    def fit(*arguments):
        model, keep = real(*arguments)
        torch.save(model.state_dict(), f"{{{{out}}}}/rank{{{{rank}}}}.pt")
        return model, keep
    def step(*arguments):
        steps.append(1)
        now = f"{{{{rank}}}} {{{{len(steps)}}}}"
        if now == os.environ.get("FAILS"):
            raise ValueError("the disk of this machine is full")
        if now == os.environ.get("STOPS"):
            os.kill(os.getpid(), signal.SIGTERM)
        return real_step(*arguments)
    train.fit, engine._step = fit, step

@script("train")
def main(cfg):
    watch()
    train.train(cfg)

main()
"""


def torchrun(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    """Two processes on `train.py`; they leave their weights in rank0.pt and rank1.pt."""
    program = folder / "watched.py"
    program.write_text(WATCHED.format(out=str(folder)))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, program, *TINY]
    return subprocess.run(
        [sys.executable, *command, f"runs_dir={folder / 'runs'}", *UNEQUAL, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A training that nothing interrupted: the folder above runs/, and the finished process."""
    folder = tmp_path_factory.mktemp("whole")
    done = torchrun(folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def weights(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"rank{rank}.pt", weights_only=True)


def by_halves(cfg) -> nn.Module:
    """The reference, in one process: each half normalised by itself, gradients by image."""
    start = _anew(cfg, choose(device="cpu", precision="fp32"), seed=0)
    data = start.data
    model, recipe = start.model().to(memory_format=torch.channels_last), recipe_of(cfg)
    gammas = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    optimizer = recipe.optimizer(model.parameters())
    average = Average(model, recipe.ema)
    base_lr, steps = optimizer.param_groups[0]["lr"], data.steps(recipe.batch_size)
    for step in range(recipe.epochs * steps):
        if step % steps == 0:
            batches = data.train_batches(recipe.batch_size, seed=0, epoch=step // steps)
        optimizer.param_groups[0]["lr"] = base_lr * recipe.schedule(step / (recipe.epochs * steps))
        now = {"seed": 0, "epoch": step // steps, "step": step % steps}
        images, labels = soften(*next(batches), data.num_classes, recipe, **now)
        middle = len(images) // 2 if len(images) >= 4 else len(images)
        optimizer.zero_grad()
        statistics = None
        for half in (slice(middle), slice(middle, None)):
            if len(labels[half]):
                sums = F.cross_entropy(model(images[half]), labels[half], reduction="sum")
                (sums / len(labels)).backward()
            if statistics is None:  # those of the first half are kept
                statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
        for name, buffer in model.named_buffers():
            buffer.copy_(statistics[name])
        for gamma in gammas:
            gamma.grad += cfg.method.strength * gamma.detach().sign()
        optimizer.step()
        average.update(model, step + 1)
    return average.model if recipe.ema else model


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def test_two_processes_hold_one_network_that_of_halves_normalised_apart(whole, tmp_path):
    folder, _ = whole
    first, second = weights(folder, 0), weights(folder, 1)
    trained = [name for name in first if "running" not in name and "num_batches" not in name]
    assert len(trained) >= 20
    assert all(torch.equal(first[name], second[name]) for name in trained), "weights and gammas"
    reference = by_halves(tiny("train", tmp_path, *UNEQUAL)).state_dict()
    assert distance(first, reference) < 1e-4
    alone = train(tiny("train", tmp_path, *UNEQUAL))
    alone_weights = torch.load(alone / "model.pt", weights_only=True)["weights"]
    assert distance(first, alone_weights) > 1e-2, "one process normalises whole batches"
    assert alone.name not in os.listdir(folder / "runs"), "another result has another name"


@pytest.mark.long
def test_two_processes_mix_the_images_of_the_whole_batch(tmp_path):
    soft = ("recipe.mixup=0.4", "recipe.label_smoothing=0.1", "recipe.ema=0.5")
    done = torchrun(tmp_path, *soft)
    assert done.returncode == 0, done.stderr
    first, second = weights(tmp_path, 0), weights(tmp_path, 1)
    trained = [name for name in first if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(first[name], second[name]) for name in trained)
    assert distance(first, by_halves(tiny("train", tmp_path, *UNEQUAL, *soft)).state_dict()) < 1e-4


def test_one_process_writes_and_speaks(whole):
    folder, done = whole
    assert done.stdout.count("epoch 2/2") == done.stdout.count("test accuracy") == 1
    assert "Warning" not in done.stderr and "error" not in done.stderr
    (run,) = (folder / "runs").glob("[!.]*")
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    result = json.loads((run / "result.json").read_text())
    assert result["processes"] == 2 and result["command"].startswith("python watched.py")
    saved = torch.load(run / "model.pt", weights_only=True)["weights"]
    assert distance(saved, weights(folder, 0)) == 0, "running statistics are the leader's"


def test_one_process_fails_all_end_and_the_same_command_goes_on(whole, tmp_path):
    failed = torchrun(tmp_path, "hardware.save_minutes=0", FAILS="1 7")
    assert failed.returncode == 1
    said = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert said == ["error: the disk of this machine is full"]
    assert not list(tmp_path.glob("runs/*/result.json"))
    again = torchrun(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "going on at epoch 2, step 3" in again.stdout
    assert distance(weights(tmp_path, 0), weights(whole[0], 0)) == 0
    (ours,), (theirs,) = (f.glob("runs/*/metrics.jsonl") for f in (tmp_path, whole[0]))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.long
def test_a_signal_to_one_process_stops_all_after_the_same_step(whole, tmp_path):
    stopped = torchrun(tmp_path, STOPS="1 3")
    assert stopped.returncode != 0
    assert stopped.stderr.count("stopped after 0 of 2 epochs and 3 steps; everything is saved") == 1
    again = torchrun(tmp_path)
    assert again.returncode == 0 and "going on at epoch 1, step 4" in again.stdout
    assert distance(weights(tmp_path, 0), weights(whole[0], 0)) == 0


@pytest.mark.parametrize("size", [2, 3, 4, 5, 33, 64])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_parts_make_up_the_batch_and_their_weights_the_mean(monkeypatch, size, processes):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    seen, weight = torch.zeros(size), 0.0
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        own = torch.arange(size)[distributed.part(size)]
        assert len(own) >= 2, "BatchNorm can't train on one image"
        share = distributed.share(size, own=len(own))
        seen[own] += share / len(own) / processes  # what an image counts in the mean gradient
        weight += share / processes
    assert weight == pytest.approx(1)
    assert torch.allclose(seen, torch.full((size,), 1 / size))


def test_what_needs_gpus_says_so(monkeypatch):
    with pytest.raises(ValueError, match="sync_batchnorm needs GPUs: leave it out on the CPU"):
        choose(device="cpu", sync_batchnorm=True)
    for name, value in {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 processes for 1 GPUs: use --nproc-per-node=1, or dev"):
        choose(device="cuda")
    with pytest.raises(ValueError, match="gives each process a device.*got cuda:1"):
        choose(device="cuda:1")
