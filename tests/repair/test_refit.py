"""Least squares gives back what redundant channels gave, in every kind of consumer."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from helpers import assert_same_state, random_plan, randomise, relative_gap, state
from slimming import compensate, slim, trace
from slimming.repair.leastsquares import LeastSquares
from slimming.repair.refit import refit
from zoo import ZOO, Concat, PreActivation, Residual, Twice, block, chain, conv

PICTURE = (3, 8, 8)


def setup(model: nn.Module, *shape: int, images: int = 32, ratio: float = 0.5):
    torch.manual_seed(0)
    model = randomise(model).double().eval()
    x = torch.randn(images, *shape, dtype=torch.float64)
    graph = trace(model, x[:2])
    return model, x, graph, random_plan(graph, ratio)


def make_redundant(model: nn.Module, graph, keep) -> None:
    """Every cut channel becomes a copy of one that stays: makers and norms, not readers."""
    twin: dict[int, int] = {}
    for gate, ids in graph.gates.items():
        kept = ids[keep[gate]].tolist()
        gone = sorted(set(ids.tolist()) - set(kept))
        twin |= {channel: kept[i % len(kept)] for i, channel in enumerate(gone)}
    with torch.no_grad():
        for (name, dim), ids in graph.dims.items():
            if (name, dim) not in graph.reads:
                tensor, places = model.state_dict()[name], ids.tolist()
                source = [
                    places.index(twin.get(c, c)) if c >= 0 else i for i, c in enumerate(places)
                ]
                tensor.copy_(tensor.index_select(dim, torch.tensor(source)))


class Transposed(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.body, self.up = chain(*block(3, 6)), nn.ConvTranspose2d(6, 5, 3, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.body(x)).tanh()


CONSUMERS = {
    "linear": (
        lambda: chain(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)),
        (7,),
    ),
    "linear without bias": (
        lambda: chain(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.Linear(9, 4, bias=False)),
        (7,),
    ),
    "flatten": (lambda: chain(*block(3, 6), nn.Flatten(), nn.Linear(6 * 4, 4)), (3, 2, 2)),
    "zero padding": (lambda: chain(*block(3, 6), conv(6, 5)), PICTURE),
    "strides and dilation": (
        lambda: chain(*block(3, 6), nn.Conv2d(6, 5, (3, 2), (2, 1), (0, 3), (1, 2), bias=False)),
        PICTURE,
    ),
    "same": (lambda: chain(*block(3, 6), nn.Conv2d(6, 5, (4, 3), padding="same")), PICTURE),
    "valid": (lambda: chain(*block(3, 6), nn.Conv2d(6, 5, 3, padding="valid")), PICTURE),
    "reflect": (
        lambda: chain(*block(3, 6), nn.Conv2d(6, 5, 3, padding=(2, 1), padding_mode="reflect")),
        PICTURE,
    ),
    "circular": (
        lambda: chain(*block(3, 6), nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular")),
        PICTURE,
    ),
    "replicate, one dimension": (
        lambda: chain(
            *(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ReLU()),
            nn.Conv1d(6, 4, 3, padding=1, padding_mode="replicate"),
        ),
        (3, 9),
    ),
    "three dimensions": (
        lambda: chain(
            *(nn.Conv3d(2, 5, 3), nn.BatchNorm3d(5), nn.ReLU(), nn.Conv3d(5, 4, 2, padding=1)),
        ),
        (2, 6, 5, 4),
    ),
    "transposed": (lambda: Transposed(stride=2, padding=1, output_padding=1), PICTURE),
    "transposed, dilated": (lambda: Transposed(padding=3, dilation=2, bias=False), PICTURE),
    "transposed, uneven": (lambda: Transposed(stride=(3, 1), padding=(0, 2)), PICTURE),
    "behind a depthwise": (
        lambda: chain(*block(3, 6), *block(6, 6, groups=6), conv(6, 5)),
        PICTURE,
    ),
    "with a BatchNorm behind": (lambda: chain(*block(3, 6), *block(6, 5), conv(5, 4)), PICTURE),
    "through concatenation": (Concat, PICTURE),
    "coupled stream": (Residual, PICTURE),
    "called twice": (Twice, PICTURE),
    "squeeze-excitation": (ZOO["squeeze-excitation"][0], PICTURE),
    "channel shuffle": (ZOO["shuffle"][0], PICTURE),
}


@pytest.mark.parametrize("name", list(CONSUMERS))
def test_redundant_channels_cost_nothing(name):
    make, shape = CONSUMERS[name]
    model, x, graph, keep = setup(make(), *shape, images=64)
    make_redundant(model, graph, keep)
    thin, folded = slim(model, graph, keep), slim(model, graph, keep)
    refitted = refit(model, graph, keep, thin, x.split(24), damping=1e-14)
    compensate(model, graph, keep, folded, [x], "expected")
    other = torch.randn_like(x)
    assert relative_gap(thin(x), model(x)) < 1e-8
    assert relative_gap(thin(other), model(other)) < 1e-6  # found, not memorised
    assert relative_gap(folded(x), model(x)) > 1e-3  # more than constants can do
    assert all(row.after < 1e-6 * max(1, row.before) for row in refitted)
    assert refitted[0].before > 1e-2


def test_selected_channels_of_a_stream():
    """Pre-activation: odd channels of the stream are copies of the even ones, which stay."""
    model, x, graph, _ = setup(PreActivation(), *PICTURE, images=64)
    with torch.no_grad():
        for layer in (model.stem, model.conv1b, model.conv2b):
            layer.weight[1::2] = layer.weight[0::2]
        for norm in (model.bn1a, model.bn2a, model.bn):
            for tensor in norm.state_dict().values():
                if tensor.dim():
                    tensor[1::2] = tensor[0::2]
    keep = {gate: torch.arange(0, 8, 2) for gate in ("bn1a", "bn2a", "bn")}
    thin = slim(model, graph, keep)
    rows = refit(model, graph, keep, thin, [x], damping=1e-14)
    assert [row.layer for row in rows] == ["conv1a", "conv2a", "fc"]
    assert relative_gap(thin(x), model(x)) < 1e-9


def test_it_is_the_least_squares_solution():
    """Against torch's own solver on unfolded patches, borders included."""
    model, x, graph, keep = setup(chain(*block(3, 8), conv(8, 4)), *PICTURE)
    thin = slim(model, graph, keep)
    (row,) = refit(model, graph, keep, thin, x.split(5), damping=0.0)
    patches = F.unfold(model[:3](x)[:, keep["1"]], 3, padding=1).transpose(1, 2).flatten(0, 1)
    patches = torch.cat([patches, torch.ones(len(patches), 1)], 1)
    target = model(x).movedim(1, -1).flatten(0, -2)
    solution = torch.linalg.lstsq(patches, target).solution
    torch.testing.assert_close(thin[3].weight.flatten(1).T, solution[:-1], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(thin[3].bias, solution[-1], rtol=1e-8, atol=1e-10)
    left = (target - patches @ solution).square().mean(0).sum()
    assert row.after == pytest.approx((left / target.var(0, correction=0).sum()).sqrt().item())
    assert row.rows == 32 * 64 and row.damping == 0


@pytest.mark.parametrize("rows", [30, 9])  # more and fewer than there are inputs
def test_damping_is_a_ridge_on_the_difference(rows):
    torch.manual_seed(0)
    inputs, given, target = (torch.randn(rows, n, dtype=torch.float64) + 3 for n in (12, 2, 2))
    equations = LeastSquares()
    for parts in zip(*(t.split(4) for t in (inputs, given, target)), strict=True):
        equations.add(*parts)
    change, shift, before, after, damping = equations.solve(0.3)
    x, missing = inputs - inputs.mean(0), target - given
    ridge = 0.3 * x.square().sum() / 12 * torch.eye(12, dtype=torch.float64)
    expected = torch.linalg.solve(x.T @ x + ridge, x.T @ (missing - missing.mean(0)))
    torch.testing.assert_close(change, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(shift, (missing - inputs @ expected).mean(0), rtol=1e-10, atol=1e-12)
    energy = (target - target.mean(0)).square().sum()
    left = (missing - inputs @ change - shift).square().sum()
    assert before == pytest.approx((missing.square().sum() / energy).sqrt().item())
    assert after == pytest.approx((left / energy).sqrt().item())
    assert damping == 0.3


def test_singular_equations_are_damped_more_and_say_so():
    model, x, graph, keep = setup(chain(*block(3, 8), conv(8, 4, 1)), *PICTURE)
    kept = keep["1"]
    with torch.no_grad():  # two channels that stay are one and the same
        for tensor in (*model[0].parameters(), *model[1].state_dict().values()):
            if tensor.dim():
                tensor[kept[1]] = tensor[kept[0]]
    thin = slim(model, graph, keep)
    (row,) = refit(model, graph, keep, thin, [x], damping=0.0)
    assert 0 < row.damping < 1e-9
    assert row.after <= row.before and thin(x).isfinite().all()


@pytest.mark.parametrize("rows", [20, 500])  # fewer than inputs: the matrix between rows
@pytest.mark.parametrize("width", [3, 8, 33])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_doubled_inputs_never_get_huge_weights(rows, width, scale):
    """Whatever a processor's rounding leaves of a pivot that is zero."""
    generator = torch.Generator().manual_seed(rows + width)
    some = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    inputs = scale * torch.cat([some, some, some.sum(1, keepdim=True)], 1)
    target = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    equations = LeastSquares()
    equations.add(inputs, torch.zeros_like(target), target)
    change, shift, before, after, damping = equations.solve(0.0)
    assert after <= before and 0 <= damping < 1e-9
    assert change.abs().max() < 10 / scale and shift.isfinite().all()


def test_inputs_that_never_change_leave_the_weights_alone():
    model, x, graph, keep = setup(chain(*block(3, 6), conv(6, 4, 1)), *PICTURE)
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.abs_()
    thin = slim(model, graph, keep)
    before = thin[3].weight.clone()
    refit(model, graph, keep, thin, [x])
    assert torch.equal(thin[3].weight, before)
    assert relative_gap(thin(x), model(x)) < 1e-12  # the bias is all that was missing


@pytest.mark.parametrize("mode", ["bias", "expected", "refit"])
@pytest.mark.parametrize("dead", [1.0, 0.0])  # running variance of a channel that never fires
def test_dead_channels_cost_nothing_where_nothing_is_padded(mode, dead):
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 7, 2, bias=False)]
    layers += [nn.BatchNorm2d(7), nn.Sigmoid(), nn.ConvTranspose2d(7, 6, 1), nn.ReLU()]
    model, x, graph, keep = setup(chain(*layers, nn.Flatten(), nn.Linear(150, 4)), *PICTURE)
    with torch.no_grad():
        for gate, kept in keep.items():
            norm = model.get_submodule(gate)
            gone = torch.ones(len(norm.weight), dtype=torch.bool)
            gone[kept] = False
            norm.weight[gone] = 0.0
            norm.running_var[gone] = dead
            norm.bias.abs_()
    thin = slim(model, graph, keep)
    plain = relative_gap(thin(x), model(x))
    assert compensate(model, graph, keep, thin, [x[:20], x[20:]], mode)
    assert relative_gap(thin(x), model(x)) < 1e-9 < 1e-3 < plain


