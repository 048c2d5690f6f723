"""What can go beyond single channels: whole residual branches, and streams that nobody reads."""

import pytest
import torch
from torch import nn

from helpers import (
    configured,
    configured_networks,
    random_scores,
    randomise,
    relative_gap,
    without,
)
from slimming import load, mask, plan, save, slim, trace, verify
from slimming.checkpoint import Checkpoint
from slimming.graph.slices import UNREAD
from slimming.modules.bypass import Constant, Removed, stands_in
from slimming.planning.planner import predict
from zoo import ZOO, Concat, PreActivation, block, chain, conv

NONE = torch.tensor([], dtype=torch.long)
NAMES = list(configured_networks())
WITH_BRANCHES = ("densenet", "mobilenet_v2", "preresnet", "resnet")
RESIDUAL = [name for name in NAMES if name.startswith(WITH_BRANCHES)]


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_network_without_some_branches_computes_what_the_masked_one_does(name):
    model = configured(name).double()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    graph = trace(model, x)
    assert graph.branches
    keep = without(graph, graph.branches[::2])
    thin = slim(model, graph, keep)
    assert any(map(stands_in, thin.modules())) and not any(map(stands_in, model.modules()))
    assert verify(model, graph, keep, thin, x).holds
    assert params(thin) == predict(graph, keep)[0]
    for training in (False, True):  # training moves the statistics
        masked = mask(model, graph, keep).train(training)
        assert relative_gap(thin.train(training)(x), masked(x)) < 1e-9


@pytest.mark.parametrize("name", RESIDUAL[:3])
def test_it_trains_is_saved_and_is_cut_again(name, tmp_path):
    model = configured(name)
    target, arguments = configured_networks()[name]
    x = torch.randn(4, 3, 16, 16)
    graph = trace(model, x)
    thin = slim(model, graph, without(graph, graph.branches[:2]))
    thin(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in thin.parameters())
    for file in ("thin.pt", "thin.safetensors"):
        weights = thin.state_dict()
        save(tmp_path / file, Checkpoint(target, arguments, weights, (3, 16, 16)))
        assert torch.equal(load(tmp_path / file)(x), thin.eval()(x))
    again = trace(thin, x)
    assert len(again.branches) == len(graph.branches) - 2
    keep = without(again, again.branches[:1], 0.2)
    assert verify(thin, again, keep, slim(thin, again, keep), x).holds


def test_a_network_is_never_cut_off_from_its_input():
    chained = randomise(chain(*block(3, 6), *block(6, 5), nn.Flatten(), nn.Linear(320, 4)))
    assert trace(chained, torch.randn(2, 3, 8, 8)).branches == ()

    class Sized(nn.Module):
        """Reads the size of its input beside the values: that is no way to the output."""

        def __init__(self):
            super().__init__()
            self.body, self.last, self.fc = chain(*block(3, 6)), conv(6, 5), nn.Linear(5 * 64, 4)

        def forward(self, x):
            n = x.shape[0]
            return self.fc(self.last(self.body(x)).view(n, -1))

    assert trace(Sized(), torch.randn(2, 3, 8, 8)).branches == ()


def test_one_of_two_ways_stays():
    class Two(nn.Module):
        """Two branches side by side and nothing else: each could go, but not both."""

        def __init__(self):
            super().__init__()
            self.a, self.b = chain(*block(3, 5), conv(5, 6)), chain(*block(3, 4), conv(4, 6))
            self.fc = nn.Linear(6, 4)

        def forward(self, x):
            return self.fc((self.a(x) + self.b(x)).mean((2, 3)))

    (branch,) = trace(Two(), torch.randn(2, 3, 8, 8)).branches
    assert branch.last in ("a.3", "b.3")


