"""Exact counts, under every constraint; the plan says what it will cost and what it misses."""

import math
from dataclasses import replace
from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import configured, configured_networks, random_plan, random_scores, toy_graph
from models.mlp import MLP
from models.vgg import VGG
from slimming import ChannelGraph, Slimming, plan, safe_ratio, slim, trace
from slimming.planning.planner import predict
from utils.networks.cost import count

IMAGE = torch.zeros(1, 3, 32, 32)


def counts(keep) -> list[int]:
    return [len(kept) for kept in keep.values()]


def test_vgg19_at_70_percent_keeps_1652_of_5504():
    """Peer bug B1: ports of the authors' 1-based Lua code cut one channel more (1651 stay)."""
    with torch.device("meta"):
        model = VGG(19)
    graph = trace(model, IMAGE)
    keep = random_plan(graph, 0.7)
    assert (keep.kept, keep.total) == (1652, 5504)
    assert sum(counts(keep)) == 1652
    assert keep.shortfalls == ()


@pytest.mark.parametrize("ratio", [k / 100 for k in range(100)])
def test_the_count_is_exact_in_decimal_arithmetic(ratio):
    # int(0.29 * 100) is 28 in binary arithmetic; a person says 29.
    keep = random_plan(toy_graph(100), ratio)
    assert keep.total - keep.kept == round(ratio * 100)


def test_the_weakest_channels_of_all_layers_go():
    graph = toy_graph(3, 4)
    scores = {"0": torch.tensor([0.9, 0.1, 0.5]), "1": torch.tensor([0.2, 0.8, 0.3, 0.7])}
    keep = plan(graph, scores, 0.5)  # 3 of 7: 0.1, 0.2, 0.3
    assert keep["0"].tolist() == [0, 2]
    assert keep["1"].tolist() == [1, 3]


def test_ratio_zero_changes_nothing():
    model = configured("vgg11", width=0.05)
    graph = trace(model, IMAGE)
    for options in ({}, {"floor": 0.5}, {"round_to": 8}, {"scope": "layer", "round_to": 4}):
        keep = random_plan(graph, 0, **options)
        assert {gate: kept.tolist() for gate, kept in keep.items()} == {
            gate: list(range(len(ids))) for gate, ids in graph.gates.items()
        }
        assert keep.shortfalls == ()
        assert keep.params == sum(p.numel() for p in model.parameters())


def test_equal_scores_are_removed_evenly_then_by_position():
    graph = toy_graph(10, 20, 30)
    keep = plan(graph, {gate: torch.ones(len(ids)) for gate, ids in graph.gates.items()}, 0.5)
    assert counts(keep) == [5, 10, 15]
    assert keep["0"].tolist() == [5, 6, 7, 8, 9]  # within a layer the first ones go
    one = plan(toy_graph(2, 2), {"0": torch.zeros(2), "1": torch.zeros(2)}, 0.25)
    assert counts(one) == [1, 2]  # and between layers, the earlier one


def test_dead_channels_of_a_layer_tie_without_emptying_it_first():
    """Peer bug B2: a layer whose channels are all weak vanishes, and the network with it."""
    scores = {"0": torch.zeros(8), "1": torch.cat([torch.zeros(4), torch.ones(4)])}
    assert counts(plan(toy_graph(8, 8), scores, 0.5)) == [4, 4]


@pytest.mark.parametrize(
    ("size", "floor", "least"),
    [(3, 0.5, 2), (4, 0.5, 2), (10, 0.29, 3), (100, 0.29, 29), (10, 4, 4), (3, 4, 3), (5, 0, 1)],
)
def test_floor_is_a_number_or_a_share(size, floor, least):
    scores = {"0": torch.zeros(size), "1": torch.ones(400)}
    keep = plan(toy_graph(size, 400), scores, 0.5, floor=floor)
    assert len(keep["0"]) == least


