"""Turns that few networks take: streams behind groups, loops over chunks, replaced forwards."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blocks import BLOCKS, Block, unit
from odd import Odd, Variant, X, cuttable, mean
from slimming import trace
from zoo import conv


def test_a_depthwise_convolution_that_shares_its_stream_goes_with_it():
    model = Odd(
        lambda s, x: mean(s, F.relu(s.b(s.c(x))) + s.d(x)),
        c=conv(8, 8, groups=8),
        b=nn.BatchNorm2d(8),
        d=conv(8, 8),
    )
    assert "d', which no BatchNorm scores, adds to it" in trace(model, X).fixed["b"]
    graph = cuttable(model, unscored="prune")
    assert not graph.selecting and torch.equal(graph.gates["b"], graph.gates["bn"])
    graph = cuttable(BLOCKS["Ghost"][0]())
    assert not graph.fixed and not graph.selecting
    # so does a BatchNorm that reads what another one has scored
    model = Odd(
        lambda s, x: mean(s, s.e(s.b2(x)) + s.b(s.c(x))),
        c=conv(8, 8, groups=8),
        b=nn.BatchNorm2d(8),
        b2=nn.BatchNorm2d(8),
        e=conv(8, 8),
    )
    graph = cuttable(model, unscored="prune")
    assert not graph.fixed and not graph.selecting and graph.num_channels == 8


class Loops(Block):
    def make(self):
        self.inner = nn.ModuleList([unit(2, 2) for _ in range(3)])

    def way(self, x):
        parts = list(x.chunk(4, 1))
        done = [parts[0]]
        assert len(parts) == 4
        for layer, part in zip(self.inner, parts[1:]):
            done.append(layer(part + done[-1]))
        return torch.cat([*done[:2], *done[2:]], 1)


def test_chunks_can_be_counted_and_iterated():
    assert cuttable(Loops()).num_channels == 4  # two of all parts, two of the last


def test_a_replaced_forward_is_refused():
    model = Variant(F.relu)
    model.forward = lambda x: model.fc(model.body(x).mean((2, 3)))
    with pytest.raises(ValueError, match="the forward of 'Variant' was replaced on the object"):
        trace(model, X)
    with pytest.raises(ValueError, match="give a network, an nn.Module; got function"):
        trace(lambda x: x, X)
