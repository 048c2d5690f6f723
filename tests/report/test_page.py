"""The page: whole, true to the results, harmless, and honest about what is missing."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from door import ROOT, config, tiny
from made_up import chain, read, run, story
from pipeline import pipeline
from report import report
from terminal import refusal
from train import train
from utils.report.page import content, page
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
    """Tables as lists of rows, sections by id, data by id, and whether every tag was closed."""

    VOID = ("meta", "link", "br", "input")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.data: dict[str, str] = {}
        self.tables: list[list[list[str]]] = []
        self.problems: list[str] = []
        self._section = ""
        self.feed(text)
        self.problems += [f"{tag} stays open" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        self._section = (
            facts["id"] if tag in ("section", "script") and "id" in facts else self._section
        )
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        if tag not in self.VOID:
            self.problems.append(f"<{tag}/> is none of HTML's")

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        self.sections[self._section] = self.sections.get(self._section, "") + data
        if self.open and {"td", "th"} & {*self.open}:
            self.tables[-1][-1][-1] += data


def charts(text: str) -> dict[str, dict]:
    """{"cost-0": a Vega-Lite description}"""
    (found,) = re.findall(r'<script[^>]* id="charts">(.*?)</script>', text, flags=re.S)
    return json.loads(found)


def test_it_is_whole(text):
    read = Reader(text)
    assert not read.problems
    assert {"results", "runs", *PLOTS} - {"compare"} <= {*read.sections}
    ids = re.findall(r'<\w+[^>]*\bid="([^"]*)"', text)
    assert len(ids) == len({*ids}), "a name twice would send a link to the wrong place"
    targets = [t for t in re.findall(r'<a href="#([^"]*)"', text) if not t.startswith("run=")]
    assert targets and {*targets} <= {*ids}
    places = re.findall(r'data-chart="([^"]*)"', text)
    assert sorted(places) == sorted(charts(text)), "each description has its place"


def test_it_loads_nothing(text):
    """But for the namespaces and documents that Vega's own code names."""
    own = text.replace(page.bundle(), "").replace("https://vega.github.io/schema/", "")
    assert "http:" not in own and "https:" not in own and "//cdn" not in own
    loads = re.findall(r'<\w+[^>]*(?:src|href)="([^"]*)"', own) + re.findall(r"url\(([^)]*)\)", own)
    assert all(load.startswith(("#", "data:")) for load in loads)
    assert "@import" not in own and "fetch(" not in own and "<iframe" not in own


def test_every_colour_has_one_for_the_night(text):
    own = text.replace(page.bundle(), "")
    night = re.findall(r"prefers-color-scheme: dark\) \{(.*?)\n\}", own, flags=re.S)
    for variable in {*re.findall(r"var\((--\w+)\)", own)}:
        assert any(f"{variable}: #" in block for block in night), variable


def test_its_numbers_are_those_of_the_results(runs, text):
    by_name = {
        path.parent.name: json.loads(path.read_text()) for path in runs.glob("*/result.json")
    }
    tables = [(table[0], table[1:]) for table in Reader(text).tables]
    (every,) = [body for head, body in tables if head[0] == "run"]
    assert {line[0] for line in every} == {*by_name}
    for line in every:
        accuracy = by_name[line[0]]["accuracy"]
        assert line[1:3] == [f"{100 * accuracy[which]:.2f}" for which in ("test", "val")]
    head, body = tables[0]
    assert head[:3] == ["network", "test %", "val %"], "what one looks for comes first"
    baselines = [r["accuracy"]["test"] for r in by_name.values() if r["strength"] == 0]
    (mean,) = [line for line in body if line[0] == "no penalty, uncut"]
    assert mean[1].startswith(f"{50 * sum(baselines):.2f} ± ")


def test_every_row_leads_to_a_run_that_the_page_knows(runs, text):
    known = json.loads(re.search(r'id="details">(.*?)</script>', text, flags=re.S)[1])["runs"]
    assert {*known} == {path.parent.name for path in runs.glob("*/result.json")}
    rows = re.findall(r'<tr[^>]*>\s*<td[^>]*><a href="#run=([^"]*)"', text)
    assert len(rows) >= len(known) + 4 and {*rows} <= {*known}


def test_two_runs_can_be_set_beside_each_other(runs):
    told = read(runs)
    known = content.details(told)
    for one in told.runs:
        shown = known["runs"][one["run"]]
        whole = {**known["usual"][one["stage"]], **shown["settings"]}
        whole = {name: value for name, value in whole.items() if value is not None}
        assert whole == told.settings[one["run"]], "usual and own settings together are all"
        assert shown["layers"], "layers, with what is left of them"


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
    said = Reader(text).sections["runs"]
    titles = {plot.name: plot.title for plot in page.PLOTS}
    for name in ("grid", "compare"):
        assert f'id="{name}"' not in text and f'<a href="#{name}"' not in text
        assert titles[name] in said
    assert "ratio=0.3,0.5,0.7" in said and "method=slimming,gamma_local" in said


@pytest.mark.parametrize("suggested", [True, False])
def test_a_headline_is_a_suggestion_or_the_only_thin_network(suggested):
    """The test set puts nothing forward."""
    cuts = [{"ratio": 0.3}, {"ratio": 0.6}]
    val = {"val": 0.7} if suggested else {}
    config = {"config": {"data": {"val_size": 400}}} if suggested else {}
    told = story(run("d", strength=0, test=0.9, **val, **config), *(
        chain(0, {**val, **config}, {**cut, **val, "config": config.get("config")},
              {**val, **config, "test": 0.8, "macs": 1}) for cut in cuts
    ))  # fmt: skip
    found = content.headlines(told)
    assert len(found) == suggested
    (only,) = content.headlines(story(run("d", strength=0, test=0.9), chain()))
    assert [number for number, _ in only[1]] == ["90.00 %", "70.00 %", "100.0 %", "100.0 %"]


