"""What cut channels still contributed is handed on: exact where a constant can be exact."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from helpers import assert_same_state, norms, random_plan, randomise, relative_gap, state
from slimming import checkpoint as artifact
from slimming import compensate, load, recalibrate, save, slim, trace
from slimming.checkpoint import Checkpoint
from slimming.repair.consumers import out_of_reach
from zoo import ZOO, PreActivation, block, chain, conv


def pointwise(bias: bool = False) -> nn.Sequential:
    """No padding anywhere: what a silent channel gives is the same at every position."""
    return chain(
        *(conv(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 7, 1, bias=bias)),
        *(nn.BatchNorm2d(7), nn.Sigmoid(), conv(7, 6, 1), nn.ReLU(), conv(6, 6, 1)),
        *(nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )


def linear() -> nn.Sequential:
    return chain(
        *(nn.Linear(5, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 8, bias=False)),
        *(nn.BatchNorm1d(8), nn.Softplus(), nn.Linear(8, 3, bias=False)),
    )


def padded() -> nn.Sequential:
    return chain(*block(3, 6), conv(6, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def setup(model: nn.Module, *shape: int, ratio: float = 0.5):
    model = randomise(model).double().eval()
    for norm in norms(model).values():
        if norm.affine:
            norm.bias.data.abs_()  # act(beta) isn't 0: there is something to hand on
    x = torch.randn(6, *shape, dtype=torch.float64)
    graph = trace(model, x)
    keep = random_plan(graph, ratio)
    return model, x, graph, keep, slim(model, graph, keep)


def with_gammas_at_zero(model, keep):
    silent = copy.deepcopy(model)
    for gate, kept in keep.items():
        gamma = silent.get_submodule(gate).weight.data
        gamma[sorted(set(range(len(gamma))) - set(kept.tolist()))] = 0
    return silent


def output_of(model: nn.Module, layer: str, x: torch.Tensor) -> torch.Tensor:
    seen = []
    hook = model.get_submodule(layer).register_forward_hook(lambda m, a, out: seen.append(out))
    model(x)
    hook.remove()
    return seen[0].detach().clone()


EXACT = {
    "1x1 convolutions": (pointwise, (3, 6, 6)),
    "1x1 convolutions with bias": (lambda: pointwise(bias=True), (3, 6, 6)),
    "linear layers": (linear, (5,)),
    "flatten": (lambda: chain(*block(3, 6), nn.Flatten(), nn.Linear(6 * 16, 4)), (3, 4, 4)),
}


@pytest.mark.parametrize("name", list(EXACT))
def test_bias_is_exact_where_nothing_is_padded(name):
    make, shape = EXACT[name]
    model, x, graph, keep, thin = setup(make(), *shape)
    dropped = thin(x)
    folded = compensate(model, graph, keep, thin, [x], "bias")
    silent = with_gammas_at_zero(model, keep)
    assert relative_gap(thin(x), silent(x)) < 1e-12
    assert relative_gap(dropped, silent(x)) > 1e-3  # what peers lose
    other = torch.randn_like(x)
    assert relative_gap(thin(other), silent(other)) < 1e-12  # it depends on no image
    assert folded and all(layer.left < 1e-6 * layer.shift for layer in folded)


def test_with_padding_the_mean_is_right_and_the_border_is_reported():
    model, x, graph, keep, thin = setup(padded(), 3, 8, 8)
    (folded,) = compensate(model, graph, keep, thin, [x], "bias")
    assert folded.layer == "3"
    silent = with_gammas_at_zero(model, keep)
    error = output_of(silent, "3", x) - output_of(thin, "3", x)
    assert error.mean((0, 2, 3)).abs().max() < 1e-12
    assert folded.left > 0
    assert folded.left == pytest.approx(error.square().mean().sqrt().item(), rel=1e-9)
    inside = error[:, :, 1:-1, 1:-1]  # one constant inside, others along the border
    assert (inside - inside[:, :, :1, :1]).abs().max() < 1e-12 < error.abs().max()


@pytest.mark.parametrize("name", ["1x1 convolutions", "linear layers", "flatten"])
def test_expected_keeps_the_mean_of_what_consumers_compute(name):
    make, shape = EXACT[name]
    model, x, graph, keep, thin = setup(make(), *shape)
    # One gate at a time, so that what comes before a consumer is the dense network's.
    for gate in graph.gates:
        one = {**random_plan(graph, 0), gate: keep[gate]}
        thin = slim(model, graph, one)
        (folded,) = compensate(model, graph, one, thin, [x[:2], x[2:]], "expected")
        dense, small = output_of(model, folded.layer, x), output_of(thin, folded.layer, x)
        norm = graph.folds.get(folded.layer)
        if norm is not None:  # the BatchNorm takes it: compare what it subtracts
            shift = model.get_submodule(norm).running_mean - thin.get_submodule(norm).running_mean
            small = small + shift.reshape(1, -1, *[1] * (small.dim() - 2))
        dims = [dim for dim in range(dense.dim()) if dim != 1]
        gap = (dense - small).mean(dims)
        assert gap.abs().max() < 1e-12 * dense.abs().max()
        left = (dense - small).square().mean(dims).mean().sqrt().item()
        assert folded.left == pytest.approx(left, rel=1e-9)


def test_expected_beats_bias_beats_none_on_these_images():
    """Peer bug B3: the shift of a cut channel is thrown away."""
    model, x, graph, keep, _ = setup(chain(*block(3, 16), conv(16, 4, 1)), 3, 8, 8)
    errors = {}
    for mode in ("none", "bias", "expected"):
        thin = slim(model, graph, keep)
        compensate(model, graph, keep, thin, [x], mode)
        errors[mode] = (thin(x) - model(x)).square().mean().item()
    assert errors["expected"] < min(errors["bias"], errors["none"])


def test_none_changes_nothing_and_looks_at_no_image():
    model, _, graph, keep, thin = setup(pointwise(), 3, 6, 6)
    before = state(thin)

    def images():
        raise AssertionError("looked at an image")
        yield

    assert compensate(model, graph, keep, thin, images(), "none") == []
    assert_same_state(thin.state_dict(), before)


def test_it_goes_into_the_norm_the_bias_or_a_new_bias():
    model, x, graph, keep, thin = setup(pointwise(), 3, 6, 6)
    before = state(thin)
    compensate(model, graph, keep, thin, [x], "bias")
    changed = {name for name, t in thin.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {"4.running_mean", "6.bias", "13.bias"}
    model, x, graph, keep, thin = setup(linear(), 5)
    before = state(thin)
    compensate(model, graph, keep, thin, [x], "bias")
    assert set(thin.state_dict()) - set(before) == {"6.bias"}
    assert thin.get_submodule("6").bias.requires_grad


def test_a_norm_that_another_layer_reads_too_is_left_alone():
    # conv1a is read by bn1b alone; conv1b writes to the stream, where only a bias is right.
    model, x, graph, keep, thin = setup(PreActivation(), 3, 8, 8)
    assert graph.folds == {"conv1a": "bn1b", "conv2a": "bn2b"}
    compensate(model, graph, keep, thin, [x], "bias")
    assert thin.conv1b.bias is not None and thin.conv2b.bias is not None
    assert thin.conv1a.bias is None


def test_training_mode_doesnt_see_the_shift_of_a_running_mean():
    model, x, graph, keep, thin = setup(chain(*block(3, 6), *block(6, 5)), 3, 8, 8)
    before = copy.deepcopy(thin).train()(x)
    compensate(model, graph, keep, thin, [x], "expected")
    assert torch.equal(thin.train()(x), before)


@pytest.mark.parametrize("name", list(ZOO))
@pytest.mark.parametrize("mode", ["bias", "expected"])
def test_every_network_can_be_compensated(name, mode):
    make, shape = ZOO[name]
    model, x, graph, keep, thin = setup(make(), *shape)
    before, modes = state(model), [m.training for m in model.modules()]
    folded = compensate(model, graph, keep, thin, [x[:3], x[3:]], mode)
    assert folded
    assert all(leaf.isfinite().all() for leaf in tree_leaves(thin(x)))
    assert_same_state(model.state_dict(), before)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_pre_hooks for m in [*model.modules(), *thin.modules()])


def test_a_fixed_convolution_in_front_of_a_selecting_norm():
    # The conv stays whole (its groups read the image), so its norm selects among its outputs.
    model = chain(conv(2, 6, 1, groups=2), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4, 1))
    inner = chain(*block(3, 4), conv(4, 2, 1), nn.Softmax(1), *model)
    model, x, graph, keep, thin = setup(inner, 3, 6, 6)
    assert "5" in graph.selecting or "6" in graph.selecting
    compensate(model, graph, keep, thin, [x], "bias")
    assert relative_gap(thin(x), with_gammas_at_zero(model, keep)(x)) < 1e-12


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_compensated_network_is_saved_and_loaded(tmp_path, suffix):
    make, shape = ZOO["pre-activation"]
    model, graph_x = randomise(make()).eval(), torch.randn(4, *shape)
    graph = trace(model, graph_x)
    keep = random_plan(graph, 0.5)
    thin = slim(model, graph, keep)
    compensate(model, graph, keep, thin, [graph_x], "expected")
    assert thin.conv1b.bias is not None
    path = tmp_path / f"m{suffix}"
    save(path, Checkpoint("zoo.PreActivation", {}, thin.state_dict(), shape))
    loaded = load(path, allow=["zoo"])
    assert torch.equal(loaded(graph_x), thin(graph_x))
    again = trace(artifact.load(path, allow=["zoo"]), graph_x)
    assert slim(loaded, again, random_plan(again, 0.3))(graph_x).isfinite().all()


@pytest.mark.parametrize("mode", ["Bias", "", None, "refitted"])
def test_an_unknown_mode_is_refused(mode):
    model, x, graph, keep, thin = setup(pointwise(), 3, 6, 6)
    with pytest.raises(ValueError, match="compensate is one of none, bias, expected, refit"):
        compensate(model, graph, keep, thin, [x], mode)


def test_no_images_are_refused_and_nothing_is_lost():
    model, _, graph, keep, thin = setup(pointwise(), 3, 6, 6)
    before = state(thin)
    with pytest.raises(ValueError, match="at least one batch"):
        compensate(model, graph, keep, thin, [], "bias")
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate(thin, [])
    assert_same_state(thin.state_dict(), before)


def test_recalibration_gives_the_average_of_the_batches_statistics_by_their_sizes():
    model = randomise(chain(conv(3, 4), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU())).double()
    batches = [torch.randn(n, 3, 5, 5, dtype=torch.float64) for n in (4, 4, 2)]
    recalibrate(model, iter(batches))
    per_batch = [model[0](batch).detach() for batch in batches]
    mean = sum(0.1 * len(z) * z.mean((0, 2, 3)) for z in per_batch)
    variance = sum(0.1 * len(z) * z.var((0, 2, 3)) for z in per_batch)
    torch.testing.assert_close(model[1].running_mean, mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model[1].running_var, variance, rtol=1e-12, atol=1e-14)


def test_recalibration_leaves_everything_else_alone():
    model = randomise(
        chain(*block(3, 4), nn.Dropout(0.9), conv(4, 3), nn.BatchNorm2d(3, momentum=0.3))
    )
    model[1].eval()
    model.append(nn.BatchNorm2d(3, affine=False, track_running_stats=False))
    before, flags = state(model), [m.training for m in model.modules()]
    batches = [torch.randn(4, 3, 5, 5) for _ in range(3)]
    draws = torch.get_rng_state()
    recalibrate(model, batches)
    assert torch.equal(torch.get_rng_state(), draws)  # dropout was off
    assert [m.training for m in model.modules()] == flags
    assert model[1].momentum == 0.1 and model[5].momentum == 0.3
    parameters = dict(model.named_parameters())
    assert_same_state(parameters, {name: before[name] for name in parameters})
    assert not torch.equal(model[5].running_mean, before["5.running_mean"])
    again = copy.deepcopy(model)
    recalibrate(again, batches)
    assert_same_state(again.state_dict(), model.state_dict())


def test_recalibration_restores_the_flags_when_a_batch_is_wrong():
    model = randomise(chain(*block(3, 4))).train()
    with pytest.raises(RuntimeError):
        recalibrate(model, [torch.randn(2, 3, 5, 5), torch.randn(2, 7, 5, 5)])
    assert all(m.training for m in model.modules()) and model[1].momentum == 0.1


def test_what_no_constant_can_reach_is_told():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.weight = (
                chain(*block(3, 6), *block(6, 6)),
                nn.Parameter(torch.randn(4, 6)),
            )

        def forward(self, x):
            return nn.functional.linear(self.body(x).mean((2, 3)), self.weight)

    model, x, graph, keep, thin = setup(Functional(), 3, 8, 8)
    assert out_of_reach(graph, keep, thin) == ["weight"]
    for mode in ("bias", "expected", "refit"):
        (row,) = compensate(model, graph, keep, slim(model, graph, keep), [x], mode)
        assert row.layer == "body.3"
