"""What people change of a recipe: each option by its definition, in the hash, and checked."""

import json
import math
import os
import signal
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn, optim

import engine
from door import ROOT, config, tiny
from engine import Interrupted, evaluate
from slimming.checkpoint import read, restore
from slimming.methods.base import Training
from slimming.methods.slimming import Slimming
from train import train
from utils.cli.configured import plain, recipe_identity, recipe_of
from utils.data import fake
from utils.data.load import load_data
from utils.data.seeding import mix
from utils.runs.folder import Run
from utils.runs.identity import digest
from utils.training import schedules
from utils.training.hardware import choose
from utils.training.recipe import OFF, Recipe, parameter_groups
from utils.training.smoothing import Average, soften
from utils.training.strength import announce_reach, choose_strength

CPU = choose(device="cpu", precision="fp32")
PLAIN = Recipe(2, 8, partial(optim.SGD, lr=0.1, momentum=0.9), lambda progress: 1.0)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# The hash.

RECIPES = sorted(path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml"))
ADDED = {"label_smoothing": 0.1, "mixup": 0.2, "ema": 0.9, "grad_clip": 1.0, "lr_gamma": 0.01}
FAKE = fake(num_train=512)


def identity(*words: str) -> dict:
    return recipe_identity(config("train", *words), FAKE)


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_off_leaves_old_hashes_as_they_were(name):
    plainly = identity(f"recipe={name}")
    assert plainly.keys() == {"optimizer", "schedule", "batch_size", "epochs"}
    off = [f"recipe.{key}={'null' if value is None else value}" for key, value in OFF.items()]
    assert identity(f"recipe={name}", *off) == plainly


def test_every_option_counts():
    assert ADDED.keys() == OFF.keys()
    words = [f"recipe.{key}={value}" for key, value in ADDED.items()]
    words += [f"optimizer@recipe.optimizer={name}" for name in ("sgd_plain", "adamw")]
    words += [f"schedule@recipe.schedule={name}" for name in ("steps", "cosine")]
    words += ["seed=7", "++recipe.schedule.warmup=0.1"]
    assert len({digest(identity(word)) for word in words}) == len(words), "seed=7: as it stands"


# Schedules.

SCHEDULES = sorted(path.stem for path in (ROOT / "conf" / "schedule").glob("*.yaml"))
EVERY = {
    "steps": partial(schedules.steps, milestones=(0.5, 0.75)),
    "one_cycle": schedules.one_cycle,
    "cosine": schedules.cosine,
    "constant": schedules.constant,
}


@pytest.mark.parametrize("name", EVERY)
def test_every_schedule_warms_up_linearly(name):
    factors = [EVERY[name](k / 100, warmup=0.2) for k in range(100)]
    assert factors[:21] == pytest.approx([0.05 + 0.95 * k / 20 for k in range(21)])
    assert max(factors) == pytest.approx(1.0)
    assert EVERY[name](0.0, warmup=0) == 1.0


def test_every_schedule_is_a_choice():
    assert {*EVERY, "thirds"} <= {*SCHEDULES}
    for name in (*EVERY, "thirds"):
        schedule = recipe_of(config("train", f"schedule={name}")).schedule
        assert 0 <= schedule(0.99) <= schedule(0.3) <= 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_the_factor_of_the_learning_rate(name, tmp_path):
    words = (f"schedule={name}", "method.strength=0", "recipe.batch_size=64")
    told = tiny("train", tmp_path, *words)
    schedule, lr = recipe_of(told).schedule, told.recipe.optimizer.lr
    last = [(3 * epoch + 2) / 9 for epoch in range(3)]  # of three steps in each of three epochs
    assert [row["lr"] for row in rows(train(told))] == pytest.approx(
        [lr * schedule(k) for k in last]
    )


def test_cosine_falls_from_one_to_last():
    values = [schedules.cosine(k / 100, last=0.1) for k in range(101)]
    assert values == pytest.approx([0.55 + 0.45 * math.cos(math.pi * k / 100) for k in range(101)])


# Another optimiser replaces the whole node.


@pytest.mark.parametrize("recipe", RECIPES)
def test_adamw_brings_its_own_arguments_to_every_recipe(recipe):
    words = (f"recipe={recipe}", "optimizer@recipe.optimizer=adamw")
    node = plain(config("train", *words).recipe.optimizer)
    assert node.keys() == {"_target_", "_partial_", "lr", "weight_decay"}
    assert isinstance(recipe_of(config("train", *words)).optimizer(nn.Linear(1, 1).parameters()),
                      optim.AdamW)  # fmt: skip


# Soft targets.


def batch(n: int = 8, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3, 4, 4), torch.arange(n) % classes


def test_label_smoothing_is_that_of_torch():
    images, labels = batch()
    same, targets = soften(images, labels, 5, replace(PLAIN, label_smoothing=0.3), 0, 0, 0)
    logits = torch.randn(8, 5)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.3)
    assert F.cross_entropy(logits, targets).item() == pytest.approx(expected.item(), rel=1e-6)
    assert same is images


