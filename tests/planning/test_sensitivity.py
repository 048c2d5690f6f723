"""Which layers can be cut without loss: measured on images held out, kept as it comes."""

import json
from pathlib import Path

import pytest
import torch

import prune
import sensitivity as script
from door import tiny
from helpers import configured, random_scores, toy_graph
from report import report
from sensitivity import measure
from slimming import plan, sensitivity, slim, spare, trace
from slimming.planning.sensitivity import Point
from terminal import refusal
from train import train
from utils.runs import housekeeping


def test_each_layer_is_cut_alone_by_its_weakest_channels():
    graph = toy_graph(10, 4)
    scores = random_scores(graph)
    seen = []

    def evaluate(keep) -> float:
        seen.append({gate: len(kept) for gate, kept in keep.items()})
        for gate, kept in keep.items():
            gone = [i for i in range(len(scores[gate])) if i not in kept.tolist()]
            assert not gone or scores[gate][gone].max() <= scores[gate][kept].min()
        return 1 - 0.01 * (14 - keep.kept)

    points = list(sensitivity(graph, scores, evaluate, (0.29, 0.5, 0.9)))
    assert points[0] == Point("", 14, 0, 1.0)
    told = [(point.layer, point.removed) for point in points[1:]]
    assert told == [("0", 2), ("0", 5), ("0", 9), ("1", 1), ("1", 2), ("1", 3)]
    assert seen[1] == {"0": 8, "1": 4} and seen[-1] == {"0": 10, "1": 1}
    assert [point.accuracy for point in points[1:3]] == [pytest.approx(0.98), pytest.approx(0.95)]


def test_what_is_cut_together_is_one_layer_and_what_a_name_leaves_out_is_whole():
    graph = trace(model := configured("resnet110"), torch.zeros(2, 3, 16, 16))
    scores = random_scores(graph)

    def evaluate(keep) -> float:
        return slim(model, graph, keep)(torch.ones(1, 3, 16, 16)).isfinite().float().mean().item()

    points = list(sensitivity(graph, scores, evaluate, [0.5], only=["stem", "blocks.0.*"]))
    assert [point.layer for point in points] == ["", "stem.1 + blocks.0.body.4", "blocks.0.body.1"]
    rest = [p.layer for p in sensitivity(graph, scores, evaluate, [0.5], exclude="blocks.0")]
    assert "blocks.1.body.1" in rest and not any("blocks.0" in layer for layer in rest)


def test_what_is_known_is_not_evaluated_again():
    graph, count = toy_graph(10, 10), []
    scores = random_scores(graph)
    whole = list(sensitivity(graph, scores, lambda keep: keep.kept / 20))
    known = {(point.layer, point.removed): point.accuracy for point in whole[:7]}

    def evaluate(keep) -> float:
        count.append(1)
        return keep.kept / 20

    assert list(sensitivity(graph, scores, evaluate, known=known)) == whole
    assert len(count) == len(whole) - 7


def test_what_a_layer_can_spare_ends_at_the_first_loss():
    def layer(name: str, *accuracies: float) -> list[Point]:
        return [Point(name, 10, i + 1, reached) for i, reached in enumerate(accuracies)]

    points = [
        Point("", 30, 0, 0.9),
        *layer("free", 0.9, 0.91, 0.895),
        *layer("early", 0.88, 0.9, 0.9),  # a lucky share behind a loss is no promise
        *layer("late", 0.9, 0.895, 0.5),
    ]
    assert spare(points) == {"free": 0.3, "early": 0.0, "late": 0.2}
    assert spare(points, loss=0.03) == {"free": 0.3, "early": 0.3, "late": 0.2}
    # A loss of just that much is one, whatever it is in binary.
    assert spare([Point("", 10, 0, 0.93), Point("a", 10, 1, 0.92)]) == {"a": 0.0}


@pytest.mark.parametrize("shares", [[], [0], [1], [0.5, 1.5], ["0.5"], [True], 2])
def test_shares_that_are_none_are_refused(shares):
    graph = toy_graph(4)
    with pytest.raises(ValueError, match="shares are those of a layer to remove"):
        next(sensitivity(graph, random_scores(graph), lambda keep: 1.0, shares))


# On the command line.

