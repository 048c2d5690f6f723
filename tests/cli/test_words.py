"""The words of a command line: what stands for what, and sentences about those that are none."""

import pytest

from door import config
from terminal import refusal
from utils.cli.schema import settle
from utils.cli.words import flags_first, translated


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["runs/x"], ["ckpt='runs/x'"]),
        (["--cfg", "job"], ["--cfg", "job"]),
        (["a b ü:c.pt", "seed=1"], ["ckpt='a b ü:c.pt'", "seed=1"]),
        (["it's.pt"], ["ckpt='it\\'s.pt'"]),
        (["-m", "ckpt=a,b"], ["-m", "ckpt=a,b"]),
    ],
)
def test_a_bare_word_is_the_positional_option(arguments, expected):
    assert translated(arguments, "evaluate") == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("seed=0 --multirun data=fake", "--multirun seed=0 data=fake"),
        ("seed=0 -m --cfg job data=fake", "-m --cfg job seed=0 data=fake"),
        ("seed=0 --info data=fake", "--info all seed=0 data=fake"),
        ("seed=0 -i defaults", "-i defaults seed=0"),
        ("seed=0 -cd folder data=fake", "-cd folder seed=0 data=fake"),
    ],
)
def test_a_flag_may_stand_among_the_options(arguments, expected):
    assert flags_first(arguments.split()) == expected.split()


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        ("export", "RUN a.pt", "RUN and a.pt both stand for ckpt=...: did you mean to=a.pt?"),
        ("evaluate", "a.pt ckpt=b.pt", "ckpt=... and a.pt both stand for ckpt=...: leave one out"),
        ("train", "figure6", "did you mean experiment=figure6?"),
        ("train", "vgg11", "did you mean model=vgg11?"),
        ("train", "vgg12", "'vgg12' has no '=' (did you mean vgg19"),
        ("prune", "ratio", "ratio has no value, ratio=..."),
        ("train", "~recipe", "recipe is needed: leave out ~recipe"),
        ("train", "~seed", "seed is needed: leave out ~seed"),
        ("train", "~recipe.reach", "recipe.reach is needed: leave out ~recipe.reach"),
        ("train", "runs_dir=~/x", "quote the text, 'runs_dir=\"~/x\"'"),
        ("train", "runs_dir=/a=b", "quote the text, 'runs_dir=\"/a=b\"'"),
        ("train", "recipe=[a", "can't read recipe=[a: no viable alternative"),
        ("train", "method=l1_norm method.strength=1", "method=l1_norm has no option 'strength'"),
        ("train", "-m hydra/launcher=slurm", "there are: basic, joblib, submitit_local"),
        ("train", "-m hydra/sweeper=ax", "there is no hydra/sweeper=ax; there are: basic, grid"),
        ("prune", "model=vgg11", "prune.py has no model=: leave it out"),
        ("prune", "modle=vgg11", "there is no option 'modle'"),
        ("train", "hardware.trheads=1", "no option 'hardware.trheads' (did you mean hardware.thr"),
        (
            "train",
            "++hardware.trheads=1",
            "no option 'hardware.trheads' (did you mean hardware.thr",
        ),
        ("prune", "ckpt=[a,b]", "ckpt: "),
        ("prune", "ckpt=", "ckpt= is empty"),
        ("export", "RUN to=", "to= is empty"),
        ("train", "init=[a,b]", "init: "),
        ("train", "model_path=[a]", "model_path: "),
        ("prune", "ckpt='conf/c*t.yaml'", "is a pattern that fits conf/cut.yaml: say which"),
        ("prune", "ckpt=no-*", "is a pattern that fits nothing: say which"),
        ("train", f"seed={10**330}", "seed is a number of at most 64 bits"),
        (
            "train",
            "seed=18446744073709551616",
            "seed is a number of at most 64 bits; got one of",
        ),
        ("train", f"recipe.batch_size={10**330}", "recipe.batch_size is a number of at most 64"),
        ("pipeline", "passes=1.5", "passes: Value '1.5' of type 'float' could not be converted"),
    ],
)
def test_a_word_that_says_nothing_is_explained(script, arguments, sentence):
    said = refusal(script, *arguments.split())
    assert sentence in said and "not foreseen" not in said and "hydra.cc" not in said


def test_the_home_folder_has_a_short_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    cfg = config("train", "runs_dir='~/runs'", "ckpt='~/a.pt'", "init='~/b.pt'")
    settle(cfg)
    assert (cfg.runs_dir, cfg.ckpt, cfg.init) == ("/home/me/runs", "/home/me/a.pt", "/home/me/b.pt")


@pytest.mark.parametrize("script", ["train", "finetune", "pipeline"])
def test_an_optimizer_and_a_schedule_have_short_names(script):
    words = ["optimizer=adamw", "schedule=cosine", "optimizer.lr=0.01"]
    assert translated(words, script) == [
        "optimizer@recipe.optimizer=adamw",
        "schedule@recipe.schedule=cosine",
        "++recipe.optimizer.lr=0.01",
    ]
    assert translated(words, "prune") == words


@pytest.mark.parametrize(
    ("script", "words", "data"),
    [
        ("prune", "data.root=x", {"root": "x"}),
        ("finetune", "data.root=x data.workers=2 epochs=3", {"root": "x", "workers": 2}),
        ("evaluate", "RUN data.root=x", {"root": "x"}),
        ("export", "RUN data.root=x", {"root": "x"}),
        ("train", "ckpt=RUN data.root=x", {"root": "x"}),
        ("pipeline", "ckpt=RUN data.val_size=5", {"val_size": 5}),
    ],
)
def test_an_option_of_data_that_are_the_checkpoints_stands_alone(script, words, data):
    assert config(script, *translated(words.split(), script)).data == data


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("prune", "data=imagefolder data.root=x"),
        ("train", "data=imagefolder data.root=x"),
        ("train", "ckpt=RUN data=imagefolder data.root=x"),
        ("pipeline", "ckpt=RUN experiment=cifar10_vgg11_fast data.root=x"),
        ("pipeline", "ckpt=null data=imagefolder data.root=x"),
    ],
)
def test_an_option_of_data_that_are_named_belongs_to_them(script, words):
    data = config(script, *translated(words.split(), script)).data
    assert data.root == "x" and data._target_.startswith("utils.data.")


def test_fine_tuning_takes_any_option_of_a_recipe():
    words = translated(["finetune.recipe.optimizer.lr=0.5", "finetune.recipe.x=1"], "pipeline")
    recipe = config("pipeline", *words).finetune.recipe
    assert recipe.optimizer.lr == 0.5 and recipe.x == 1
