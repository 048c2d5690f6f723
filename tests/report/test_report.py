"""The report: what is read, in which order it is shown, that no number changes on the way."""

import csv
import io
import json
import shutil
from pathlib import Path
from statistics import mean, stdev

import pytest

from door import ROOT, config, shell, tiny
from evaluate import evaluate_checkpoint
from made_up import chain, read, run, story
from pipeline import pipeline
from report import report
from terminal import refusal
from train import train
from utils.report import render, table, tables
from utils.report.render import Column, Table
from utils.report.story import Story
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
    steps = [row["step"] for row in read(runs).rows]
    cut = ["cut {} %", "cut {} % + bias", "cut {} % + bias + recalibrated", "fine-tuned"]
    expected = [word.format(share) for share in (30, 60) for word in cut]
    assert steps == ["baseline", "baseline", "sparse", *expected]


def lines(told: Story) -> dict[str, dict[str, str]]:
    """{name: {column: cell}} of the only table."""
    (made,) = tables.results(told)
    return {row[0]: dict(zip(made.names, row, strict=True)) for row in made.body}


def test_seeds_become_a_mean_with_its_spread_and_n(runs):
    told = read(runs)
    tests = [100 * row["test"] for row in told.rows if row["step"] == "baseline"]
    said = lines(told)["no penalty, uncut"]
    assert said["test %"] == f"{mean(tests):.2f} ± {stdev(tests):.2f}" and said["n"] == "2"
    assert "±" not in lines(told)["λ 2, uncut"]["test %"] and lines(told)["λ 2, uncut"]["n"] == "1"


def test_every_number_is_the_results(runs):
    path = report(config("report", f"runs_dir={runs}"))
    read_back = [*csv.DictReader(io.StringIO(path.with_name("table.csv").read_text()))]
    for row in read_back:
        said = json.loads((runs / row["run"] / "result.json").read_text())
        assert int(row["params"]) == said["params"] and int(row["macs"]) == said["macs"]
        assert int(row["kept"]) == said["channels"]["kept"] and int(row["bytes"]) == said["bytes"]
        variants = [said["accuracy"], *said.get("variants", {}).values()]
        assert float(row["test"]) in [variant["test"] for variant in variants]
    told = read(runs)
    assert json.loads(path.with_name("report.json").read_text()) == told.rows
    assert [float(row["test"]) for row in read_back] == [row["test"] for row in told.rows]
    means = [*csv.DictReader(io.StringIO(path.with_name("summary.csv").read_text()))]
    assert [float(row["test"]) for row in means] == [line.end.mean("test") for line in told.lines]
    text = path.read_text()
    assert all(f"`{one['command']}`" in text and one["commit"] in text for one in told.runs)
    tex = path.with_name("summary.tex").read_text()
    assert r"\toprule" in tex and r"\label{tab:networks-1}" in tex and r"$\pm$" in tex


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
        "blind/result.json lacks accuracy.test",
        "bare/result.json lacks name, stage,",
        "typed/result.json is not sound: seed is a whole number",
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
    made = Table([Column("run", [HOSTILE], words=True), Column("macs", ["-1.5"], [-1.5])], HOSTILE)
    row = made.markdown().splitlines()[-1]
    assert row == (
        r"| =1+1\|&lt;script>x&lt;/script>\`a\` \[b\](c) \*d* \_e_ &amp;amp; \\input{f} 50% \~^#$ "
        "| -1.5 |"
    )
    tex = made.latex("x", ["a\n\\input{b}"])
    assert r"\input" not in tex.replace(r"% a \input{b}", "") and "% a \\input{b}\n" in tex
    escaped = r"\textbackslash{}input\{f\} 50\% \textasciitilde{}\textasciicircum{}\#\$"
    assert tex.count(escaped) == 2, "in a cell and in the caption"
    assert r"$-$1.5" in tex, "a minus, not a hyphen"
    assert made.csv().splitlines()[1] == f"'{HOSTILE},-1.5"
    for start in "=+-@":
        assert Table([Column("a", [f"{start}x"])]).csv().splitlines()[1] == f"'{start}x"
    assert render.code("a`b``c\nd") == "``` a`b``c d ```"
    html = made.html()
    assert "<script>" not in html and "&lt;script&gt;" in html and 'data-v="-1.5"' in html


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_a_narrow_window_keeps_the_name_and_the_accuracy(width, capsys):
    made = tables.results(read(ROOT / "results" / "compare_cifar10"))[0]
    console = render.Console(width=width, markup=False, highlight=False)
    console.print(made.terminal(width))
    said = capsys.readouterr().out
    assert "…" not in said and max(map(len, said.splitlines())) <= width
    for cell in (*made.columns[1].cells, "network", "test %"):
        assert cell in said
    left_out = [name for name in made.names if name not in said.split("not in this")[0]]
    assert all(name in said for name in left_out), "what is left out is named"


