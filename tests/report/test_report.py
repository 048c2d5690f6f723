"""The report: what is read, in which order it is shown, that no number changes on the way."""

import json
import shutil
from pathlib import Path
from statistics import mean, stdev

import pandas as pd
import pytest

from door import ROOT, config, shell, tiny
from evaluate import evaluate_checkpoint
from pipeline import pipeline
from report import report
from terminal import refusal
from train import train
from utils.report import render, table
from utils.report.page import page
from utils.report.plots import marks as plots
from utils.report.plots.gammas import gammas
from utils.report.plots.layers import widths
from utils.report.story import Story
from utils.report.summary import apart, by_ratio, points
from utils.runs.results import find_runs
from utils.runs.units import si

SWEEP = ("epochs=1", "finetune.epochs=1", "compensate=bias")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A baseline, and one sparse training with two cuts, each fine-tuned."""
    folder = tmp_path_factory.mktemp("runs")
    for ratio in (0.6, 0.3):
        pipeline(tiny("pipeline", folder, "method.strength=2", f"ratio={ratio}", *SWEEP))
    for seed in (0, 1):
        train(tiny("train", folder, "method.strength=0", "epochs=1", f"seed={seed}"))
    return folder


def test_the_rows_tell_the_story_in_order(runs):
    steps = [row["step"] for row in table.rows(find_runs(runs))]
    cut = ["cut {} %", "cut {} % + bias", "cut {} % + bias + recalibrated", "fine-tuned"]
    expected = [word.format(share) for share in (30, 60) for word in cut]
    assert steps == ["baseline", "baseline", "sparse", *expected]


def test_seeds_become_a_mean_with_its_spread_and_n(runs):
    rows = table.rows(find_runs(runs))
    tests = [100 * row["test"] for row in rows if row["step"] == "baseline"]
    said = by_ratio(rows).set_index("λ").loc["0", "trained"]
    assert said == f"{mean(tests):.2f} ± {stdev(tests):.2f} (n = 2)"
    assert len([point for point in points(rows) if point.what == "fine-tuned"]) == 2, "two ratios"
    (alone,) = [point.percent() for point in points(rows) if point["step"] == "sparse"]
    assert "±" not in alone and "n =" not in alone


def test_every_number_is_the_results(runs):
    path = report(config("report", f"runs_dir={runs}"))
    read = pd.read_csv(path.with_name("table.csv"))
    for row in read.itertuples():
        said = json.loads((runs / row.run / "result.json").read_text())
        assert row.params == said["params"] and row.macs == said["macs"]
        assert row.kept == said["channels"]["kept"] and row.bytes == said["bytes"]
        variants = [said["accuracy"], *said.get("variants", {}).values()]
        assert row.test in [variant["test"] for variant in variants]
    rows = table.rows(find_runs(runs))
    assert json.loads(path.with_name("report.json").read_text()) == rows
    assert [float(value) for value in read.test] == [row["test"] for row in rows]
    text = path.read_text()
    assert all(f"`{run['command']}`" in text and run["commit"] in text for run in find_runs(runs))
    for name in ("gammas.png", "widths.png"):
        assert path.with_name(name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_broken_foreign_and_future_results_are_named_and_passed_over(runs, tmp_path, capsys):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    good = len(find_runs(tmp_path))
    capsys.readouterr()
    one = next(iter(sorted(tmp_path.glob("*/result.json"))))
    whole = one.read_text()
    for name, text in {
        "half": whole[: len(whole) // 2],
        "foreign": '{"accuracy": 3}',
        "list": "[1, 2]",
        "future": whole.replace('"schema": 1', '"schema": 99'),
        "poor": '{"schema": 1, "stage": "train"}',
        "odd": whole.replace('"stage": "', '"stage": "un'),
        "blind": whole.replace('"test": ', '"tset": '),
        "bare": '{"schema": 1}',
        "typed": whole.replace('"seed": 0', '"seed": "0"').replace('"seed": 1', '"seed": "1"'),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    (one.parent / "latency.json").write_text('{"mach')
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "config.yaml").write_text("seed: 0\n")
    assert len(find_runs(tmp_path)) == good
    said = capsys.readouterr().err
    for words in (
        "half/result.json is broken",
        "foreign/result.json is not a result of this project",
        "list/result.json is not a result of this project",
        "future/result.json has schema 99",
        "poor/result.json lacks",
        "odd/result.json is of no stage known",
        "blind/result.json lacks accuracy on the test set",
        "bare/result.json lacks name, stage,",
        "typed/result.json lacks seed",
        "latency.json is broken",
        "1 not finished",
    ):
        assert words in said


def test_files_that_are_no_text_are_named_and_passed_over(runs, tmp_path, capsys):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    one = next(tmp_path.glob("*-ft-s0-*"))
    for name in ("metrics.jsonl", "config.yaml", "latency.json"):
        (one / name).write_bytes(b"\xff\xfe\x00")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "result.json").write_bytes(b"\xff\xfe\x00")
    report(config("report", f"runs_dir={tmp_path}"))
    said = capsys.readouterr().err
    assert f"{one / 'metrics.jsonl'} can't be read" in said
    assert f"{one / 'latency.json'} is broken" in said and "binary/result.json is broken" in said


def test_a_folder_that_cannot_be_written_leads_to_another_place(runs, tmp_path):
    """Somebody else's runs: refused before anything is drawn, with the way out; which works."""
    for words in ([], ["table=1a"]):
        sentence = refusal("report", str(runs), *words, "to=/proc/report")
        assert sentence.startswith("can't write to the folder /proc/report (")
        assert sentence.endswith("choose another place with to=...")
    kept = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    elsewhere = tmp_path / "new" / "place"
    assert report(config("report", f"runs_dir={runs}", f"to={elsewhere}")).parent == elsewhere
    assert {"index.html", "report.md", "table.csv"} <= {path.name for path in elsewhere.iterdir()}
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == kept
    for words in ("list=true", "delete=x"):
        assert "to= is where" in refusal("report", str(runs), words, f"to={elsewhere}")