def test_runs_of_several_commits_are_marked(runs, tmp_path):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    other = next(tmp_path.glob("*l0-s1-*/result.json"))
    other.write_text(re.sub(r'"commit": "[^"]*"', '"commit": "0ddc0ffee0+"', other.read_text()))
    report(config("report", f"runs_dir={tmp_path}"))
    for name in ("index.html", "report.md"):
        said = (tmp_path / "report" / name).read_text()
        assert "Made by 2 commits of the code" in said and "0ddc0ffee0+ (1 runs)" in said
        assert "not committed" in said


def made_up(strength: float, ratio: float | None, val: float | None, seed=0) -> dict:
    facts = {"macs": 100 - 100 * (ratio or 0), "config": {"data": {"val_size": 400}}}
    facts |= {"strength": strength, "ratio": ratio, "seed": seed, "val": val, "test": 0.5}
    if ratio is None:
        return run(f"l{strength}-s{seed}", **facts)
    return run(f"l{strength}-r{ratio}-s{seed}", "prune", f"l{strength}-s{seed}", **facts)


def suggestion(runs: list[dict]):
    (sweep,) = story(runs).sweeps
    return sweep.knee


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
    for one in runs:
        one["accuracy"]["test"] = 1 - (one["ratio"] or 0)
    assert suggestion(runs).point["run"] == before
    for one in runs:
        one["accuracy"]["val"] = None
    assert suggestion(runs) is None


def test_seeds_that_scatter_widen_the_error_of_the_knee():
    runs = [made_up(0.01, None, 0.8, s) for s in (0, 1)]
    runs += [made_up(0.01, r, v, s) for r in (0.3, 0.5) for s, v in ((0, 0.8), (1, 0.9))]
    assert suggestion(runs).error == pytest.approx(0.05)
    assert suggestion(runs).why == "over seeds"


def test_the_sentence_of_a_knee_names_what_it_suggests(tmp_path):
    """A repair is part of the name: without it the number could not be found again."""
    told = read(ROOT / "results" / "after_cut")
    found = [sweep for sweep in told.sweeps if sweep.knee]
    text = page.markdown(told, {})
    for sweep in found:
        assert sweep.names[sweep.knee.point] in text
        same = [p for p in sweep.cuts if sweep.names[p] == sweep.names[sweep.knee.point]]
        assert same == [sweep.knee.point]
    assert any("refit + recalibrated" in sweep.names[sweep.knee.point] for sweep in found)


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_the_plots_come_as_files_for_papers(runs, tmp_path, kind):
    only = next(runs.glob("*r0.3-*-ft-s0-*"))
    for name in (only.name, *_parents(only)):
        shutil.copytree(runs / name, tmp_path / name)
    report(config("report", f"runs_dir={tmp_path}", f"figures={kind}"))
    made = {path.name: path.read_bytes() for path in (tmp_path / "report" / "figures").iterdir()}
    assert {f"{name}.{kind}" for name in ("cost", "gammas", "layers", "ratio")} <= {*made}
    begins = {"pdf": b"%PDF", "svg": b"<svg"}[kind]
    assert all(file.startswith(begins) for file in made.values())


def _parents(folder: Path) -> list[str]:
    parent = json.loads((folder / "result.json").read_text())["parent"]
    return [parent, *_parents(folder.with_name(parent))] if parent else []


def test_other_kinds_of_files_are_refused(runs):
    assert refusal("report", str(runs), "figures=gif") == (
        "figures is one of pdf, svg, png; got 'gif'"
    )


def test_half_written_and_foreign_metrics_are_named_and_passed_over(runs, tmp_path, capsys):
    one = next(one for one in results.find_runs(runs) if one["stage"] == "train")
    whole = (Path(one["folder"]) / "metrics.jsonl").read_text()
    one["folder"] = str(tmp_path)
    assert results.metrics(one) == []
    for text, rows_left in ((whole, 2), (whole[:-20], 1), ('["x"]\n', 0), ('{"x": 1}\n', 0)):
        (tmp_path / "metrics.jsonl").write_text(text)
        assert len(results.metrics(one)) == rows_left
        said = capsys.readouterr().err
        assert ("metrics.jsonl is broken from line" in said) == (text != whole)
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe")
    assert results.metrics(one) == [] and "can't be read" in capsys.readouterr().err


def test_a_page_can_be_made_of_runs_with_broken_metrics(runs, tmp_path):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*/metrics.jsonl"):
        path.write_text('{"epoch": 1}\n{"epo')
    report(config("report", f"runs_dir={tmp_path}"))
    assert "metrics.jsonl" in (tmp_path / "report" / "index.html").read_text()


def test_long_charts_are_printed_one_at_a_time(tmp_path):
    """A contest of 40 pairs is three sheets long: the others of its kind stay on the screen."""
    told = story(*(
        [{**one, "folder": str(tmp_path)} for one in chain(0, training, cut)]
        for training in ({"strength": 0.001 * n, "epochs": 3} for n in range(1, 12))
        for method in ("slimming", "l1_norm", "random")
        for cut in ({"target": {"macs": share}, "method": method} for share in (0.3, 0.5))
    ))  # fmt: skip
    text = page.page(told, page.draw(told))
    for name, screen in {"compare": [False, True], "cost": [False, False]}.items():
        (section,) = re.findall(rf'<section id="{name}">.*?</section>', text, flags=re.S)
        panels = re.findall(r'<figure class="panel([ \w]*)"', section)
        assert ["screen" in panel for panel in panels] == screen
