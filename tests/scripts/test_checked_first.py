"""Whatever is wrong with any stage of a pipeline is said before the first one computes."""

import json

import pytest
import torch
from torch import nn

import train
from door import tiny
from terminal import terminal
from utils.runs.folder import read_result

WRONG = [
    ("ratio=1.5", "0 <= ratio < 1"),
    ("ratio=-0.1", "0 <= ratio < 1"),
    ("scope=galaxy", "scope is one of"),
    ("rounding=abc", "rounding is one of"),
    ("combine=abc", "combine is one of"),
    ("dead=maybe", "dead is one of"),
    ("unread=maybe", "unread is one of"),
    ("coupled=maybe", "coupled is one of"),
    ("unscored=maybe", "unscored is one of prune, keep; got 'maybe'"),
    ("compensate=foo", "compensate is one of"),
    ("floor=-1", "floor is a number of channels"),
    ("floor=1.5", "floor above 1 is a whole number"),
    ("round_to=0", "round_to is a whole number"),
    ("recalibrate=-1", "recalibrate and images"),
    ("images=0", "recalibrate and images"),
    ("ratio=0.5 target.macs=0.5", "a ratio or a target, not both"),
    ("target.macs=-0.5", "target"),
    ("target.macs=1e-9", "macs"),
    ("target.params=1e-9", "params"),
    ("method=gamma_local scope=global", "method=gamma_local means scope=layer; got scope=global"),
    ("finetune.scratch=e", "finetune.scratch is one of"),
    ("finetune.epochs=-1", "from 0 (none at all) on, and batches of 2; got finetune.epochs=-1"),
    ("finetune.recipe.optimizer.lr=abc", "finetune.recipe.optimizer"),
    ("finetune.recipe.batch_size=abc", "finetune.recipe.batch_size"),
    ("finetune.recipe.schedule.warmup=2", "finetune.recipe.schedule"),
    ("passes=-1", "passes is a number"),
    ("finetune.scratch=B finetune.recipe.optimizer.lr=-1", "finetune.recipe.optimizer"),
    ("passes=2 ratio=1.5", "0 <= ratio < 1"),
]


@pytest.mark.parametrize("dry", [False, True], ids=["run", "dry"])
@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=[words for words, _ in WRONG])
def test_a_wrong_option_of_any_stage_is_found_before_the_first_trains(
    tmp_path, monkeypatch, words, sentence, dry
):
    def never(*_, **__):
        raise AssertionError("something was trained")

    monkeypatch.setattr(train, "fit", never)
    runs = tmp_path / "runs"
    typed = ["data=fake", "data.size=8", "data.num_train=32", "data.num_test=8", "model=vgg11"]
    typed += ["model.width=0.0625", "logger=none", f"runs_dir={runs}", *words.split()]
    code, out, err = terminal("pipeline", *typed, *(["dry_run=true"] if dry else []))
    assert code == 1, out
    assert sentence in err and err.count("\n") == 1 and "not foreseen" not in err
    assert not runs.exists()


class NoGates(nn.Sequential):
    """No BatchNorm at all."""

    def __init__(self, num_classes: int):
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, num_classes),
        )  # fmt: skip


