"""Methods as a user would write them: what the moments have to suffice for."""

import copy

import torch
import torch.nn.functional as F
from torch import nn, optim

from slimming import Slimming, masks, shrink, trace
from slimming.methods.base import Method
from slimming.surgery.masks import apply


class SoftFilter(Method):
    """He et al. 2018: after each epoch the weakest filters are zero, and may grow again."""

    def __init__(self, block: str = "filter"):
        self.block = block

    def after_epoch(self, t):
        apply(t.model, masks(t.model, 0.3, self.block))


class Gradual(Method):
    """Zhu & Gupta 2017: a growing share is held at zero."""

    leaves_zeros = True

    def __init__(self, share: float = 0.75, block: str = "weight"):
        self.share, self.block, self.masks = share, block, {}

    def after_step(self, t):
        apply(t.model, self.masks)

    def after_epoch(self, t):
        self.masks = masks(t.model, self.share * (1 - (1 - t.progress) ** 3), self.block)
        apply(t.model, self.masks)


class Taylor(Method):
    """Molchanov et al. 2019 on gates, (gradient * gamma)^2; of an untrained network it is SNIP."""

    def scores(self, model, graph, batches=()):
        gammas = {gate: model.get_submodule(gate).weight for gate in graph.gates}
        sums = dict.fromkeys(gammas, 0.0)
        for images, labels in batches:
            loss = F.cross_entropy(model.eval()(images), labels)
            for (gate, gamma), g in zip(
                gammas.items(), torch.autograd.grad(loss, [*gammas.values()]), strict=True
            ):
                sums[gate] = sums[gate] + (g * gamma).detach().square()
        return sums


class Shrinking(Slimming):
    """A tenth of what is left goes after each epoch."""

    trains_plainly = False

    def after_epoch(self, t):
        graph = trace(t.model, t.example)
        plan = self.choose(t.model, graph, self.scores(t.model, graph), ratio=0.1)
        shrink(t, graph, plan)


class AtEveryStep(Shrinking):
    """The same, but inside an epoch: two channels after each second step."""

    def after_epoch(self, t):
        """Nothing."""

    def after_step(self, t):
        if t.step % 2:
            super().after_epoch(t)


class AtStart(Method):
    """Cuts the network as it comes in, once; a run that goes on cuts the same again."""

    def start(self, t):
        graph = trace(t.model, t.example)
        scores = {gate: torch.rand(len(ids)) for gate, ids in graph.gates.items()}
        torch.manual_seed(3)
        shrink(t, graph, self.choose(t.model, graph, scores, ratio=0.5))


class Gated(nn.Module):
    """A network whose logits are scaled by numbers that are learned, too."""

    def __init__(self, inside: nn.Module):
        super().__init__()
        self.inside, self.scale = inside, nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.inside(x) * self.scale


class Wraps(Method):
    """Trains another network in place of the one that came in, and counts."""

    def start(self, t):
        t.model, self.seen = Gated(t.model), 0

    def after_backward(self, t):
        self.seen += 1
        t.model.scale.grad += 0.01 * self.seen

    def after_epoch(self, t):
        self.scale = t.model.scale.detach().clone()


class Distil(Method):
    """Hinton et al. 2015: from the network as it was at the start."""

    def start(self, t):
        self.teacher = copy.deepcopy(t.model).eval()

    def loss(self, t, batch):
        loss, cross_entropy, logits = super().loss(t, batch)
        with torch.no_grad():
            told = self.teacher(batch[0]).softmax(1)
        return loss + F.cross_entropy(logits, told), cross_entropy, logits


class AnotherOptimizer(Method):
    def after_epoch(self, t):
        t.optimizer = optim.Adam(t.model.parameters())


class Views(Method):
    """Evaluates a blind twin beside the network."""

    def views(self, model):
        return {"blind": nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))}
