"""The moments suffice: methods of a user cut, mask, wrap and distil while they train, and a killed
run ends with the same bits."""

import json
import os
import signal
from pathlib import Path

import moments
import pytest
import torch
from torch import nn

import engine
from door import tiny
from engine import Interrupted
from finetune import finetune
from pipeline import pipeline
from prune import prune
from slimming.checkpoint import load, read
from train import train
from utils.data.sets import Data

SHORT = ("epochs=3", "data.num_train=128")  # two steps each


def method(name: str, *more: str) -> tuple[str, ...]:
    return ("~method", f"+method._target_=moments.{name}", *(f"+method.{word}" for word in more))


def bits(folder: Path) -> tuple:
    checkpoint = read(folder)
    weights = {name: t.numpy().tobytes() for name, t in checkpoint.weights.items()}
    return weights, checkpoint.keep, (folder / "metrics.jsonl").read_bytes()


def widths(folder: Path) -> list[int]:
    return [m.num_features for m in load(folder).modules() if isinstance(m, nn.BatchNorm2d)]


def zeros(folder: Path) -> list[float]:
    """The share of zeros in each convolution and linear layer."""
    weights = [t for t in read(folder).weights.values() if t.dim() > 1]
    return [(t == 0).double().mean().item() for t in weights]


EMA = ("recipe.ema=0.9",)
ADAM = ("optimizer=adamw", "recipe.optimizer.lr=0.01")
APART = ("recipe.lr_gamma=0.05", "recipe.grad_clip=1.0")


USUAL = [
    method("SoftFilter"),
    method("Gradual", "block=kernel"),
    (*method("Shrinking", "strength=0.01", "mode=proximal"), *ADAM),
    (*method("Shrinking", "strength=0.01"), "model=preresnet29"),
    method("AtStart"),
    ("method=slimming_macs", "method.strength=0.02"),
]
OTHERS = [
    method("Gradual"),
    method("Shrinking", "strength=0.01"),
    method("Shrinking", "strength=0.01") + EMA,
    method("Shrinking", "strength=0.01") + APART,
    method("AtEveryStep", "strength=0.01"),
    method("Distil"),
]