def test_mixup_blends_images_and_targets_of_the_same_pairs():
    images, labels = batch(64)
    mixed, targets = soften(images, labels, 5, replace(PLAIN, mixup=2.0), 1, 2, 3)
    draw = numpy.random.default_rng(mix(1, "mixup", 2, 3))
    share, pairs = draw.beta(2.0, 2.0), draw.permutation(64)
    torch.testing.assert_close(mixed, share * images + (1 - share) * images[pairs])
    own, others = F.one_hot(labels, 5), F.one_hot(labels[pairs], 5)
    torch.testing.assert_close(targets, (share * own + (1 - share) * others).float())
    assert sorted(pairs.tolist()) == list(range(64)) and 0.1 < share < 0.9


def test_mixups_draws_depend_on_seed_epoch_and_step_alone():
    images, labels = batch()
    mixup = replace(PLAIN, mixup=1.0)
    drawn = [soften(images, labels, 5, mixup, *now)[1] for now in [(0, 0, 0), (1, 0, 0), (0, 1, 0)]]
    torch.manual_seed(9)
    assert torch.equal(soften(images, labels, 5, mixup, 0, 0, 0)[1], drawn[0])
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:])


def test_with_alpha_near_zero_mixup_leaves_images_as_they_are():
    images, labels = batch()
    mixed, targets = soften(images, labels, 5, replace(PLAIN, mixup=1e-9), 0, 0, 0)
    found = (images[:, None] == mixed[None]).flatten(2).all(2)
    assert found.any(1).all() and set(targets.flatten().tolist()) == {0.0, 1.0}


# The average.


