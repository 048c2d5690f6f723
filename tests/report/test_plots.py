"""Charts: what they show is what the results say, nothing is hidden, and everything is named."""

import json
import re

import pytest

from door import ROOT
from made_up import chain, read, run, story
from utils.report.compare import paired
from utils.report.page.page import PLOTS
from utils.report.plots import marks
from utils.report.plots.compared import compared
from utils.report.plots.cost import cost, front
from utils.report.plots.curves import curves
from utils.report.plots.gammas import evolution, gammas
from utils.report.plots.grid import cells, grid
from utils.report.plots.layers import layers
from utils.report.plots.ratio import ratio

ALL = ROOT / "results"
GOALS = ({"ratio": 0.3}, {"ratio": 0.5}, {"target": {"macs": 0.5}}, {"target": {"macs": 0.3}})
HOSTILE = "</script><script>alert(1)</script>&'\"${x}"
METHODS = ("slimming", "gamma_local", "l1_norm", "own_idea")


@pytest.fixture(scope="module")
def published():
    return read(ALL / "compare_cifar10")


@pytest.fixture(scope="module")
def mixed():
    return read(ALL)


def rows(panel: marks.Panel) -> list[dict]:
    return marks.spec(panel.chart)["data"]["values"]


def domain(panel: marks.Panel, channel: str) -> list[float]:
    """The widest that a layer asks for; a chart without one chooses for itself."""
    layered = marks.spec(panel.chart)["layer"]
    scales = [layer["encoding"].get(channel, {}).get("scale") or {} for layer in layered]
    return next(scale["domain"] for scale in scales if "domain" in scale)


def every_panel(told) -> list[marks.Panel]:
    return [panel for plot in PLOTS for panel in plot.draw(told).panels]


def test_every_chart_is_valid_describes_itself_and_can_be_filtered(mixed):
    found = every_panel(mixed)
    assert len(found) > 20
    for panel in found:
        panel.chart.to_dict()  # Altair checks it by Vega-Lite's schema
        spec = marks.spec(panel.chart)
        assert spec["width"] == "container" and len(spec["description"]) > 20
        assert {"text", "method", "penalty"} <= {param["name"] for param in spec["params"]}
        for row in spec["data"]["values"]:
            assert row["name"] and row["method"] and row["penalty"] and row["run"]
    titles = [panel.title for panel in found]
    assert len({*titles}) == len(titles), "no two charts are called alike"


def test_a_plot_has_six_charts_at_most_and_says_what_it_leaves_out(mixed):
    for plot in PLOTS:
        drawn = plot.draw(mixed)
        assert len(drawn.panels) <= marks.PANELS
    assert re.search(r"6 of \d+ sweeps", grid(mixed).note)
    assert re.search(r"The first \d of \d\d ways to cut", ratio(mixed).note)


def test_nothing_to_draw_says_what_makes_some():
    told = story(run("alone", gammas={}, folder="nowhere"))
    for plot in PLOTS:
        drawn = plot.draw(told)
        assert not drawn.panels and ("python" in drawn.note or "copy" in drawn.note)


def test_names_of_strangers_stay_text():
    told = story([run(HOSTILE, row=f"{HOSTILE}-digits-l0", gammas={HOSTILE: [0.5]}, widths={})])
    drawn = {"gammas": gammas(told), "layers": layers(told)}
    text = marks.charts_json(drawn)
    assert "<" not in text and "alert(1)" in text
    assert json.loads(text)["gammas-0"]["data"]["values"][0]["run"] == HOSTILE


def test_what_json_does_not_know_is_missing():
    (row,) = marks.data([{"a": float("nan"), "b": [float("inf"), 1 / 3], "c": 12345678}]).values
    assert row == {"a": None, "b": [None, 0.333333], "c": 12345678}


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_file_has_all_panels_in_the_light_colours(published, tmp_path, kind):
    path = tmp_path / f"cost.{kind}"
    marks.save(cost(published), path)
    made = path.read_bytes()
    assert made.startswith({"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF"}[kind])
    if kind == "svg":
        text = made.decode()
        assert "var(--" not in text and marks.colours()["blue"] in text
        assert "MACs per image" in text and "parameters" in text


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear))


def test_colours_can_be_seen_on_their_ground():
    """WCAG 1.4.11: 3:1 for graphics, in both themes."""
    light, _, dark = marks.CSS.read_text().partition("@media")
    for theme in (light, dark):
        found = dict(re.findall(r"--(\w+): (#\w{6})", theme))
        assert {*found} == {*marks.NAMES}
        ground = _luminance(found["paper"])
        for name in {*found} - {"paper", "rule"}:
            own = _luminance(found[name])
            high, low = max(own, ground), min(own, ground)
            assert (high + 0.05) / (low + 0.05) >= 3, name


