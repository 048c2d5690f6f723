"""The paper's tables: which runs are a row, what stands beside the published number."""

import csv
import json
from pathlib import Path

import pytest

from door import tiny
from pipeline import pipeline
from terminal import refusal, terminal
from utils.cli.configured import plain, tuning
from utils.cli.experiments import composed
from utils.cli.schema import register
from utils.report.paper import rows as paper
from utils.report.paper import text as paper_text
from utils.runs.results import find_runs

CUT = ("ratio=0.5", "recalibrate=0", "finetune.epochs=1")
SPARSE = ("epochs=2", "method.strength=0.5")
TABLE = {
    "source": "Somebody 2017, Table 1",
    "confidence": "verified",
    "data": "fake",
    "flops_per_mac": 2,
    "rows": [
        {"experiment": "plain", "row": "tiny, baseline", "error": 10.0, "params": 1e6},
        {"experiment": "half", "row": "tiny, 50 %", "error": 10.0, "params_pruned": 70.0},
    ],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two seeds of a tiny row, and its baseline."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        pipeline(tiny("pipeline", folder, *SPARSE, *CUT, f"seed={seed}"))
    pipeline(tiny("pipeline", folder, "epochs=2", "method.strength=0", "passes=0"))
    return folder


@pytest.fixture
def table(monkeypatch):
    published = {**paper.published(), "tables": {"tiny": TABLE}, "band": {"fake": 30.0}}
    monkeypatch.setattr(paper, "published", lambda: published)


def whole(cfg) -> dict:
    """A config with all that fine-tuning takes over, as `composed` gives it."""
    return {**plain(cfg), "finetune": tuning(plain(cfg))}


def lines(runs: Path, *changes: str, found: list | None = None) -> dict[str, dict]:
    """The lines of the tiny table, where its rows are trained and cut with `changes`."""

    def compose(experiment: str) -> dict:
        ours = (*SPARSE, *CUT) if experiment == "half" else ("epochs=2", "method.strength=0")
        passes = ("passes=0",) if experiment == "plain" else ()
        return whole(tiny("pipeline", runs, *ours, *passes, *changes))

    found = find_runs(runs) if found is None else found
    return {
        line["experiment"]: line
        for line in paper.lines("tiny", found, compose, "pipeline.py experiment={}")
    }


def test_a_row_is_the_mean_over_its_seeds(runs, table):
    half, plain_ = (lines(runs)[name] for name in ("half", "plain"))
    tuned = [run for run in find_runs(runs) if run["stage"] == "finetune"]
    errors = [100 * (1 - run["accuracy"]["test"]) for run in tuned]
    assert half["n"] == 2 and half["ours"] == pytest.approx(sum(errors) / 2)
    assert half["ours_std"] == pytest.approx(abs(errors[0] - errors[1]) / 2**0.5)
    assert half["difference"] == pytest.approx(half["ours"] - 10)
    assert half["inside"] is (abs(half["difference"]) <= 30)
    assert half["ours_params"] == sum(run["params"] for run in tuned) / 2
    assert half["ours_flops"] == sum(run["macs"] for run in tuned)  # twice the mean of two
    assert half["ours_params_pruned"] == pytest.approx(
        100 * (1 - half["ours_params"] / plain_["ours_params"])
    )
    assert plain_["n"] == 1 and plain_["ours_std"] is None and half["command"] is None


@pytest.mark.parametrize(
    "change",
    [
        *("ratio=0.4", "floor=2", "refill=false", "scope=layer", "recalibrate=64", "round_to=4"),
        *(
            "compensate=bias",
            "method._target_=slimming.methods.l1_norm.L1Norm",
            "method=gamma_local",
            "finetune.epochs=2",
            "finetune.scratch=E",
        ),
        *("+finetune.recipe.optimizer.lr=0.01", "method.strength=0.4", "method.mode=proximal"),
        *("epochs=3", "recipe.batch_size=32", "recipe=paper", "data.flip=false", "data.val_size=9"),
        *("model.width=0.125", "model=preresnet29", "data.pad=2", "passes=2", "data.seed=1"),
        *("ratio=null target.macs=0.5", "coupled=keep", "recipe.optimizer.nesterov=false"),
    ],
)
def test_a_run_with_other_settings_is_another_row(runs, table, change):
    line = lines(runs, *change.split())["half"]
    assert "ours" not in line and line["command"] == "pipeline.py experiment=half"


@pytest.mark.parametrize(
    "change",
    [
        *("seed=5", "device=cpu", "runs_dir=elsewhere", "recipe.name=other", "dry_run=true"),
        *("method.strength=0.50", "hardware.threads=1", "recipe.epochs=7", "images=9"),
    ],
)
def test_what_changes_no_result_changes_no_row(runs, table, change):
    assert lines(runs, change)["half"]["n"] == 2


def test_the_scripts_one_by_one_make_the_same_row(tmp_path, table):
    from finetune import finetune
    from prune import prune
    from train import train

    trained = train(tiny("train", tmp_path, *SPARSE))
    cut = prune(tiny("prune", tmp_path, f"ckpt={trained}", "ratio=0.5", "recalibrate=0"))
    finetune(tiny("finetune", tmp_path, f"ckpt={cut}", "epochs=1"))
    assert lines(tmp_path)["half"]["n"] == 1


def test_runs_that_differ_in_precision_are_not_averaged(runs, table):
    found = find_runs(runs)
    for run in found:
        run["precision"] = "bf16" if run["seed"] else "fp32"
    line = lines(runs, found=found)["half"]
    assert "ours" not in line and "2 runs, not averaged: train: precision" in line["refused"]


def test_a_cut_whose_training_is_missing_is_no_row(runs, table):
    found = [run for run in find_runs(runs) if run["stage"] != "train"]
    assert "ours" not in lines(runs, found=found)["half"]


def test_the_passes_of_a_multi_pass_run_are_rows(tmp_path, table, monkeypatch):
    words = (*SPARSE, *CUT, "passes=2", "floor=0.5", "refill=false")
    folders = pipeline(tiny("pipeline", tmp_path, *words))
    row = {"experiment": "twice", "row": "", "error": 1.0}
    rows = [{**row, "pass": p, "stage": s} for p in (1, 2) for s in ("train", "finetune")]
    monkeypatch.setitem(paper.published()["tables"], "tiny", {**TABLE, "rows": rows})
    cfg = whole(tiny("pipeline", tmp_path, *words))
    said = paper.lines("tiny", find_runs(tmp_path), lambda _: cfg, "{}")
    for line, number in zip(said, (0, 2, 3, 5), strict=True):
        result = json.loads((folders[number] / "result.json").read_text())
        assert line["ours"] == pytest.approx(100 * (1 - result["accuracy"]["test"]))
        assert line["ours_params"] == result["params"]


@pytest.fixture(scope="module")
def made_up(runs, tmp_path_factory) -> Path:
    """The tiny runs, said to be VGG-19 on CIFAR-10 at 70 %; one more by the fast recipe."""
    register()
    folder = tmp_path_factory.mktemp("made up")
    row, twin = composed("cifar10_vgg19_70"), composed("cifar10_vgg19_70", "fast")
    for run in find_runs(runs):
        cfg = row if run["seed"] == 0 else twin
        own = {**cfg, **cfg["finetune"]} if run["stage"] == "finetune" else cfg
        if run["strength"] == 0:
            continue
        trained = run["stage"] == "train"
        ours = {"dataset": "cifar10", "config": own, "epochs": own["epochs"], "recalibrate": 0}
        ours |= {"accuracy": {"test": 0.9365, "val": None}, "ratio": None if trained else 0.7}
        ours |= {"strength": 1e-4 if run["seed"] == 0 else 0.008, "macs": 200_000_000}
        ours |= {"params": 20_035_018 if trained else 2_250_000}
        (folder / run["name"]).mkdir()
        text = json.dumps({**run, **ours})
        (folder / run["name"] / "result.json").write_text(text)
    return folder


def read(path: Path) -> dict[str, dict]:
    return {line["experiment"]: line for line in csv.DictReader(path.open(encoding="utf-8"))}


def test_table_1a_through_the_door(made_up):
    code, out, err = terminal("report", str(made_up), "table=1a")
    assert code == 0, err
    for said in ("VGG-19, 70 %", "6.20", "6.22", "6.35 (1)", "+0.15", "inside", "2.25 M (-88.8 %)"):
        assert said in out, said
    assert "400 M" in out and "best epoch on the TEST set" in out
    assert "0.5 points on CIFAR-10, 1.5 on CIFAR-100" in out
    (ours,) = (line for line in read(made_up / "report" / "table_1a.csv").values() if line["ours"])
    assert ours["experiment"] == "cifar10_vgg19_70" and ours["n"] == "1", "the fast one is none"
    assert float(ours["difference"]) == pytest.approx(0.15) and ours["command"] == ""
    page = (made_up / "report" / "table_1a.md").read_text()
    command = f"- `python pipeline.py experiment=cifar10_resnet164_60 runs_dir='{made_up}'`"
    assert command in page and "experiment=cifar10_vgg19_70" not in page
    tex = (made_up / "report" / "table_1a.tex").read_text()
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"VGG-19, 70\,\% & 6.20 & 6.22"):
        assert word in tex
    body = tex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 8 and {line.count("&") for line in body} == {9}
    assert rf"\begin{{tabular}}{{l{'r' * 9}}}" in tex


