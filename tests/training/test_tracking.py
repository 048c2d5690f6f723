"""What W&B is given, read back from the files it wrote: no server, nothing mocked."""

import base64
import fnmatch
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
import yaml
from wandb.util import get_core_path

import engine
from door import ROOT, TINY
from terminal import terminal
from utils.runs.folder import read_result
from utils.training.tracking import NAME, WandB
from wandb_server import server

SWEEP = yaml.safe_load((ROOT / "conf/sweep/wandb.yaml").read_text())
LAMBDA = SWEEP["parameters"]["method.strength"]["values"][0]
RUN = [word for word in TINY if word != "logger=none"] + ["data.val_size=32"]
PIPELINE = [*RUN, f"method.strength={LAMBDA}", "finetune.epochs=2", "recalibrate=64"]


def records(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """[(type, content), ...] of a .wandb file, as W&B's own reader prints them."""
    reader = [get_core_path(), "leet", "inspect", "--no-observability", "--json"]
    words = [*reader, "--run-file", str(file), str(file.parents[1])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    lines = map(json.loads, done.stdout.splitlines())
    return [(line["type"], line[line["type"]]) for line in lines]


def written(folder: Path) -> list[Path]:
    """The .wandb files of a run folder, oldest first."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)


class Read:
    """A .wandb file: the W&B run, its last config, summary, history, artifacts and exit code."""

    def __init__(self, file: Path):
        self.file, self.records = file, records(file)
        of = {kind: [r for k, r in self.records if k == kind] for kind, _ in self.records}
        self.first, self.run = of["run"][0], of["run"][-1]
        self.history = [row["item"] for row in of.get("history", [])]
        self.artifacts, self.exit_code = of.get("artifact", []), of["exit"][-1]["exit_code"]
        self.summary: dict[str, Any] = {}
        for update in of.get("summary", []):
            self.summary |= update.get("update", {})

    @property
    def config(self) -> dict[str, Any]:
        return self.run["config"]["update"]


@pytest.fixture(scope="module", autouse=True)
def own_service():
    """W&B's helper process ends here: later tests' commands would be told to share it."""
    yield
    wandb.teardown()
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pipeline, with everything W&B can be given."""
    runs = tmp_path_factory.mktemp("runs")
    words = [*PIPELINE, "logger.tags=[mine]", "logger.artifacts=true", f"runs_dir={runs}"]
    code, _, err = terminal("pipeline", *words)
    assert code == 0, err
    return runs


@pytest.fixture(scope="module")
def stages(runs: Path) -> dict[str, tuple[Path, dict, Read]]:
    """{stage: (its folder, its result, what W&B has of it)}."""
    found = {}
    for path in runs.glob("*/result.json"):
        (file,) = written(path.parent)
        result = json.loads(path.read_text())
        found[result["stage"]] = (path.parent, result, Read(file))
    return found


@pytest.mark.parametrize("stage", ["train", "prune", "finetune"])
def test_a_run_can_be_found_by_row_stage_tags_and_config(stages, stage):
    folder, result, read = stages[stage]
    assert read.run["run_id"] == read.run["display_name"] == folder.name
    assert (read.run["run_group"], read.run["job_type"]) == (result["row"], stage)
    tags = {"mine", "vgg11-w0.0625", "fake", "fast"}
    assert set(read.run["tags"]) == {*tags, "slimming"}
    # Already when it starts, in a pipeline; a fine-tuning's own config has no method.
    assert set(read.first["tags"]) == (tags if stage == "finetune" else {*tags, "slimming"})
    config = read.config
    assert (config["network"], config["dataset"]) == ("vgg11-w0.0625", "fake")
    assert config["lambda"] == LAMBDA
    assert config["method"] == {} if stage == "finetune" else config["method"]["strength"] == LAMBDA
    assert config["ratio"] == (None if stage == "train" else 0.7)
    assert config["seed"] == 0 and config["recipe"]["name"] == "fast"
    assert read.exit_code == 0


def test_a_stage_by_itself_learns_from_its_parent_what_its_own_config_does_not_say(stages, runs):
    folder, _, _ = stages["prune"]
    words = [f"ckpt={folder}", "epochs=1", f"runs_dir={runs}", "hardware.precision=fp32"]
    code, out, err = terminal("finetune", *words)
    assert code == 0, err
    (file,) = written(Path(out.strip().splitlines()[-1].split(": test")[0]))
    read = Read(file)
    assert (read.config["network"], read.config["lambda"]) == ("vgg11-w0.0625", LAMBDA)
    assert (read.config["dataset"], read.config["ratio"]) == ("fake", 0.7)
    assert {"vgg11-w0.0625", "fake", "fast"} <= set(read.run["tags"])


@pytest.mark.parametrize("stage", ["train", "finetune"])
def test_every_epoch_is_there_with_a_histogram_of_each_layers_gammas(stages, stage):
    folder, result, read = stages[stage]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(read.history) == len(rows) == result["epochs"]
    for logged, row in zip(read.history, rows, strict=True):
        assert logged["_step"] == logged["epoch"] == row["epoch"]
        for key in ("lr", "train/loss", "val/accuracy", "val/loss", "penalty"):
            assert logged[key] == pytest.approx(row[key]), key
    for layer, gammas in result["gammas"].items():
        counts, edges = np.histogram(np.abs(gammas), bins=64)
        assert sum(read.history[-1][f"gamma/{layer}.values"]) == counts.sum() == len(gammas)
        bins = read.history[-1][f"gamma/{layer}.bins"]
        np.testing.assert_allclose(bins, edges, rtol=2e-3)  # results hold four digits


@pytest.mark.parametrize("stage", ["train", "prune", "finetune"])
def test_the_summary_is_the_result(stages, stage):
    _, result, read = stages[stage]
    accuracy, channels = result["accuracy"], result["channels"]
    assert read.summary["accuracy/test"] == pytest.approx(accuracy["test"])
    assert read.summary["accuracy/val"] == pytest.approx(accuracy["val"])
    assert (read.summary["params"], read.summary["macs"]) == (result["params"], result["macs"])
    assert read.summary["channels/kept"] == channels["kept"] <= read.summary["channels/total"]
    steps = result.get("variants", {})
    assert list(steps) == (["masked", "cut", "recalibrated"] if stage == "prune" else [])
    for step, reached in steps.items():
        assert read.summary[f"variants/{step}/val"] == pytest.approx(reached["val"])


def test_the_plan_is_a_table_of_layers(stages):
    _, result, read = stages["prune"]
    assert read.summary["plan._type"] == "table-file"
    table = json.loads((read.file.parent / "files" / read.summary["plan.path"]).read_text())
    assert table["columns"] == ["layer", "kept", "of", "share"]
    rows = {layer: (kept, of, share) for layer, kept, of, share in table["data"]}
    assert list(rows) == list(result["widths"])
    for layer, (kept, of) in result["widths"].items():
        assert rows[layer] == (kept, of, pytest.approx(kept / of))
    assert sum(kept for kept, _, _ in rows.values()) == result["channels"]["kept"]


@pytest.mark.parametrize("stage", ["train", "prune", "finetune"])
def test_artifacts_are_the_run_folders_own_files(stages, stage):
    """No copy in a cache that somebody may empty before `wandb sync`, not of the table either."""
    folder, _, read = stages[stage]
    found = {artifact["type"]: artifact for artifact in read.artifacts}
    assert set(found) == ({"model", "run_table"} if stage == "prune" else {"model"})
    for artifact in found.values():
        for entry in artifact["manifest"]["contents"]:
            path = Path(entry["local_path"])
            assert path.is_relative_to(folder.resolve())
            digest = base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode()
            assert entry["digest"] == digest
    files = {Path(e["local_path"]).name for e in found["model"]["manifest"]["contents"]}
    assert found["model"]["name"] == folder.name and files == {"model.pt", "result.json"}


def test_every_logged_number_is_explained_and_every_explained_one_logged(stages):
    text = (ROOT / "docs/wandb.md").read_text()
    cells = " ".join(re.findall(r"^\| (`.*?`) \|", text, flags=re.MULTILINE))
    patterns = [re.sub("LAYER|STEP", "*", key) for key in re.findall("`([^`]+)`", cells)]
    logged = {key for _, _, read in stages.values() for row in read.history for key in row}
    logged |= {key for _, _, read in stages.values() for key in read.summary}
    logged = {key for key in logged if key[0] != "_"}  # W&B's own: _step, _runtime, ...
    config = {key for _, _, read in stages.values() for key in read.config}
    assert [p for p in patterns if not fnmatch.filter(logged | config, p)] == []
    assert [k for k in logged if not any(fnmatch.fnmatch(k, p) for p in patterns)] == []


@pytest.fixture
def interrupted(monkeypatch):
    """The first training is stopped in its second epoch; a later one isn't."""
    real, steps = engine._step, []

    def step_and_signal(*arguments):
        steps.append(1)
        if len(steps) == 5:  # of 9
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(engine, "_step", step_and_signal)


def test_an_interrupted_training_goes_on_as_the_same_wandb_run(tmp_path, interrupted):
    """Offline: two directories with one id, which `wandb sync` makes one run of."""
    words = [*RUN, f"runs_dir={tmp_path}"]
    assert terminal("train", *words)[0] == 130
    assert terminal("train", *words)[0] == 0
    (folder,) = tmp_path.glob("[!.]*")
    files = written(folder)
    first, second = map(Read, files)
    assert first.run["run_id"] == second.run["run_id"] == folder.name
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert [row["epoch"] for row in first.history] == [1]
    assert [row["epoch"] for row in second.history] == [2, 3]
    with server() as (address, histories, _):
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", *(str(file.parent) for file in files[::-1])],
            env={**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(histories) == [folder.name]
    assert steps_and_epochs(histories[folder.name]) == [(1, 1), (2, 2), (3, 3)]


def test_online_too_every_epoch_is_sent_once(tmp_path, interrupted, monkeypatch):
    words = [*RUN, "logger.mode=online", f"runs_dir={tmp_path}"]
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with server() as (address, histories, _):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        wandb.teardown()  # what other tests set up knows another address
        assert terminal("train", *words)[0] == 130
        ((name, sent),) = histories.items()
        assert steps_and_epochs(sent) == [(1, 1)]
        assert terminal("train", *words)[0] == 0
        wandb.teardown()
    assert (tmp_path / name / "result.json").exists() and list(histories) == [name]
    assert steps_and_epochs(histories[name]) == [(1, 1), (2, 2), (3, 3)]
    assert not written(tmp_path / name)  # nothing is left to be synced


def steps_and_epochs(history: list[dict]) -> list[tuple[int, int]]:
    return [(row["_step"], row["epoch"]) for row in history]


@pytest.mark.parametrize(
    ("variable", "typed", "files"),
    [("disabled", None, 0), ("dryrun", None, 1), ("disabled", "offline", 1), (None, None, 1)],
)
def test_the_variable_of_wandb_counts_unless_a_mode_is_typed(
    tmp_path, monkeypatch, variable, typed, files
):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    words = [*RUN, "epochs=1", f"runs_dir={tmp_path}", *([f"logger.mode={typed}"] if typed else [])]
    assert terminal("train", *words)[0] == 0
    (folder,) = tmp_path.glob("[!.]*")
    assert len(written(folder)) == files and (folder / "wandb").exists() == bool(files)


def test_a_mode_that_wandb_does_not_have_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "perhaps")
    with pytest.raises(
        ValueError, match="WANDB_MODE is offline, online or disabled; got 'perhaps'"
    ):
        WandB()
    with pytest.raises(ValueError, match="logger.mode is offline, online or .*; got 'maybe'"):
        WandB(mode="maybe")
    with pytest.raises(ValueError, match="logger.artifacts is true or false; got 'maybe'"):
        WandB(mode="offline", artifacts="maybe")


@pytest.mark.parametrize("home", [None, pytest.param("/nonexistent", marks=pytest.mark.long)])
def test_without_a_home_wandb_is_as_silent_and_writes_nowhere_else(tmp_path, home):
    env = {
        key: value for key, value in os.environ.items() if key not in ("HOME", "WANDB_CACHE_DIR")
    }
    done = subprocess.run(
        [sys.executable, "train.py", *RUN, "epochs=1", f"runs_dir={tmp_path}"], cwd=ROOT,
        env=env | ({} if home is None else {"HOME": home}), capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert home is None or not Path(home).exists()


def test_offline_asks_no_server_for_anything(tmp_path):
    """W&B's own offline mode does: it sends statistics about itself."""
    code = (
        "import sys; from pathlib import Path; from utils.training.tracking import WandB\n"
        "logger = WandB()\n"
        "logger.start(Path(sys.argv[1]), 'name', 'row', 'train', {})\n"
        "logger.log({'epoch': 1}, {}); logger.finish({'name': 'name'})\n"
    )
    with server() as (address, _, requests):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True,
            env={**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40},
        )  # fmt: skip
    assert written(tmp_path) and not requests


def test_names_that_wandb_would_refuse_are_cut_and_stay_different(tmp_path):
    for number in range(2):
        logger = WandB(tags=("t" * 100,))
        logger.start(tmp_path, "n" * 150 + str(number), "g" * 150 + str(number), "train", {})
        logger.finish({"name": "n" * 150})
    first, second = (Read(file).run for file in written(tmp_path))
    for key in ("run_id", "display_name", "run_group"):
        assert first[key] != second[key] and len(first[key]) <= NAME
    assert max(map(len, first["tags"])) <= 64


def test_what_goes_wrong_at_the_end_is_said_once_and_stops_nothing(tmp_path, capfd):
    logger = WandB(artifacts=True)
    logger.start(tmp_path, "name", "row", "train", {})
    logger.log({"epoch": 1}, {})
    logger.finish({"name": "name"})  # there is no model.pt
    logger.log({"epoch": 2}, {})
    logger.close()
    said = capfd.readouterr().out.strip().splitlines()
    assert len(said) == 1 and "model.pt" in said[0] and "training goes on" in said[0]


@pytest.mark.long
def test_the_sweep_runs_as_an_agent_starts_it_and_finds_its_metric(runs, stages, tmp_path):
    """W&B's own agent builds and starts the command; only the server is missing.

    The training is finished already, the cut has another ratio: the trial has all of it in its
    one run all the same, and the stages open none beside it.
    """
    values = {k: p.get("value", p.get("values", [None])[0]) for k, p in SWEEP["parameters"].items()}
    tiny = dict(word.split("=", 1) for word in PIPELINE)
    given = {**values, **tiny, "ratio": 0.5, "logger.mode": "offline", "runs_dir": str(runs)}
    assert set(values) == {"data.val_size", "method.strength", "ratio", "logger.mode"}
    assert 0.5 in SWEEP["parameters"]["ratio"]["values"]
    start = (
        "import json, sys\n"
        "from wandb.wandb_agent import Agent\n"
        "sweep, args = map(json.loads, sys.argv[1:])\n"
        "agent = Agent(None, None)\n"
        "agent._sweep_command = sweep['command']\n"
        "args = {key: {'value': value} for key, value in args.items()}\n"
        "order = {'type': 'run', 'run_id': 'trial1', 'program': sweep['program'], 'args': args}\n"
        "assert 'exception' not in agent._process_command(order)\n"
        "sys.exit(agent._run_processes['trial1'].wait())\n"
    )
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    agent = {"WANDB_SWEEP_ID": "sweep1", "WANDB_PROJECT": "theirs", "WANDB_DIR": str(tmp_path)}
    before = {path.parent for path in runs.glob("*/result.json")}
    done = subprocess.run(
        [sys.executable, "-c", start, json.dumps(SWEEP), json.dumps(given)], cwd=ROOT,
        env={**os.environ, **agent, "PATH": python}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    new = {path.parent for path in runs.glob("*/result.json")} - before
    assert {read_result(folder)["stage"] for folder in new} == {"prune", "finetune"}
    (file,) = (file for folder in new for file in written(folder))
    trial, last = Read(file), read_result(file.parents[2])
    assert trial.run["run_id"] == "trial1" and last["stage"] == "finetune"
    metric = SWEEP["metric"]["name"]
    assert trial.summary[metric] == pytest.approx(last["accuracy"]["val"])
    assert [row[metric] for row in trial.history if metric in row] == [trial.summary[metric]]
    assert (trial.config["ratio"], trial.config["lambda"]) == (0.5, LAMBDA)
    assert [row["epoch"] for row in trial.history[:-1]] == [1, 2, 3, 4, 5]
    losses = [row.get("train/train/loss") for row in trial.history[:3]]
    assert losses == [pytest.approx(row["train/loss"]) for row in stages["train"][2].history]
    assert "finetune/val/accuracy" in trial.history[4]
