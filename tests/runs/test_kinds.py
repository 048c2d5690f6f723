"""Whatever stands in a run's files: a value of a wrong type is named with its file, and no other
run is lost."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from door import ROOT, TINY
from terminal import terminal
from utils.report import tables
from utils.report.story import Story
from utils.runs.folder import newest, read_result
from utils.runs.results import check, find_runs, metrics

ODD = [None, "x", 3.5, -1, [], {}, True, float("nan"), [None], {"a": "x"}, 10**400, "1"]
MISSING = object()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A sweep of two lambdas with a validation split, and a control."""
    folder = tmp_path_factory.mktemp("runs")
    words = [*TINY, "data.val_size=32", "epochs=2", f"runs_dir={folder}", "recalibrate=32"]
    for more in (["method.strength=0.01"], ["finetune.scratch=E"]):
        code, _, err = terminal("pipeline", *words, *more, "ratio=0.4")
        assert code == 0, err
    (one,) = folder.glob("*-l0.01-s0-*")
    times = {"median_ms": 2.0, "q1_ms": 1.0, "q3_ms": 3.0}
    latency = {"machine": {"cpu": "a", "threads": 1}, "batch": {"1": times, "64": times}}
    (one / "latency.json").write_text(json.dumps(latency))
    return folder


def one_of(runs: Path, stage: str) -> Path:
    """The result of a run that others stand on, if any do."""
    found = [
        path
        for path in runs.glob("*/result.json")
        if json.loads(path.read_text())["stage"] == stage
    ]
    return sorted(found)[0]