HOSTILE = "=1+1|<script>x</script>`a` [b](c) *d* _e_ &amp; \\input{f} 50% ~^#$"


def test_each_renderer_escapes_for_its_own_reader():
    text = pd.DataFrame([{"run": HOSTILE, "macs": -1.5}])
    row = render.markdown(text).splitlines()[-1]
    assert row == (
        r"| =1+1\|&lt;script>x&lt;/script>\`a\` \[b\](c) \*d* \_e_ &amp;amp; \\input{f} 50% \~^#$ "
        "| -1.5 |"
    )
    tex = render.latex(text, HOSTILE, ["a\n\\input{b}"])
    assert r"\input" not in tex.replace(r"% a \input{b}", "") and "% a \\input{b}\n" in tex
    escaped = r"\textbackslash{}input\{f\} 50\% \textasciitilde{}\textasciicircum{}\#\$"
    assert tex.count(escaped) == 2, "in a cell and in the caption"
    assert render.csv(text).splitlines()[1] == f"'{HOSTILE},-1.5"
    for start in "=+-@":
        assert render.csv(pd.DataFrame([{"a": f"{start}x"}])).splitlines()[1] == f"'{start}x"
    assert render.code("a`b``c\nd") == "``` a`b``c d ```"


def test_a_run_that_lies_in_two_places_is_one_run(runs, tmp_path, capsys):
    for place in ("a", "b"):
        shutil.copytree(runs, tmp_path / place)
    assert len(find_runs(tmp_path)) == len(find_runs(runs))
    assert "differs" not in capsys.readouterr().err
    other = next((tmp_path / "b").glob("*l0-s0-*/result.json"))
    other.write_text(other.read_text().replace('"test": ', '"test": 0.1e-1, "was": '))
    assert len(find_runs(tmp_path)) == len(find_runs(runs))
    assert f"{other} differs from {tmp_path / 'a'}" in capsys.readouterr().err


def test_latency_is_measured_once_side_by_side_and_kept(runs):
    report(config("report", f"runs_dir={runs}", "latency=true", "only=l0-s0"))
    (kept,) = runs.glob("*/latency.json")
    said = json.loads(kept.read_text())
    assert said["machine"]["threads"] >= 1
    assert {"1", "64"} == set(said["batch"])
    assert all(times["q1_ms"] <= times["median_ms"] <= times["q3_ms"]
               for times in said["batch"].values())  # fmt: skip
    assert "ms / 64" in table.humane(table.frame(table.rows(find_runs(runs)))).columns


def made_up(name: str, stage: str, parent: str | None = None, **facts) -> dict:
    """A finished run as `find_runs` returns it."""
    facts = {"strength": 0.01, "ratio": None, "recipe": "fast", "seed": 0, **facts}
    return {
        "run": name, "name": name, "stage": stage, "parent": parent, "dataset": "digits",
        "model": "VGG", "row": "vgg11-w0.25-digits-l0.01", "latency": None, "epochs": 1,
        "accuracy": {"test": 1 / 3, "val": None}, "channels": {"kept": 5, "total": 10},
        "widths": {"bn": [5, 10]}, "gammas": {"bn": [0.0, -0.5, 1e-9]}, "params": 1, "macs": 2,
        **facts,
    }  # fmt: skip


