"""What is not found, why it stays, and what can't be traced: one sentence each."""

import gc
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrizations as parametrizations
from torch import nn

from helpers import random_plan, randomise
from odd import Odd, OwnConv, OwnNorm, Variant, X, cuttable, mean, zoo
from slimming import compensate, slim, trace, verify
from slimming.graph import record
from slimming.planning.planner import predict
from slimming.surgery.builder import fit_shapes
from utils.networks.cost import count_macs
from zoo import ZOO, Head, Residual, block, chain, conv

ROOT = Path(__file__).parents[2]


REFUSED = {
    "output": (
        lambda: Odd(lambda s, x: x),
        "it is the network's output",
    ),
    "layer norm": (
        lambda: Odd(lambda s, x: mean(s, s.norm(x)), norm=nn.LayerNorm([8, 8, 8])),
        "'native_layer_norm' mixes its channels",
    ),
    "softmax": (
        lambda: Odd(lambda s, x: mean(s, F.softmax(x, dim=1))),
        "'_softmax' mixes its channels",
    ),
    "size written as a number": (
        lambda: Odd(lambda s, x: s.fc(x.view(-1, 512)), 512),
        "a line fails where it is thinner: shape '[-1, 512]' is invalid for input of size N",
    ),
    "size hidden in a product": (
        lambda: Odd(lambda s, x: s.fc(x.reshape(-1, 8 * x.size(2) * x.size(3))), 512),
        "a line fails where it is thinner: shape '[-1, 512]' is invalid for input of size N",
    ),
    "half of the channels by number": (
        lambda: Odd(lambda s, x: mean(s, torch.cat([x[:, :4], x[:, 4:]], 1))),
        "'slice' becomes 'alias' where it is thinner",
    ),
    "split by number": (
        lambda: Odd(lambda s, x: mean(s, torch.cat(torch.split(x, 4, dim=1), 1))),
        "'split' becomes 'split' where it is thinner",
    ),
    "unequal parts": (
        lambda: Odd(lambda s, x: mean(s, torch.cat(x.chunk(3, 1), 1))),
        "'split' parts its channels by numbers",
    ),
    "number of channels": (
        lambda: Odd(lambda s, x: mean(s, x / x.size(1))),
        "'div' computes with a number that follows its width",
    ),
    "softmax layer": (
        lambda: Odd(lambda s, x: mean(s, s.act(x)), act=nn.Softmax(1)),
        "'_softmax' mixes its channels",
    ),
    "one channel by number": (
        lambda: Odd(lambda s, x: s.fc(x[:, 0].flatten(1)), 64),
        "'select' picks a channel by its number",
    ),
    "positions by the number of channels": (
        lambda: Odd(lambda s, x: mean(s, x[:, :, : x.size(1) - 1])),
        "'slice' counts on its size",
    ),
    "channels taken apart": (
        lambda: Odd(lambda s, x: s.fc(x.unbind(1)[0].flatten(1)), 64),
        "'unbind' takes its channels one by one",
    ),
    "channels padded by their mirror": (
        lambda: Odd(lambda s, x: s.fc(F.pad(x.mean((2, 3)), (1, 1), mode="reflect")), 10),
        "'reflection_pad1d' runs over its channels",
    ),
    "stretched to a number": (
        lambda: Odd(lambda s, x: mean(s, x * x.amax((2, 3), True).expand(-1, 8, 8, 8))),
        "a line fails where it is thinner: The expanded size of the tensor (8) must match",
    ),
    "shifted channels": (
        lambda: Odd(lambda s, x: mean(s, x.roll(1, 1))),
        "'roll' moves its channels by a number",
    ),
    "normalised to length 1": (
        lambda: Odd(lambda s, x: mean(s, F.normalize(x, dim=1))),
        "'linalg_vector_norm' mixes its channels",
    ),
    "functional BatchNorm": (
        lambda: Odd(lambda s, x: mean(s, F.batch_norm(x, s.bn.running_mean, s.bn.running_var))),
        "'bn' selects among channels that others read too",
    ),
    "attention": (
        lambda: Odd(
            lambda s, x: s.fc(s.mix(*3 * [x.flatten(2).transpose(1, 2)])[0].mean(1)),
            mix=nn.MultiheadAttention(8, 2, batch_first=True),
        ),
        "a line fails where it is thinner: was expecting embedding dimension of 8",
    ),
    "mean over channels": (
        lambda: Odd(lambda s, x: s.fc((x * x.mean(1, keepdim=True)).mean((2, 3)))),
        "'mean' mixes its channels",
    ),
    "mean over everything": (
        lambda: Odd(lambda s, x: mean(s, x - x.mean())),
        "'mean' mixes its channels",
    ),
    "pooling over channels": (
        lambda: Odd(lambda s, x: s.fc(F.avg_pool1d(x.mean((2, 3)), 3, 1, 1))),
        "'avg_pool2d' runs over its channels",
    ),
    "squeeze of everything": (
        lambda: Odd(lambda s, x: s.fc(F.adaptive_avg_pool2d(x, 1).squeeze())),
        "'squeeze' would remove the dimension of channels if one were left",
    ),
    "weight used outside its layer": (
        lambda: Odd(lambda s, x: mean(s, x) + s.fc.weight.sum()),
        "'sum' mixes its channels",
    ),
    "fixed size beside it": (
        lambda: Odd(lambda s, x: mean(s, x + torch.ones(8, 1, 1, device=x.device))),
        "'ones' counts on its size",
    ),
}
# What once stayed, as no rule knew it: it runs, and that tells.
CUT = {
    "group norm": lambda: Odd(lambda s, x: mean(s, s.norm(x)), norm=nn.GroupNorm(2, 8)),
    "every second channel": lambda: Odd(
        lambda s, x: mean(s, torch.cat([x[:, ::2], x[:, 1::2]], 1))
    ),
    "one channel stretched over all": lambda: Odd(
        lambda s, x: mean(s, x * s.one(x).expand(-1, x.size(1), -1, -1)), one=conv(8, 1)
    ),
    "einsum": lambda: Odd(lambda s, x: s.fc(torch.einsum("nchw->nc", x))),
    "instance norm": lambda: Odd(lambda s, x: mean(s, s.norm(x) ** 2), norm=nn.InstanceNorm2d(8)),
    "transposed groups": lambda: Odd(
        lambda s, x: mean(s, s.up(x)), up=nn.ConvTranspose2d(8, 8, 2, 2, groups=8)
    ),
    "parameter of a fixed size": lambda: Odd(
        lambda s, x: mean(s, x * s.scale.weight), scale=nn.LayerNorm([8, 1, 1])
    ),
    "functional convolution": lambda: Odd(
        lambda s, x: mean(s, F.conv2d(x, s.other.weight)), other=conv(8, 8, 1)
    ),
    "own forward": lambda: Odd(lambda s, x: mean(s, s.own(x)), own=OwnConv(8, 8, 1)),
    "pooling with indices": lambda: Odd(
        lambda s, x: mean(s, s.pool(x)[0]), pool=nn.MaxPool2d(2, return_indices=True)
    ),
    "attention over positions": lambda: Odd(
        lambda s, x: mean(s, torch.matmul(x, x.transpose(2, 3))),
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_stays_is_listed_with_its_true_reason(name):
    make, reason = REFUSED[name]
    graph = trace(make(), X)
    assert graph.gates == {}
    assert without_places(graph.fixed["bn"]).startswith(reason)
    (row,) = graph.explain()
    how = f"stays: {graph.fixed['bn']}"
    assert row == {"gate": "bn", "channels": 8, "how": how, "with": []}
    assert how in str(graph.explain())


def without_places(reason: str) -> str:
    """A reason without the line of code that it names, and the width that was tried."""
    reason = re.sub(r" \(\w+\.py:\d+\)", "", reason)
    return re.sub(r"of size \d+", "of size N", re.sub(r"^\w+\.py:\d+", "a line", reason))


@pytest.mark.parametrize("name", list(CUT))
def test_what_only_runs_is_cut_exactly(name):
    model = randomise(CUT[name]()).double()
    graph = trace(model, X)
    assert list(graph.gates) == ["bn"]
    for ratio in (0.25, 0.5, 0.75):
        keep = random_plan(graph, ratio)
        thin = slim(model, graph, keep)
        assert verify(model, graph, keep, thin, X).holds
        thin.train()(X.double()).sum().backward()


def test_what_is_tied_to_what_stays_stays():
    model = Odd(lambda s, x: x + s.bn2(s.conv2(x)), conv2=conv(8, 8), bn2=nn.BatchNorm2d(8))
    assert trace(model, X).fixed == dict.fromkeys(("bn", "bn2"), "it is the network's output")
    model = Odd(
        lambda s, x: mean(s, s.bn2(torch.cat([x, s.inner(x).softmax(1)], 1))),
        features=16,
        inner=chain(conv(8, 8), nn.BatchNorm2d(8)),
        bn2=nn.BatchNorm2d(16),
    )
    graph = cuttable(model)
    assert without_places(graph.fixed["inner.1"]) == "'_softmax' mixes its channels"
    assert graph.selecting == ("bn2",)


def test_a_norm_without_gamma_and_one_that_is_never_called_are_listed():
    graph = zoo("BatchNorm without gamma")
    assert graph.fixed == dict.fromkeys(("4", "9"), "it has no gamma to score by")
    model = Odd(mean, unused=nn.BatchNorm2d(4))
    assert trace(model, X).fixed == {"unused": "forward never calls it"}


@pytest.mark.parametrize("own", [OwnConv(8, 8, 1), OwnNorm(8)])
def test_a_subclass_with_its_own_forward_is_cut_with_the_rest(own):
    model = Odd(lambda s, x: mean(s, s.bn2(s.conv2(s.own(x)))), own=own)
    model.conv2, model.bn2 = conv(8, 8), nn.BatchNorm2d(8)
    randomise(model).double()
    graph = cuttable(model)
    assert not graph.fixed and {"bn", "bn2"} <= set(graph.gates)
    keep = random_plan(graph, 0.5)
    assert verify(model, graph, keep, slim(model, graph, keep), X).holds


def test_a_subclass_that_only_sets_options_is_a_convolution():
    class Conv3x3(nn.Conv2d):
        def __init__(self, num_in, num_out):
            super().__init__(num_in, num_out, 3, padding=1)

    assert list(
        cuttable(Head(lambda x: x.mean((2, 3)), 9, chain(Conv3x3(3, 9), nn.BatchNorm2d(9)))).gates
    )


# What a weight is computed from: weight_norm divides each of its rows by that row's length.
COMPUTED = {
    "weight_norm": (
        parametrizations.weight_norm,
        "'body.3' reads it with a weight that is computed from all of its entries",
        (),  # rows go one by one
    ),
    "old weight_norm": (
        nn.utils.weight_norm,
        "'body.3.weight_v' reads it with a weight that is computed from all of its entries",
        (),
    ),
    "spectral_norm": (
        parametrizations.spectral_norm,
        "'mv' sums over it in a product of two values, neither of which is a weight",
        ("body.4",),  # the convolution stays whole, its norm selects
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", list(COMPUTED))
def test_what_a_computed_weight_depends_on_stays(name):
    wrap, reason, selecting = COMPUTED[name]
    model = Head(lambda x: x.mean((2, 3)))
    model.body[3] = wrap(model.body[3])
    with torch.no_grad():
        randomise(model).double().eval()(X.double())
    graph = cuttable(model)
    assert {k: without_places(v) for k, v in graph.fixed.items()} == {"body.1": reason}
    assert predict(graph, {})[1] == count_macs(model, (3, 8, 8))
    assert graph.selecting == selecting
    keep = random_plan(graph, 0.5)
    assert verify(model, graph, keep, slim(model, graph, keep), X).holds


def tied() -> nn.Module:
    model = Head(lambda x: x.mean((2, 3)), 6, chain(*block(3, 6), *block(6, 6), *block(6, 6)))
    model.body[3].weight = model.body[6].weight
    return randomise(model).double()


def test_layers_that_share_a_weight_go_on_sharing_it():
    model = tied()
    graph = cuttable(model)
    assert not graph.fixed and graph.selecting == ("body.4", "body.7")
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    keep = random_plan(graph, 0.5)
    thin = slim(model, graph, keep)
    assert thin.body[3].weight is thin.body[6].weight
    assert verify(model, graph, keep, thin, x).holds
    assert sum(p.numel() for p in thin.parameters()) == keep.params
    for mode in ("bias", "expected", "refit"):
        rows = compensate(model, graph, keep, slim(model, graph, keep), [x], mode)
        assert {row.layer for row in rows} == (
            {"fc"} if mode == "refit" else {"body.3", "body.6", "fc"}
        )
    loaded = tied()
    fit_shapes(loaded, thin.state_dict())
    loaded.load_state_dict(thin.state_dict())
    assert loaded.body[3].weight is loaded.body[6].weight
    assert torch.equal(loaded.eval()(x), thin.eval()(x))


def test_layers_that_share_a_bias_stay_whole_and_their_norms_select():
    model = tied()
    model.body[3].bias = model.body[6].bias
    graph = cuttable(model)
    assert graph.selecting == ("body.4", "body.7")
    assert ("body.3.weight", 0) not in graph.dims and ("body.3.bias", 0) not in graph.dims


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_network_that_cant_be_copied_is_one_sentence():
    model = Head(lambda x: x.mean((2, 3)))
    model.body[3] = nn.utils.weight_norm(model.body[3])  # the old kind, after a forward pass
    model(X)
    with pytest.raises(
        ValueError, match="Head can't be copied, as .body.3. keeps weight"
    ) as caught:
        trace(model, X)
    assert "\n" not in str(caught.value)
    with torch.no_grad():
        model(X)
    assert trace(model, X).gates


class Looks(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        return self.way(x)


LOOKS = {
    "a branch on values": lambda x: x if x.sum() > 0 else -x,
    "a number taken out": lambda x: x * float(x.mean()),
}


@pytest.mark.parametrize("name", list(LOOKS))
def test_code_that_looks_at_values_is_run_with_them_and_says_so(name):
    model = chain(Looks(LOOKS[name]), Head(lambda x: x.mean((2, 3))))
    graph = cuttable(model.double(), X.abs().double())
    assert set(graph.gates) == {"1.body.1", "1.body.4"}
    (note,) = graph.notes
    assert note.startswith("it holds for the way the example takes: ")


def test_what_left_for_numpy_is_cut_with_care():
    way = Looks(lambda x: torch.from_numpy(x.detach().numpy()) * 2)
    graph = cuttable(chain(way, Head(lambda x: x.mean((2, 3)))).double(), X.double())
    assert "1.body.1" in graph.gates  # behind it, nothing is known to depend on the input


def test_code_that_looks_at_sizes_needs_no_values():
    graph = cuttable(Variant(lambda x: sum([x] * x.size(2))))
    assert list(graph.gates) == ["body.1"] and not graph.notes


def test_a_script_is_cut_around():
    model = randomise(chain(torch.jit.script(chain(*block(3, 6))), conv(6, 6), nn.BatchNorm2d(6)))
    model = Head(lambda x: x.mean((2, 3)), 6, model).double()
    graph = cuttable(model)
    assert "body.2" in graph.gates
    keep = random_plan(graph, 0.5)
    assert verify(model, graph, keep, slim(model, graph, keep), X).holds


@pytest.mark.parametrize("example", [torch.zeros(1, 4, 8, 8), torch.zeros(1, 3), (X, X), [3]])
def test_an_input_of_the_wrong_shape_is_one_sentence(example):
    with pytest.raises(ValueError, match=r"Head can't take an input of shape \[") as caught:
        trace(Head(lambda x: x.mean((2, 3))), example)
    assert "\n" not in str(caught.value)


class NoForward(nn.Module):
    pass


HOPELESS = {
    "no forward": (NoForward, X),
    "no such attribute": (Variant, X),
    "sizes not known yet": (lambda: chain(nn.LazyConv2d(6, 3), nn.Flatten()), X),
    "no tensor": (lambda: Variant(F.relu), None),
    "words": (lambda: Variant(F.relu), "picture"),
    "whole numbers": (lambda: Variant(F.relu), torch.zeros(2, 3, 8, 8, dtype=torch.long)),
    "no dimensions": (lambda: Variant(F.relu), torch.tensor(1.0)),
    "no batch": (lambda: Variant(F.relu), torch.zeros(3, 8, 8)),
    "too small": (lambda: chain(nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4)), torch.zeros(1, 3, 2, 2)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(HOPELESS))
def test_what_cant_be_traced_is_one_sentence_and_stays_as_it_was(name):
    make, example = HOPELESS[name]
    model = make()
    flags, values = [m.training for m in model.modules()], [id(p) for p in model.parameters()]
    attributes, draws = [set(m.__dict__) for m in model.modules()], torch.get_rng_state()
    with pytest.raises(ValueError, match=r" can't (be traced|be copied|take an input)") as caught:
        trace(model, example)
    assert "\n" not in str(caught.value)
    assert [m.training for m in model.modules()] == flags
    assert [set(m.__dict__) for m in model.modules()] == attributes
    assert [id(p) for p in model.parameters()] == values
    assert torch.equal(torch.get_rng_state(), draws)


class KeepsItsMap(Variant):
    """Remembers things while it runs; with options, and a dictionary as input."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, batch, scale=1.0, *, noise=False):
        self.calls += 1
        self.map = self.body(batch["x"][0] + torch.randn_like(batch["x"][0]))
        return self.fc((self.map * scale).mean((2, 3)))


def test_tracing_runs_nothing_on_the_users_network():
    model = KeepsItsMap().train()
    model.body.eval()
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    model.body[0].register_forward_pre_hook(lambda *_: seen.append(1))
    draws = torch.get_rng_state()
    graph = trace(model, {"x": [X]})
    assert list(graph.gates) == ["body.1"]
    assert model.calls == 0 and not hasattr(model, "map")
    assert model.training and not model.body.training and not model.body[1].training
    assert torch.equal(torch.get_rng_state(), draws)


def test_a_module_under_two_names_is_one():
    twice = chain(*block(3, 6), *2 * [conv(6, 6), nn.BatchNorm2d(6), nn.ReLU()])
    graph = cuttable(Head(lambda x: x.mean((2, 3)), 6, twice))
    assert torch.equal(graph.gates["body.1"], graph.gates["body.4"])


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_and_device_gives_the_same_graph(device, kind):
    model = Residual().to(device, kind)
    graph = trace(model, torch.zeros(1, 3, 8, 8, device=device, dtype=kind))
    assert graph.fingerprint == zoo("residual").fingerprint
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {(device, kind)}


def test_wrappers_are_refused_in_one_sentence():
    model = Head(lambda x: x.mean((2, 3)))
    with pytest.raises(ValueError, match=r"DataParallel\(\.\.\.\)\.module"):
        trace(nn.DataParallel(model), X)
    with pytest.raises(ValueError, match=r"compiled\._orig_mod"):
        trace(torch.compile(model), X)


def test_sync_batchnorm_is_found_also_when_processes_are_connected():
    script = """
import sys
import torch, torch.distributed as dist
from torch import nn
from slimming import trace
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
dist.get_world_size = lambda group=None: 2
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.Flatten(), nn.Linear(16, 2))
assert list(trace(model.train(), torch.zeros(2, 3, 4, 4)).gates) == ["1"]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=ROOT)


def test_layers_called_with_keywords():
    model = Odd(lambda s, x: s.fc(input=s.conv2(input=x).mean(dim=(2, 3))), conv2=conv(8, 8))
    assert list(cuttable(model).gates) == ["bn"]


def test_parts_that_follow_the_number_of_channels_are_cut_at_equal_places():
    assert zoo("halves by slicing").gates["body.4"].tolist() == [6, 7, 8, 9] * 2
    assert zoo("three quarters").gates["body.4"].tolist() == [6, 7] * 4
    assert zoo("gated halves").num_channels == 6 + 4 + 3
    assert zoo("pixel shuffle").gates["4"].tolist() == [6] * 4 + [7] * 4
    assert zoo("channel shuffle").gates["4"].tolist() == [6, 6, 7, 7] * 2  # by groups behind it


def test_a_slope_for_each_channel_is_cut_along():
    graph = zoo("a channel-wise slope")
    assert torch.equal(graph.dims["2.weight", 0], graph.gates["1"])
    assert ("5.weight", 0) not in graph.dims  # one slope for all


@pytest.mark.parametrize("keyword", ["prune", "keep"])
def test_a_shortcut_padded_with_zeros_keeps_its_stream(keyword):
    make, shape = ZOO["PaddedShortcut"]
    graph = trace(make(), torch.zeros(1, *shape), coupled=keyword)
    assert list(graph.gates) == ["inner.1"] and set(graph.fixed) == {"stem.1", "last.1"}


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = chain(*block(3, 6)), chain(*block(2, 6))
            self.fc = nn.Linear(6, 5)

        def forward(self, x, y):
            return self.fc((self.a(x) * self.b(y)).mean((2, 3)))

    graph = cuttable(Two(), (X, torch.randn(2, 2, 8, 8)))
    assert torch.equal(graph.gates["a.1"], graph.gates["b.1"])


class Detector(nn.Module):
    """Finds places above a threshold, and looks closer at each one, if there are any."""

    def __init__(self):
        super().__init__()
        self.body, self.where = chain(*block(3, 6), *block(6, 6)), conv(6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, images):
        maps = self.body(torch.stack([image * 2 for image in images]))
        places = (self.where(maps)[:, 0] > 0.0).nonzero()
        if len(places) > 5:
            places = places[::2]
        return self.head(maps[places[:, 0], :, places[:, 1], places[:, 2]])


@pytest.mark.parametrize("seed", range(5))
def test_a_detector_runs_whole_on_a_list_of_images(seed):
    model, images = randomise(Detector(), seed).double(), [*torch.rand(2, 3, 8, 8).double()]
    graph = trace(model, (images,))
    assert set(graph.gates) == {"body.1", "body.4"} and "nonzero" in graph.notes[0]
    keep = random_plan(graph, 0.5, seed)
    assert verify(model, graph, keep, slim(model, graph, keep), (images,)).holds


def test_values_that_fill_the_memory_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(record, "MOST", 1 << 14)
    with pytest.raises(ValueError, match=r"take more than .*: give a smaller example\.") as caught:
        trace(Detector(), ([*torch.rand(2, 3, 8, 8)],))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("collects", [True, False])
def test_the_garbage_collector_is_afterwards_as_it_was(collects):
    model = chain(*block(3, 4))
    try:
        (gc.enable if collects else gc.disable)()
        trace(model, torch.randn(2, 3, 8, 8))
        assert gc.isenabled() == collects
        with pytest.raises(ValueError, match="can't take an input"):
            trace(model, torch.randn(2, 5, 8, 8))
        assert gc.isenabled() == collects
    finally:
        gc.enable()