def test_a_run_that_lies_in_two_places_is_one_run(runs, tmp_path, capsys):
    for place in ("a", "b"):
        shutil.copytree(runs, tmp_path / place)
    assert len(find_runs(tmp_path)) == len(find_runs(runs))
    assert "differs" not in capsys.readouterr().err
    other = next((tmp_path / "b").glob("*l0-s0-*/result.json"))
    other.write_text(other.read_text().replace('"test": 0.', '"test": 0.0'))
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
    assert any("ms / 64" in made.names for made in tables.results(read(runs)))


def test_a_report_of_some_runs_leaves_that_of_all_alone(runs):
    whole = report(config("report", f"runs_dir={runs}"))
    before = whole.read_bytes(), whole.with_name("index.html").read_bytes()
    part = report(config("report", f"runs_dir={runs}", "only=r0.3"))
    assert part.parent != whole.parent and "cut 30 %" in part.read_text()
    assert (whole.read_bytes(), whole.with_name("index.html").read_bytes()) == before


def test_controls_and_other_recipes_are_not_called_fine_tuning():
    told = story(
        run("t"),
        run("p", "prune", "t", ratio=0.5, variants={"cut": {"test": 0.25}}),
        run("f1", "finetune", "p", ratio=0.5, scratch="none", finetune_recipe="fast"),
        run("f2", "finetune", "p", ratio=0.5, scratch="none", finetune_recipe="paper"),
        run("f3", "finetune", "p", ratio=0.5, scratch="B", finetune_recipe="fast"),
    )
    steps = [row["step"] for row in told.rows]
    assert steps[2:] == ["fine-tuned", "fine-tuned (paper recipe)", "scratch-B"]
    assert {row["network"] for row in told.rows} == {"vgg11-w0.25"}
    assert [row["ratio"] for row in told.rows] == [None, 0.5, 0.5, 0.5, 0.5]


def test_no_table_mixes_recipes_networks_or_data():
    told = story(run("a"), run("b", recipe="paper", test=0.2), run("c", dataset="mnist"),
                 run("d", row="x", test=0.4))  # fmt: skip
    assert sorted(len(made.body) for made in tables.results(told)) == [1, 1, 1, 1]


def test_a_mean_is_over_seeds_and_nothing_else():
    told = story(run("t0", test=1 / 3), run("t1", seed=1, test=2 / 3))
    (line,) = lines(told).values()
    assert line["test %"] == "50.00 ± 23.57"
    assert "(n = 2)" in tables.results(told)[0].title


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"epochs": 99}, "99 epochs"),
        ({"config": {"data": {"_target_": "x", "pad": 3}}}, "data.pad 3"),
        ({"config": {"model": {"depth": 7}}}, "model.depth 7"),
        ({"precision": "bf16"}, "precision bf16"),
        ({"config": {"hardware": {"compile": True}}}, "compile True"),
        ({"seed": 0}, "t2"),
    ],
)
def test_what_differs_in_more_than_its_seed_has_a_line_of_its_own_that_says_so(other, why):
    runs = [run(f"t{seed}", seed=seed) for seed in (0, 1)]
    found = lines(story(*runs, run("t2", test=0.9, **{"seed": 2, **other})))
    (name,) = [name for name, line in found.items() if line["test %"] == "90.00"]
    assert why in name
    assert len(found) == (3 if why == "t2" else 2), "one seed twice makes no mean"


def test_what_follows_a_step_keeps_no_seed_out_of_its_mean():
    """A plain cut is the same before any repair; what is repaired in two ways is two lines."""
    runs = [run(f"t{seed}", seed=seed) for seed in (0, 1)]
    for seed, mode in ((0, "none"), (1, "bias")):
        reached = {"cut": {"test": 0.25 + 0.25 * seed}, "recalibrated": {"test": 0.9}}
        runs.append(
            run(f"p{seed}", "prune", f"t{seed}", ratio=0.5, seed=seed, variants=reached,
                recalibrate=64, config={"compensate": mode})
        )  # fmt: skip
    cuts = [line for name, line in lines(story(*runs)).items() if "cut 50 %" in name]
    assert [line["cut"] for line in cuts] == ["37.50 ± 17.68"] * 2
    assert [line["test %"] for line in cuts] == ["90.00"] * 2 and cuts[0]["n"] == "1"