def test_controls_and_other_recipes_are_not_called_fine_tuning():
    runs = [
        made_up("t", "train"),
        made_up("p", "prune", "t", ratio=0.5, variants={"cut": {"test": 0.25}}),
        made_up("f1", "finetune", "p", scratch="none", finetune_recipe="fast"),
        made_up("f2", "finetune", "p", scratch="none", finetune_recipe="paper"),
        made_up("f3", "finetune", "p", scratch="B", finetune_recipe="fast"),
    ]
    steps = [row["step"] for row in table.rows(runs)]
    assert steps[2:] == ["fine-tuned", "fine-tuned (paper recipe)", "scratch-B"]
    assert {row["network"] for row in table.rows(runs)} == {"vgg11-w0.25"}
    assert [row["ratio"] for row in table.rows(runs)] == [None, 0.5, 0.5, 0.5, 0.5]


def test_no_table_of_the_page_mixes_recipes():
    runs = [made_up("a", "train"), made_up("b", "train", recipe="paper", strength=0)]
    text = page.markdown(Story(runs), {})
    fast, paper = text.split("## Where")[0].split("## Recipe: ")[1:]
    assert fast.startswith("fast") and "| a |" in fast and "| b |" not in fast
    assert paper.startswith("paper") and "| b |" in paper and "| a |" not in paper


def test_a_mean_is_over_seeds_and_nothing_else():
    runs = [made_up(f"t{seed}", "train", seed=seed) for seed in (0, 1)]
    runs[1]["accuracy"] = {"test": 2 / 3, "val": None}
    assert trained(runs) == "50.00 ± 23.57 (n = 2)"
    assert apart(table.rows(runs), table.paths(runs)) == []


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"epochs": 99}, "train: epochs (1 / 99)"),
        ({"config": {"data": {"_target_": "x", "pad": 3}}}, "train: data.pad (- / 3)"),
        ({"config": {"model": {"depth": 7}}}, "train: model.depth (- / 7)"),
        ({"precision": "bf16"}, "train: precision (- / bf16)"),
        ({"seed": 0}, "one seed has several results (t0, t2, t1)"),
    ],
)
def test_what_differs_in_more_than_its_seed_is_refused_and_the_setting_named(other, why):
    runs = [made_up(f"t{seed}", "train", seed=seed) for seed in (0, 1)]
    more = made_up("t2", "train", accuracy={"test": 0.9, "val": None}, **{"seed": 2, **other})
    cell = trained([*runs, more])
    assert "90.00" in cell.split(" / "), "shown by itself, in no mean"
    (said,) = apart(table.rows([*runs, more]), table.paths([*runs, more]))
    assert why in said and said.startswith("vgg11-w0.25 on digits, λ 0.01: trained differ in ")


def test_what_follows_a_step_keeps_no_seed_out_of_its_mean():
    """A plain cut is the same before any repair; what is repaired in two ways is two rows."""
    runs = [made_up(f"t{seed}", "train", seed=seed) for seed in (0, 1)]
    for seed, mode in ((0, "none"), (1, "bias")):
        reached = {"cut": {"test": 0.25 + 0.25 * seed}, "recalibrated": {"test": 0.9}}
        runs.append(
            made_up(f"p{seed}", "prune", f"t{seed}", ratio=0.5, seed=seed, variants=reached,
                    recalibrate=64, config={"compensate": mode})
        )  # fmt: skip
    line = by_ratio(table.rows(runs)).set_index("ratio").loc["0.5"]
    assert line["cut"] == "37.50 ± 17.68 (n = 2)"
    assert "±" not in line["cut + recalibrated"]


def trained(runs: list[dict]) -> str:
    (cell,) = by_ratio(table.rows(runs))["trained"]
    return cell


def test_networks_of_other_shape_are_not_averaged_in_size_either():
    runs = [made_up(f"t{seed}", "train", seed=seed) for seed in (0, 1)]
    runs += [
        made_up(f"p{seed}", "prune", f"t{seed}", ratio=0.5, seed=seed, params=100 * (seed + 1),
                config={"floor": floor}, variants={"cut": {"test": 0.2}})
        for seed, floor in ((0, 1), (1, 0.5))
    ]  # fmt: skip
    assert by_ratio(table.rows(runs)).set_index("ratio").loc["0.5", "params"] == "100 / 200"


def test_methods_have_lines_of_their_own():
    runs = [made_up("t", "train", strength=0)]
    for name in ("slimming", "l1_norm"):
        runs.append(made_up(f"p-{name}", "prune", "t", ratio=0.5, method=name, strength=0))
    text = by_ratio(table.rows(runs))
    assert list(text["method"]) == ["-", "slimming", "l1_norm"] or list(text["method"]) == [
        "-", "l1_norm", "slimming"
    ]  # fmt: skip