@pytest.mark.parametrize("name", list(ZOO))
def test_every_network_can_be_refitted(name):
    make, shape = ZOO[name]
    model, x, graph, keep = setup(make(), *shape)
    thin = slim(model, graph, keep).train()
    before, cut, modes = state(model), state(thin), [m.training for m in model.modules()]
    rows = compensate(model, graph, keep, thin, [x[:20], x[20:]], "refit")
    assert rows
    for row in rows:
        assert row.after <= row.before * (1 + 1e-9) + 1e-7
    assert_same_state(model.state_dict(), before)
    assert [m.training for m in model.modules()] == modes and thin.training
    assert not any(m._forward_hooks for m in [*model.modules(), *thin.modules()])
    assert all(leaf.isfinite().all() for leaf in tree_leaves(thin.eval()(x)))
    refitted = {row.layer for row in rows} | {graph.folds.get(row.layer) for row in rows}
    for tensor, value in thin.state_dict().items():
        if tensor.rpartition(".")[0] not in refitted:
            assert torch.equal(value, cut[tensor]), tensor


def test_it_beats_constants_on_images_it_has_not_seen():
    model, x, graph, keep = setup(chain(*block(3, 16), *block(16, 12), conv(12, 4)), *PICTURE)
    other, gaps = torch.randn(64, *PICTURE, dtype=torch.float64), {}
    for mode in ("none", "bias", "expected", "refit"):
        thin = slim(model, graph, keep)
        compensate(model, graph, keep, thin, [x], mode)
        gaps[mode] = (thin(other) - model(other)).square().mean().item()
    assert gaps["refit"] < 0.7 * min(gaps["expected"], gaps["bias"], gaps["none"])


