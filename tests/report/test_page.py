"""The page: whole, true to the results, harmless, and honest about what is missing."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from door import ROOT, config, tiny
from pipeline import pipeline
from report import report
from terminal import refusal
from train import train
from utils.report.knee import knee, sweeps
from utils.report.page import page
from utils.report.plots import marks as plots
from utils.report.plots.cost import front, ticks
from utils.report.summary import points
from utils.report.table import paths, rows
from utils.runs import results

QUICK = ("epochs=2", "finetune.epochs=1", "compensate=bias", "data.val_size=64")
PLOTS = [plot.name for plot in page.PLOTS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A baseline and a sparse training, two seeds each, cut twice and fine-tuned."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        for ratio in (0.6, 0.3):
            here = ("method.strength=2", f"ratio={ratio}", f"seed={seed}", *QUICK)
            pipeline(tiny("pipeline", folder, *here))
        train(tiny("train", folder, "method.strength=0", f"seed={seed}", QUICK[0], QUICK[-1]))
    report(config("report", f"runs_dir={folder}"))
    return folder


@pytest.fixture(scope="module")
def text(runs) -> str:
    return (runs / "report" / "index.html").read_text()


class Reader(HTMLParser):
    """Tables as lists of rows, sections by id, and whether every tag was closed."""

    VOID = ("meta", "link", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.tables: list[list[list[str]]] = []
        self.problems: list[str] = []
        self._section = ""
        self.feed(text)
        self.problems += [f"{tag} stays open" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        self._section = facts["id"] if tag == "section" else self._section
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        if tag not in self.VOID and "svg" not in self.open:
            self.problems.append(f"<{tag}/> is none of HTML's")

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        self.sections[self._section] = self.sections.get(self._section, "") + data
        if self.open and {"td", "th"} & {*self.open}:
            self.tables[-1][-1][-1] += data


def test_it_is_whole(text):
    read = Reader(text)
    assert not read.problems
    assert {"results", "runs", *PLOTS} <= {*read.sections}
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len({*ids}), "a name twice would send a link to the wrong place"
    targets = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text)
    assert {a or b for a, b in targets} <= {*ids}


def test_every_plot_with_data_is_drawn_as_svg_with_labels(text):
    sections = re.findall(r'<section id="(\w+)">(.*?)</section>', text, flags=re.S)
    drawn = {name: re.search("<svg.*?</svg>", inside, flags=re.S) for name, inside in sections}
    drawn = {name: found[0] for name, found in drawn.items() if found}
    assert {*drawn} == {*PLOTS} - {"compare"}
    for name, svg in drawn.items():
        words = [node.text for node in ElementTree.fromstring(svg).iter("text")]
        assert len(words) > 4, name
        assert svg.count("<path") + svg.count("<use") < 1500, f"{name} has too many elements"


def test_it_loads_nothing(text):
    assert "http:" not in text and "https:" not in text and "//cdn" not in text
    loads = re.findall(r'(?:src|href)="([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
    assert all(load.startswith(("#", "data:")) for load in loads)
    assert "@import" not in text and "fetch(" not in text and "<iframe" not in text


def test_colours_of_the_plots_are_the_themes(text):
    """A black line on a dark page would be gone."""
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.S):
        assert not re.search("|".join(plots.THEMED), svg, flags=re.I)
    for variable in {*re.findall(r"var\((--\w+)\)", text)}:
        light, dark = text.index(f"{variable}: #"), text.index("prefers-color-scheme: dark")
        assert light < dark < text.index(f"{variable}: #", dark)


def test_its_numbers_are_those_of_the_results(runs, text):
    by_name = {
        path.parent.name: json.loads(path.read_text()) for path in runs.glob("*/result.json")
    }
    tables = [(table[0], table[1:]) for table in Reader(text).tables]
    every = next(body for head, body in tables if head[-1] == "run")
    head = next(head for head, _ in tables if head[-1] == "run")
    assert {line[-1] for line in every} == {*by_name}
    for line in every:
        said = by_name[line[-1]]
        tests = [said["accuracy"], *said.get("variants", {}).values()]
        shown = line[[cell.replace("\xa0", " ") for cell in head].index("test %")]
        assert shown in {f"{100 * accuracy['test']:.2f}" for accuracy in tests}
    (mean,) = [
        line for head, body in tables if head[-1] != "run" for line in body
        if line[0] == "0" and line[1] == "-"
    ]  # fmt: skip
    baselines = [r["accuracy"]["test"] for r in by_name.values() if r["strength"] == 0]
    assert f"{50 * sum(baselines):.2f} ± " in " ".join(mean)


def test_commands_commits_and_machines_are_told(runs, text):
    said = Reader(text).sections["runs"]
    for path in runs.glob("*/result.json"):
        result = json.loads(path.read_text())
        assert result["command"] in said and result["commit"] in said
        assert result["machine"]["cpu"] in said and result["versions"]["torch"] in said


HOSTILE = "<script>alert('x')</script>&\"$\\frac$</svg>"


def test_a_hostile_result_stays_text(runs, tmp_path):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*/result.json"):
        said = json.loads(path.read_text())
        for key in ("name", "parent", "row", "dataset", "model", "command", "commit", "recipe"):
            said[key] = said[key] and f"{HOSTILE}{said[key]}"
        said["machine"]["cpu"] = HOSTILE
        said["config"]["data"] = {"_target_": HOSTILE, "val_size": 64, HOSTILE: said["seed"]}
        for key in ("widths", "gammas"):
            said[key] = {f"{HOSTILE}{layer}": of for layer, of in said[key].items()}
        path.write_text(json.dumps(said))
    report(config("report", f"runs_dir={tmp_path}"))
    text = (tmp_path / "report" / "index.html").read_text()
    assert "alert" in text and "<script>alert" not in text
    assert not Reader(text).problems


def test_what_is_missing_is_said_with_the_way_to_get_it(tmp_path):
    shutil.copytree(ROOT / "results" / "digits", tmp_path, dirs_exist_ok=True)
    report(config("report", f"runs_dir={tmp_path}"))
    text = (tmp_path / "report" / "index.html").read_text()
    missing = dict(
        re.findall(r'<section id="(\w+)" class="missing">.*?<p[^>]*>(.*?)</p>', text, flags=re.S)
    )
    assert {*missing} == {"grid", "curves", "evolution", "compare"}
    assert "ratio=0.3,0.5,0.7" in missing["grid"]
    assert "metrics.jsonl" in missing["curves"] and "metrics.jsonl" in missing["evolution"]
    assert all(f'<a href="#{name}"' not in text for name in missing)


def test_runs_of_several_commits_are_marked(runs, tmp_path):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    other = next(tmp_path.glob("*l0-s1-*/result.json"))
    other.write_text(re.sub(r'"commit": "[^"]*"', '"commit": "0ddc0ffee0+"', other.read_text()))
    report(config("report", f"runs_dir={tmp_path}"))
    for name in ("index.html", "report.md"):
        said = (tmp_path / "report" / name).read_text()
        assert "Made by 2 commits of the code" in said and "0ddc0ffee0+ (1 runs)" in said
        assert "not committed" in said


def made_up(strength: float, ratio: float | None, val: float | None, seed=0, **facts) -> dict:
    name = f"l{strength}-r{ratio}-s{seed}"
    return {
        "run": name, "name": name, "stage": "train" if ratio is None else "prune", "seed": seed,
        "parent": None if ratio is None else f"l{strength}-rNone-s{seed}", "dataset": "digits",
        "model": "VGG", "row": "vgg", "recipe": "fast", "strength": strength, "ratio": ratio,
        "accuracy": {"test": 0.5, "val": val}, "channels": {"kept": 5, "total": 10}, "params": 1,
        "macs": 100 - 100 * (ratio or 0), "config": {"data": {"val_size": 400}}, **facts,
    }  # fmt: skip


def suggestion(runs: list[dict]):
    (members,) = sweeps(points(rows(runs))).values()
    return knee(members, paths(runs))


def test_the_knee_is_the_cheapest_cut_within_one_standard_error_of_the_best():
    runs = [
        made_up(0.01, None, 0.95), made_up(0.01, 0.3, 0.90), made_up(0.01, 0.5, 0.89),
        made_up(0.01, 0.7, 0.88), made_up(0.01, 0.8, 0.5),
    ]  # fmt: skip
    found = suggestion(runs)
    assert found.error == pytest.approx((0.9 * 0.1 / 400) ** 0.5)  # 1.5 points
    assert found.point["ratio"] == 0.5 and found.best["ratio"] == 0.3
    assert found.dense.mean("val") == 0.95


def test_the_test_set_has_no_say_in_the_knee():
    runs = [made_up(0.01, None, 0.9), made_up(0.01, 0.3, 0.9), made_up(0.01, 0.5, 0.9)]
    before = suggestion(runs).point["run"]
    for run in runs:
        run["accuracy"]["test"] = 1 - (run["ratio"] or 0)
    assert suggestion(runs).point["run"] == before
    for run in runs:
        run["accuracy"]["val"] = None
    assert suggestion(runs) is None


def test_seeds_that_scatter_widen_the_error_of_the_knee():
    runs = [made_up(0.01, r, v, s) for r in (0.3, 0.5) for s, v in ((0, 0.8), (1, 0.9))]
    for run in runs:
        run["parent"] = None
    assert suggestion(runs).error == pytest.approx(0.05)
    assert suggestion(runs).why == "over seeds"


def test_the_front_holds_what_nothing_else_beats():
    assert front([(3, 0.9), (1, 0.5), (2, 0.4), (2, 0.7), (4, 0.9)]) == [
        (1, 0.5),
        (2, 0.7),
        (3, 0.9),
    ]


@pytest.mark.parametrize(("low", "high"), [(1e4, 1e6), (12e6, 40e6), (97, 103), (1.01, 1.04)])
def test_an_axis_of_costs_has_two_to_four_round_numbers(low, high):
    assert 2 <= len(ticks(low, high)) <= 4 and all(low <= tick <= high for tick in ticks(low, high))


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_the_plots_come_as_files_for_papers(runs, tmp_path, kind):
    only = next(runs.glob("*r0.3-*-ft-s0-*"))
    for name in (only.name, *_parents(only)):
        shutil.copytree(runs / name, tmp_path / name)
    report(config("report", f"runs_dir={tmp_path}", f"figures={kind}"))
    made = {path.name: path.read_bytes() for path in (tmp_path / "report" / "figures").iterdir()}
    assert {f"{name}.{kind}" for name in ("cost", "gammas", "widths", "ratio")} <= {*made}
    begins = {"pdf": b"%PDF", "svg": b"<?xml"}[kind]
    assert all(file.startswith(begins) for file in made.values())


def _parents(folder: Path) -> list[str]:
    parent = json.loads((folder / "result.json").read_text())["parent"]
    return [parent, *_parents(folder.with_name(parent))] if parent else []


def test_other_kinds_of_files_are_refused(runs):
    assert refusal("report", str(runs), "figures=gif") == (
        "figures is one of pdf, svg, png; got 'gif'"
    )


def test_half_written_and_foreign_metrics_are_named_and_passed_over(runs, tmp_path, capsys):
    run = next(run for run in results.find_runs(runs) if run["stage"] == "train")
    whole = (Path(run["folder"]) / "metrics.jsonl").read_text()
    run["folder"] = str(tmp_path)
    assert results.metrics(run) == []
    for text, rows_left in ((whole, 2), (whole[:-20], 1), ('["x"]\n', 0), ('{"x": 1}\n', 0)):
        (tmp_path / "metrics.jsonl").write_text(text)
        assert len(results.metrics(run)) == rows_left
        said = capsys.readouterr().err
        assert ("metrics.jsonl is broken from line" in said) == (text != whole)
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe")
    assert results.metrics(run) == [] and "can't be read" in capsys.readouterr().err


def test_a_page_can_be_made_of_runs_with_broken_metrics(runs, tmp_path):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*/metrics.jsonl"):
        path.write_text('{"epoch": 1}\n{"epo')
    report(config("report", f"runs_dir={tmp_path}"))
    assert "metrics.jsonl" in (tmp_path / "report" / "index.html").read_text()