@pytest.mark.parametrize(
    "words",
    [*USUAL, *(pytest.param(words, marks=pytest.mark.long) for words in OTHERS)],
    ids=lambda words: " ".join(words).rpartition("=moments.")[2],
)
def test_killed_in_every_step_it_ends_with_the_same_bits(tmp_path, monkeypatch, words):
    def told(folder):
        return tiny("train", tmp_path / folder, *SHORT, *words)

    whole, real = train(told("whole")), engine._step

    def step_and_signal(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(engine, "_step", step_and_signal)
    stops, again = 0, None
    while again is None:
        try:
            again = train(told("stopped"))
        except Interrupted:
            stops += 1
    assert stops == 6 and again.name == whole.name
    assert bits(again) == bits(whole)


def test_a_network_that_was_shrunk_says_what_is_left_and_is_cut_and_tuned_further(tmp_path):
    folder = train(tiny("train", tmp_path, *SHORT, *method("Shrinking", "strength=0.01")))
    dense = train(tiny("train", tmp_path, *SHORT))
    now, before = widths(folder), widths(dense)
    assert 0.7 < sum(now) / sum(before) < 0.75, "0.9 ^ 3"
    result = json.loads((folder / "result.json").read_text())
    assert [kept for kept, _ in result["widths"].values()] == now
    assert [total for _, total in result["widths"].values()] == before
    keep = read(folder).keep
    assert [len(kept) for kept in keep.values()] == now
    assert all(kept == sorted({*kept}) and kept[-1] < n for kept, n in zip(keep.values(), before))
    cut = prune(tiny("prune", tmp_path, f"ckpt={folder}", "ratio=0.3", "recalibrate=0"))
    tuned = finetune(tiny("finetune", tmp_path, f"ckpt={cut}", "epochs=1"))
    assert sum(widths(tuned)) == sum(now) - int(0.3 * sum(now))
    inner = read(cut).keep
    assert all({*inner[gate]} <= {*keep[gate]} for gate in keep), "channels of the original"


def test_what_start_puts_in_place_is_trained_with_all_its_parameters(tmp_path, monkeypatch):
    """The optimiser is made for the parameters that there are then, also where a run goes on."""
    found, real = [], moments.Wraps.after_epoch

    def watch(self, t):
        real(self, t)
        found.append((self.seen, self.scale))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(moments.Wraps, "after_epoch", watch)
    cfg = tiny("train", tmp_path, *SHORT, *method("Wraps"))
    for _ in range(3):
        with pytest.raises(Interrupted):
            train(cfg)
    assert [seen for seen, _ in found] == [2, 4, 6]
    scales = [1.0, *(scale.max().item() for _, scale in found)]
    assert scales == sorted(scales, reverse=True) and scales[-1] < 0.99, "it was trained"
    assert "inside.classifier.weight" in read(train(cfg)).weights


def test_another_kind_of_optimiser_while_training_is_refused(tmp_path):
    with pytest.raises(ValueError, match="by a Adam of 1 parameter groups: .* it stays a SGD"):
        train(tiny("train", tmp_path, *SHORT, *method("AnotherOptimizer")))


def test_views_are_evaluated_beside_the_network(tmp_path):
    folder = train(tiny("train", tmp_path, *SHORT, *method("Views"), "data.val_size=32"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["blind/accuracy"] <= 1 and "val/accuracy" in row for row in rows)


def test_scores_see_labels(tmp_path, monkeypatch):
    """With other labels for the same images the channels are other ones."""
    folder = train(tiny("train", tmp_path, *SHORT, "method.strength=0"))
    words = (f"ckpt={folder}", *method("Taylor"), "ratio=0.5", "recalibrate=0")
    cut = prune(tiny("prune", tmp_path, *words))
    assert json.loads((cut / "result.json").read_text())["certificate"]["holds"]
    real = Data.labelled
    monkeypatch.setattr(
        Data, "labelled", lambda *a, **k: ((x, (y + 1) % 4) for x, y in real(*a, **k))
    )
    other = prune(tiny("prune", tmp_path / "other", *words))
    assert read(other).keep != read(cut).keep


def test_a_cut_before_any_training_is_that_of_the_initial_network(tmp_path):
    """SNIP's order: score at the start, cut, train what is left."""
    words = (*method("Taylor"), "ratio=0.5", "recalibrate=0", "epochs=0", "finetune.epochs=2")
    start, cut, tuned = pipeline(tiny("pipeline", tmp_path, *words))
    assert (start / "metrics.jsonl").read_text() == ""
    result = json.loads((start / "result.json").read_text())
    assert result["epochs"] == 0 and result["strength"] == 0
    gammas = [t for name, t in read(start).weights.items() if t.dim() == 1 and "weight" in name]
    assert torch.cat(gammas).unique().tolist() == [0.5], "nothing has moved"
    thin, small = read(start).weights, read(cut).weights
    first = next(name for name in thin if thin[name].dim() == 4)
    kept = read(cut).keep["features.1"]
    assert torch.equal(small[first], thin[first][kept])
    assert len((tuned / "metrics.jsonl").read_text().splitlines()) == 2


def test_meant_zeros_stay_through_a_cut_and_fine_tuning_unless_told_otherwise(tmp_path):
    masked = train(tiny("train", tmp_path, *SHORT, *method("Gradual")))
    assert zeros(masked) == pytest.approx(len(zeros(masked)) * [0.75], abs=0.01)
    assert read(masked).history[-1]["masked"] is True
    cut = prune(tiny("prune", tmp_path, f"ckpt={masked}", "ratio=0.2", "recalibrate=0"))
    told = ("finetune", tmp_path, f"ckpt={cut}", "epochs=1")
    usual = finetune(tiny(*told))
    assert min(zeros(usual)) > 0.6 and zeros(usual) == zeros(cut)
    assert read(usual).weights["classifier.weight"].ne(read(cut).weights["classifier.weight"]).any()
    assert finetune(tiny(*told, "method=keep_zeros")) == usual, "it is what it would be"
    plain = finetune(tiny(*told, "method=plain"))
    assert zeros(plain)[0] == 0 and "-ft-plain-" in plain.name
    scratch = finetune(tiny(*told[:3], "scratch=E"))
    assert zeros(scratch) == zeros(cut), "the mask is its shape"
    moved = read(scratch).weights["features.0.weight"] - read(cut).weights["features.0.weight"]
    assert moved.abs().max() > 0.01


def test_zeros_that_nobody_meant_are_trained(tmp_path):
    folder = train(tiny("train", tmp_path, *SHORT, *method("SoftFilter", "block=weight")))
    assert min(zeros(folder)) > 0.25
    cut = prune(tiny("prune", tmp_path, f"ckpt={folder}", "ratio=0.2"))
    tuned = finetune(tiny("finetune", tmp_path, f"ckpt={cut}", "epochs=1"))
    assert zeros(tuned)[0] == 0 and sum(zeros(tuned)) < sum(zeros(cut)) / 2
