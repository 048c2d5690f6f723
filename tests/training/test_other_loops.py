"""docs/other_loops.md: in each loop a step is given gradient + lambda * sign(gamma), once."""

import copy
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset

from door import ROOT
from slimming import Slimming, trace

TEXT = (ROOT / "docs" / "other_loops.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", TEXT, re.M | re.S))
LAMBDA = 0.5
X = 10 * torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # steep: it is clipped
Y = torch.arange(8) % 4


class Still(nn.BatchNorm2d):
    """Normalises by its statistics always, so that a batch's gradient is the mean of its parts'."""

    def train(self, mode: bool = True):
        return super().train(False)


def network() -> nn.Module:
    torch.manual_seed(1)
    unit = [nn.Conv2d(3, 8, 3), Still(8), nn.ReLU(), nn.Conv2d(8, 8, 3), Still(8), nn.ReLU()]
    model = nn.Sequential(*unit, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    for gamma in (model[1].weight, model[4].weight):
        nn.init.uniform_(gamma, -1.0, 1.0)
    return model.train()


def gammas(model: nn.Module) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def gradients(model: nn.Module, clip: float | None = None, dtype=None) -> list[Tensor]:
    """Of the gammas, of all images at once, without a penalty."""
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        loss = F.cross_entropy(twin(X), Y)
    loss.backward()
    if clip is not None:
        norm = nn.utils.clip_grad_norm_(twin.parameters(), clip)
        assert norm > 2 * clip, "there is something to clip"
    return [gamma.grad for gamma in gammas(twin)]


def given(model: nn.Module, optimizer: optim.Optimizer) -> list[list[Tensor]]:
    """Fills with the gammas' gradients at each step, as the optimiser was given them."""
    steps: list[list[Tensor]] = []
    optimizer.register_step_post_hook(  # SGD leaves them as they are
        lambda *_: steps.append([gamma.grad.clone() for gamma in gammas(model)])
    )
    return steps


def run(name: str, parts: int = 1, text: str | None = None, **names) -> list[list[Tensor]]:
    """Run a block of the text for one step on eight images -> what the optimiser was given."""
    model = names.setdefault("model", network())
    optimizer = names.setdefault("optimizer", optim.SGD(model.parameters(), lr=0.1))
    steps = given(model, optimizer)
    space = {"batches": list(zip(X.chunk(parts), Y.chunk(parts))), "parts": parts, **names}
    exec(BLOCKS["setup"], space)
    space["method"] = Slimming(strength=LAMBDA)
    exec(text or BLOCKS[name], space)
    return steps


def check(steps: list[list[Tensor]], true: list[Tensor], start: nn.Module, rtol=1e-5) -> None:
    assert len(steps) == 1, "one step"
    for gamma, grad, has in zip(gammas(start), true, steps[0], strict=True):
        torch.testing.assert_close(has, grad + LAMBDA * gamma.sign(), rtol=rtol, atol=1e-6)


def test_a_plain_loop_and_the_cut():
    model = network()
    check(run("plain", model=model), gradients(network()), network())
    space = {"model": model, "images": X}
    exec(BLOCKS["setup"], space)
    exec(BLOCKS["cut"], space)
    assert space["thin"][0].out_channels < 8


def test_lambda_is_not_clipped():
    check(run("clipping"), gradients(network(), clip=0.1), network())


def test_two_halves_of_a_batch_are_one_step_with_one_lambda():
    check(run("accumulation", parts=2), gradients(network()), network())


def scaled(text: str) -> list[list[Tensor]]:
    """On a CPU, in the type that its layers have; the scale stays 65,536."""
    text = text.replace("torch.float16", "torch.bfloat16")
    return run("scaler", text=text, device="cpu")


def test_lambda_survives_unscaling():
    steps = scaled(BLOCKS["scaler"])
    # Scaled by a power of two and back: not a bit is lost.
    check(steps, gradients(network(), dtype=torch.bfloat16), network(), rtol=0)


def test_a_scaler_may_be_told_to_unscale_for_clipping():
    text = BLOCKS["scaler"].replace(
        "    scaler.step",
        "    scaler.unscale_(optimizer)\n"
        "    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)\n"
        "    scaler.step",
    )
    check(scaled(text), gradients(network(), 0.1, torch.bfloat16), network())


@pytest.mark.parametrize("mode", ["subgradient", "proximal", "decoupled"])
def test_a_skipped_step_moves_nothing(mode):
    model = network()
    start = copy.deepcopy(model.state_dict())
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    Slimming(LAMBDA, mode).attach(model, optimizer)
    scaler.scale(F.cross_entropy(model(X * float("inf")), Y)).backward()
    scaler.step(optimizer)
    scaler.update()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, start[name]), name


def test_a_fused_optimiser_that_would_unscale_lambda_is_refused_with_the_way_out():
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1, fused=True)
    steps = given(model, optimizer)
    scaler = torch.amp.GradScaler("cpu")
    Slimming(LAMBDA).attach(model, optimizer)
    scaler.scale(F.cross_entropy(model(X), Y)).backward()
    with pytest.raises(ValueError, match=r"call scaler\.unscale_\(optimizer\) before"):
        scaler.step(optimizer)
    model.zero_grad()
    del optimizer.grad_scale, optimizer.found_inf
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(F.cross_entropy(model(X), Y)).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    check(steps, gradients(network()), network())


