"""Scores of any magnitude are ranked right or refused with the true reason."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import random_scores, toy_graph
from slimming import plan


def test_negative_scores_are_ranked_as_they_are():
    scores = {"0": torch.tensor([-3.0, 1.0, -1.0, 2.0])}  # a signed Taylor score
    for combine in ("max", "min", "sum", "mean"):
        assert plan(toy_graph(4), scores, 0.5, combine=combine)["0"].tolist() == [1, 3]


def test_negative_scores_are_refused_where_they_are_squared():
    with pytest.raises(ValueError, match="'0' has negative scores, and combine=l2 squares them"):
        plan(toy_graph(4), {"0": torch.tensor([-3.0, 1.0, -1.0, 2.0])}, 0.5, combine="l2")


@pytest.mark.parametrize("combine", ["max", "min", "sum", "mean"])
@pytest.mark.parametrize("scope", ["global", "layer", "normalized"])
def test_any_finite_score_of_ordinary_use_is_ranked(combine, scope):
    scores = {
        "0": torch.tensor([1e300, 3.0, 1.0, 2.0], dtype=torch.float64),
        "1": torch.full((4,), 5.0),
    }
    keep = plan(toy_graph(4, 4), scores, 0.25, combine=combine, scope=scope)
    assert 0 in keep["0"].tolist() and 2 not in keep["0"].tolist()


@pytest.mark.parametrize(("combine", "size"), [("l2", 1e200), ("sum", 1e308), ("max", 1.7e308)])
def test_what_overflows_is_refused_as_too_large_not_as_infinite(combine, size):
    with pytest.raises(
        ValueError, match="too large to compute with under combine=.*divide all scores"
    ):
        plan(
            toy_graph(2),
            {"0": torch.tensor([size, 1.0], dtype=torch.float64)},
            0.5,
            combine=combine,
        )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(math.nan, "1 are NaN: did training diverge"), (math.inf, "1 are infinite: .* exclude it")],
)
def test_the_reason_is_true(bad, reason):
    with pytest.raises(ValueError, match=f"'0' are not all finite: {reason}"):
        plan(toy_graph(2), {"0": torch.tensor([1.0, bad])}, 0.5)


@given(st.integers(0, 10**6), st.integers(-280, 280))
def test_rounding_to_float32_is_torchs_own_at_magnitudes_that_it_has(seed, power):
    from slimming.planning.ranking import _rounded

    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(50, generator=generator, dtype=torch.float64)
    assert torch.equal(_rounded(values), values.float().double())
    # and the same digits at any other
    scaled = values * 2.0**power
    assert torch.equal(_rounded(scaled), _rounded(values) * 2.0**power)


def test_a_common_factor_changes_no_plan():
    graph = toy_graph(20, 30)
    scores = random_scores(graph)
    first = plan(graph, scores, 0.5)
    for factor in (1e-290, 1e290):
        second = plan(graph, {g: s.double() * factor for g, s in scores.items()}, 0.5)
        assert [len(kept) for kept in first.values()] == [len(kept) for kept in second.values()]