def test_the_twins_have_a_table_of_their_own(made_up):
    assert terminal("report", str(made_up), "table=1a", "fast=true")[0] == 0
    page = (made_up / "report" / "table_1a_fast.md").read_text()
    assert "| row | ours, error % (n) |" in page and "not the paper's numbers" in page
    assert "| VGG-19, 70 % | 6.35 (1) |" in page
    assert "band" not in page and "6.20" not in page and "twin=fast" in page


MANY = pytest.param("rethinking", marks=pytest.mark.long)  # rows; of all the same kind
TABLES = [name for name in paper.published()["tables"] if name not in MANY.values]


@pytest.mark.parametrize("table", [*TABLES, MANY])
def test_without_runs_every_table_is_its_commands(tmp_path, table):
    code, out, err = terminal("report", f"runs_dir={tmp_path / 'none'}", f"table={table}")
    assert code == 0, err
    commands = [line.strip() for line in out.splitlines() if "python pipeline.py exp" in line]
    rows = paper.rows(table)
    assert len(commands) == len({row["experiment"] for row in rows if "experiment" in row})
    for row in rows:
        assert f"{row[paper.measure_of(row)]:.2f}" in out


def test_an_unknown_table_is_refused_with_the_names(tmp_path):
    said = refusal("report", f"runs_dir={tmp_path}", "table=5")
    assert said == "there is no table=5; there are: 1a, 1b, 1c, 2, 3, 4, 7, rethinking"