def test_a_method_looks_the_same_wherever_it_is_shown():
    looks = [marks.look(name) for name in METHODS]
    assert looks[0] == (marks.BLUE, "circle") and len({*looks}) == len(METHODS)
    few, many = (
        story(*(chain(0, {}, {"method": name, "target": {"macs": 0.5}}) for name in names))
        for names in (METHODS[1:2], METHODS)
    )
    for told in (few, many):
        scale = marks.spec(cost(told).panels[0].chart)["layer"][2]["encoding"]["color"]["scale"]
        named = dict(zip(scale["domain"], scale["range"], strict=True))
        assert named["gamma_local, fine-tuned"] == marks.look("gamma_local")[0]


def test_a_cell_of_a_grid_is_one_network_and_its_axis_says_what_goes_or_stays(mixed):
    for sweep in mixed.sweeps:
        places = [(row, column) for row, column, _ in cells(sweep)]
        assert len({*places}) == len(places)
        shown = {point for _, _, point in cells(sweep)}
        assert shown == {*sweep.cuts, *sweep.uncut}
    told = story(*(chain(0, {}, goal) for goal in GOALS))
    goes, stays = grid(told).panels
    for panel, title, order in (
        (goes, "share of channels removed", ["uncut", "30 %", "50 %"]),
        (stays, "share of MACs kept", ["uncut", "50 %", "30 %"]),
    ):
        x = marks.spec(panel.chart)["layer"][0]["encoding"]["x"]
        assert x["axis"]["title"] == title and x["sort"] == order


def test_a_grid_shows_validation_only_where_every_cell_has_some_and_frames_the_knee():
    known = [
        chain(0, {"val": 0.9}, {"ratio": share, "val": val}, {"val": val, "test": 0.5})
        for share, val in ((0.3, 0.9), (0.5, 0.9), (0.7, 0.2))
    ]
    for runs in known:
        runs[0]["config"] = {"data": {"val_size": 400}}
    (panel,) = grid(story(*known)).panels
    framed = [row for row in rows(panel) if row["knee"]]
    assert [row["text"] for row in framed] == ["90.0"] and "validation" in panel.chart.description
    known[0][-1]["accuracy"]["val"] = None
    (panel,) = grid(story(*known)).panels
    assert {row["text"] for row in rows(panel)} == {"80.0", "50.0"}
    assert "test accuracy" in panel.chart.description and not any(r["knee"] for r in rows(panel))


def test_fronts_are_of_all_networks_also_of_those_below_the_view(published):
    points = [line.end for line in published.lines]
    for panel, column in zip(cost(published).panels, ("macs", "params")):
        best = front(points, column)
        for point in best:
            as_cheap = [p for p in points if p.mean(column) <= point.mean(column)]
            assert max(p.mean("test") for p in as_cheap) == point.mean("test")
        line = marks.spec(panel.chart)["layer"][0]["data"]["values"]
        assert [step["cost"] for step in line] == pytest.approx(
            [p.mean(column) for p in best], rel=1e-5
        )
        assert len(rows(panel)) == len(points), "nothing is left out, only below the view"
    low, high = domain(panel, "y")
    assert (
        any(row["test"] < low for row in rows(panel))
        and "More than 10 points" in cost(published).note
    )


def test_error_bars_lie_within_the_axis_and_few_seeds_are_hollow():
    told = story(
        *(chain(seed, {}, {}, {"test": test}) for seed, test in enumerate((0.9, 1.0, 0.8)))
    )
    for panel in cost(told).panels:
        low, high = domain(panel, "y")
        assert all(low < row["low"] <= row["high"] < high for row in rows(panel))
        assert all(row["solid"] for row in rows(panel))
    alone = cost(story(*(chain(0, {}, goal) for goal in GOALS)))
    assert not any(row["solid"] for row in rows(alone.panels[0])) and "winner's curse" in alone.note


def test_times_of_two_machines_are_not_compared_and_no_panel_is_empty():
    runs = [*{one["run"]: one for goal in GOALS for one in chain(0, {}, goal)}.values()]
    assert len(cost(story(runs)).panels) == 2
    for number, one in enumerate(runs):
        machine = {"cpu": "A" if number < 7 else "B", "threads": 1}
        one["latency"] = {"machine": machine, "batch": {"64": {"median_ms": 1.0 + number}}}
    *_, times = cost(story(runs)).panels
    assert "ms for a batch of 64 on A (1 thread)" in times.title
    assert {row["cost"] for row in rows(times)} <= {1.0 + n for n in range(7)}


def test_contests_show_each_pair_on_one_axis(mixed):
    drawn = compared(mixed)
    assert len(drawn.panels) == len(mixed.contests)
    assert len({tuple(domain(panel, "x")) for panel in drawn.panels}) == 1
    low, high = domain(drawn.panels[0], "x")
    for panel, contest in zip(drawn.panels, mixed.contests, strict=True):
        shown = rows(panel)
        assert len({row["pair"] for row in shown}) == len(shown) == len(contest.pairs)
        for row, (ours, other) in zip(shown, contest.pairs, strict=True):
            difference = paired(ours.by_seed(), other.by_seed())
            assert row["mean"] == pytest.approx(difference.mean, rel=1e-4)
            assert low <= row["low"] + 1e-4 and row["high"] <= high + 1e-4
            assert row["low"] <= row["mean"] <= row["high"]
            assert len(row["each"]) == difference.n
            assert (row["found"] != "can't tell") == (difference.verdict in ("better", "worse"))
    cut = [
        row for panel in drawn.panels for row in rows(panel) if row["low_cut"] or row["high_cut"]
    ]
    assert cut and all(row["seeds"] < 3 or row["low_cut"] for row in cut)
    assert all(row["difference"] for row in cut), "the tooltip says the whole figure"


