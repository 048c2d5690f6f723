"""Network Slimming (Liu et al. 2017): an L1 penalty on gamma, and |gamma| as the score."""

from collections.abc import Iterable

from torch import Tensor, nn, optim

from slimming.graph import ChannelGraph
from slimming.graph.twin import stored
from slimming.methods import sparsity
from slimming.methods.base import Batch, Method, Training


class Slimming(Method):
    """Sparse training as in the paper, section 3.

    The penalty is on every BatchNorm module, and on BatchNorms in functional form that can be cut.
    Those are looked for in `start`; `attach`, which has no example, doesn't know them.

    Args:
        strength: lambda, the weight of the penalty; 0 trains the baseline.
        mode: how the penalty enters the step, see `slimming.methods.sparsity`.
        weight_decay_on_gamma: the paper decays gammas like all other weights.

    Raises:
        ValueError: negative or infinite strength, unknown mode.
    """

    def __init__(
        self,
        strength: float = 1e-4,
        mode: sparsity.Mode = "subgradient",
        weight_decay_on_gamma: bool = True,
    ):
        number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
        if not number or not 0 <= strength < float("inf"):
            raise ValueError(f"method.strength (lambda) is a number from 0 on; got {strength!r}")
        if mode not in sparsity.MODES:
            raise ValueError(f"method.mode is one of {', '.join(sparsity.MODES)}; got {mode!r}")
        if not isinstance(weight_decay_on_gamma, bool):
            said = f"got {weight_decay_on_gamma!r}"
            raise ValueError(f"method.weight_decay_on_gamma is true or false; {said}")
        self.strength, self.mode = float(strength), mode
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

    def loss(self, t: Training, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        loss, cross_entropy, logits = super().loss(t, batch)
        if self.strength and self.mode == "loss":
            loss = loss + sparsity.penalty(t.model, self.strength, self.functional)
        return loss, cross_entropy, logits

    def after_backward(self, t: Training) -> None:
        if self.strength and self.mode == "subgradient":
            # The penalty isn't smooth at 0, so its subgradient is added by hand (paper, eq. 1).
            sparsity.add_subgradient(t.model, self.strength, self.functional)

    def after_step(self, t: Training) -> None:
        if self.strength and self.mode in ("proximal", "decoupled"):
            exact, amount = self.mode == "proximal", t.lr * self.strength
            sparsity.shrink(t.model, amount, exact, self.functional)

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> Training:
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