def test_refill_takes_elsewhere_what_the_floor_saved():
    scores = {"0": torch.zeros(10), "1": torch.arange(1.0, 11.0)}
    keep = plan(toy_graph(10, 10), scores, 0.5, floor=0.5)
    assert counts(keep) == [5, 5]
    assert keep.shortfalls == ()


def test_without_refill_the_goal_is_missed_and_said():
    # The paper's multi-pass scheme (section 4.5): at most half of a layer, whatever that gives.
    scores = {"0": torch.zeros(10), "1": torch.arange(1.0, 11.0)}
    keep = plan(toy_graph(10, 10), scores, 0.5, floor=0.5, refill=False)
    assert counts(keep) == [5, 10]
    (sentence,) = keep.shortfalls
    assert "5 channels go instead of 10" in sentence


@pytest.mark.parametrize("name", list(configured_networks()))
def test_no_layer_is_ever_emptied(name):
    # Peers build Conv2d(..., 0) here.
    model = configured(name)
    graph = trace(model, torch.zeros(1, 3, 16, 16))
    keep = random_plan(graph, 0.999)
    assert min(counts(keep)) >= 1
    assert slim(model, graph, keep)(torch.randn(2, 3, 16, 16)).shape == (2, 7)


def test_rounding_keeps_multiples_and_small_layers_whole():
    keep = random_plan(toy_graph(64, 5, 100, 8, 31), 0.6, round_to=8)
    assert len(keep["1"]) == 5
    for gate in ("0", "2", "3", "4"):
        assert len(keep[gate]) % 8 == 0 and len(keep[gate]) >= 8


def test_rounding_takes_the_nearest_reachable_total_and_reports_the_gap():
    keep = random_plan(toy_graph(64, 64), 0.6, round_to=8)  # 76 should go, 72 can (or 80)
    assert abs(keep.total - keep.kept - 76) == 4
    assert "instead of 76" in keep.shortfalls[0]
    exact = random_plan(toy_graph(64, 64), 0.5, round_to=8)
    assert exact.kept == 64 and exact.shortfalls == ()


def test_rounding_never_undercuts_the_floor():
    keep = plan(
        toy_graph(32, 32), {"0": torch.zeros(32), "1": torch.ones(32)}, 0.9, floor=9, round_to=8
    )
    assert counts(keep) == [16, 16]


def test_rounding_layer_by_layer_moves_nothing_between_layers():
    graph = toy_graph(20, 20, 20)
    keep = random_plan(graph, 0.45, scope="layer", round_to=8)  # 11 each should stay
    assert counts(keep) == [8, 8, 8]
    assert "goes instead" in keep.shortfalls[0] or "go instead of 27" in keep.shortfalls[0]


def test_layer_scope_gives_the_papers_mlp():
    # Table 3: 784-500-300-10 loses 80 % of each hidden layer and 84.4 % of its parameters.
    model = MLP()
    graph = trace(model, torch.zeros(1, 1, 28, 28))
    keep = random_plan(graph, 0.8, scope="layer")
    assert counts(keep) == [100, 60]
    dense = sum(p.numel() for p in model.parameters())
    assert 0.84 < 1 - keep.params / dense < 0.845


@pytest.mark.parametrize("name", list(configured_networks()))
@pytest.mark.parametrize("seed", range(2))
def test_predicted_costs_are_those_of_the_network_built(name, seed):
    model = configured(name)
    graph = trace(model, torch.zeros(1, 3, 16, 16))
    keep = random_plan(graph, 0.3 + 0.4 * seed, seed=seed)
    costs = count(slim(model, graph, keep), (3, 16, 16))
    assert (keep.params, keep.macs) == (costs["params"], costs["macs"])
    dense = count(model, (3, 16, 16))
    assert predict(graph, {}) == (dense["params"], dense["macs"])


def test_a_grouped_and_transposed_convolution_is_counted_right():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * 8 * 8, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)),
    )
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    keep = random_plan(graph, 0.5)
    costs = count(slim(model, graph, keep), (3, 8, 8))
    assert (keep.params, keep.macs) == (costs["params"], costs["macs"])