def test_a_line_over_the_ratio_joins_what_differs_in_its_goal_only():
    repairs = ({"recalibrate": 0}, {"recalibrate": 64, "variants": {"cut": {"test": 0.1},
               "recalibrated": {"test": 0.4}}})  # fmt: skip
    told = story(
        chain(0, {"strength": 0}, {"ratio": 0.3}),
        *(chain(0, {}, {"ratio": share, **repairs[1]}) for share in (0.3, 0.5, 0.7)),
    )
    whole, near, *_ = ratio(told).panels
    found: dict[str, list[float]] = {}
    for row in rows(whole):
        if not row.get("level"):
            found.setdefault(row["line"], []).append(row["x"])
    assert [*found.values()] == [[30, 50, 70]] * 3, "cut, recalibrated, fine-tuned"
    assert {row["line"] for row in rows(whole) if row.get("level")} == {
        "no penalty, uncut",
        "λ 0.01, uncut",
    }
    low, _ = domain(near, "y")
    assert low > 60, "fine-tuned networks have a scale of their own"


def test_targets_have_an_axis_of_what_stays():
    told = story(*(chain(0, {}, goal) for goal in GOALS[2:]))
    x = marks.spec(ratio(told).panels[0].chart)["layer"][0]["encoding"]["x"]
    assert x["title"] == "share of MACs kept in %" and x["scale"]["reverse"]
    assert not ratio(story(chain(0, {}, {"target": {"macs": 5000}}))).panels, "no share of anything"


def test_histograms_hold_every_gamma_and_their_tallest_bar(published):
    drawn = gammas(published)
    assert len({tuple(domain(panel, "y")) for panel in drawn.panels}) == 1
    assert len({tuple(domain(panel, "x")) for panel in drawn.panels}) == 1
    bars = [row for panel in drawn.panels for row in rows(panel)]
    assert all(sum(row["count"]) == 688 for row in bars), "before any cut"
    tallest = max(max(row["count"]) for row in bars)
    assert tallest == 362 < domain(drawn.panels[0], "y")[1]
    assert [row["name"] for row in bars] == ["no penalty", "λ 0.0002", "λ 0.0008", "λ 0.002"]


def test_layers_show_what_a_cut_left_and_nobody_set_only_what_was_ranked_globally():
    told = story(chain(0, {}, {"widths": {"a": [3, 8], "b": [2, 2]}}))
    (panel,) = layers(told).panels
    assert rows(panel)[0]["after"] == [3, 2] and rows(panel)[0]["before"] == [8, 2]
    assert "nobody set it" in layers(told).note
    gamma_local = chain(0, {}, {"method": "gamma_local", "config": {"scope": "layer"}})
    assert "nobody" not in layers(story(gamma_local)).note
    before = {"a": {"params": 80, "macs": 800, "channels": 8}}
    after = {"a": {"params": 30, "macs": 100, "channels": 3}}
    told = story(chain(0, {"layers": before}, {"layers": after, "widths": {"a": [3, 8]}}))
    assert [panel.title.rpartition(": ")[2] for panel in layers(told).panels] == [
        "5 of 10 channels stay",
        "30 of 80 parameters stay",
        "100 of 800 MACs stay",
    ]


def test_every_fine_tuning_has_a_curve_of_its_own(published):
    drawn = curves(published)
    tuned = [point for point in published.points if point["stage"] == "finetune"]
    shown = [row for panel in drawn.panels[:2] for row in rows(panel)]
    assert len(shown) == 2 * len(tuned) == 2 * len({row["name"] for row in shown})
    assert all(low <= mean <= high for row in shown
               for low, mean, high in zip(row["low"], row["mean"], row["high"]))  # fmt: skip


def test_thousands_of_curves_are_capped_and_said(tmp_path):
    epochs = [{"epoch": e, "train/loss": 1 / e, "train/accuracy": 0.5} for e in range(1, 200)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, epochs)))
    told = story(*(run(f"t{n}", strength=n / 1e4, folder=str(tmp_path)) for n in range(1, 100)))
    drawn = curves(told)
    assert "60 of 99 networks" in drawn.note
    assert all(len(row["epoch"]) == 60 and row["epoch"][-1] == 199 for row in rows(drawn.panels[0]))


def test_a_layer_is_followed_channel_by_channel(published):
    for panel in evolution(published).panels:
        last = [row["gamma"][-1] for row in rows(panel)]
        assert last == sorted(last, reverse=True) and len(last) <= 64
