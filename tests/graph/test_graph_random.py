"""Random networks are cut right."""

import copy

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import norms, random_plan, randomise, relative_gap
from slimming import slim, trace, verify
from zoo import chain, conv, slopes


class Random(nn.Module):
    """A random program on a list of maps, drawn from a seed; each step reads earlier maps."""

    def __init__(self, steps, generator):
        super().__init__()
        self.program, widths = [], [3]
        for number, step in enumerate(steps):
            i, j = (int(torch.randint(len(widths), (), generator=generator)) for _ in range(2))
            if step in ("add", "mul"):
                same = [k for k, width in enumerate(widths) if width == widths[i]]
                j = same[j % len(same)]
            width, layer = widths[i], None
            if step == "conv":
                width = int(torch.randint(2, 7, (), generator=generator))
                layer = conv(widths[i], width, 3 if number % 2 else 1, bias=number % 3 == 0)
            elif step == "norm":
                layer = nn.BatchNorm2d(width)
            elif step == "depthwise":
                layer = conv(width, width, groups=width)
            elif step == "pool":
                layer = nn.AvgPool2d(3, 1, 1)
            elif step == "slope":
                layer = slopes(width)
            elif step == "shuffle":
                layer = nn.ChannelShuffle(2 if width % 2 == 0 else 1)
            elif step == "groups" and width % 2 == 0:
                width, layer = 4, conv(width, 4, groups=2)
            elif step in ("chunk", "slice") and width % 2 == 0:
                width //= 2
            elif step == "block":
                width = 4
                layer = chain(conv(widths[i], 4, 3), nn.BatchNorm2d(4), nn.ReLU())
            elif step == "cat":
                width += widths[j]
            if layer is not None:
                self.add_module(f"step{number}", layer)
            self.program.append((step, number, i, j))
            widths.append(width)
        self.even = {i for i, width in enumerate(widths) if width % 2 == 0}
        self.fc1 = nn.Linear(widths[-1], 4)
        self.bn = nn.BatchNorm1d(4)
        self.fc2 = nn.Linear(4 + widths[len(widths) // 2], 3)

    def forward(self, x):
        maps = [x]
        for step, number, i, j in self.program:
            a, b = maps[i], maps[j]
            if step == "relu":
                maps.append(F.relu(a))
            elif step == "add":
                maps.append(a + b)
            elif step == "mul":
                maps.append(a * torch.sigmoid(b.mean((2, 3), keepdim=True)))
            elif step == "cat":
                maps.append(torch.cat([a, b], 1))
            elif step == "pad":
                maps.append(F.pad(a[:, :, 1:, ::2], (1, 1, 1, 0)))
            elif step in ("chunk", "slice") and i in self.even:
                first, second = a.chunk(2, 1)
                maps.append(first if step == "chunk" else a[:, a.size(1) // 2 :] * second)
            elif not hasattr(self, f"step{number}"):
                maps.append(a)
            else:
                maps.append(getattr(self, f"step{number}")(a))
        last = F.relu(self.bn(self.fc1(maps[-1].mean((2, 3)))))
        middle = maps[len(maps) // 2].amax((2, 3))
        return self.fc2(torch.cat([last, middle], 1))


STEPS = ["conv", "norm", "relu", "add", "mul", "cat", "depthwise", "pool", "block", "block"]
STEPS += ["slope", "shuffle", "groups", "chunk", "slice", "pad"]


@given(st.lists(st.sampled_from(STEPS), min_size=3, max_size=14), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_random_networks_are_cut_right(steps, seed):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = randomise(Random(steps, generator), seed)
    x = torch.randn(3, 3, 4, 4)
    graph = trace(model, x)
    assert set(graph.gates) | set(graph.fixed) == set(norms(model))
    assert "bn" in graph.gates
    keep = random_plan(graph, 0.6, seed)
    thin = slim(model, graph, keep)
    assert verify(model, graph, keep, thin, x).holds
    again = trace(thin, x)
    then = random_plan(again, 0.5)
    assert verify(thin, again, then, slim(thin, again, then), x).holds
    # The oracle without a graph: silence the cut channels of the original network. What reaches a
    # channel without passing its BatchNorm isn't silent: a bias, or a convolution that is added.
    if {"depthwise", "groups"} & {*steps} or ("conv" in steps and {"add", "mul"} & {*steps}):
        return
    silent = copy.deepcopy(model)
    with torch.no_grad():
        for gate, kept in keep.items():
            norm = silent.get_submodule(gate)
            goes = torch.ones(norm.num_features, dtype=torch.bool)
            goes[kept] = False
            norm.weight[goes] = norm.bias[goes] = 0
    small, big = (m.double().eval()(x.double()) for m in (thin, silent))
    assert relative_gap(small, big) < 1e-9
