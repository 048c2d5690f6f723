"""The user's door: what an operation of one's own does with channels."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers import random_plan, randomise
from odd import Odd, X, cuttable, mean
from slimming import slim, trace, verify
from slimming.rules import MODULES, RULES, pointwise, register

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@torch.library.custom_op("slimming_tests::sharpen", mutates_args=())
def sharpen(x: Tensor, strength: float) -> Tensor:
    return x + strength * (x - x.mean((2, 3), keepdim=True))


@sharpen.register_fake
def _(x: Tensor, strength: float) -> Tensor:
    return torch.empty_like(x)


class Opaque(nn.Module):
    """Sorts its channels, and puts them back."""

    def forward(self, x: Tensor) -> Tensor:
        order = x.mean((0, 2, 3)).argsort()
        return x[:, order][:, order.argsort()]


@pytest.fixture(autouse=True)
def as_before():
    rules, modules = dict(RULES), dict(MODULES)
    yield
    for registry, before in ((RULES, rules), (MODULES, modules)):
        registry.clear()
        registry.update(before)


def test_an_operation_that_nobody_knows_keeps_its_channels_until_it_is_registered():
    model = Odd(lambda s, x: mean(s, sharpen(x, 0.5)))
    graph = trace(model, X)
    assert re.fullmatch(r"'sharpen' \(test_rules.py:\d+\) may mix its channels", graph.fixed["bn"])
    register("slimming_tests::sharpen", pointwise)
    assert list(cuttable(model).gates) == ["bn"]


def test_a_module_that_is_registered_is_not_looked_into():
    model = Odd(lambda s, x: mean(s, s.inner(x)), inner=Opaque())
    assert trace(model, X).gates == {}
    register(Opaque, pointwise)
    assert list(cuttable(model).gates) == ["bn"]


def test_a_rule_that_is_wrong_fails_the_proof():
    register("slimming_tests::sharpen", lambda call, found: [])
    model = randomise(Odd(lambda s, x: s.fc(sharpen(x, 0.5).mean((2, 3)).flip(1))))
    graph = trace(model, X)
    assert (
        graph.fixed
        or not verify(model, graph, k := random_plan(graph, 0.5), slim(model, graph, k), X).holds
    )


@pytest.mark.parametrize("what", [3, "", nn.ReLU(), torch.relu, None])
def test_only_names_and_classes_are_registered(what):
    with pytest.raises(TypeError, match="an operation is a name or a class of modules; got"):
        register(what, pointwise)


def test_what_the_page_registers_is_cut():
    (code,) = re.findall(
        r"^## An operation.*?^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S
    )
    exec(compile(code, "page.py", "exec"), {"__name__": "page"})
