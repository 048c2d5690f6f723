"""An option that no code reads is refused, wherever it stands: typed, or in a yaml of one's own."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from terminal import refusal, terminal
from utils.cli.known import compare, options
from utils.cli.schema import register
from utils.cli.script import CONF

HEAD = "# @package _global_\n"
YAMLS = {
    "a key": (HEAD + "epoch: 3\n", "there is no option 'epoch' (did you mean epochs"),
    "a group": (
        HEAD + "mehtod: {strength: 1}\n",
        "there is no option 'mehtod' (did you mean method",
    ),
    "inside": (
        HEAD + "recipe: {batchsize: 3}\n",
        "'recipe.batchsize' (did you mean recipe.batch_s",
    ),
    "target": (HEAD + "target: {mac: 0.5}\n", "there is no option 'target.mac' (did you mean targ"),
    "tuning": (HEAD + "finetune: {recipe: {epoch: 1}}\n", "no option 'finetune.recipe.epoch' (did"),
    "twin": (HEAD + "twin: {epoch: 1}\n", "there is no option 'twin.epoch' (did you mean twin.ep"),
    "no package": ("epochs: 3\n", "mine.yaml has no effect: it doesn't begin with '# @package _gl"),
    "mark": ("\ufeff" + HEAD + "epochs: 3\n", "mine.yaml begins with a byte-order mark"),
    "tab": (HEAD + "recipe:\n\tepochs: 3\n", "mine.yaml"),
    "twice": (HEAD + "epochs: 3\nepochs: 4\n", "mine.yaml"),
}


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
@pytest.mark.parametrize("script", ["train", "pipeline"])
def test_a_yaml_that_speaks_to_nobody_is_refused(tmp_path, script, text):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text[0], "utf-8")
    runs = tmp_path / "runs"
    said = refusal(script, "-cd", str(tmp_path), "experiment=mine", f"runs_dir={runs}")
    assert text[1] in said and "mine.yaml" in said and "not foreseen" not in said
    assert not runs.exists()


def test_a_yaml_in_another_encoding_is_named(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(f"{HEAD}# für\nepochs: 3".encode("latin-1"))
    said = refusal("train", "-cd", str(tmp_path), "experiment=mine")
    assert "mine.yaml isn't written in UTF-8" in said


@pytest.mark.parametrize("group", ["twin", "sweep"])
def test_the_same_of_the_other_groups_that_speak_of_everything(tmp_path, group):
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text("hydra: {sweeper: {max_batch_size: 1}}\n", "utf-8")
    plus = "+" if group == "sweep" else ""
    said = refusal("pipeline", "-cd", str(tmp_path), f"{plus}{group}=mine", f"runs_dir={tmp_path}")
    assert "mine.yaml has no effect: it doesn't begin with '# @package _global_'" in said


@pytest.mark.parametrize(
    ("script", "word", "sentence"),
    [
        ("train", "+foo.bar=3", "there is no option 'foo'"),
        ("train", "++epoch=3", "there is no option 'epoch' (did you mean epochs?) in train.py"),
        ("train", "+recipe.batchsize=3", "there is no option 'recipe.batchsize'"),
        ("train", "+ratio=0.5", "there is no option 'ratio'"),
        ("prune", "+model=vgg11", "there is no option 'model'"),
        (
            "pipeline",
            "+target.mac=0.5",
            "there is no option 'target.mac' (did you mean target.m",
        ),
        ("pipeline", "finetune.recipe.epoch=1", "there is no option 'finetune.recipe.epoch' (did"),
        ("pipeline", "+finetune.foo=1", "there is no option 'finetune.foo'"),
        ("report", "+onyl=a", "there is no option 'onyl' (did you mean only?) in report.py"),
        ("report", "+data.root=x", "there is no option 'data'"),
        ("prune", "+twin.epochs=1", "there is no option 'twin'"),
        ("export", "+ratio=0.5", "there is no option 'ratio'"),
    ],
)
def test_a_plus_adds_no_option_that_nobody_reads(tmp_path, script, word, sentence):
    assert sentence in refusal(script, word, f"runs_dir={tmp_path}")


def test_a_typo_in_the_last_job_stops_a_sweep_before_its_first(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(HEAD + "epoch: 3\n", "utf-8")
    words = ("-m", "-cd", str(tmp_path), "experiment=figure6,mine", f"runs_dir={tmp_path / 'runs'}")
    assert "there is no option 'epoch'" in refusal("train", *words, "dry_run=true", "seed=0,1,2")
    assert "there is no recipe=papr" in refusal("train", *words[:1], "recipe=fast,papr", words[-1])


@pytest.mark.parametrize("group", ["recipe", "method", "twin"])
def test_what_this_project_says_is_known(group):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in sorted(path.stem for path in (CONF / group).glob("*.yaml")):
            whole = OmegaConf.to_container(compose("pipeline", [f"{group}={name}"]))
            compare(whole, options("pipeline"), "", name)


def test_what_is_called_is_looked_at_where_it_is_called(tmp_path):
    """An argument that no yaml names is an option all the same, if the class takes it."""
    words = ("data=fake", "dry_run=true", f"runs_dir={tmp_path}", "+recipe.optimizer.foreach=false")
    code, out, err = terminal("train", *words, "+recipe.schedule.warmup=0.1")
    assert code == 0 and "would be computed" in out, err
