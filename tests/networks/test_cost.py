"""Costs are counted exactly, measured fairly, and leave the network as it was."""

import copy
import sys

import pytest
import torch
from torch import nn

from door import ROOT, config
from evaluate import evaluate_checkpoint
from helpers import configured, configured_networks
from utils.networks.cost import count, count_macs, count_macs_thop, latency

calls: list[str] = []


class Recorder(nn.Module):
    """Remembers, in calls, who was called, with how many images and in which mode."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x):
        calls.append((self.name, len(x), self.training, torch.is_grad_enabled()))
        return x


@pytest.fixture(autouse=True)
def forget_calls():
    calls.clear()


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4),
        nn.BatchNorm2d(16),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )


def test_counts_equal_the_hand_computed_ones():
    first = 8 * 3 * 9 * 8 * 8  # out x in x kernel x height x width
    grouped = 16 * (8 // 4) * 9 * 4 * 4  # each output reads only the 2 inputs of its group
    linear = 256 * 10
    result = count(small_net(), (3, 8, 8))
    assert result["macs"] == first + grouped + linear
    assert result["flops_paper"] == 2 * result["macs"]
    assert result["params"] == 216 + 16 + (16 * 2 * 9 + 16) + 32 + 2570
    layers = result.pop("layers")
    assert all(type(value) is int for value in result.values())
    assert list(layers.items()) == [
        ("0", {"params": 216, "macs": first, "channels": 8}),
        ("3", {"params": 16 * 2 * 9 + 16, "macs": grouped, "channels": 16}),
        ("6", {"params": 2570, "macs": linear, "channels": 10}),
        ("other", {"params": 16 + 32, "macs": 0, "channels": None}),
    ]


def test_thop_counts_batchnorm_too():
    norms = 4 * (8 * 8 * 8 + 16 * 4 * 4)
    net = small_net()
    assert count_macs_thop(net, (3, 8, 8)) == count_macs(net, (3, 8, 8)) + norms


def test_thop_is_asked_for_by_name(capsys):
    said = {}
    for more in ((), ("macs_thop=true",)):
        words = (f"ckpt={ROOT / 'results/digits_thin.safetensors'}", "device=cpu", *more)
        said[more] = evaluate_checkpoint(config("evaluate", *words))
    plain, both = said.values()
    assert "macs_thop" not in plain and "thop" not in capsys.readouterr().out.split("macs_thop")[0]
    assert both.pop("macs_thop") > both["macs"] and both == plain


def test_counting_needs_no_thop(monkeypatch):
    """It is a cross-check for who asks for it: no stage waits for it, none needs it installed."""
    monkeypatch.setitem(sys.modules, "thop", None)
    assert set(count(small_net(), (3, 8, 8))) == {"params", "macs", "flops_paper", "layers"}
    with pytest.raises(ImportError, match="macs_thop=true needs two more packages: pip install"):
        count_macs_thop(small_net(), (3, 8, 8))


@pytest.mark.parametrize("training", [True, False])
def test_counting_twice_leaves_the_network_untouched(training):
    """thop leaves total_ops / total_params buffers behind (its issues #82 and #168)."""
    net = small_net().train(training)
    net[1].eval()  # a mixed state: every flag must come back, not one for all
    net[0].register_forward_hook(lambda *_: None)
    before = copy.deepcopy(net.state_dict())
    flags = [m.training for m in net.modules()]
    hooks = [list(m._forward_hooks) for m in net.modules()]
    buffers = [name for name, _ in net.named_buffers()]
    random_state = torch.get_rng_state()

    assert count(net, (3, 8, 8)) == count(net, (3, 8, 8))
    assert count_macs_thop(net, (3, 8, 8)) == count_macs_thop(net, (3, 8, 8))
    latency({"net": net}, (3, 8, 8), batch_sizes=(2,), repeats=2, warmup=1)

    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    assert [m.training for m in net.modules()] == flags
    assert [list(m._forward_hooks) for m in net.modules()] == hooks
    assert [name for name, _ in net.named_buffers()] == buffers
    assert torch.equal(torch.get_rng_state(), random_state)
    small_net().load_state_dict(net.state_dict(), strict=True)


def test_a_training_mode_mlp_with_batchnorm_is_counted_for_one_image():
    mlp = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 20, bias=False), nn.BatchNorm1d(20), nn.Linear(20, 10)
    )
    result = count(mlp.train(), (1, 28, 28))
    assert (result["macs"], result["params"]) == (784 * 20 + 200, 784 * 20 + 40 + 210)


@pytest.mark.parametrize("shape", [(3, 8, 8), [3, 8, 8], torch.Size([3, 8, 8])])
def test_any_sequence_is_a_shape(shape):
    assert count_macs(small_net(), shape) == count_macs(small_net(), (3, 8, 8))