def test_half_a_branch_is_refused():
    name = next(name for name in RESIDUAL if name.startswith("preresnet"))
    model, x = configured(name), torch.randn(2, 3, 16, 16)
    graph = trace(model, x)
    gates = graph.branches[0].gates
    assert len(gates) > 1
    with pytest.raises(ValueError, match=f"'{gates[0]}' keeps"):
        slim(model, graph, {gates[0]: NONE})


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2),
        nn.Conv2d(4, 6, (3, 5), padding="same", bias=False),
        nn.Conv2d(4, 6, (2, 3), padding="valid", stride=(1, 3)),
        nn.Conv1d(4, 6, 5, padding=1),
        nn.Conv3d(4, 6, 2),
        nn.Linear(4, 6),
        nn.BatchNorm2d(4),
        nn.BatchNorm1d(4),
    ],
    ids=str,
)
def test_stand_ins_know_the_size_of_the_layer(layer):
    dims = next(n for n in (1, 2, 3, 0) if str(n) in type(layer).__name__ or n == 0)
    x = torch.randn(2, 4, *[9] * dims)
    expected = layer(x)
    channel = -1 if isinstance(layer, nn.Linear) else 1
    small = Removed(layer)(x)
    assert small.shape[channel] == 1
    assert small.transpose(0, channel)[0].shape == expected.transpose(0, channel)[0].shape
    if hasattr(layer, "in_channels") or isinstance(layer, nn.Linear):
        value = torch.arange(6.0)
        given = Constant(layer, value)(x)
        assert given.shape == expected.shape
        assert torch.equal(given.movedim(channel, -1).flatten(0, -2).unique(dim=0), value[None])


@pytest.mark.parametrize("name", ["dense", "pre-activation", *RESIDUAL])
def test_channels_that_nobody_reads_can_go(name):
    if name in ZOO:
        make, shape = ZOO[name]
        model, x = randomise(make()).double(), torch.randn(4, *shape, dtype=torch.float64)
    else:
        model, x = configured(name).double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    graph = trace(model, x)
    keep = dict(plan(graph, random_scores(graph), 0.8))
    less = keep | {UNREAD: NONE}
    thin, thinner = slim(model, graph, keep), slim(model, graph, less)
    assert verify(model, graph, less, thinner, x).holds
    assert relative_gap(thinner.train()(x), thin.train()(x)) < 1e-9
    assert (params(thinner), params(thin)) == (predict(graph, less)[0], predict(graph, keep)[0])
    selects = bool(graph.streams.size)
    assert (params(thinner) < params(thin)) == selects
    assert selects == (not name.startswith(("resnet", "mobilenet")))
    again = trace(thinner.eval(), x)
    keep = {**plan(again, random_scores(again), 0.5), UNREAD: NONE}
    assert verify(thinner, again, keep, slim(thinner, again, keep), x).holds


def test_a_stream_stays_where_something_else_reads_it():
    class Read(PreActivation):
        def forward(self, x):
            return super().forward(x) + self.fc(self.stem(x).mean((2, 3)))

    assert trace(PreActivation(), torch.randn(2, 3, 8, 8)).streams.size == 8
    assert trace(Read(), torch.randn(2, 3, 8, 8)).streams.size == 0
    assert trace(Concat(), torch.randn(2, 3, 8, 8)).streams.size == 0


def test_kept_streams_stay_out_of_every_plan():
    for name in RESIDUAL:
        model, x = configured(name), torch.randn(2, 3, 16, 16)
        prune, keep = trace(model, x), trace(model, x, coupled="keep")
        if name.startswith(("resnet", "mobilenet")):
            assert set(keep.gates) < set(prune.gates)
            assert all(
                "coupled=keep" in keep.fixed[gate] for gate in prune.gates.keys() - keep.gates
            )
        else:  # streams are selected from, not cut
            assert keep.gates.keys() == prune.gates.keys()
        choice = plan(keep, random_scores(keep), 0.5)
        assert verify(model, keep, choice, slim(model, keep, choice), x).holds
    with pytest.raises(ValueError, match="coupled is one of prune, keep"):
        trace(model, x, coupled="cut")


def test_whole_branches_go_by_the_users_door(tmp_path):
    from door import tiny
    from prune import prune
    from train import train
    from utils.runs.folder import read_result

    trained = train(tiny("train", tmp_path, "model=preresnet29", "model.width=0.25"))
    options = ("ratio=0.9", "dead=bypass", "unread=remove", "compensate=refit", "recalibrate=0")
    folder = prune(tiny("prune", tmp_path, f"ckpt={trained}", *options))
    said, thin = read_result(folder), load(folder)
    gone = [name for name, (kept, _) in said["widths"].items() if kept == 0]
    assert gone and any(map(stands_in, thin.modules()))
    assert said["certificate"]["holds"]
    assert said["channels"]["total"] == read_result(trained)["channels"]["total"]
    assert (
        said["channels"]["kept"]
        == said["plan"]["kept"]
        == said["plan"]["total"] - int(0.9 * said["plan"]["total"])
    )
    assert all(row["after"] <= row["before"] + 1e-6 for row in said["folded"])
