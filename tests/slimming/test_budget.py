"""Targets are met from below, to within 1 % or with the reason; predictions are what is built."""

import contextlib
import functools
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from door import config, tiny
from helpers import configured, random_plan, random_scores, toy_graph
from prune import PLAINEST, prune, what_to_cut
from slimming import ChannelGraph, plan, slim, trace
from slimming.graph.branches import Branch
from slimming.planning.planner import predict
from train import train
from utils.networks.cost import count_macs
from utils.runs.identity import digest

IMAGE = (3, 16, 16)
NAMES = ("vgg16", "preresnet164", "mobilenet_v2", "densenet40", "resnet110")


@functools.cache
def traced(name: str, coupled: str = "prune"):
    model = configured(name)
    return model, trace(model, torch.zeros(1, *IMAGE), coupled)


def built(name: str, keep, coupled: str = "prune") -> tuple[int, int]:
    model, graph = traced(name, coupled)
    thin = slim(model, graph, keep)
    return sum(p.numel() for p in thin.parameters()), count_macs(thin, IMAGE)


def smallest(graph, scores, options) -> dict[str, int]:
    """What it costs when every layer is at its floor, and every branch is gone that may go."""
    floors = options | {"refill": True, "scope": "global", "dead": "floor"}
    keep = plan(graph, scores, 0.99999, **floors)
    branches = graph.branches if options["dead"] == "bypass" else ()
    gone = {gate: torch.tensor([]).long() for branch in branches for gate in branch.gates}
    return dict(zip(("params", "macs"), predict(graph, replace(keep, keep={**keep, **gone}))))


@st.composite
def wishes(draw):
    names = draw(st.sets(st.sampled_from(["macs", "params"]), min_size=1))
    options = {
        "floor": draw(st.sampled_from([1, 1, 2, 0.1])),
        "refill": draw(st.booleans()),
        "round_to": draw(st.sampled_from([1, 1, 2, 4])),
        "rounding": draw(st.sampled_from(["nearest", "up", "down"])),
        "scope": draw(st.sampled_from(["global", "layer", "normalized"])),
        "combine": draw(st.sampled_from(["mean", "sum", "max", "min", "l2"])),
        "dead": draw(st.sampled_from(["floor", "bypass"])),
        "unread": draw(st.sampled_from(["keep", "remove"])),
    }
    return {name: draw(st.floats(0.02, 1)) for name in sorted(names)}, options


