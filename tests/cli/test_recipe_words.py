"""The recipe as people type it: short words, wrong values, what differs in fine-tuning, changes."""

import pytest

from door import TINY, config
from terminal import refusal, terminal
from utils.cli.configured import changes, finetuning, plain, recipe_of
from utils.cli.words import recipe_words


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("optimizer=adamw", "optimizer@recipe.optimizer=adamw"),
        ("schedule=cosine,steps", "schedule@recipe.schedule=cosine,steps"),
        ("optimizer.lr=0.1", "++recipe.optimizer.lr=0.1"),
        ("recipe.schedule.warmup=0.1", "++recipe.schedule.warmup=0.1"),
        ("finetune.recipe.optimizer.lr=1", "++finetune.recipe.optimizer.lr=1"),
        ("finetune.recipe=paper", "recipe@finetune.recipe=paper"),
        ("finetune.schedule=cosine", "+schedule@finetune.recipe.schedule=cosine"),
        ("finetune.optimizer=adamw", "+optimizer@finetune.recipe.optimizer=adamw"),
        *((same, same) for same in ("++recipe.optimizer.lr=1", "~recipe.optimizer.momentum")),
        *((same, same) for same in ("recipe.batch_size=8", "recipe=paper", "seed=1", "-m")),
        *((same, same) for same in ("recipe.optimizer=adamw", "ckpt=runs/optimizer=adamw")),
        *((same, same) for same in ("optimizer@recipe.optimizer=sgd", "optimizer", "schedule.x")),
    ],
)
def test_short_words_are_what_hydra_calls_them(typed, meant):
    assert recipe_words([typed]) == [meant]


def test_another_optimiser_and_schedule_train_by_short_words(tmp_path):
    words = (*TINY, f"runs_dir={tmp_path}", "method.strength=0.1", "epochs=1")
    code, _, err = terminal(
        "train", *words, "optimizer=adamw", "schedule=cosine", "optimizer.betas=[0.8,0.9]"
    )
    assert code == 0, err
    (config_file,) = tmp_path.glob("*/config.yaml")
    told = config_file.read_text()
    assert "torch.optim.AdamW" in told and "momentum" not in told and "schedules.cosine" in told


def test_an_experiment_of_ones_own_chooses_them_too(tmp_path):
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [override /recipe: paper, override /optimizer@recipe.optimizer: adamw]\n"
        "recipe: {optimizer: {lr: 3e-4}, schedule: {warmup: 0.05}}\n"
        "method: {strength: 0.1}\n"
        "epochs: 1\n"
    )
    tiny = [word for word in TINY if not word.startswith("epochs")]
    code, _, err = terminal(
        "train", "-cd", str(tmp_path), "experiment=mine", *tiny, f"runs_dir={tmp_path / 'runs'}"
    )
    assert code == 0, err
    (told,) = (file.read_text() for file in tmp_path.glob("runs/*/config.yaml"))
    assert "AdamW" in told and "lr: 0.0003" in told and "momentum" not in told and "0.05" in told


