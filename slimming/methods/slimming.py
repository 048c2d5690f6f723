"""Network Slimming (Liu et al. 2017): an L1 penalty on gamma, and |gamma| as the score."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn, optim

from slimming.graph import ChannelGraph, trace
from slimming.graph.twin import stored
from slimming.methods import sparsity
from slimming.methods.base import Batch, Method, Training
from slimming.modules.selection import named_norms
from slimming.planning.costs import Cost, MarginalCosts, check_cost

ALIVE = 0.01  # a channel is, where one of its gammas is larger


class Slimming(Method):
    """Sparse training as in the paper, section 3.

    The penalty is on every BatchNorm module, and on BatchNorms in functional form that can be cut.
    Those are looked for in `start`; `attach`, which has no example, doesn't know them.

    Args:
        strength: lambda, the weight of the penalty; 0 trains the baseline.
        mode: how the penalty enters the step, see `slimming.methods.sparsity`.
        weight_decay_on_gamma: the paper decays gammas like all other weights.
        cost: "macs" or "params": lambda is larger where a channel costs more, counted anew after
            each epoch at the widths that are alive (MorphNet, Gordon et al. 2018); its mean over
            the channels that can be cut stays lambda. The paper's, "none", is one lambda for all.
        cost_power: lambda follows cost^cost_power.

    Raises:
        ValueError: negative or infinite strength, unknown mode or cost; in `start`, no BatchNorm,
            or with a cost none that can be cut.
    """

    def __init__(
        self,
        strength: float = 1e-4,
        mode: sparsity.Mode = "subgradient",
        weight_decay_on_gamma: bool = True,
        cost: Cost = "none",
        cost_power: float = 0.5,
    ):
        number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
        if not number or not 0 <= strength < float("inf"):
            raise ValueError(f"method.strength (lambda) is a number from 0 on; got {strength!r}")
        if mode not in sparsity.MODES:
            raise ValueError(f"method.mode is one of {', '.join(sparsity.MODES)}; got {mode!r}")
        if not isinstance(weight_decay_on_gamma, bool):
            said = f"got {weight_decay_on_gamma!r}"
            raise ValueError(f"method.weight_decay_on_gamma is true or false; {said}")
        check_cost(cost, cost_power)
        self.strength, self.mode = float(strength), mode
        self.cost, self.cost_power = cost, float(cost_power)
        self.weights: dict[str, Tensor] | None = None  # of lambda, where costs count
        self.weight_decay_on_gamma = weight_decay_on_gamma
        self.functional: list[str] = []  # gammas that no BatchNorm module holds

    @property
    def trains_plainly(self) -> bool:
        return not self.strength

    def start(self, t: Training) -> None:
        if self.strength:
            self.functional = sparsity.find_functional(t.model, t.example)
            if not sparsity.gammas(t.model, self.functional):
                raise ValueError(sparsity.NOTHING)
            if self.cost != "none":
                with torch.random.fork_rng():
                    self._graph = trace(t.model, t.example)
                if not self._graph.gates:
                    raise ValueError(
                        f"cost={self.cost} weighs the penalty of channels that can be cut, and "
                        "this network has none: leave out cost"
                    )
                self._marginal = MarginalCosts(self._graph, self.cost)
                self._weigh(t.model)

    def loss(self, t: Training, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        loss, cross_entropy, logits = super().loss(t, batch)
        if self.strength and self.mode == "loss":
            more = sparsity.penalty(t.model, self.strength, self.functional, self.weights)
            loss = loss + more
        return loss, cross_entropy, logits

    def after_backward(self, t: Training) -> None:
        if self.strength and self.mode == "subgradient":
            # The penalty isn't smooth at 0, so its subgradient is added by hand (paper, eq. 1).
            sparsity.add_subgradient(t.model, self.strength, self.functional, self.weights)

    def after_step(self, t: Training) -> None:
        if self.strength and self.mode in ("proximal", "decoupled"):
            exact, amount = self.mode == "proximal", t.lr * self.strength
            sparsity.shrink(t.model, amount, exact, self.functional, self.weights)

    def after_epoch(self, t: Training) -> None:
        if self.strength and self.cost != "none":
            self._weigh(t.model)

    def _weigh(self, model: nn.Module) -> None:
        """Lambda of each gamma, relative to their mean, by what its channel costs now."""
        graph, marginal = self._graph, self._marginal
        largest = torch.zeros(graph.num_channels)
        for gate, score in self.scores(model, graph).items():
            largest.scatter_reduce_(0, graph.gates[gate], score.float(), "amax")
        alive = (largest > ALIVE).double()
        left = torch.zeros_like(marginal.sizes).index_add(0, marginal.layer_of, alive)
        price = marginal(left.clamp(min=1.0)) ** self.cost_power
        found = {gate: price[marginal.layer_of[ids]] for gate, ids in graph.gates.items()}
        mean = torch.cat([*found.values()]).mean()
        modules = {gate for gate, _ in named_norms(model)}
        names = {gate: gate if gate in modules else graph.gammas[gate] for gate in found}
        self.weights = {names[gate]: (own / mean).float() for gate, own in found.items()}

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> Training:
        if self.strength and self.cost != "none":
            raise ValueError(
                f"cost='{self.cost}' is counted in `start`, and anew in `after_epoch`: call them "
                "with a Training(model, optimizer, example), or leave out cost"
            )
        if self.strength and self.mode == "loss":
            raise ValueError(
                "in mode='loss' the penalty is a part of the loss, which is yours: add "
                "slimming.methods.sparsity.penalty(model, strength) to it, or use another mode"
            )
        return super().attach(model, optimizer)

    def scores(
        self, model: nn.Module, graph: ChannelGraph, batches: Iterable[Batch] = ()
    ) -> dict[str, Tensor]:
        """{gate: |gamma|}; needs no images."""
        tensors = stored(model)
        return {gate: tensors[graph.gammas[gate]].detach().abs().cpu() for gate in graph.gates}