@given(st.sampled_from(NAMES), st.sampled_from(["prune", "keep"]), st.integers(0, 9), wishes())
@settings(max_examples=25, deadline=None)
def test_a_target_is_met_from_below_or_says_why_not(name, coupled, seed, wish):
    target, options = wish
    _, graph = traced(name, coupled)
    scores = random_scores(graph, seed)
    dense = dict(zip(("params", "macs"), predict(graph, {})))
    try:
        keep = plan(graph, scores, target=target, **options)
    except ValueError as error:
        least = smallest(graph, scores, options)
        over = [cost for cost in target if least[cost] > target[cost] * dense[cost]]
        assert over and all(f"{least[cost]:,}" in str(error) for cost in over)
        return
    assert (keep.params, keep.macs) == predict(graph, keep) == built(name, keep, coupled)
    for cost, share in target.items():
        stays = getattr(keep, cost) / dense[cost]
        assert stays <= share
        explained = any(f"target.{cost}={share:g}" in line for line in keep.shortfalls)
        assert explained == (getattr(keep, cost) < 0.99 * math.floor(share * dense[cost]))
    multiple, kept = options["round_to"], {gate: len(index) for gate, index in keep.items()}
    if options["rounding"] != "up" and keep.kept < keep.total and name != "densenet40":
        for gate, ids in graph.gates.items():  # coupled gates: rounded after they were joined
            assert kept[gate] % multiple == 0 or kept[gate] == len(ids) < max(multiple, 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_without_constraints_the_gap_is_small_and_the_ranking_holds(name, share):
    _, graph = traced(name)
    keep = random_plan(graph, None, target={"macs": share})
    most = math.floor(share * predict(graph, {})[1])
    assert 0.98 * most < keep.macs <= most
    assert keep.shortfalls == () or keep.macs < 0.99 * most


def test_what_is_left_of_a_budget_is_too_little_for_any_further_channel():
    layers = [(3, 4), (4, 6), (6, 5)]
    model = nn.Sequential(
        *(m for a, b in layers for m in (nn.Conv2d(a, b, 3), nn.BatchNorm2d(b), nn.ReLU())),
        *(nn.Flatten(), nn.Linear(5, 2)),
    )
    graph, explained = trace(model, torch.zeros(1, 3, 7, 7)), 0
    for share in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        scores = random_scores(graph, int(10 * share))
        keep = plan(graph, scores, target={"macs": share})
        explained += len(keep.shortfalls)
        for gate, ids in graph.gates.items() if keep.shortfalls else ():
            if gone := set(range(len(ids))) - set(keep[gate].tolist()):
                strongest = max(gone, key=scores[gate].tolist().__getitem__)
                more = torch.tensor(sorted([*keep[gate].tolist(), strongest]))
                assert predict(graph, {**keep, gate: more})[1] > share * predict(graph, {})[1]
    assert explained


def test_a_number_above_one_is_absolute_and_one_is_everything():
    _, graph = traced("vgg16")
    dense = predict(graph, {})
    half = random_plan(graph, None, target={"macs": 0.5})
    same = random_plan(graph, None, target={"macs": dense[1] // 2})
    assert half.macs == same.macs
    whole = random_plan(graph, None, target={"macs": 1, "params": 1.0}, round_to=4)
    assert whole.kept == whole.total and whole.shortfalls == ()
    more = random_plan(graph, None, target={"params": 10 * dense[0]})
    assert more.kept == more.total and "nothing has to go" in more.shortfalls[0]


def test_several_targets_hold_together_and_the_one_that_binds_is_named():
    _, graph = traced("resnet110")
    keep = random_plan(graph, None, target={"macs": 0.9, "params": 0.3})
    params, macs = predict(graph, {})
    assert 0.297 * params <= keep.params <= 0.3 * params and keep.macs < 0.89 * macs
    (sentence,) = keep.shortfalls
    assert "target.macs=0.9" in sentence and "target.params binds" in sentence


def test_unread_channels_count_in_the_budget():
    # At equal MACs more channels may stay where unread stream channels go.
    _, graph = traced("densenet40")
    kept = [
        random_plan(graph, None, target={"macs": 0.4}, unread=unread).kept
        for unread in ("keep", "remove")
    ]
    assert graph.streams.size and kept[0] < kept[1]


# Time.


def test_time_is_bisected_and_the_share_is_reported():
    _, graph = traced("vgg16")
    dense, asked = predict(graph, {})[1], []

    def measure(keep):
        asked.append(keep)
        return 0.3 + 0.7 * keep.macs / dense  # what doesn't shrink takes time too

    keep = random_plan(graph, None, target={"latency": 0.6}, measure=measure)
    assert 0.594 <= keep.latency <= 0.6 and keep.shortfalls == ()
    assert keep.latency == measure(keep)
    assert len(asked) < 2 + math.log2(keep.total)
    both = random_plan(graph, None, target={"latency": 0.6, "macs": 0.2}, measure=measure)
    assert both.macs <= 0.2 * dense and "target.macs binds" in both.shortfalls[0]
    with pytest.raises(ValueError, match=r"target.latency=0.2 can't be reached.* % of the time"):
        random_plan(graph, None, target={"latency": 0.2}, measure=measure)


@pytest.mark.parametrize("seed", range(3))
def test_time_that_jumps_is_met_all_the_same(seed):
    _, graph = traced("mobilenet_v2")
    generator = torch.Generator().manual_seed(seed)

    def measure(keep):  # like a GPU's: in steps, and with noise
        noise = 0.05 * torch.rand((), generator=generator).item()
        return math.ceil(20 * keep.kept / keep.total) / 20 + noise

    keep = random_plan(graph, None, target={"latency": 0.5}, measure=measure)
    assert keep.latency <= 0.5
    assert keep.latency >= 0.495 or "nothing was timed nearer" in keep.shortfalls[0]


# Wrong input.


@pytest.mark.parametrize(
    ("target", "words"),
    [
        *(({"macs": value}, "target.macs") for value in (0, -1, math.nan, math.inf, True)),
        *(({"macs": value}, "target.macs") for value in ("0.5", None, torch.tensor(0.5))),
        *((value, "macs, params, latency") for value in ({"flops": 0.5}, {}, 0.5, [("macs", 1)])),
        ({"latency": 0.5}, "needs measure"),
        ({"latency": 12}, "milliseconds"),
        ({"macs": 1e-9}, "can't be reached"),
    ],
)
def test_a_target_that_is_none_is_refused(target, words):
    with pytest.raises(ValueError, match=words):
        random_plan(traced("vgg16")[1], None, target=target)


@pytest.mark.parametrize("share", [math.nan, -1.0, 0.0, math.inf])
def test_a_clock_that_is_wrong_is_refused(share):
    with pytest.raises(ValueError, match="measure says"):
        random_plan(traced("vgg16")[1], None, target={"latency": 0.5}, measure=lambda _: share)


def test_a_ratio_and_a_target_together_are_refused():
    with pytest.raises(ValueError, match="ratio or target, not both"):
        random_plan(toy_graph(4), 0.5, target={"macs": 0.5})
    with pytest.raises(ValueError, match="0 <= ratio < 1"):
        random_plan(toy_graph(4), None)


def test_the_plan_of_another_network_is_refused():
    model, graph = traced("vgg16")
    with pytest.raises(ValueError, match="another network"):
        slim(model, graph, replace(random_plan(graph), fingerprint="of another"))


# Layers that the ranking would empty.


def branched(*sizes: int, branches: tuple[tuple[str, ...], ...]) -> ChannelGraph:
    return replace(toy_graph(*sizes), branches=tuple(Branch(g, "", ()) for g in branches))


def test_a_dead_layer_can_be_an_error_that_names_it_and_the_safe_ratio():
    graph = toy_graph(4, 6)
    scores = {"0": torch.zeros(4), "1": torch.ones(6)}
    assert plan(graph, scores, 0.3, dead="error").safe_ratio == 0.3
    with pytest.raises(ValueError, match=r"'0' would lose every channel: .* 0\.3"):
        plan(graph, scores, 0.4, dead="error")
    with pytest.raises(ValueError, match="'0' would lose every channel"):
        plan(graph, scores, target={"params": 0.5}, dead="error")
    assert plan(graph, scores, 0.8, dead="error", scope="layer").kept == 3


def test_a_branch_goes_when_one_of_its_layers_loses_its_last_channel():
    graph = branched(4, 3, 6, branches=(("0", "1"),))
    scores = {"0": torch.zeros(4), "1": torch.ones(3), "2": torch.arange(2.0, 8.0)}
    keep = plan(graph, scores, 0.54, dead="bypass")
    assert [len(kept) for kept in keep.values()] == [0, 0, 6] and keep.shortfalls == ()
    keep = plan(graph, scores, 0.62, dead="bypass")
    assert [len(kept) for kept in keep.values()] == [0, 0, 5] and keep.shortfalls == ()
    # The whole of it doesn't fit into the goal, so its floor stays, and that is said.
    keep = plan(graph, scores, 0.47, dead="bypass")
    assert [len(kept) for kept in keep.values()] == [1, 1, 5]
    assert keep.shortfalls[0].startswith("'0'")


def test_a_dead_layer_outside_branches_keeps_its_floor_and_says_so():
    graph = branched(4, 3, 6, branches=(("0",),))
    scores = {"0": torch.ones(4), "1": torch.zeros(3), "2": torch.ones(6)}
    keep = plan(graph, scores, 0.5, dead="bypass", floor=2)
    assert len(keep["1"]) == 2 and keep.total - keep.kept == 6
    assert "'1': every channel was to go" in keep.shortfalls[0]


@pytest.mark.parametrize("round_to", [1, 4])
def test_bypassed_branches_of_a_real_network_are_counted_right(round_to):
    _, graph = traced("preresnet164")
    weak = set(graph.branches[0].gates) | set(graph.branches[3].gates)
    scores = random_scores(graph)
    scores = {gate: score * (1e-3 if gate in weak else 1) for gate, score in scores.items()}
    keep = plan(graph, scores, target={"macs": 0.5}, dead="bypass", round_to=round_to)
    gone = {gate for gate, kept in keep.items() if not len(kept)}
    assert weak <= gone < set(graph.gates)
    assert (keep.params, keep.macs) == built("preresnet164", keep)


# On the command line.


def test_the_options_of_a_cut_count_one_by_one():
    """Options that were added later are at their defaults and change no hash."""

    def hash_of(*overrides):
        cfg = config("prune", *overrides)
        options = {key: cfg[key] for key in PLAINEST}
        return digest({"plan": {**what_to_cut(cfg), **options}})

    assert hash_of() == hash_of("ratio=0.7")
    changes = ("target.macs=0.7", "rounding=up", "combine=mean", "dead=bypass", "unread=remove")
    assert len({hash_of(change) for change in ("ratio=0.7", *changes)}) == 1 + len(changes)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return train(tiny("train", runs, "method.strength=2.0", "epochs=1"))


def test_a_target_goes_through_the_stage_and_is_reported(sparse):
    cfg = ("target.macs=0.5", "target.params=0.9", "round_to=2", "rounding=down", "recalibrate=0")
    folder = prune(tiny("prune", sparse.parent, f"ckpt={sparse}", *cfg))
    assert "-macs0.5-params0.9-x2-down-" in folder.name
    said = json.loads((folder / "result.json").read_text())
    dense = json.loads((sparse / "result.json").read_text())
    assert said["target"] == {"macs": 0.5, "params": 0.9}
    assert said["ratio"] == 1 - said["plan"]["kept"] / said["plan"]["total"]
    assert 0.45 * dense["macs"] < said["macs"] <= 0.5 * dense["macs"]
    assert 0 <= said["safe_ratio"] < 1 and isinstance(said["shortfalls"], list)
    assert said["certificate"]["holds"]


def test_time_is_measured_on_thin_networks(sparse, capsys):
    cfg = tiny("prune", sparse.parent, f"ckpt={sparse}", "target.latency=1", "recalibrate=0")
    said = json.loads((prune(cfg) / "result.json").read_text())
    assert said["plan"]["latency"] == 1 and said["ratio"] == 0 and said["machine"]["cpu"]
    with contextlib.suppress(ValueError):  # a network this small may take no less time when thin
        cfg = tiny("prune", sparse.parent, f"ckpt={sparse}", "target.latency=0.95")
        said = json.loads((prune(cfg) / "result.json").read_text())
        assert said["target"] == {"latency": 0.95} and said["ratio"] > 0
        late = [line for line in said["shortfalls"] if "timed again" in line]
        assert bool(late) == (said["plan"]["latency"] > 0.95)
    assert "timed: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("ratio=0.5", "target.macs=0.5"), "not both; got ratio=0.5 and target.macs=0.5"),
        (("target.macs=0",), "target.macs"),
        (("target.params=nan",), "target.params"),
        (("target=0.5",), "target.macs=0.5"),
        (("combine=product",), "combine"),
        (("dead=buried",), "dead"),
        (("rounding=sideways",), "rounding"),
        (("unread=perhaps",), "unread"),
        (("coupled=perhaps",), "coupled"),
        (("target.params=0.0001",), "can't be reached"),
    ],
)
def test_wrong_options_of_a_cut_are_refused(sparse, overrides, words):
    with pytest.raises(ValueError, match=words):
        prune(tiny("prune", sparse.parent, f"ckpt={sparse}", *overrides))