def test_the_twins_are_asked_for_with_their_table(tmp_path):
    assert refusal("report", f"runs_dir={tmp_path}", "fast=true") == "fast= belongs to table=NAME"


def test_a_misspelt_option_of_the_report_is_named(tmp_path):
    """Every key of every yaml is looked through for near words: `yes` has to be a word."""
    assert "did you mean table" in refusal("report", "tabel=1a", f"runs_dir={tmp_path}")


def test_recalled_numbers_are_marked(tmp_path):
    assert terminal("report", str(tmp_path), "table=1c")[0] == 0
    page = (tmp_path / "report" / "table_1c.md").read_text()
    assert "| ResNet-164, 40 % | 1.85 | - | 1.46 M (-14.5 %) | 344 M (-31.1 %) |" in page
    assert "| ResNet-164, 60 % | 1.81* | - | 1.12 M (-34.3 %)* | 225 M (-54.9 %)* |" in page
    assert "recalled; nobody has read it in the source" in page
    tex = (tmp_path / "report" / "table_1c.tex").read_text()
    assert r"1.12 M ($-$34.3\,\%)* &" in tex and r"FLOPs are 2 $\times$ MACs" in tex
    assert r"\label{tab:table-1c}" in tex and r"\caption{Liu et al. 2017, Table 1(c)}" in tex


def test_what_is_recalled_is_little_and_known():
    """All else has been read in the sources, or in pictures of their tables."""
    every = [row for table in paper.published()["tables"] for row in paper.rows(table)]
    recalled = [row["experiment"] for row in every if row["confidence"] == "recalled"]
    assert recalled == ["svhn_resnet164_60"] and len(every) > 90