@pytest.mark.parametrize("sizes", [(3,), (7, 3), (10, 20, 30), (64, 64, 128)])
@pytest.mark.parametrize("seed", range(5))
def test_the_safe_ratio_empties_no_layer_and_one_more_channel_would(sizes, seed):
    graph = toy_graph(*sizes)
    scores = random_scores(graph, seed)
    ratio, total = safe_ratio(graph, scores), sum(sizes)
    removed = total - plan(graph, scores, ratio).kept
    # Independently of the planner: go through all scores from the weakest on.
    ranked = sorted((s, gate) for gate in scores for s in scores[gate].tolist())
    left = {gate: len(scores[gate]) for gate in scores}
    for _, gate in ranked[:removed]:
        left[gate] -= 1
    assert min(left.values()) >= 1
    assert left[ranked[removed][1]] == 1  # the next one is a layer's last


@pytest.mark.parametrize(
    "ratio", [-0.1, 1, 1.0, 1.5, math.nan, math.inf, "0.5", True, None, torch.tensor(0.5)]
)
def test_a_ratio_that_is_none_is_refused(ratio):
    with pytest.raises(ValueError, match=r"0 <= ratio < 1"):
        random_plan(toy_graph(4), ratio)


@pytest.mark.parametrize(
    "options",
    [
        *({"floor": value} for value in (-1, 1.5, math.nan, math.inf, "1", None, True)),
        *({"round_to": value} for value in (0, -8, 1.5, "8", None, True)),
        *({"scope": value} for value in ("stage", None, 1)),
        *({"rounding": value} for value in ("sideways", None, 8)),
        *({"combine": value} for value in ("product", None)),
        *({"dead": value} for value in ("buried", True)),
        *({"unread": value} for value in ("perhaps", False)),
    ],
)
def test_an_option_out_of_range_is_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        random_plan(toy_graph(4), 0.5, **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="'1' are not all finite"):
        plan(toy_graph(2, 2), {"0": torch.ones(2), "1": torch.tensor([1.0, bad])}, 0.5)


def test_missing_and_misshapen_scores_are_refused():
    with pytest.raises(ValueError, match="no scores for '1'"):
        plan(toy_graph(2, 2), {"0": torch.ones(2)}, 0.5)
    with pytest.raises(ValueError, match=r"'0' has 2 channels but \(3,\) scores"):
        plan(toy_graph(2, 2), {"0": torch.ones(3), "1": torch.ones(2)}, 0.5)


def test_a_network_without_gates_is_refused():
    graph = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 3))
    assert plan(graph, {}, 0).kept == 0
    with pytest.raises(ValueError, match="no BatchNorm"):
        plan(graph, {}, 0.5)


def test_planning_is_deterministic_and_ignores_the_precision_of_scores():
    model = configured("vgg11")
    graph = trace(model, torch.zeros(1, 3, 16, 16))
    scores = Slimming().scores(model, graph)
    first = plan(graph, scores, 0.5)
    for again in (scores, {g: s.double() for g, s in reversed(list(scores.items()))}):
        second = plan(graph, again, 0.5)
        assert all(torch.equal(first[gate], second[gate]) for gate in graph.gates)


def coupled_graph() -> ChannelGraph:
    """Gates "0" and "1" score the same four channels (a residual stream), gate "2" its own two."""
    own = toy_graph(4, 4, 2)
    shared = {"0": torch.arange(4), "1": torch.arange(4), "2": torch.arange(4, 6)}
    dims = {(f"{gate}.weight", 0): ids for gate, ids in shared.items()}
    return replace(own, gates=shared, dims=dims)


