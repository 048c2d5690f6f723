"""What random programs found, one by one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import random_plan, randomise
from odd import Odd, X, cuttable, mean
from programs import Program
from slimming import mask, slim, trace, verify
from zoo import Head, block, chain, conv


def test_a_layer_whose_hook_moves_its_channels_is_proved_right():
    layer = conv(3, 8)
    layer.register_forward_hook(lambda module, args, output: output.flip(1))
    graph = cuttable(Head(lambda x: x.mean((2, 3)), 8, chain(layer, nn.BatchNorm2d(8))))
    assert list(graph.gates) == ["body.1"]


def test_two_channels_are_tried_out_as_well():
    model = Head(lambda x: x.mean((2, 3)) * x.size(1) ** -0.5, 2, chain(*block(3, 2)))
    graph = trace(model, X)
    assert "computes with a number that follows its width" in graph.fixed["body.1"]
    model = Head(lambda x: x.mean((2, 3)), 2, chain(*block(3, 2)))
    graph = cuttable(model)
    assert list(graph.gates) == ["body.1"]
    keep = {"body.1": torch.tensor([1])}
    assert verify(model, graph, keep, slim(model, graph, keep), X).holds


@pytest.mark.parametrize(
    ("kind", "batch_first", "both_ways"),
    [(nn.GRU, True, False), (nn.LSTM, False, True), (nn.RNN, True, True)],
)
def test_a_recurrent_layer_reads_channels_and_keeps_its_state(kind, batch_first, both_ways):
    def way(s: Odd, x: torch.Tensor) -> torch.Tensor:
        places = F.max_pool2d(x, 4).flatten(2)
        steps = places.transpose(1, 2) if batch_first else places.permute(2, 0, 1)
        return s.fc(s.rnn(steps)[0].mean(1 if batch_first else 0))

    rnn = kind(8, 6, num_layers=2, batch_first=batch_first, bidirectional=both_ways)
    model = randomise(Odd(way, 12 if both_ways else 6, rnn=rnn)).double()
    graph = cuttable(model)
    assert list(graph.gates) == ["bn"] and ("rnn.weight_ih_l0", 1) in graph.dims
    keep = random_plan(graph, 0.5)
    assert slim(model, graph, keep).rnn.input_size == len(keep["bn"])


def test_a_recurrent_layer_on_raw_input_keeps_nobody_whole():
    model = randomise(Program(["block", "recurrent"], 1)).double()
    x = torch.randn(3, 3, 6, 5, dtype=torch.float64)
    graph = trace(model, x)
    assert set(graph.gates) == {"layers.0.1", "norm"}
    keep = random_plan(graph, 0.5)
    thin, masked = slim(model, graph, keep).eval(), mask(model, graph, keep).eval()
    torch.testing.assert_close(thin(x), masked(x), rtol=1e-9, atol=1e-9)


def test_channels_stacked_on_a_constant_stay_or_are_cut_right():
    def way(s: Odd, x: torch.Tensor) -> torch.Tensor:
        return mean(s, torch.stack([x, torch.ones_like(x), x.new_zeros(x.shape)]).sum(0))

    model = Odd(way)
    assert list(cuttable(model).gates) == ["bn"]