def test_networks_of_other_shape_are_not_averaged_in_size_either():
    runs = [run(f"t{seed}", seed=seed) for seed in (0, 1)]
    runs += [
        run(f"p{seed}", "prune", f"t{seed}", ratio=0.5, seed=seed, params=100 * (seed + 1),
            config={"floor": floor}, variants={"cut": {"test": 0.2}})
        for seed, floor in ((0, 1), (1, 0.5))
    ]  # fmt: skip
    found = {n: line["params"] for n, line in lines(story(*runs)).items() if "cut 50 %" in n}
    assert {name.rpartition(", ")[2]: params for name, params in found.items()} == {
        "floor 1": "100", "floor 0.5": "200"
    }  # fmt: skip


def test_methods_have_lines_of_their_own():
    cuts = [chain(0, {}, {"method": name})[:2] for name in ("slimming", "l1_norm")]
    named = ["uncut", "slimming, cut 50 % channels", "l1_norm, cut 50 % channels"]
    assert [*lines(story(*cuts))] == named


def test_a_line_holds_every_step_on_the_way(runs):
    told = read(runs)
    said = next(r for r in told.runs if r["stage"] == "prune" and r["ratio"] == 0.3)
    line = next(line for name, line in lines(told).items() if "cut 30 %" in name)
    assert line["cut"] == f"{100 * said['variants']['cut']['test']:.2f}"
    assert line["repaired"] == f"{100 * said['variants']['recalibrated']['test']:.2f}"
    assert line["trained"] == lines(told)["λ 2, uncut"]["test %"]
    assert line["vs dense"][0] in "+-" and "±" not in line["vs dense"], "one seed in common"


def test_validation_accuracy_is_shown_wherever_there_is_some():
    told = story(run("a", strength=0, val=0.5), *chain(0, {"val": 0.6}, {}, {"val": 0.625}))
    assert {name: line["val %"] for name, line in lines(told).items()} == {
        "no penalty, uncut": "50.00", "λ 0.01, uncut": "60.00", "λ 0.01, cut 50 % channels": "62.50"
    }  # fmt: skip
    assert "val %" not in tables.results(story(run("a")))[0].names


def test_a_seed_with_two_values_shows_both():
    found = lines(story(run("f"), run("g", test=0.5)))
    assert {line["test %"] for line in found.values()} == {"33.33", "50.00"}
    assert {*found} == {"uncut, f", "uncut, g"}


def test_a_run_without_its_parent_still_has_a_row():
    rows = story(run("p", "prune", "deleted", ratio=0.5)).rows
    assert [(row["step"], row["lambda"]) for row in rows] == [("cut 50 %", 0.01)]


def test_the_networks_in_the_fresh_clone_open():
    said = evaluate_checkpoint(
        config("evaluate", f"ckpt={ROOT / 'results/digits_thin.safetensors'}")
    )
    (published,) = (ROOT / "results" / "digits").glob("*-ft-s0-*/result.json")
    assert said["params"] == json.loads(published.read_text())["params"]
    assert said["accuracy"]["test"] > 0.97


def test_hundreds_of_seeds_are_one_line_in_the_terminal(capsys, tmp_path):
    for seed in range(101):
        (tmp_path / f"t{seed}").mkdir()
        text = json.dumps(run(f"t{seed}", seed=seed))
        (tmp_path / f"t{seed}" / "result.json").write_text(text)
    report(config("report", f"runs_dir={tmp_path}"))
    said = capsys.readouterr().out
    assert "fast recipe" in said and "33.33 ± 0.00" in said and said.count("33.33") == 1
    assert "n = 101" in said


def test_with_nothing_finished_it_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python pipeline\.py"):
        report(config("report", f"runs_dir={tmp_path}"))


def test_only_keeps_whole_chains(runs):
    steps = {row["step"] for row in Story(table.choose(find_runs(runs), "r0.3")).rows}
    assert "sparse" in steps and "cut 30 %" in steps and not any("60" in step for step in steps)
    with pytest.raises(ValueError, match="no finished run has this in its name"):
        table.choose(find_runs(runs), "resnet")


def test_a_bare_folder_on_the_command_line_is_where_the_runs_are(runs):
    done = shell("report", str(runs))
    assert done.returncode == 0, done.stderr
    assert "fine-tuning" in done.stdout and "report.md" in done.stdout


@pytest.mark.parametrize(
    ("number", "text"),
    [(398136320, "398 M"), (45600, "45.6 k"), (999_700, "1.00 M"), (1, "1"), (20035018, "20.0 M")],
)
def test_humane_numbers(number, text):
    assert si(number) == text