def test_a_layer_is_fitted_on_what_the_refitted_layers_before_it_give():
    model, x, graph, keep = setup(chain(*block(3, 8), *block(8, 6), conv(6, 4)), *PICTURE)
    thin = slim(model, graph, keep)
    first, second = refit(model, graph, keep, thin, [x])
    error = (thin(x) - model(x)).square().sum((0, 2, 3)).sum()
    deviation = model(x).var((0, 2, 3), correction=0).sum() * x.shape[0] * 64
    assert (first.layer, second.layer) == ("3", "6")
    assert second.after == pytest.approx((error / deviation).sqrt().item())


@pytest.mark.parametrize("name", ["three dimensions", "called twice", "dense", "depthwise", "mlp"])
def test_images_that_don_t_fit_into_memory_together_give_the_same(name, monkeypatch):
    make, shape = ZOO[name]
    model, x, graph, keep = setup(make(), *shape)
    whole, chunks = slim(model, graph, keep), slim(model, graph, keep)
    rows = refit(model, graph, keep, whole, x.split(12))
    monkeypatch.setattr("slimming.repair.survey.LIVE", 1)
    again = refit(model, graph, keep, chunks, x.split(12))
    assert [row.layer for row in rows] == [row.layer for row in again]
    assert relative_gap(chunks(x), whole(x)) < 1e-8