def test_the_average_is_that_of_the_formula_and_counters_are_copied():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("index", torch.tensor([3, 7]))
    average, expected = Average(model, 0.7), model[0].weight.detach().clone()
    for step in range(1, 41):
        nn.init.normal_(model[0].weight)
        model(torch.randn(4, 2, generator=torch.Generator().manual_seed(step)))[0].sum().backward()
        average.update(model, step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(average.model[0].weight.detach(), expected)
    assert average.model[1].num_batches_tracked == 40
    assert average.model.index.tolist() == [3, 7], "an index has no mean"
    assert not torch.equal(average.model[1].running_mean, model[1].running_mean)


SOFT = ("recipe.ema=0.8", "recipe.mixup=0.4", "recipe.grad_clip=0.5", "recipe.lr_gamma=0.05")
SOFT += ("recipe.label_smoothing=0.1", "data.val_size=32", "method.strength=0.02")


@pytest.fixture(scope="module")
def soft(tmp_path_factory) -> Path:
    """A training with everything on that nothing interrupted."""
    return train(tiny("train", tmp_path_factory.mktemp("soft"), *SOFT))


def bits(folder: Path) -> tuple:
    weights = {name: tensor.numpy().tobytes() for name, tensor in read(folder).weights.items()}
    return weights, (folder / "metrics.jsonl").read_bytes()


def test_what_is_saved_and_evaluated_is_the_average(tmp_path, soft, monkeypatch):
    states, real = [], Run.save_resume

    def keep(run, state):
        states.append(deepcopy(state))
        real(run, state)

    monkeypatch.setattr(Run, "save_resume", keep)
    assert bits(train(tiny("train", tmp_path, *SOFT))) == bits(soft)
    kept = read(soft).weights
    assert all(torch.equal(kept[name], states[-1]["average"][name]) for name in kept)
    assert not torch.equal(kept["classifier.weight"], states[-1]["model"]["classifier.weight"])
    data = load_data(plain(tiny("train", soft, *SOFT).data), CPU.device)
    told = evaluate(restore(read(soft)), data, data.val, CPU)
    assert rows(soft)[-1]["val/loss"] == pytest.approx(told["loss"], rel=1e-5)
    gammas = [t for name, t in kept.items() if name.endswith(".weight") and t.dim() == 1]
    penalty = 0.02 * sum(gamma.abs().double().sum().item() for gamma in gammas)
    assert rows(soft)[-1]["penalty"] == pytest.approx(penalty, rel=1e-5)


def test_with_everything_on_it_ends_with_the_same_bits_when_stopped_in_every_step(
    tmp_path, soft, monkeypatch
):
    real = engine._step

    def step_and_signal(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(engine, "_step", step_and_signal)
    cfg, stops = tiny("train", tmp_path, *SOFT), 0
    while not list(tmp_path.glob("*/result.json")):
        try:
            folder = train(cfg)
        except Interrupted:
            stops += 1
    assert stops == 9 and bits(folder) == bits(soft)


def test_with_everything_on_it_ends_with_the_same_bits_when_killed_hard(tmp_path, soft):
    cut = (
        "import os, engine, door, train\n"
        "real, calls = engine._step, []\n"
        "def step(*arguments):\n"
        "    calls.append(1)\n"
        "    return real(*arguments) if len(calls) < 6 else os._exit(9)\n"
        "engine._step = step\n"
        f"train.train(door.tiny('train', {str(tmp_path)!r}, 'hardware.save_minutes=0', *{SOFT}))\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    threads = {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    assert (
        subprocess.run([sys.executable, "-c", cut], env={**os.environ, **threads}).returncode == 9
    )
    assert bits(train(tiny("train", tmp_path, *SOFT))) == bits(soft)


# Clipping, and the gammas' own rate.


def one_step(method: Slimming, recipe: Recipe, lr: float = 0.1, **groups) -> nn.Module:
    """A network after one step of the engine on one batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.BatchNorm1d(4), nn.Linear(4, 5))
    t = Training(model, optim.SGD(parameter_groups(model, True, recipe.lr_gamma), lr))
    engine._step(t, batch(), method, CPU, 8, recipe)
    return model


def test_the_penalty_is_not_clipped():
    clipped = replace(PLAIN, grad_clip=1e-9)
    model = one_step(Slimming(0.25), clipped)
    torch.testing.assert_close(model[2].weight.grad, torch.full((4,), 0.25))
    assert one_step(Slimming(0.25, "loss"), clipped)[2].weight.grad.abs().max() < 1e-8, (
        "there it is"
    )


def test_the_gradient_of_all_parameters_together_is_clipped():
    free, clipped = (one_step(Slimming(0.0), recipe) for recipe in
                     (PLAIN, replace(PLAIN, grad_clip=0.05)))  # fmt: skip
    before, after = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (free, clipped))
    assert before.norm() > 0.06 and after.norm().item() == pytest.approx(0.05, rel=1e-4)
    torch.testing.assert_close(after / after.norm(), before / before.norm())


@pytest.mark.parametrize("mode", ["proximal", "decoupled"])
def test_the_step_after_the_step_uses_the_gammas_rate(mode):
    own = replace(PLAIN, lr_gamma=0.001)
    without, penalised = (one_step(Slimming(s, mode), own)[2].weight for s in (0.0, 2.0))
    torch.testing.assert_close(without - penalised, torch.full((4,), 0.001 * 2.0))


def test_the_schedule_scales_each_rate_by_itself(tmp_path, monkeypatch):
    seen, real = [], engine._step

    def watch(t, *more):
        seen.append([group["lr"] for group in t.optimizer.param_groups])
        return real(t, *more)

    monkeypatch.setattr(engine, "_step", watch)
    cfg = tiny("train", tmp_path, "recipe.lr_gamma=0.02", "recipe.optimizer.lr=0.1")
    train(cfg)
    factors = [schedules.one_cycle(k / 9) for k in range(9)]
    assert seen == [[0.1 * factor, 0.02 * factor] for factor in factors]


def test_lambda_and_its_reach_follow_from_the_gammas_rate(capsys):
    own = replace(PLAIN, lr_gamma=0.01)
    assert choose_strength(own, "proximal", 500, 0.1) == pytest.approx(0.1 / (1000 * 0.01))
    announce_reach(own, Slimming(0.01, "proximal"), nn.BatchNorm1d(2), 500)
    assert "can move a gamma by 0.1;" in capsys.readouterr().out
    adam = replace(own, optimizer=partial(optim.AdamW, lr=0.5))
    assert choose_strength(adam, "proximal", 500, 0.1) == pytest.approx(0.01)


def test_without_decay_and_with_a_rate_gammas_are_one_group():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    rest, scales = parameter_groups(model, False, 0.3)
    assert scales == {"params": [model[1].weight], "weight_decay": 0.0, "lr": 0.3}
    assert len(rest["params"]) == 3
    with pytest.raises(ValueError, match="recipe.lr_gamma is for BatchNorm's scales"):
        parameter_groups(nn.Linear(2, 2), True, 0.3)


# What is said of the loss, and of what is broken.


def test_the_loss_that_is_told_has_no_penalty_in_any_mode(tmp_path):
    told = [
        rows(train(tiny("train", tmp_path, "method.strength=0.02", f"method.mode={mode}")))
        for mode in ("loss", "subgradient")
    ]
    assert [row["train/loss"] for row in told[0]] == [row["train/loss"] for row in told[1]]
    assert told[0] == told[1], "and everything else is the same computation"


def test_a_penalty_that_is_large_has_not_diverged(tmp_path):
    words = ("method.mode=loss", "method.strength=10", "model.width=0.25", "epochs=1")
    (row,) = rows(train(tiny("train", tmp_path, *words)))
    assert row["train/loss"] < 100 < row["penalty"]


def broken(model: nn.Module) -> nn.Module:
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).running_var[0] = math.nan
    return model


def test_outputs_that_are_not_finite_answer_nothing(soft):
    data = load_data(plain(tiny("train", soft, *SOFT).data), CPU.device)
    with pytest.raises(ValueError, match="outputs are not finite for 96 of 96 images, so they"):
        evaluate(broken(restore(read(soft))), data, data.test, CPU)


def test_also_in_the_middle_of_a_training(tmp_path, monkeypatch):
    real = engine._check_weights
    monkeypatch.setattr(
        engine, "_check_weights", lambda state: (real(state), broken(state.t.model))
    )
    with pytest.raises(ValueError, match="outputs are not finite for 32 of 32 images"):
        train(tiny("train", tmp_path, "data.val_size=32"))
    assert not list(tmp_path.glob("*/result.json"))


# Wrong values: see also tests/cli/test_recipe_words.py, where they are typed.


@pytest.mark.parametrize("name", ["label_smoothing", "mixup", "ema", "grad_clip", "lr_gamma"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "abc", True, [0.1]])
def test_a_wrong_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^recipe.{name} is "):
        replace(PLAIN, **{name: value})
    cfg = config("pipeline")
    OmegaConf.update(cfg, f"recipe.{name}", value)
    with pytest.raises(ValueError, match=rf"^recipe.{name} is "):
        recipe_of(cfg)
    OmegaConf.update(cfg, "scratch", "none", force_add=True)  # as of its fine-tuning
    with pytest.raises(ValueError, match=rf"^finetune.recipe.{name} is "):
        recipe_of(cfg)
