"""Random programs are cut right: 300 here, 10,000 in a long test."""

import copy
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import norms, random_plan, randomise, relative_gap
from programs import NAMES, Program
from slimming import mask, slim, trace, verify

seen: Counter[str] = Counter()


def check(steps: list[str], seed: int) -> None:
    """Thin equals masked in both modes, in float64; so does the thin network's own cut."""
    model = randomise(Program(steps, seed), seed).double()
    x = torch.randn(3, 3, 6, 5, dtype=torch.float64)
    named = {"scale": 0.5, "extra": x} if seed % 3 == 0 else {}
    example = {"args": (x,), "kwargs": named}
    for turn in range(1 + (seed % 4 == 0)):  # the second time, what is cut is thin already
        graph = trace(model, example)
        assert {*norms(model)} <= {*graph.gates, *graph.fixed}
        seen["cuttable"] += sum(map(len, graph.gates.values()))
        seen["channels"] += sum(row["channels"] for row in graph.explain())
        if not graph.gates:
            return
        keep = random_plan(graph, random.Random(seed).choice([0.3, 0.6, 0.8, 0.95]), seed + turn)
        thin, masked = slim(model, graph, keep), mask(model, graph, keep)
        for training in (False, True):
            pair = [copy.deepcopy(m).train(training)(x, **named) for m in (thin, masked)]
            assert relative_gap(*pair) < 1e-9
        if seed % 10 == 0:
            assert verify(model, graph, keep, thin, example).holds
        model = thin


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(NAMES), min_size=2, max_size=5), st.integers(0, 10**6))
def test_random_programs_are_cut_right(steps, seed):
    check(steps, seed)


def test_a_selection_stays_whole_where_only_pairs_are_tried():
    check(["squeeze", "standardised", "depthwise", "cat"], 3000)  # raised KeyError


def test_most_of_what_random_programs_hold_can_be_cut():
    for seed in range(20):
        r = random.Random(seed)
        check([r.choice(NAMES) for _ in range(6)], seed)
    assert seen["cuttable"] > 0.7 * seen["channels"]


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_random_programs_are_cut_right(part):
    for seed in range(1000 * part, 1000 * (part + 1)):
        r = random.Random(seed)
        steps = [r.choice(NAMES) for _ in range(r.randint(2, 9))]
        try:
            check(steps, seed)
        except Exception as error:
            raise AssertionError(f"check({steps}, {seed})") from error