HELD = ("data.val_size=64", "epochs=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return train(tiny("train", tmp_path_factory.mktemp("runs"), *HELD))


def test_it_is_one_command_that_answers(trained, capsys):
    cfg = ("shares=[0.3,0.6]", "only=[features.0,features.4,features.8]")
    folder = measure(tiny("sensitivity", trained.parent, *cfg))
    out = capsys.readouterr().out
    assert "can lose" in out and "features.5" in out and "30 %" in out and "features.12" not in out
    found = json.loads((folder / "sensitivity.json").read_text())
    assert found["parent"] == trained.name and "finished" in found
    assert len(found["points"]) == 1 + 3 * 2 and (folder / "sensitivity.svg").stat().st_size
    before = {file: file.read_bytes() for file in folder.iterdir()}
    assert measure(tiny("sensitivity", trained.parent, *cfg, "loss=50")) == folder  # nothing anew
    assert "is finished" in capsys.readouterr().out
    assert before == {file: file.read_bytes() for file in folder.iterdir()}
    (layers,) = {len(p) for p in found["points"]}
    assert layers == 4


def test_the_numbers_are_those_of_a_cut_by_hand(trained):
    from engine import evaluate
    from slimming import Slimming, load, recalibrate
    from utils.runs.parent import Parent
    from utils.training.hardware import choose

    folder = measure(tiny("sensitivity", trained.parent, "shares=[0.5]", "only=[features.8]"))
    points = json.loads((folder / "sensitivity.json").read_text())["points"]
    model, hardware = load(trained), choose(precision="fp32")
    data = Parent.open(trained).data(None, hardware)
    graph = trace(hardware.place(model), torch.zeros(2, *data.input_shape))
    (gate,) = {layer for layer, *_ in points if layer}
    size = len(graph.gates[gate])
    keep = plan(graph, Slimming().scores(model, graph), (size // 2) / size, only=[gate])
    thin = slim(model, graph, keep)
    recalibrate(thin, list(data.sample(128, seed=0)))
    assert points[1] == [
        gate,
        size,
        size // 2,
        evaluate(thin, data, data.val, hardware)["accuracy"],
    ]


def test_the_test_set_is_never_looked_at(trained, monkeypatch):
    looked = []
    evaluate = prune.evaluate
    monkeypatch.setattr(
        prune,
        "evaluate",
        lambda m, data, split, h: (looked.append(split), evaluate(m, data, split, h))[1],
    )
    measure(tiny("sensitivity", trained.parent, "shares=[0.4]", "only=[features.0]"))
    assert looked and all(len(split) == 64 for split in looked)  # 96 are for testing


def test_without_images_held_out_it_says_how_to_have_some(tmp_path):
    train(tiny("train", tmp_path, "epochs=1"))
    with pytest.raises(ValueError, match="never on the test set, .* train with data.val_size=N"):
        measure(tiny("sensitivity", tmp_path))
    assert not [*tmp_path.glob("*sensitivity*")]


def test_images_that_were_trained_on_are_said(tmp_path, capsys):
    train(tiny("train", tmp_path, "epochs=1"))
    measure(tiny("sensitivity", tmp_path, "data.val_size=32", "shares=[0.5]", "only=features.0"))
    assert "was trained on some of these validation images" in capsys.readouterr().out


def test_stopped_in_the_middle_it_keeps_what_was_measured(trained, monkeypatch, capsys):
    words = ("shares=[0.2,0.5,0.8]", "only=[features.*]", "method=l1_norm")
    whole = json.loads(
        (measure(tiny("sensitivity", trained.parent, *words)) / script.FILE).read_text()
    )
    elsewhere = (*words, f"runs_dir={trained.parent / 'again'}", f"ckpt={trained}")
    cfg, evaluate, done = tiny("sensitivity", trained.parent, *elsewhere), prune.evaluate, []

    def until(most):
        def stop(*arguments):
            if len(done) == most:
                raise KeyboardInterrupt
            done.append(1)
            return evaluate(*arguments)

        return stop

    for most in (5, 9):  # twice
        monkeypatch.setattr(prune, "evaluate", until(most))
        with pytest.raises(KeyboardInterrupt):
            measure(cfg)
        (folder,) = (trained.parent / "again").glob("*sensitivity*")
        assert len(json.loads((folder / script.FILE).read_text())["points"]) == most
    (left,) = housekeeping.folders(trained.parent / "again")
    assert (left.stage, left.state) == ("sensitivity", "interrupted after 9 points")
    monkeypatch.setattr(prune, "evaluate", until(-1))
    measure(cfg)
    found = json.loads((folder / script.FILE).read_text())
    assert found["points"] == whole["points"] and len(done) == len(whole["points"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"points": [["a", 1]]}', "NaN"])
def test_a_broken_file_is_refused_in_a_sentence(trained, text):
    words = ("shares=[0.5]", "only=[features.4]")
    folder = measure(tiny("sensitivity", trained.parent, *words))
    before = (folder / script.FILE).read_text()
    (folder / script.FILE).write_text(text)
    with pytest.raises(ValueError, match="is broken .* delete it to measure anew"):
        measure(tiny("sensitivity", trained.parent, *words))
    (folder / script.FILE).write_text(before)


def test_it_stands_beside_the_runs_and_in_no_report(trained, capsys):
    folder = measure(tiny("sensitivity", trained.parent, "shares=[0.5]", "only=[features.0]"))
    (own,) = [one for one in housekeeping.folders(trained.parent) if one.path == folder]
    assert (own.stage, own.state, own.strange) == ("sensitivity", "finished", None)
    assert own.parent == trained.name
    report(tiny("report", trained.parent))
    said = capsys.readouterr()
    assert "sensitivity" not in said.err
    rows = json.loads((trained.parent / "report" / "report.json").read_text())
    assert [row["run"] for row in rows] == [trained.name]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("shares=[0.5,1]", "shares are those of a layer"),
        ("loss=0", "loss one of points above 0"),
        ("recalibrate=-1", "recalibrate is a number of training images"),
        ("coupled=maybe", "coupled is one of"),
        ("unscored=maybe", "unscored is one of prune, keep; got 'maybe'"),
        ("combine=abc", "combine is one of"),
        ("exclude=[head]", "exclude=head fits no layer"),
        ("ratio=0.5", "there is no option 'ratio'"),
    ],
)
def test_a_wrong_option_is_one_sentence(trained, words, sentence):
    options = (words, f"ckpt={trained}", f"runs_dir={trained.parent}", "dry_run=true")
    assert sentence in refusal("sensitivity", *options)


def test_a_dry_run_says_how_much_there_is_to_measure(trained, capsys):
    cfg = tiny("sensitivity", trained.parent, "shares=[0.35]", "only=[features.8]", "dry_run=true")
    assert not measure(cfg).exists()
    assert "would be computed: 2 networks to evaluate" in capsys.readouterr().out