@pytest.mark.parametrize(
    ("combine", "first"), [("mean", 0), ("sum", 0), ("max", 1), ("min", 2), ("l2", 0)]
)
def test_a_channel_scored_by_several_gates_gets_one_score(combine, first):
    scores = {
        "0": torch.tensor([0.3, 0.7, 0.1, 0.9]),
        "1": torch.tensor([0.8, 0.7, 1.3, 0.9]),
        "2": torch.tensor([5.0, 5.0]),
    }  # means 0.55, 0.7, 0.7, 0.9; largest 0.8, 0.7, 1.3, 0.9; smallest 0.3, 0.7, 0.1, 0.9
    keep = plan(coupled_graph(), scores, 1 / 5, combine=combine)
    assert keep.total == 6 and keep["0"].tolist() == keep["1"].tolist()
    assert sorted({0, 1, 2, 3} - set(keep["0"].tolist())) == [first]


def test_a_sum_of_scores_protects_what_several_gates_score():
    scores = {"0": torch.full((4,), 1.0), "1": torch.full((4,), 1.0), "2": torch.full((2,), 1.5)}
    assert counts(plan(coupled_graph(), scores, 0.5, combine="mean")) == [1, 1, 2]
    assert counts(plan(coupled_graph(), scores, 1 / 5, combine="sum")) == [4, 4, 1]


@pytest.mark.parametrize("name", ["resnet110", "mobilenet_v2"])
@pytest.mark.parametrize("rounding", ["nearest", "up", "down"])
def test_coupled_layers_are_rounded_as_one(name, rounding):
    graph = trace(configured(name), torch.zeros(1, 3, 16, 16))
    keep = random_plan(graph, 0.5, round_to=4, rounding=rounding)
    for gate, kept in keep.items():
        size = len(graph.gates[gate])
        assert len(kept) % 4 == 0 or (len(kept) == size and (size < 4 or rounding == "up"))


@pytest.mark.parametrize("ratio", [0.1, 0.37, 0.6, 0.8])
def test_rounding_up_never_removes_more_than_asked_and_down_never_less(ratio):
    graph = toy_graph(64, 40, 100, 7, 24)
    goal = int(ratio * 235)
    up = random_plan(graph, ratio, round_to=8, rounding="up")
    down = random_plan(graph, ratio, round_to=8, rounding="down")
    gone = [keep.total - keep.kept for keep in (up, down)]
    # 7 stay whole, and at least 8 of the other layers
    assert goal - 12 < gone[0] <= goal <= gone[1] < goal + 12
    for keep in (up, down):
        assert all(k % 8 == 0 or k in (7, 100) for k in counts(keep))


def test_rounding_without_refill_moves_each_layer_by_less_than_a_multiple():
    graph = toy_graph(64, 40, 104)
    free = counts(random_plan(graph, 0.5, refill=False))
    for rounding, way in (("up", 1), ("down", -1)):
        kept = counts(random_plan(graph, 0.5, refill=False, round_to=8, rounding=rounding))
        assert all(0 <= way * (k - f) < 8 for k, f in zip(kept, free, strict=True))


def test_normalised_scores_compare_layers_by_what_is_usual_in_them():
    graph = toy_graph(6, 8)
    scores = random_scores(graph)
    scaled = {"0": 1000 * scores["0"], "1": scores["1"]}
    plain = plan(graph, scaled, 0.5)
    assert counts(plain) == [6, 1]
    normal = plan(graph, scaled, 0.5, scope="normalized")
    assert min(counts(normal)) > 1
    again = plan(graph, scores, 0.5, scope="normalized")
    assert all(torch.equal(normal[gate], again[gate]) for gate in graph.gates)


def test_a_layer_of_zeros_normalises_to_zeros():
    scores = {"0": torch.zeros(4), "1": torch.rand(4) + 0.1}
    keep = plan(toy_graph(4, 4), scores, 0.375, scope="normalized")
    assert counts(keep) == [1, 4]


def test_the_safe_ratio_is_that_of_the_ranking_in_use():
    graph = toy_graph(10, 10)
    scores = {"0": 0.01 * torch.arange(1.0, 11), "1": torch.arange(1.0, 11)}
    assert plan(graph, scores, 0.2).safe_ratio == safe_ratio(graph, scores) == 0.45
    assert plan(graph, scores, 0.2, scope="normalized").safe_ratio == 0.9
    assert plan(graph, scores, 0.2, scope="layer").safe_ratio == 1