def places(value, at=()):
    """Every way into a nested mapping, and into the first item of a list."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*at, key)
            yield from places(item, (*at, key))
    elif isinstance(value, list) and value:
        yield (*at, 0)


def changed(whole, at, value):
    new = copy.deepcopy(whole)
    inner = new
    for key in at[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    return new


def told(read):
    """All that a report computes, but for its pictures."""
    story = Story(read)
    for run in story.runs:
        metrics(run)
    suggested = [sweep.knee for sweep in story.sweeps]
    return story.names, suggested, tables.results(story), tables.contests(story)


@pytest.mark.parametrize("stage", ["train", "prune", "finetune"])
def test_any_odd_value_is_taken_or_named(runs, tmp_path, capsys, stage):
    for run in runs.glob("*-l0.01-*"):
        shutil.copytree(run, tmp_path / run.name)
    path = one_of(tmp_path, stage)
    whole, every = json.loads(path.read_text()), len(find_runs(tmp_path))
    tried = 0
    for number, at in enumerate(places(whole)):
        nested = at[0] in ("config", "gammas", "widths", "layers", "versions") and len(at) > 1
        for odd in (*ODD, MISSING)[number % 6 :: 6] if nested else (*ODD, MISSING):
            path.write_text(json.dumps(changed(whole, at, odd)))
            capsys.readouterr()
            read = find_runs(tmp_path)
            said = capsys.readouterr().err
            tried += 1
            if len(read) < every:
                assert len(read) == every - 1 and str(path) in said, (at, odd)
                continue
            try:
                told(read)
            except Exception as error:
                raise AssertionError(f"{'.'.join(map(str, at))} = {odd!r}: {error!r}") from error
    assert tried > 300


FILES = {
    "seed true": ('"seed": 0', '"seed": true', "seed is a whole number; got true"),
    "accuracy NaN": ('"val": ', '"val": NaN, "v": ', "is broken (NaN is no JSON)"),
    "too large": ('"macs": ', '"macs": 1e999, "m": ', "is broken (1e999... is too large a number)"),
    "schema text": ('"schema": 1', '"schema": "1"', 'has the schema "1", which is no whole number'),
    "schema true": ('"schema": 1', '"schema": true', "has the schema true"),
    "accuracy 98": ('"test": 0.', '"test": 98.', "accuracy.test is a number from 0 to 1; got 98."),
    "date": ('"finished": "', '"finished": "the ', "finished is a date such as"),
    "deep": ('"label": ', f'"label": {"[" * 10**5}{"]" * 10**5}, "l": ', "is broken"),
}


def test_the_reason_is_named(runs, tmp_path, capsys):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    path = one_of(tmp_path, "finetune")
    text, every = path.read_text(), len(find_runs(tmp_path))
    for before, after, words in FILES.values():
        assert before in text
        path.write_text(text.replace(before, after))
        capsys.readouterr()
        assert len(find_runs(tmp_path)) == every - 1
        said = capsys.readouterr().err
        assert said.startswith(f"{path} ") and words in said and said.count("\n") == 1, said


def test_the_commands_go_on(runs, tmp_path):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    path = one_of(tmp_path, "finetune")
    path.write_text(path.read_text().replace('"seed": 0', '"seed": "zero"'))
    code, out, err = terminal("report", f"runs_dir={tmp_path}")
    assert code == 0 and f'{path} is not sound: seed is a whole number; got "zero"' in err
    assert out.count("not fine-tuned") + out.count("scratch-E") == 2
    code, out, err = terminal("report", "list=true", f"runs_dir={tmp_path}")
    assert code == 0 and "unreadable" in out


def test_a_run_that_stands_on_itself_is_named(runs, tmp_path, capsys):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    train, cut = (one_of(tmp_path, stage) for stage in ("train", "prune"))
    every = len(find_runs(tmp_path))
    whole = json.loads(train.read_text())
    child = next(
        p
        for p in tmp_path.glob("*/result.json")
        if whole["name"] in p.read_text()[:1000] and p != train
    )
    for above, lost in ((whole["name"], 1), (json.loads(child.read_text())["name"], 2)):
        train.write_text(json.dumps({**whole, "parent": above}))
        capsys.readouterr()
        read = find_runs(tmp_path)
        said = capsys.readouterr().err
        assert len(read) == every - lost and said.count("stands on itself: passed over") == lost
        assert str(train) in said
        told(read)


@pytest.mark.parametrize(
    "at", [("machine",), ("batch",), ("batch", "1"), ("batch", "64", "median_ms")]
)
def test_odd_times_are_named_and_the_run_stays(runs, tmp_path, capsys, at):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.glob("*/latency.json")
    whole, every = json.loads(path.read_text()), len(find_runs(tmp_path))
    for odd in ODD:
        path.write_text(json.dumps(changed(whole, at, odd)))
        capsys.readouterr()
        read = find_runs(tmp_path)
        timed = [run for run in read if run["latency"]]
        assert len(read) == every
        assert timed or f"{path} is broken (" in capsys.readouterr().err
        told(read)


def test_odd_rows_are_named_and_those_before_them_stay(runs, tmp_path, capsys):
    (path,) = runs.glob("*-l0.01-s0-*/metrics.jsonl")
    first, second = map(json.loads, path.read_text().splitlines())
    (tmp_path / "metrics.jsonl").touch()
    for at in places(second):
        for odd in ODD:
            rows = [first, changed(second, at, odd)]
            (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            capsys.readouterr()
            read = metrics({"folder": tmp_path})
            said = capsys.readouterr().err
            assert read[0] == first
            assert len(read) == 2 or "metrics.jsonl is broken from line 2 on (" in said


def test_every_committed_result_is_sound():
    paths = [*(ROOT / "results").glob("**/result.json")]
    assert len(paths) > 200
    assert [path for path in paths if check(json.loads(path.read_text()))] == []


def test_other_commands_name_it_too(runs, tmp_path, capsys):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    path = one_of(tmp_path, "train")
    path.write_text(path.read_text().replace('"strength": 0', '"strength": [0], "s": 0'))
    with pytest.raises(
        ValueError, match="strength is a number, 0 or more; got .0.: use the version"
    ):
        read_result(path.parent)
    newest(tmp_path, lambda result: result["stage"] == "train", "there is none")
    assert f"{path} is not a result of this version" in capsys.readouterr().err