class Bare(NoGates):
    """A convolution that no BatchNorm scores adds to the only stream."""

    def __init__(self, num_classes: int):
        super().__init__(num_classes)
        self.norm, self.other = nn.BatchNorm2d(8), nn.Conv2d(3, 8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.norm(self[0](images)) + self.other(images)
        return self[4](self[3](self[2](self[1](maps))))


class TwoHeads(NoGates):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = super().forward(images)
        return scores, scores


@pytest.mark.parametrize(
    ("network", "sentence"),
    [("NoGates", "no BatchNorm"), ("TwoHeads", "2 outputs")],
)
def test_a_network_that_cannot_be_cut_is_found_before_it_is_trained(
    tmp_path, monkeypatch, network, sentence
):
    from pipeline import pipeline

    cfg = tiny("pipeline", tmp_path / "runs", "method.strength=0")
    cfg.model = {"_target_": f"test_checked_first.{network}"}
    monkeypatch.setattr(train, "fit", None)
    with pytest.raises(ValueError, match=sentence):
        pipeline(cfg)
    assert not (tmp_path / "runs").exists()


def test_a_stream_that_is_not_scored_whole_is_cut_where_that_is_asked_for(tmp_path):
    from pipeline import pipeline

    def cut(*words: str) -> dict:
        cfg = tiny("pipeline", tmp_path, "method.strength=0", "ratio=0.5", "epochs=1", *words)
        cfg.model = {"_target_": "test_checked_first.Bare"}
        return read_result(pipeline(cfg)[-1])

    with pytest.raises(ValueError, match="'other', which no BatchNorm scores, adds to it"):
        cut()
    assert cut("unscored=prune")["channels"] == {"kept": 4, "total": 8}


def test_what_changes_nothing_says_so_and_is_the_same_run(tmp_path, capsys):
    from prune import describe

    trained = train.describe(tiny("train", tmp_path))
    parent = trained.as_parent()

    def name(*words: str) -> str:
        return describe(tiny("prune", tmp_path, "ratio=0.5", *words), parent).run.name

    plain = name()
    assert name("unscored=keep") == plain and "-pruneunscored" in name("unscored=prune")
    for words, note in (
        (["rounding=up"], "rounding=up changes nothing with round_to=1"),
        (["recalibrate=100000"], ""),  # there are 192 images, and all are used already
        (["recalibrate=192"], ""),
    ):
        assert name(*words) == plain
        assert note in capsys.readouterr().out
    layer = name("scope=layer")
    assert name("scope=layer", "refill=false") == layer
    assert "refill=False changes nothing with scope=layer" in capsys.readouterr().out


def test_a_typed_seed_counts_where_a_network_is_given(tmp_path):
    from finetune import finetune
    from prune import prune

    dense = train.train(tiny("train", tmp_path, "epochs=1", "seed=3"))
    cuts = [
        prune(tiny("prune", tmp_path, f"ckpt={dense}", "method=random", "ratio=0.5", *seed))
        for seed in ((), ("seed=0",), ("seed=1",), ("seed=3",))
    ]
    assert len(set(cuts)) == 3 and cuts[0] == cuts[3], "what isn't typed is the network's"
    assert [cut.name.rpartition("-")[0][-2:] for cut in cuts] == ["s3", "s0", "s1", "s3"]
    plans = [json.loads((cut / "result.json").read_text())["plan"]["keep"] for cut in cuts[:3]]
    assert plans[0] != plans[1] != plans[2], "three random cuts of one network"
    tuned = {
        finetune(tiny("finetune", tmp_path, f"ckpt={cuts[0]}", "epochs=1", f"seed={seed}"))
        for seed in (0, 1)
    }
    further = {
        train.train(tiny("train", tmp_path, f"ckpt={dense}", "data=fake", "epochs=1", *seed))
        for seed in ((), ("seed=7",))
    }
    assert len(tuned) == len(further) == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("logger=wandb logger.mode=foo", "logger.mode is offline, online or disabled"),
        ("logger=wandb logger.artifacts=maybe", "logger.artifacts is true or false"),
        ("allow=foo", r"allow is a list: write allow=[foo]"),
        ("+recipe.schedule._args_=[0.9]", "recipe.schedule._args_: arguments are given by name"),
        ("+twin.epochs=3", "+twin.epochs=3 has no effect without a twin"),
        ("+method.foo=1", "method=slimming has no option 'foo'"),
    ],
)
def test_what_no_stage_computes_with_is_checked_too(tmp_path, words, sentence):
    typed = ["data=fake", "data.size=8", "data.num_train=32", "data.num_test=8", "model=vgg11"]
    runs = f"runs_dir={tmp_path / 'runs'}"
    quiet = [] if "logger" in words else ["logger=none"]
    for dry in ([], ["dry_run=true"]):
        options = [*typed, "model.width=0.0625", *quiet, runs, *words.split(), *dry]
        code, _, err = terminal("pipeline", *options)
        assert code == 1 and sentence in err, err
        assert not (tmp_path / "runs").exists()