def test_large_maps_are_sampled_always_at_the_same_places(monkeypatch):
    model, x, graph, keep = setup(chain(*block(3, 16), conv(16, 4)), *PICTURE, images=40)
    thins = [slim(model, graph, keep) for _ in range(3)]
    refit(model, graph, keep, thins[0], [x])
    monkeypatch.setattr("slimming.repair.survey.ROWS", 999)
    (row,), (same,) = (refit(model, graph, keep, thin, [x]) for thin in thins[1:])
    assert row == same and 999 <= row.rows <= 1000
    assert_same_state(thins[1].state_dict(), thins[2].state_dict())
    assert 0 < relative_gap(thins[1](x), thins[0](x)) < 0.2


@pytest.mark.parametrize("name", list(CONSUMERS))
def test_one_image_is_enough_to_run(name):
    make, shape = CONSUMERS[name]
    model, x, graph, keep = setup(make(), *shape)
    thin = slim(model, graph, keep)
    rows = refit(model, graph, keep, thin, [x[:1]])
    assert all(row.after <= row.before * (1 + 1e-9) + 1e-7 for row in rows)
    assert thin(x).isfinite().all()


def test_single_precision_is_enough():
    make, shape = ZOO["residual"]
    model, x, graph, keep = setup(make(), *shape)
    exact, single = slim(model, graph, keep), slim(model, graph, keep).float()
    refit(model, graph, keep, exact, [x])
    refit(model.float(), graph, keep, single, [x.float()])
    assert all(tensor.dtype == torch.float32 for tensor in single.parameters())
    assert relative_gap(single(x.float()).double(), exact(x)) < 1e-4


def test_a_thin_network_is_cut_and_refitted_again():
    for name in ("pre-activation", "dense", "residual", "transposed convolution"):
        make, shape = ZOO[name]
        model, x, graph, keep = setup(make(), *shape, ratio=0.3)
        thin = slim(model, graph, keep)
        refit(model, graph, keep, thin, [x])
        again = trace(thin, x[:2])
        less = random_plan(again, 0.4, seed=1)
        thinner = slim(thin, again, less)
        assert all(row.after < row.before for row in refit(thin, again, less, thinner, [x]))
        assert thinner(x).isfinite().all()


def test_a_branch_that_is_gone_leaves_its_mean():
    model, x, graph, _ = setup(Residual(), *PICTURE)
    (branch,) = [b for b in graph.branches if "bn1" in b.gates]
    keep = {gate: torch.arange(0) for gate in branch.gates}
    for mode in ("bias", "expected", "refit"):
        thin = slim(model, graph, keep)
        (row,) = compensate(model, graph, keep, thin, [x], mode)
        assert row.layer == branch.last
        if mode != "bias":
            gap = (model.conv2(F.relu(model.bn1(model.conv1(model.stem(x))))) - thin.conv2(x)).mean(
                (0, 2, 3)
            )
            gap = gap - model.bn2.running_mean + thin.bn2.running_mean
            assert gap.abs().max() < 1e-12


