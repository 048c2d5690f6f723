"""Cutting a network between two steps: what its optimiser remembers goes along."""

import copy

import pytest
import torch
from torch import nn, optim

from slimming import Slimming, Training, mask, plan, shrink, slices, trace

EPS = 1e-4  # a bias before a BatchNorm has no gradient but rounding, which these would blow up
OPTIMIZERS = {
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.01, eps=EPS),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, amsgrad=True, eps=EPS),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True, eps=EPS),
}


def network() -> nn.Module:
    def unit(n, m, **more):
        return [nn.Conv2d(n, m, 3, padding=1, **more), nn.BatchNorm2d(m), nn.ReLU()]

    torch.manual_seed(0)
    layers = [*unit(3, 8), *unit(8, 8, groups=8), *unit(8, 12)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    return model.double().train()


def step(t: Training, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 3, 6, 6, generator=generator, dtype=torch.float64)
    t.optimizer.zero_grad()
    nn.functional.cross_entropy(t.model(images), torch.arange(8) % 4).backward()
    t.optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_shrinking_the_next_steps_are_those_of_the_masked_network(name):
    model = network()
    t = Training(model, OPTIMIZERS[name](model.parameters()), torch.zeros(2, 3, 6, 6))
    for seed in range(3):
        step(t, seed)
    optimizer, before = t.optimizer, copy.deepcopy(t.optimizer.state_dict()["state"])
    graph = trace(model, t.example)
    keep = plan(graph, Slimming().scores(model, graph), 0.4)
    masked = Training(mask(model, graph, keep), None)
    masked.optimizer = OPTIMIZERS[name](masked.model.parameters())
    masked.optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    shrink(t, graph, keep)
    assert t.optimizer is optimizer and t.model is not model and {*t.keep} == {*keep}
    for old, (p, state) in zip(before.values(), optimizer.state.items(), strict=True):
        assert state.keys() == old.keys()
        assert all(v.shape == p.shape for key, v in state.items() if key != "step")
    cuts = slices(graph, keep)

    def cut(name, tensor):
        for dim, index in cuts.get(name, []):
            tensor = tensor.index_select(dim, index)
        return tensor

    for number, (name, p) in enumerate(t.model.named_parameters()):
        for key, value in optimizer.state[p].items():
            if key != "step":
                assert torch.equal(value, cut(name, before[number][key])), (name, key)
    for seed in (3, 4):
        step(t, seed)
        hide(masked.model, graph, keep)  # what reads a channel that is gone stays zero
        step(masked, seed)
    hide(masked.model, graph, keep)
    full = dict(masked.model.named_parameters())
    for name, p in t.model.named_parameters():
        torch.testing.assert_close(p, cut(name, full[name]), rtol=1e-9, atol=1e-12)


@torch.no_grad()
def hide(model: nn.Module, graph, keep) -> None:
    for name, tensor in mask(model, graph, keep).state_dict().items():
        model.state_dict()[name].copy_(tensor)


def test_an_optimiser_that_keeps_other_shapes_is_refused_and_nothing_has_changed():
    model = network().float()
    t = Training(model, optim.Adafactor(model.parameters()), torch.zeros(2, 3, 6, 6))
    images = torch.randn(8, 3, 6, 6)
    nn.functional.cross_entropy(model(images), torch.arange(8) % 4).backward()
    t.optimizer.step()
    before = copy.deepcopy(t.optimizer.state_dict())
    graph = trace(model, t.example)
    with pytest.raises(ValueError, match="keeps 'row_var' of shape .* train with SGD or Adam"):
        shrink(t, graph, plan(graph, Slimming().scores(model, graph), 0.4))
    assert t.model is model and not t.keep
    assert str(t.optimizer.state_dict()) == str(before)
