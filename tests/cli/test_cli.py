"""The edge: whatever goes wrong ends in one sentence and exit code 1, and a sweep goes on."""

import json
from pathlib import Path

import pytest

from door import ROOT, TINY, shell
from terminal import refusal

SCRIPTS = ("train", "prune", "finetune", "pipeline", "evaluate", "export", "report")
SCRIPTS += ("sensitivity",)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_written_for_people(script):
    done = shell(script, "--help")
    assert done.returncode == 0 and "Examples:" in done.stdout
    assert f"python {script}.py" in done.stdout and "$" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("data=cifr10", "did you mean cifar10"),
        ("model=vgg12", "did you mean vgg1"),
        ("method.strenth=1", "did you mean method.strength"),
        ("ratoi=0.5", "there is no option 'ratoi'"),
        ("epochs=many", "epochs: Value 'many' of type 'str' could not be converted to Integer"),
        ("experiment=none_such", "there is no experiment=none_such"),
        ("epochs", "epochs has no value, epochs=..."),
    ],
)
def test_a_misspelt_command_line_is_explained(arguments, words):
    assert words in refusal("train", *arguments.split())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("recipe.batch_size=abc", "recipe.batch_size is a number of images; got 'abc'"),
        ("recipe.batch_size=2.5", "recipe.batch_size is a number of images; got 2.5"),
        ("recipe.batch_size=-3", "batches of 2; got epochs=1, batch_size=-3"),
        ("recipe.reach=far", "recipe.reach is how far the penalty can move a gamma; got 'far'"),
        ("recipe.optimizer.lr=abc", "recipe.optimizer.lr is a number from 0 on; got 'abc'"),
        ("recipe.optimizer.momentum=-1", "recipe.optimizer.momentum is a share, 0 <= mom"),
        ("+recipe.schedule.warmup=abc", "recipe.schedule.warmup is a share, 0 <= warm"),
        ("hardware.threads=abc", "hardware.threads is a whole number from 1 on; got 'abc'"),
        ("method.strength=abc", "method.strength (lambda) is a number"),
        ("epochs=-1", "training needs epochs, from 0 (none at all) on"),
        ("data.val_size=abc", "data.val_size is a whole number; got 'abc'"),
    ],
)
def test_an_option_of_the_wrong_type_is_named(tmp_path, option, words):
    tiny = [word for word in TINY if not word.startswith("epochs")]
    said = refusal("train", *tiny, f"runs_dir={tmp_path}", "epochs=1", option)
    assert words in said and "not foreseen" not in said
    assert not list(tmp_path.iterdir())


def test_a_stages_error_is_one_sentence_and_a_traceback_can_be_asked_for(tmp_path):
    wrong = ("ckpt=nowhere", f"runs_dir={tmp_path}")
    done = shell("prune", *wrong)
    assert done.returncode == 1 and done.stderr == "error: there is no checkpoint at ckpt=nowhere\n"
    full = shell("prune", *wrong, env={"HYDRA_FULL_ERROR": "1"})
    assert full.returncode == 1 and "Traceback" in full.stderr


def test_a_missing_data_set_names_both_ways_to_get_it(tmp_path):
    done = shell("train", "data=cifar10", f"data.root={tmp_path}", f"runs_dir={tmp_path / 'runs'}")
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr and "data.download=true" in done.stderr
    assert "class folders" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_failing_job_does_not_stop_the_sweep(tmp_path):
    sweep = ("-m", *TINY, f"runs_dir={tmp_path}", "epochs=1", "model.depth=12,11", "seed=0,1")
    done = shell("train", *sweep)
    assert done.returncode == 1
    assert len(list(tmp_path.glob("*/result.json"))) == 2
    assert "2 of the sweep's jobs failed" in done.stderr and "model.depth=12" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["a file", "not allowed"])
def test_a_run_folder_that_cannot_be_written_is_named(tmp_path, kind):
    place = tmp_path / "place"
    place.write_text("in the way") if kind == "a file" else place.symlink_to("/proc/nowhere")
    done = shell("train", *TINY, f"runs_dir={place}")
    assert done.returncode == 1 and "runs_dir=..." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_leaves_the_previous_checkpoint_usable(tmp_path):
    """A limit on file sizes stands for the disk: the third epoch's checkpoint can't be written."""
    small = ("data=fake", "data.num_train=64", "data.size=8", "model=vgg11", "logger=none")
    run = (*small, "model.width=0.0625", "epochs=2", f"runs_dir={tmp_path}")
    limited = (
        "import resource, sys, runpy\n"
        "import engine, torch\n"
        "real = torch.save\n"
        "def save(*args, **kwargs):\n"
        "    save.calls += 1\n"
        "    if save.calls == 2:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "    real(*args, **kwargs)\n"
        "save.calls = 0\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "torch.save = save\n"
        "sys.argv = ['train.py', *sys.argv[1:]]\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    import os
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", limited, *run], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (folder,) = tmp_path.glob("[!.]*")
    assert not (folder / "result.json").exists() and not list(folder.glob("*.tmp"))
    again = shell("train", *run)
    assert again.returncode == 0 and "going on at epoch 2" in again.stdout
    assert json.loads((folder / "result.json").read_text())["epochs"] == 2


def test_wandb_offline_keeps_everything_and_its_failure_stops_nothing(tmp_path):
    tiny = [word for word in TINY if word != "logger=none"]
    done = shell("train", *tiny, f"runs_dir={tmp_path / 'good'}", "epochs=1")
    assert done.returncode == 0, done.stderr
    (folder,) = Path(tmp_path / "good").glob("[!.]*")
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    broken = shell(
        "train", *tiny, f"runs_dir={tmp_path / 'bad'}", "epochs=1",
        "logger.mode=online", "logger.timeout=3",
        env={"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}, timeout=120,
    )  # fmt: skip
    assert broken.returncode == 0, broken.stderr
    assert "going on offline" in broken.stdout
    assert list((tmp_path / "bad").glob("*/result.json"))
    assert list((tmp_path / "bad").glob("*/wandb/offline-run-*/*.wandb"))


def test_the_config_of_a_script_with_a_positional_can_be_shown():
    done = shell("evaluate", "--cfg", "job")
    assert done.returncode == 0 and "latency: false" in done.stdout, done.stderr