def test_a_row_that_a_run_nearly_is_says_what_differs(runs, table, monkeypatch):
    half = lines(runs, "finetune.epochs=2")["half"]
    assert half["near"] == "finetune: epochs (2 / 1)" and "ours" not in half
    assert "near" not in lines(runs)["half"], "it is that row"
    far = ("epochs=3", "recipe.batch_size=32", "data.flip=false", "floor=2", "scope=layer")
    assert "near" not in lines(runs, *far)["half"]


def test_a_shortened_twin_says_why_it_is_not_the_row(made_up, tmp_path):
    for path in made_up.glob("*/result.json"):
        run = json.loads(path.read_text())
        if run["strength"] == 0.008:  # the twin: one epoch less than its row asks for
            run |= {"epochs": run["epochs"] - 1} if run["stage"] == "train" else {}
        (tmp_path / path.parent.name).mkdir()
        (tmp_path / path.parent.name / "result.json").write_text(json.dumps(run))
    _, out, _ = terminal("report", str(tmp_path), "table=1a", "fast=true")
    assert (
        "VGG-19, 70 % is empty, though there are runs like it: they differ in train: epochs" in out
    )


@pytest.mark.parametrize("root", [None, "data", "/elsewhere"])
def test_a_command_finds_the_images_where_they_were_or_fetches_them(runs, table, monkeypatch, root):
    found, other = find_runs(runs), {"_target_": "utils.data.fake", "root": "data", "download": 0}
    for run in found:
        run["config"]["data"] |= {"root": root} if root else {}
    cfg = whole(tiny("pipeline", runs, *SPARSE, *CUT, "floor=2")) | {"data": other}
    monkeypatch.setitem(paper.published()["tables"], "tiny", {**TABLE, "rows": TABLE["rows"][1:]})
    (line,) = paper.lines("tiny", found, lambda _: cfg, "X {}")
    told = {None: " data.download=true", "data": "", "/elsewhere": " data.root=/elsewhere"}
    assert line["command"] == f"X half{told[root]}"


def test_a_table_of_a_folder_that_is_not_there_leaves_none_behind(tmp_path):
    code, out, _ = terminal("report", f"runs_dir={tmp_path / 'none'}", "table=3")
    assert code == 0 and "so nothing is written; to=FOLDER" in out and not any(tmp_path.iterdir())
    terminal("report", f"runs_dir={tmp_path / 'none'}", "table=3", f"to={tmp_path / 'here'}")
    assert [*tmp_path.iterdir()] == [tmp_path / "here"] and (tmp_path / "here/table_3.tex").exists()


@pytest.mark.parametrize(("measure", "better"), [("error", "-"), ("accuracy", "+")])
def test_a_difference_says_which_sign_is_better(measure, better):
    line = {"row": "", "measure": measure, measure: 1.0, "confidence": "verified", "port": None}
    line |= {"ours": 2.0, "ours_std": None, "n": 1, "difference": 1.0, "data": "fake"}
    shown = paper_text.text("3", [line], twin=False)
    assert f"ours, {measure} % (n)" in shown.names
    assert any(f"in points; {better} is better" in note for note in shown.notes)


def test_published_numbers_agree_with_each_other():
    """The same row in two tables, and the shares that went with the counts that are left."""
    seen: dict[tuple, float] = {}
    for table in paper.published()["tables"]:
        dense: dict[str, dict] = {}
        for row in paper.rows(table):
            place = (row.get("experiment"), row.get("pass"), row.get("stage"))
            value = row[paper.measure_of(row)]
            assert place[0] is None or seen.setdefault(place, value) == value
            network = row["row"].split(",")[0]
            if "baseline" in row["row"]:
                dense[network] = row
            for key in ("params", "flops"):
                if key in row and f"{key}_pruned" in row:
                    share = 100 * (1 - row[key] / dense[network][key])
                    assert row[f"{key}_pruned"] == pytest.approx(share, abs=2.1), (row, share)


def test_every_number_says_whether_it_was_checked():
    whole = paper.published()
    for part in (*whole["tables"].values(), *whole["figures"].values(), whole["port"]):
        assert part["source"] and part["confidence"] in ("verified", "recalled")
    known = {row.get("experiment") for row in paper.rows("1a") + paper.rows("1b")}
    assert set(whole["port"]["rows"]) <= known