def test_nothing_cut_needs_no_images():
    model, x, graph, _ = setup(ZOO["residual"][0](), *PICTURE)
    assert refit(model, graph, {}, slim(model, graph, {}), [x]) == []


@pytest.mark.parametrize("mode", ["bias", "expected", "refit"])
@pytest.mark.parametrize("broken", ["model", "images"])
def test_nan_is_refused_in_a_sentence_and_nothing_changes(mode, broken):
    model, x, graph, keep = setup(chain(*block(3, 6), *block(6, 5), conv(5, 4)), *PICTURE)
    if broken == "model":
        with torch.no_grad():
            gone = next(i for i in range(5) if i not in keep["4"].tolist())
            model[4].bias[gone] = float("nan")
    else:
        x[3, 1, 2, 2] = float("inf")
    thin = slim(model, graph, keep)
    before = state(thin)
    with pytest.raises(ValueError, match=r"^'\d' .*NaN or infinity on the images: nothing was"):
        compensate(model, graph, keep, thin, [x[:2], x[2:]], mode)
    assert_same_state(thin.state_dict(), before)


def test_no_images_are_refused():
    model, x, graph, keep = setup(chain(*block(3, 6), conv(6, 4)), *PICTURE)
    for images in ([], [x[:0]]):
        with pytest.raises(ValueError, match="at least one batch of training images"):
            refit(model, graph, keep, slim(model, graph, keep), images)


def test_a_network_that_calls_other_layers_is_refused():
    class Skips(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x))

    model, x, graph, keep = setup(chain(*block(3, 6), conv(6, 4)), *PICTURE)
    with pytest.raises(ValueError, match="the thin network never calls '3': cut the model again"):
        refit(model, graph, keep, Skips(*slim(model, graph, keep)), [x])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(8))
def test_it_ends_where_a_constant_is_all_that_is_missing(dtype, seed):
    """What the best shift leaves is rounding then, and may be below 0."""
    torch.manual_seed(seed)
    model = randomise(
        chain(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)), seed
    )
    with torch.no_grad():
        model[1].weight[:8] = 0.0
        model[1].bias[:8] = torch.rand(8)
    model, x = model.eval().to(dtype), torch.randn(256, 12, dtype=dtype)
    graph = trace(model, x)
    keep = {"1": torch.arange(8, 16)}
    thin = slim(model, graph, keep)
    (row,) = compensate(model, graph, keep, thin, [x], "refit")
    assert row.after < 1e-6 < row.before
    assert relative_gap(thin(x), model(x)) < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_it_ends_where_inputs_never_change_but_for_rounding(seed):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = chain(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.body(x).softmax(-1).mean((2, 3)))  # 1/6, whatever x is

    torch.manual_seed(seed)
    model = randomise(Pooled(), seed).eval()
    x = torch.randn(16, *PICTURE)
    graph = trace(model, x)
    keep = random_plan(graph, 0.5)
    thin = slim(model, graph, keep)
    (row,) = compensate(model, graph, keep, thin, [x], "refit")
    assert row.growth <= 2 and row.shortfall is None
    assert relative_gap(thin(x), model(x)) < 1e-5


def heavy():
    """What stays are copies of what goes, 100 times smaller: to make up takes huge weights."""
    model, x, graph, keep = setup(chain(*block(3, 8), *block(8, 6), conv(6, 4)), *PICTURE)
    make_redundant(model, graph, keep)
    with torch.no_grad():
        model[1].weight[keep["1"]] *= 1e-2
        model[1].bias[keep["1"]] *= 1e-2
    return model, x, graph, keep


@pytest.mark.parametrize("growth", [1.0, 1.5, 2.0, 8.0])
def test_weights_never_grow_beyond_the_bound(growth):
    model, x, graph, keep = heavy()
    thin, free = slim(model, graph, keep), slim(model, graph, keep)
    before = {name: p.norm() for name, p in thin.named_parameters()}
    rows = compensate(model, graph, keep, thin, [x], "refit", growth=growth)
    for row in rows:
        norm = thin.get_submodule(row.layer).weight.norm() / before[f"{row.layer}.weight"]
        assert row.growth == pytest.approx(norm.item()) and row.growth <= growth
    unbounded = refit(model, graph, keep, free, [x])
    assert unbounded[0].growth > 8
    assert rows[0].damping > unbounded[0].damping
    assert unbounded[0].after < rows[0].after <= rows[0].before