def test_scores_that_are_equal_in_float32_tie_at_any_magnitude():
    graph = toy_graph(30, 50)
    equal = {gate: torch.ones(len(ids)) for gate, ids in graph.gates.items()}
    first = plan(graph, equal, 0.45)
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 1e-60, 1e60):
        noisy = {
            gate: size * (1 + 1e-10 * torch.rand(len(s), generator=generator).double())
            for gate, s in equal.items()
        }
        second = plan(graph, noisy, 0.45)
        assert all(torch.equal(first[gate], second[gate]) for gate in graph.gates)
    # and what differs in float32 doesn't tie
    steps = {"0": 1e-60 * (1 + 1e-6 * torch.arange(30.0).double().flip(0)), "1": torch.ones(50)}
    assert plan(graph, steps, 0.125)["0"].tolist() == list(range(20))


@pytest.mark.parametrize("options", [{}, {"target": {"macs": 0.4}}, {"scope": "normalized"}])
def test_a_plan_depends_on_no_order_of_scores_and_no_number_of_threads(options):
    graph = trace(configured("mobilenet_v2"), torch.zeros(1, 3, 16, 16))
    scores, ratio = random_scores(graph), None if "target" in options else 0.6
    first, threads = plan(graph, scores, ratio, **options), torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        second = plan(graph, dict(reversed(list(scores.items()))), ratio, **options)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first[gate], second[gate]) for gate in graph.gates)


@st.composite
def problems(draw):
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))  # few levels: many ties
    seed = draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    scores = {
        str(i): torch.randint(levels, (size,), generator=generator) / levels
        for i, size in enumerate(sizes)
    }
    options = {
        "floor": draw(st.one_of(st.integers(0, 50), st.floats(0, 0.99))),
        "refill": draw(st.booleans()),
        "round_to": draw(st.sampled_from([1, 1, 2, 3, 8])),
        "rounding": draw(st.sampled_from(["nearest", "nearest", "up", "down"])),
        "scope": draw(st.sampled_from(["global", "layer", "normalized"])),
    }
    ratio = draw(st.one_of(st.floats(0, 0.999), st.integers(0, 99).map(lambda k: k / 100)))
    return sizes, scores, ratio, options


@given(problems())
@settings(max_examples=300, deadline=None)
def test_every_plan_keeps_its_promises(problem):
    sizes, scores, ratio, options = problem
    keep = plan(toy_graph(*sizes), scores, ratio, **options)
    floor, multiple = Decimal(str(options["floor"])), options["round_to"]
    for size, kept, score in zip(sizes, keep.values(), scores.values(), strict=True):
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert set(kept.tolist()) <= set(range(size))
        least = floor * size if floor < 1 else floor
        assert len(kept) >= min(size, max(1, least))
        assert len(kept) == size or len(kept) % multiple == 0
        gone = sorted(set(range(size)) - set(kept.tolist()))
        assert not gone or score[gone].max() <= score[kept].min()
    layerwise = options["scope"] == "layer"
    goals = [ratio] * len(sizes) if layerwise else [ratio]
    shares = sizes if layerwise else [sum(sizes)]
    goal = sum(int(Decimal(str(r)) * n) for r, n in zip(goals, shares, strict=True))
    gone = sum(sizes) - sum(counts(keep))
    assert (keep.total, keep.kept) == (sum(sizes), sum(sizes) - gone)
    assert bool(keep.shortfalls) == (gone != goal)
    if multiple == 1:
        assert gone <= goal
    if multiple > 1 and options["rounding"] == "up":
        assert gone <= goal
    free = multiple == 1 and options["floor"] <= 1 and not layerwise
    if free and goal <= sum(sizes) - len(sizes) and options["refill"] and floor in (0, 1):
        assert gone == goal  # nothing binds, so the count is exact
