"""Every penalty mode against its closed form, computed by hand on a toy."""

import math

import pytest
import torch
from torch import nn

from slimming import Slimming, Training
from slimming.methods.sparsity import MODES, add_subgradient, gammas, penalty, reach, shrink

LR, STRENGTH = 0.1, 0.01
START = [0.5, -0.3, 0.004, 0.0]


class Toy(nn.Module):
    """A BatchNorm whose gammas get a gradient we choose: loss = sum(slope * gamma)."""

    def __init__(self, slope=(0.0, 0.0, 0.0, 0.0), start=START):
        super().__init__()
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64)
        self.register_buffer("slope", torch.tensor(slope, dtype=torch.float64))
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor(start, dtype=torch.float64))

    @property
    def gamma(self):
        return self.norm.weight

    def data_loss(self):
        return (self.slope * self.gamma).sum()


def train(toy, method, optimizer, steps):
    """The order of the engine: loss, backward, after_backward, step, after_step."""
    t = Training(toy, optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = toy.data_loss()
        if method.mode == "loss":
            loss = loss + penalty(toy, method.strength)
        loss.backward()
        method.after_backward(t)
        optimizer.step()
        method.after_step(t)
    return toy.gamma.detach().clone()


def sign(value: float) -> float:
    return (value > 0) - (value < 0)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_subgradient_passes_through_momentum_nesterov_and_weight_decay(nesterov, decay):
    slope, momentum, steps = (0.3, -0.2, 0.0, 0.1), 0.9, 7
    toy = Toy(slope)
    sgd = torch.optim.SGD(
        toy.parameters(), LR, momentum=momentum, nesterov=nesterov, weight_decay=decay
    )
    got = train(toy, Slimming(STRENGTH), sgd, steps)
    for i, gamma in enumerate(START):
        velocity = 0.0
        for _ in range(steps):
            gradient = slope[i] + STRENGTH * sign(gamma) + decay * gamma
            velocity = momentum * velocity + gradient
            gamma -= LR * (gradient + momentum * velocity if nesterov else velocity)
        assert got[i].item() == pytest.approx(gamma, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_loss_and_subgradient_are_the_same_in_sgd(momentum):
    results = []
    for mode in ("loss", "subgradient"):
        toy = Toy((0.3, -0.2, 0.1, 0.0))
        sgd = torch.optim.SGD(toy.parameters(), LR, momentum=momentum, weight_decay=0.05)
        results.append(train(toy, Slimming(STRENGTH, mode), sgd, 9))
    assert torch.equal(*results)


def test_loss_mode_is_cross_entropy_plus_the_penalty():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 0.0, 0.5]))
    batch = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 0, 1])
    t = Training(model, torch.optim.SGD(model.parameters()))
    plain, _, _ = Slimming(0.1, "subgradient").loss(t, batch)
    with_penalty, told, logits = Slimming(0.1, "loss").loss(t, batch)
    assert (with_penalty - plain).item() == pytest.approx(0.1 * 3.5, rel=1e-5)
    assert told == plain, "what is said, and judged, is the cross-entropy alone"
    assert logits.shape == (6, 4)


def test_proximal_is_the_soft_threshold_with_exact_zeros():
    toy = Toy()
    method = Slimming(STRENGTH, "proximal")
    sgd = torch.optim.SGD(toy.parameters(), LR)
    for step in range(1, 6):
        got = train(toy, method, sgd, 1)
        for value, start in zip(got.tolist(), START, strict=True):
            expected = sign(start) * max(abs(start) - step * LR * STRENGTH, 0.0)
            assert value == pytest.approx(expected, abs=1e-15)
    assert got[2].item() == 0.0 and got[3].item() == 0.0  # exactly, not about


def test_proximal_never_crosses_zero_and_decoupled_does():
    start = [0.0005, -0.0005, 0.0, 1.0]  # one step moves by 0.001
    toys = {mode: Toy(start=start) for mode in ("proximal", "decoupled")}
    for mode, toy in toys.items():
        train(toy, Slimming(STRENGTH, mode), torch.optim.SGD(toy.parameters(), LR), 1)
    assert toys["proximal"].gamma.tolist() == [0.0, 0.0, 0.0, 0.999]
    assert toys["decoupled"].gamma.tolist() == pytest.approx([-0.0005, 0.0005, 0.0, 0.999])