def test_a_bound_that_doesnt_bind_changes_nothing():
    model, x, graph, keep = setup(chain(*block(3, 8), *block(8, 6), conv(6, 4)), *PICTURE)
    thin, free = slim(model, graph, keep), slim(model, graph, keep)
    rows = compensate(model, graph, keep, thin, [x], "refit", growth=50)
    assert rows == refit(model, graph, keep, free, [x])
    assert_same_state(thin.state_dict(), free.state_dict())


@pytest.mark.parametrize("growth", [0.99, 0.0, -1.0, float("nan")])
def test_a_bound_below_one_is_refused(growth):
    model, x, graph, keep = heavy()
    with pytest.raises(ValueError, match="growth is a factor of 1 or more"):
        compensate(model, graph, keep, slim(model, graph, keep), [x], "refit", growth=growth)


def test_what_cant_be_explained_is_a_shortfall():
    model, x, graph, keep = setup(chain(*block(3, 8), conv(8, 4)), *PICTURE)
    keep = {"1": torch.tensor([0])}
    with torch.no_grad():
        model[1].weight[0], model[1].bias[0] = 1e-9, -1.0  # what is left never fires
    (row,) = compensate(model, graph, keep, slim(model, graph, keep), [x], "refit")
    assert row.after > 0.9
    assert "'3' reads too little" in row.shortfall and "100%" in row.shortfall


def test_the_thin_network_runs_once():
    model, x, graph, keep = setup(ZOO["dense"][0](), *ZOO["dense"][1])
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    thin = slim(model, graph, keep)
    assert len(refit(model, graph, keep, thin, x.split(4))) > 2
    assert len(calls) == 3  # to survey one batch, to listen to the original, to refit the thin one


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = chain(*block(3, 6)), chain(*block(3, 6)), nn.Linear(6, 4)

    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        return self.fc((self.a(a) - scale * self.b(b)).mean((2, 3)))


@pytest.mark.parametrize("mode", ["bias", "expected", "refit"])
def test_inputs_are_what_trace_takes_and_labels_may_follow(mode):
    torch.manual_seed(0)
    model, labels = randomise(TwoInputs()).double().eval(), torch.arange(6)
    x, y = (torch.randn(6, *PICTURE, dtype=torch.float64) for _ in range(2))
    graph = trace(model, (x, y))
    keep, thins = random_plan(graph, 0.5), []
    for batch in ((x, y), (x, y, labels), {"args": (x,), "kwargs": {"b": y}}):
        thins.append(slim(model, graph, keep))
        assert compensate(model, graph, keep, thins[-1], [batch, batch], mode)
        assert_same_state(thins[-1].state_dict(), thins[0].state_dict())
    with pytest.raises(ValueError, match="a batch has 1 entries, but forward takes 2 to 3"):
        compensate(model, graph, keep, thins[0], [(x,)], mode)


@pytest.mark.parametrize("mode", ["bias", "expected", "refit"])
def test_whatever_fails_leaves_the_thin_network_as_it_was(mode):
    model, x, graph, keep = setup(chain(*block(3, 6), *block(6, 5), conv(5, 4)), *PICTURE)
    thin = slim(model, graph, keep)
    before = state(thin)

    def images():
        yield x
        raise KeyboardInterrupt

    for batches in (images(), [x, x[:, :2]], [(x, x, x)]):
        with pytest.raises(BaseException):  # noqa: B017
            compensate(model, graph, keep, thin, batches, mode)
        assert_same_state(thin.state_dict(), before)


def test_images_of_several_sizes_are_taken_one_size_after_the_other():
    model, x, graph, keep = setup(chain(*block(3, 8), conv(8, 4)), *PICTURE, images=64)
    make_redundant(model, graph, keep)
    thin, small = slim(model, graph, keep), x[:, :, :5, :6]
    refit(model, graph, keep, thin, [x, small], damping=1e-14)
    assert relative_gap(thin(x), model(x)) < 1e-8