def test_other_precisions_count_alike_and_index_buffers_are_no_parameters():
    net = small_net().double()
    net.register_buffer("indices", torch.arange(8))
    assert count(net, (3, 8, 8)) == count(small_net(), (3, 8, 8))


def test_fused_attention_is_counted():
    """In eval mode torch fuses this layer into a kernel that FlopCounterMode counts as 0."""
    tokens, width, hidden = 5, 16, 32
    layer = nn.TransformerEncoderLayer(width, nhead=2, dim_feedforward=hidden, batch_first=True)
    linears = tokens * (4 * width * width + 2 * width * hidden)
    attention = 2 * tokens * tokens * width
    assert count_macs(layer, (tokens, width)) == linears + attention
    assert torch.backends.mha.get_fastpath_enabled()


class Twice(nn.Module):
    """A layer under two names that runs twice, a product in no layer, a layer that never runs, one
    with layers of its own, and one that is called as the rest is."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 4)
        self.alias, self.other, self.idle = self.last, nn.Linear(8, 4), nn.Linear(3, 3)
        self.block = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = self.other(x)
        x = self.block(x, x, x)[0] @ torch.ones(4, 4)
        return self.last(self.alias(x))


SUMMED = {name: (lambda name=name: configured(name), (3, 16, 16)) for name in configured_networks()}
SUMMED["twice"] = (Twice, (3, 8))
SUMMED["scripted"] = (lambda: torch.jit.script(nn.Sequential(nn.Linear(8, 4))), (3, 8))


@pytest.mark.parametrize("name", SUMMED)
def test_what_layers_cost_adds_up_to_the_network(name):
    make, shape = SUMMED[name]
    costs = count(make(), shape)
    layers = costs["layers"]
    for key in ("params", "macs"):
        assert sum(layer[key] for layer in layers.values()) == costs[key]
    if name == "twice":
        tokens, width = 3, 4
        block = tokens * 4 * width**2 + 2 * tokens**2 * width
        assert {path: layer["macs"] for path, layer in layers.items()} == {
            "other": tokens * 8 * width,
            "block": block,
            "last": 2 * tokens * width**2,
            "other_": tokens * width**2,
        }


def test_what_thop_cannot_count_is_said(monkeypatch):
    import thop

    def fail(*args, **kwargs):
        raise KeyError("exotic")

    monkeypatch.setattr(thop, "profile", fail)
    with pytest.raises(ValueError, match="thop can't count this Sequential: 'exotic'"):
        count_macs_thop(small_net(), (3, 8, 8))


def test_thop_is_silent(capfd, recwarn):
    count_macs_thop(small_net(), (3, 8, 8))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize("shape", [(), (3, 0, 8)])
def test_a_wrong_shape_is_refused_in_words(shape):
    with pytest.raises(ValueError, match="shape of one image"):
        count(small_net(), shape)


def test_latency_has_quartiles_per_batch_size():
    result = latency({"a": small_net(), "b": small_net()}, (3, 8, 8), (1, 4), repeats=5, warmup=1)
    assert list(result) == ["a", "b"]
    for sizes in result.values():
        assert list(sizes) == ["1", "4"]
        for numbers in sizes.values():
            assert 0 < numbers["q1_ms"] <= numbers["median_ms"] <= numbers["q3_ms"]
    with pytest.raises(ValueError, match="at least 2 repeats"):
        latency({"a": small_net()}, (3, 8, 8), repeats=1)


def test_latency_interleaves_the_networks_in_eval_mode_without_gradients():
    """A B C A B C, so that a machine that drifts slows all of them alike."""
    latency({name: Recorder(name) for name in "ABC"}, (3, 2, 2), (1, 2), repeats=2, warmup=1)
    assert calls == [
        (name, size, False, False) for size in (1, 2) for _ in range(3) for name in "ABC"
    ]


def test_latency_takes_any_function_of_a_batch_and_keeps_the_layout_of_a_network():
    """A session of onnxruntime is a function; beside it, networks are timed as they are placed."""
    seen = []

    class Listening(nn.Conv2d):
        def forward(self, x):
            seen.append(self.weight.is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)

    def session(batch):
        assert batch.dtype == torch.float32 and not torch.is_grad_enabled()
        seen.append(tuple(batch.shape))
        return batch.numpy()

    net = Listening(3, 4, 3).to(memory_format=torch.channels_last)
    result = latency({"net": net, "ort": session}, (3, 8, 8), (2,), repeats=2, warmup=0)
    assert seen == [True, (2, 3, 8, 8)] * 2
    assert result["ort"]["2"]["median_ms"] > 0
