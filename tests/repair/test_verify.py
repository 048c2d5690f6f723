"""A proof says what it compared, holds for right cuts and fails for wrong ones."""

import dataclasses
import json
import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import random_plan, randomise, state
from slimming import slim, trace, verify
from zoo import block, chain

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Two blocks and a classifier; what is done with features and logits is given as functions."""

    def __init__(self, head=lambda x: x, way=lambda x: x, scale: float = 1.0):
        super().__init__()
        self.a, self.b, self.fc = chain(*block(3, 8)), chain(*block(8, 8)), nn.Linear(8, 5)
        self.head, self.way, self.scale = head, way, scale

    def forward(self, x: Tensor):
        x = self.b(self.way(self.a(x)))
        return self.head(self.scale * self.fc(x.mean((2, 3))))


@dataclasses.dataclass
class Output:
    logits: Tensor
    name: str = "a"


def cut(model: nn.Module, x=X):
    torch.manual_seed(0)
    model = randomise(model).eval()
    graph = trace(model, x)
    keep = random_plan(graph, 0.5)
    return model, graph, keep, slim(model, graph, keep)


def broken(thin: nn.Module, layer: str = "fc") -> nn.Module:
    with torch.no_grad():
        weight = thin.get_submodule(layer).weight
        weight.copy_(weight.roll(1, 1))
    return thin


def proofs(model: nn.Module, x=X, layer: str = "fc"):
    """Of the right thin network, and of one whose layer reads the wrong channels."""
    model, graph, keep, thin = cut(model, x)
    before, draws = state(model), torch.get_rng_state()
    right = verify(model, graph, keep, thin, x)
    wrong = verify(model, graph, keep, broken(thin, layer), x)
    assert torch.equal(draws, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for proof in (right, wrong):
        json.dumps(proof.as_dict(), allow_nan=False)
        assert (proof.problem is None) is proof.holds is proof.as_dict()["holds"]
    return right, wrong


def constant(x: Tensor) -> Tensor:
    return torch.ones_like(x) + 0 * x


def in_bool(x: Tensor) -> Tensor:
    return x > 1e9


CANT_TELL = {
    "argmax": (lambda: Network(lambda x: x.argmax(1)), "whole numbers"),
    "true or false": (lambda: Network(in_bool), "whole numbers"),
    "all zero": (lambda: Network(lambda x: (x - 1e6).relu()), "all zero"),
    "constant": (lambda: Network(constant), "constant or saturated"),
    "saturated": (lambda: Network(lambda x: x.softmax(1), scale=1e4), "constant or saturated"),
    "no tensor": (lambda: Network(lambda x: {"classes": 5}), "no tensor"),
    "nothing": (lambda: Network(lambda x: None), "no tensor"),
}


@pytest.mark.parametrize("name", list(CANT_TELL))
@pytest.mark.parametrize("layer", ["fc", "b.0"])
def test_outputs_that_cant_tell_prove_nothing(name, layer):
    make, why = CANT_TELL[name]
    right, wrong = proofs(make(), layer=layer)
    assert right.holds and right.compared == "fc" and why in right.note
    assert right.relative < 1e-12
    assert not wrong.holds and wrong.first_difference == layer


def test_behind_a_dead_layer_the_weights_are_compared():
    model = Network()
    model.b[2] = nn.Threshold(1e6, 0.0)  # no feature ever gets through
    right, wrong = proofs(model)
    assert right.holds and right.compared == "b.1" and "constant" in right.note
    assert not wrong.holds and wrong.first_difference == "fc.weight"


def test_inputs_that_nothing_reacts_to_prove_nothing():
    model, graph, keep, thin = cut(Network())
    with torch.no_grad():
        for network in (model, thin):
            for name, tensor in network.state_dict().items():
                if name.endswith(("bias", "running_mean")):
                    tensor.zero_()
    proof = verify(model, graph, keep, thin, torch.zeros(2, 3, 8, 8))
    assert proof.compared == "nothing" and not proof.holds
    assert "give other ones" in proof.problem and proof.as_dict()["relative"] is None


RETURNS = {
    "a dataclass": lambda x: Output(x),
    "an object": lambda x: SimpleNamespace(features=[x], again={"x": x}),
    "a dictionary": lambda x: {"logits": x, "class": x.argmax(1), "over": x > 0},
    "lists in tuples": lambda x: ([x, 1], None, "words"),
    "complex numbers": lambda x: torch.complex(x, x),
    "infinities": lambda x: torch.cat([x, torch.full_like(x, -torch.inf)], 1),
}


@pytest.mark.parametrize("name", list(RETURNS))
def test_whatever_is_returned_is_looked_through(name):
    right, wrong = proofs(Network(RETURNS[name]))
    assert right.holds and right.compared == "outputs" and right.note is None
    assert not wrong.holds and wrong.first_difference == "fc"


class FixedMatrix(Network):
    """A constant that is no buffer stays in float32 when the network becomes double."""

    def __init__(self):
        super().__init__()
        self.matrix = torch.eye(8).roll(1, 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x @ self.matrix)


CASTS = {
    "float()": lambda: Network(way=lambda x: x.float()),
    "to(float32)": lambda: Network(way=lambda x: x.to(torch.float32)),
    "to(bfloat16)": lambda: Network(way=lambda x: x.to(torch.bfloat16).to(torch.float32)),
    "logits in float32": lambda: Network(lambda x: x.float()),
    "a constant of float32": FixedMatrix,
    "made in float32": lambda: Network(way=lambda x: x + torch.zeros(8, 8, dtype=torch.float32)),
    "autocast": lambda: Network(way=lambda x: torch.autocast("cpu", enabled=False)(F.relu)(x)),
}


@pytest.mark.parametrize("name", list(CASTS))
def test_networks_that_insist_on_float32_are_proved_in_float64(name):
    right, wrong = proofs(CASTS[name]())
    assert right.holds and right.dtype == "float64" and right.relative < 1e-12
    assert not wrong.holds and wrong.first_difference == "fc"


def test_where_float64_is_refused_it_is_float32_and_says_so():
    def insists(x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return x

    right, wrong = proofs(Network(way=insists))
    assert right.holds and right.dtype == "float32" and right.tolerance == 1e-4
    assert not wrong.holds and wrong.first_difference == "fc"


def drop_path(x: Tensor) -> Tensor:
    return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5).div_(0.5)


CHANCE = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout of channels": lambda x: F.dropout2d(x, 0.5, training=True),
    "drop path": drop_path,
    "noise": lambda x: x + torch.randn_like(x),
    "a random number for all": lambda x: x * torch.rand(1),
}


@pytest.mark.parametrize("name", list(CHANCE))
def test_networks_that_are_random_in_eval_are_compared_without_chance(name):
    right, wrong = proofs(Network(way=CHANCE[name]))
    assert right.holds and right.compared == "outputs" and "random in eval mode" in right.note
    assert not wrong.holds and wrong.first_difference == "fc"


def test_chance_that_torch_doesnt_know_isnt_blamed_on_the_cut():
    right, _ = proofs(Network(way=lambda x: x * torch.tensor(random.random())))
    assert right.compared == "nothing" and not right.holds
    assert "something else each time it runs in eval mode" in right.problem


def test_a_thin_network_that_cant_run_is_told_where():
    model, graph, keep, thin = cut(Network())
    thin.b[0] = nn.Conv2d(7, 8, 3)
    proof = verify(model, graph, keep, thin, X)
    assert not proof.holds and proof.first_difference == "b.0"
    assert "the thin network can't run: RuntimeError: Given groups=1" in proof.problem
    thin.forward = lambda x: 1 / 0
    proof = verify(model, graph, keep, thin, X)
    assert not proof.holds and "ZeroDivisionError" in proof.problem
    assert "in its own forward" in proof.problem


def test_a_network_that_cant_run_at_all_is_a_sentence():
    model, graph, keep, thin = cut(Network())
    with pytest.raises(ValueError, match="Network can't run on these inputs: .* 7 channels"):
        verify(model, graph, keep, thin, torch.randn(2, 7, 8, 8))


def test_nan_proves_nothing():
    right, wrong = proofs(Network(lambda x: x / 0 * 0))
    assert not right.holds and not wrong.holds
    assert right.problem == "the masked network gives NaN on these inputs"


def test_a_layer_whose_outputs_nobody_returns_is_compared_too():
    class Kept(Network):
        def forward(self, x: Tensor) -> Tensor:
            features = self.b(self.a(x)).mean((2, 3))
            self.fc(features)  # for somebody's hook
            return features

    right, wrong = proofs(Kept())
    assert right.holds
    assert not wrong.holds and wrong.compared == wrong.first_difference == "fc"


@pytest.mark.parametrize("x", [{"args": (X,), "kwargs": {"flip": True}}, {"kwargs": {"x": X}}])
def test_inputs_are_given_as_to_trace(x):
    class Options(Network):
        def forward(self, x: Tensor, *, flip: bool = False) -> Tensor:
            return super().forward(x.flip(-1) if flip else x)

    right, wrong = proofs(Options(), x)
    assert right.holds and not wrong.holds