def test_attached_in_loss_mode_it_says_what_to_add():
    model = network()
    with pytest.raises(ValueError, match="add slimming.methods.sparsity.penalty"):
        Slimming(LAMBDA, "loss").attach(model, optim.SGD(model.parameters()))


@pytest.mark.parametrize("mode", ["proximal", "decoupled"])
def test_behind_the_step_gammas_shrink_by_the_lr_of_that_step(mode):
    moved = []
    for strength in (0.0, 0.01):
        model = network()
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        Slimming(strength, mode).attach(model, optimizer)
        optimizer.param_groups[0]["lr"] = 0.05  # as a scheduler does
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        moved.append(gammas(model))
    for free, shrunk in zip(*moved, strict=True):
        torch.testing.assert_close(free - shrunk, 0.05 * 0.01 * free.sign(), rtol=1e-3, atol=1e-7)


def by_hand(text: str) -> list[list[Tensor]]:
    text = text.replace("torch.float16", "torch.bfloat16")
    return run("by_hand", parts=2, text=text, device="cpu")


def test_by_hand_it_is_the_same():
    true = gradients(network(), 0.1, torch.bfloat16)
    check(by_hand(BLOCKS["by_hand"]), true, network(), rtol=1e-3)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("        scaler.unscale_(optimizer)\n", ""),
        ("        method.after_backward(t)\n", ""),
        (
            "        method.after_backward(t)\n",
            2 * "        method.after_backward(t)\n",
        ),  # per part
        ("        torch.nn", "        method.after_backward(t)\n        torch.nn"),
    ],
)
def test_a_wrong_order_is_noticed(right, wrong):
    assert BLOCKS["by_hand"].count(right) == 1
    steps = by_hand(BLOCKS["by_hand"].replace(right, wrong))
    with pytest.raises(AssertionError, match="Tensor-likes are not"):
        check(steps, gradients(network(), 0.1, torch.bfloat16), network(), rtol=1e-3)


DDP = """
import os, sys, torch
sys.path[:0] = {paths}
from torch import optim
from test_other_loops import BLOCKS, LAMBDA, X, Y, network
from slimming import Slimming
rank = int(os.environ["RANK"])
model = network()
space = dict(model=model, optimizer=optim.SGD(model.parameters(), lr=0.1),
             batches=[(X.chunk(2)[rank], Y.chunk(2)[rank])] * 3)
exec(BLOCKS["setup"], space)
space["method"] = Slimming(LAMBDA)
exec(BLOCKS["ddp"], space)
torch.save(model.state_dict(), f"rank{{rank}}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_train_as_one_does(tmp_path):
    paths = [str(path) for path in (ROOT, ROOT / "tests", Path(__file__).parent)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", DDP.format(paths=paths)], cwd=tmp_path, stderr=subprocess.PIPE,
            env={**os.environ, **where, "RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for process in both:
        assert process.wait() == 0, process.stderr.read().decode()
    alone = network()
    run("plain", model=alone, batches=[(X, Y)] * 3)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    for name, tensor in alone.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-6)


def test_lightning_clips_and_accumulates_and_lambda_joins_once():
    space: dict = {}
    exec(BLOCKS["setup"] + BLOCKS["lightning"], space)
    model = network()
    trainer = space["lightning"].Trainer(
        max_epochs=1, accumulate_grad_batches=2, gradient_clip_val=0.1, accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    batches = DataLoader(TensorDataset(X, Y), batch_size=4)
    trainer.fit(space["Sparse"](model, Slimming(LAMBDA)), batches)
    assert trainer.global_step == 1
    # Lightning computes the gradients inside the optimiser's step: seen in what the step did.
    steps = [(old - new) / 0.1 for old, new in zip(gammas(network()), gammas(model))]
    check([steps], gradients(network(), clip=0.1), network(), rtol=1e-4)
    assert trace(model, X).gates


def test_accelerate_in_bf16_clips_and_accumulates_and_is_cut():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model, clean = network(), network()
    accelerator = Accelerator(mixed_precision="bf16", cpu=True, gradient_accumulation_steps=2)
    try:
        text = BLOCKS["accelerate"].replace("model = accel", "with_bf16 = model\nmodel = accel")
        text += "assert model is with_bf16\n"
        batches = DataLoader(TensorDataset(X, Y), batch_size=4)
        names = {"accelerator": accelerator, "batches": batches}
        steps = run("accelerate", text=text, model=model, **names)
        true = gradients(clean, clip=0.1, dtype=torch.bfloat16)
        check(steps, true, clean, rtol=1e-3)
        graph = trace(model, X)
        assert set(graph.gates) == {"1", "4"}
        with pytest.raises(ValueError, match=r"by accelerate: give accelerator\.unwrap_model"):
            trace(accelerator.prepare(network()), X)
    finally:
        AcceleratorState._reset_state(True)


def test_any_other_forward_on_an_object_is_refused_with_the_way_out():
    model = network()
    model.forward = lambda x: x
    with pytest.raises(ValueError, match="replaced on the object: define it in a class"):
        trace(model, X)