@pytest.mark.parametrize("mode", ["proximal", "decoupled"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_the_last_two_mean_the_same_under_every_optimiser(mode, optimizer):
    toy = Toy(start=[0.5, -0.3, 0.2, 0.9])
    options = {"weight_decay": 0.0}
    moved = train(toy, Slimming(STRENGTH, mode), optimizer(toy.parameters(), LR, **options), 5)
    shift = 5 * LR * STRENGTH
    assert moved.tolist() == pytest.approx([0.5 - shift, -0.3 + shift, 0.2 - shift, 0.9 - shift])


def test_the_subgradient_does_not_mean_the_same_under_adam():
    # Adam rescales it: lambda loses its meaning. This is why there are other modes.
    moved = []
    for strength in (1e-4, 1e-2):
        toy = Toy(start=[0.5, 0.5, 0.5, 0.5])
        adam = torch.optim.Adam(toy.parameters(), LR)
        moved.append(train(toy, Slimming(strength), adam, 3))
    assert torch.allclose(*moved, rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_bf16_autocast_changes_nothing_about_the_penalty(mode):
    # The penalty acts on float32 gammas: the data's gradient is 0 here (beta reads no gamma).
    def run(enabled: bool) -> torch.Tensor:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        nn.init.zeros_(model[2].weight)  # so gamma's gradient from the data is exactly 0
        model[2].weight.requires_grad_(False)
        method, sgd = Slimming(STRENGTH, mode), torch.optim.SGD(model.parameters(), LR)
        batch, t = (torch.randn(8, 4), torch.arange(8) % 3), Training(model, sgd)
        for _ in range(4):
            sgd.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss, _, _ = method.loss(t, batch)
            loss.backward()
            method.after_backward(t)
            sgd.step()
            method.after_step(t)
        return model[1].weight.detach()

    assert torch.equal(run(True), run(False))
    assert run(True).tolist() == pytest.approx([1 - 4 * LR * STRENGTH] * 6, rel=1e-6)


def test_every_kind_of_batchnorm_is_found_and_no_other_norm():
    """Peer bug TP2: SyncBatchNorm is scored but never penalised."""
    model = nn.ModuleDict(
        {
            "one": nn.BatchNorm1d(2),
            "two": nn.BatchNorm2d(3),
            "three": nn.BatchNorm3d(4),
            "sync": nn.SyncBatchNorm(5),  # forgotten by isinstance(m, (BatchNorm1d, 2d, 3d))
            "bare": nn.BatchNorm2d(6, affine=False),
            "layer": nn.LayerNorm(7),
            "group": nn.GroupNorm(2, 8),
        }
    )
    found = gammas(model)
    assert {name: len(gamma) for name, gamma in found.items()} == {
        "one": 2,
        "two": 3,
        "three": 4,
        "sync": 5,
    }
    assert penalty(model, 0.5).item() == pytest.approx(0.5 * (2 + 3 + 4 + 5))
    for gamma in found.values():
        gamma.grad = torch.zeros_like(gamma)
    add_subgradient(model, 0.25)
    assert all((gamma.grad == 0.25).all() for gamma in found.values())
    assert model["layer"].weight.grad is None


def test_frozen_gammas_stay_where_they_are():
    norm = nn.BatchNorm2d(3)
    norm.weight.requires_grad_(False)
    add_subgradient(norm, 0.1)
    for exact_zero in (True, False):
        shrink(norm, 0.1, exact_zero)
    assert norm.weight.tolist() == [1.0, 1.0, 1.0]


def test_a_network_without_gammas_is_refused():
    with pytest.raises(ValueError, match="no BatchNorm with a gamma"):
        penalty(nn.Linear(2, 2), 0.1)


@pytest.mark.parametrize("strength", [-1e-4, math.nan, math.inf, "1e-4", True, None])
def test_a_strength_that_is_none_is_refused(strength):
    with pytest.raises(ValueError, match="strength"):
        Slimming(strength)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="subgradient, loss, proximal, decoupled"):
        Slimming(1e-4, "l1")


@pytest.mark.parametrize("mode", MODES)
def test_strength_zero_does_nothing(mode):
    toy = Toy((0.3, -0.2, 0.1, 0.0))
    plain = Toy((0.3, -0.2, 0.1, 0.0))
    got = train(toy, Slimming(0.0, mode), torch.optim.SGD(toy.parameters(), LR), 3)
    sgd = torch.optim.SGD(plain.parameters(), LR)
    for _ in range(3):
        sgd.zero_grad()
        plain.data_loss().backward()
        sgd.step()
    assert torch.equal(got, plain.gamma)


def test_reach_of_the_papers_recipes():
    # CIFAR: 160 epochs of 782 steps, lr 0.1, 0.01, 0.001 from 50 % and 75 % on, momentum 0.9.
    total = 782 * (80 * 0.1 + 40 * 0.01 + 40 * 0.001)
    assert reach(1e-4, total, "subgradient", 0.9) == pytest.approx(6.6, abs=0.01)  # VGG
    assert reach(1e-5, total, "subgradient", 0.9) == pytest.approx(0.66, abs=0.001)  # ResNet
    assert reach(1e-4, total, "proximal", 0.9) == pytest.approx(0.66, abs=0.001)


@pytest.mark.parametrize("mode", MODES)
def test_a_gamma_moves_exactly_as_far_as_reach_says(mode):
    steps, momentum = 400, 0.5
    toy = Toy(start=[9.0, -9.0, 8.0, 7.0])  # far from zero: the sign never changes
    sgd = torch.optim.SGD(toy.parameters(), LR, momentum=momentum)
    moved = 9.0 - train(toy, Slimming(STRENGTH, mode), sgd, steps)[0].item()
    # The last steps' momentum hasn't been paid out yet: 1 / (1 - 0.5) steps' worth.
    assert moved == pytest.approx(reach(STRENGTH, LR * steps, mode, momentum), rel=0.01)