STEPS = "schedule=steps "
ADAM = "method.strength=0.1 optimizer=adamw "


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("optimizer.lr=0", "recipe.optimizer.lr=0 moves no gamma"),
        *((f"optimizer.lr={x}", "recipe.optimizer.lr is a ") for x in ("nan", "inf", "-1", "true")),
        *((f"optimizer.lr={x}", "recipe.optimizer.lr is a ") for x in ("abc", "null", "[1]")),
        ("recipe.optimizer.weight_decay=nan", "recipe.optimizer.weight_decay is a finite number"),
        ("recipe.optimizer.weight_decay=-1", "recipe.optimizer.weight_decay is a number from 0"),
        *((f"optimizer.momentum={x}", "recipe.optimizer.momentum is a") for x in ("-1", "1", "x")),
        ("recipe.optimizer.momentum=0", "Nesterov momentum requires a momentum"),
        ("recipe.optimizer.nesterov=maybe", "recipe.optimizer.nesterov is true or false"),
        ("recipe.optimizer.dampening=inf", "recipe.optimizer.dampening is a finite number"),
        ("optimizer.lrr=1", "recipe.optimizer.lrr: torch.optim.SGD takes no lrr (did you mean lr"),
        ("recipe.optimizer._target_=torch.optim.Adam", "Adam takes no momentum and no nesterov"),
        (f"{ADAM} optimizer.momentum=0.9", "torch.optim.AdamW takes no momentum"),
        (f"{ADAM} optimizer.betas=[0.9,2]", "Invalid beta parameter at index 1: 2"),
        (f"{ADAM} optimizer.betas=[0.9,nan]", "recipe.optimizer.betas is a finite number"),
        ("recipe.optimizer=adamw", "recipe.optimizer is a choice: write optimizer=adamw"),
        ("recipe.schedule=cosine", "recipe.schedule is a choice: write schedule=cosine"),
        ("~recipe.schedule", "recipe.schedule is a choice: write schedule=NAME"),
        ("optimizer=adma", "there is no optimizer=adma (did you mean adamw?)"),
        ("schedule=cosin", "there is no schedule=cosin (did you mean cosine?)"),
        *((f"schedule.warmup={x}", "recipe.schedule.warmup is a") for x in ("2", "-1", "nan", "x")),
        ("recipe.schedule.last=5", "recipe.schedule.last is a share, 0 <= last <= 1; got 5"),
        ("recipe.schedule.milestones=[0.5]", "one_cycle takes no milestones"),
        *((f"{STEPS} recipe.schedule.milestones={x}", "recipe.schedule.milestones are shares")
          for x in ("[0.5,1.5]", "[0.75,0.5]", "[0.5,0.5]", "[30,60]", "[0,0.5]", "0.5", "abc")),
        (f"{STEPS} recipe.schedule.factor=-1", "recipe.schedule.factor is a share"),
        ("recipe.schedule._target_=operator.neg", "the learning rate the factor -0.01 at 1%"),
        ("recipe.schedule._target_=math.log", "recipe.schedule can't be made of {}"),
        *((f"recipe.batch_size={x}", "recipe.batch_size is a num") for x in ("abc", "1.5", "true")),
        ("~recipe.batch_size", "recipe.batch_size is a number of images; got None"),
        ("recipe.ema=1", "recipe.ema is a share, 0 <= ema < 1; got 1"),
        ("recipe.grad_clip=0", "recipe.grad_clip is a number above 0, or null; got 0"),
        ("recipe.mixup=abc", "recipe.mixup is alpha, 0 or more; got 'abc'"),
        ("recipe.label_smoothin=0.1", "did you mean recipe.label_smoothing"),
        ("++recipe.label_smoothin=0.1", "there is no option 'recipe.label_smoothin'"),
        *((f"recipe.reach={x}", "recipe.reach is ") for x in ("nan", "-1", "far")),
        ("recipe.reach=null", "lambda follows from recipe.reach, which is null"),
        ("optimizer=adamw", "set method.strength, or use method.mode=proximal"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_in_one_sentence_that_names_it(tmp_path, typed, said):
    refused = refusal("train", *TINY, f"runs_dir={tmp_path}", *typed.split())
    assert said in refused and "not foreseen" not in refused
    assert not list(tmp_path.iterdir()), "before anything is computed, or written"


# What a fine-tuning says of its recipe.

PAPER = {
    "batch_size": 64,
    "optimizer": {"_target_": "SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9},
    "schedule": {"_target_": "steps", "_partial_": True, "milestones": [0.5]},
}


def test_a_fine_tuning_takes_over_what_it_does_not_say():
    assert finetuning(PAPER, {}) == PAPER
    merged = finetuning(PAPER, {"optimizer": {"lr": 1e-3}, "ema": 0.9})
    assert merged == {**PAPER, "optimizer": {**PAPER["optimizer"], "lr": 1e-3}, "ema": 0.9}
    merged["schedule"]["milestones"].append(1)
    assert PAPER["schedule"]["milestones"] == [0.5], "the training's recipe stays"


def test_a_part_that_names_its_target_replaces_the_whole_part():
    merged = finetuning(PAPER, {"optimizer": {"_target_": "AdamW", "lr": 1e-3}})
    assert merged["optimizer"] == {"_target_": "AdamW", "_partial_": True, "lr": 1e-3}
    same = finetuning(PAPER, {"schedule": {"_target_": "steps", "milestones": []}})
    assert same["schedule"] == {"_target_": "steps", "_partial_": True, "milestones": []}


def test_what_no_recipe_has_is_refused_with_near_names():
    with pytest.raises(ValueError, match=r"'finetune.recipe.batch_siz' \(did you mean batch_size"):
        finetuning(PAPER, {"batch_siz": 8})


# What was changed by hand.


@pytest.mark.parametrize("name", ["fast", "paper_imagenet", "rethinking"])
def test_a_recipe_as_it_stands_has_no_changes(name):
    same = ("recipe.strength=0.1", "recipe.reach=1", "epochs=3", "recipe.mixup=0.0")
    same += (
        "++recipe.optimizer.dampening=0",
        "++recipe.schedule.warmup=0.2"[: 31 * (name == "fast")],
    )
    words = [word for word in same if word]
    assert changes(config("train", f"recipe={name}", *words), name) == {}


def test_changes_are_named_with_their_values():
    words = ("recipe.batch_size=32", "recipe.ema=0.9", "recipe.optimizer.nesterov=false")
    cfg = config("train", *words, "++recipe.schedule.warmup=0.1")
    assert changes(cfg) == {
        "batch_size": 32, "ema": 0.9, "optimizer.nesterov": False, "schedule.warmup": 0.1,
    }  # fmt: skip
    other = changes(config("train", "optimizer@recipe.optimizer=adamw"), "fast")
    assert other["optimizer._target_"] == "torch.optim.AdamW" and other["optimizer.lr"] == 1e-3
    assert other["optimizer.momentum"] is None


def test_the_choice_is_that_of_the_command_line(tmp_path, monkeypatch):
    import train

    seen = []
    monkeypatch.setattr(train, "train", lambda cfg: seen.append(changes(cfg)))
    assert terminal("train", "recipe=paper_imagenet", "recipe.batch_size=8")[0] == 0
    assert terminal("train", "experiment=cifar10_vgg19_baseline")[0] == 0
    assert seen == [{"batch_size": 8}, {}], "its own name is 'paper', and another batch size"


def test_a_recipe_of_ones_own_may_leave_out_what_is_off():
    cfg = config("train")
    for name in ("label_smoothing", "mixup", "ema", "grad_clip", "lr_gamma"):
        del cfg.recipe.__dict__["_content"][name]
    assert recipe_of(cfg) is not None and "ema" not in plain(cfg.recipe)