def test_the_summary_has_a_line_per_ratio_and_a_column_per_step(runs):
    lines = by_ratio(table.rows(find_runs(runs))).set_index(["λ", "ratio"])
    assert list(lines.index) == [("0", "-"), ("2", "-"), ("2", "0.3"), ("2", "0.6")]
    said = next(r for r in find_runs(runs) if r["stage"] == "prune" and r["ratio"] == 0.3)
    line = lines.loc[("2", "0.3")]
    for column, variant in {
        "cut": "cut",
        "cut + bias": "compensated",
        "cut + bias + recalibrated": "recalibrated",
    }.items():
        assert line[column] == f"{100 * said['variants'][variant]['test']:.2f}"
    assert line["trained"] == "-" and line["fine-tuned"] != "-"
    assert "(n = 2)" in lines.loc[("0", "-"), "trained"]


def test_a_seed_with_two_values_shows_both():
    two = [made_up("f", "train"), made_up("g", "train", accuracy={"test": 0.5, "val": None})]
    assert by_ratio(table.rows(two))["trained"].item() == "33.33 / 50.00"


def test_a_run_without_its_parent_still_has_a_row():
    rows = table.rows([made_up("p", "prune", "deleted", ratio=0.5)])
    assert [(row["step"], row["lambda"]) for row in rows] == [("cut 50 %", 0.01)]


def test_pictures_say_what_they_leave_out_and_draw_nothing_of_nothing(tmp_path):
    def strength(k: int) -> list[dict]:
        return [made_up(f"t{k}", "train", strength=k / 100, seed=s) for s in (0, 1)]

    trainings = [run for k in range(8) for run in strength(k)]
    drawn = gammas(Story(trainings))
    assert len(drawn.figure.axes) == 6, "one panel per lambda, not per seed"
    assert "λ 0.06" in drawn.note and "λ 0.07" in drawn.note and "λ 0.05" not in drawn.note
    nothing = widths(Story(trainings))
    assert nothing.figure is None and "python prune.py" in nothing.note
    cuts = [made_up(f"p{k}", "prune", "t1", ratio=k / 10) for k in range(1, 9)]
    drawn = widths(Story([*trainings, *cuts]))
    assert len(drawn.figure.axes) == 6 and "cut 80 %" not in drawn.note, "mild and hard cuts"
    plots.save(drawn.figure, tmp_path / "widths.png")
    assert (tmp_path / "widths.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["digits", "cifar10_vgg11_fast"])
def test_the_published_tables_are_those_of_the_committed_results(name):
    rows = table.rows(find_runs(ROOT / "results" / name))
    shown = [(ROOT / page).read_text() for page in ("README.md", "docs/measurements.md")]
    assert any(render.markdown(by_ratio(rows)) in text for text in shown)


def test_the_networks_in_the_fresh_clone_open():
    said = evaluate_checkpoint(
        config("evaluate", f"ckpt={ROOT / 'results/digits_thin.safetensors'}")
    )
    assert said["params"] == 41_916 and said["accuracy"]["test"] > 0.97


def test_more_networks_than_can_be_read_become_a_line_per_ratio_in_the_terminal(capsys, tmp_path):
    for seed in range(101):
        run = made_up(f"t{seed}", "train", seed=seed, schema=1)
        (tmp_path / f"t{seed}").mkdir()
        (tmp_path / f"t{seed}" / "result.json").write_text(json.dumps(run))
    report(config("report", f"runs_dir={tmp_path}"))
    said = capsys.readouterr().out
    assert "fast recipe" in said and "33.33 ± 0.00 (n = 101)" in said and said.count("33.33") == 1


def test_with_nothing_finished_it_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python pipeline\.py"):
        report(config("report", f"runs_dir={tmp_path}"))


def test_only_keeps_whole_chains(runs):
    steps = {row["step"] for row in table.rows(table.choose(find_runs(runs), "r0.3"))}
    assert "sparse" in steps and "cut 30 %" in steps and not any("60" in step for step in steps)
    with pytest.raises(ValueError, match="no finished run has this in its name"):
        table.choose(find_runs(runs), "resnet")


def test_a_bare_folder_on_the_command_line_is_where_the_runs_are(runs):
    done = shell("report", str(runs))
    assert done.returncode == 0, done.stderr
    assert "fine-tuned" in done.stdout and "report.md" in done.stdout


@pytest.mark.parametrize(
    ("number", "text"),
    [(398136320, "398 M"), (45600, "45.6 k"), (999_700, "1.00 M"), (1, "1"), (20035018, "20.0 M")],
)
def test_humane_numbers(number, text):
    assert si(number) == text
