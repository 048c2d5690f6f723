"""Random networks' states, random plans, and the networks that several tests look at."""

import copy
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from slimming import ChannelGraph, Plan, plan
from slimming.checkpoint import build
from slimming.modules.selection import named_norms

CONF = Path(__file__).parents[1] / "conf" / "model"
# The networks of conf/model of which more is known than what holds for every one of them.
OURS = ("densenet40", "mlp", "mobilenet_v1", "mobilenet_v2", "preresnet164", "preresnet29")
OURS += ("resnet110", "resnet20", "resnet32", "resnet56", "vgg11", "vgg11_quarter", "vgg13")
OURS += ("vgg16", "vgg19", "vgg_a")
FROM_DATA = {"num_classes": 7, "in_channels": 3, "input_shape": [3, 16, 16]}
SMALLER = {
    "DenseNet": {"depth": 10, "width": 0.5},
    "MobileNetV1": {"width": 0.25},
    "MobileNetV2": {"width": 0.25},
    "PreResNet": {"depth": 20, "width": 0.25},
    "ResNet": {"depth": 8, "width": 0.5},
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Signed gammas, betas and statistics far from their initial values, in place."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for norm in norms(model).values():
            if norm.affine:
                norm.weight.copy_(noise(norm.weight))
                norm.bias.copy_(noise(norm.bias))
            if norm.track_running_stats:
                norm.running_mean.copy_(noise(norm.running_mean))
                norm.running_var.copy_(noise(norm.running_var).square() + 0.5)
    return model


def norms(model: nn.Module) -> dict[str, nn.Module]:
    return dict(named_norms(model))


def random_scores(graph: ChannelGraph, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {gate: torch.rand(len(ids), generator=generator) for gate, ids in graph.gates.items()}


def random_plan(graph: ChannelGraph, ratio: float = 0.5, seed: int = 0, **options) -> Plan:
    return plan(graph, random_scores(graph, seed), ratio, **options)


def one_index_wrong(
    graph: ChannelGraph, cuts: dict[str, list[tuple[int, Tensor]]], tensor: str
) -> list[tuple[int, Tensor]]:
    """The cut of this tensor, but along each dimension a channel that goes is taken for the first
    that stays."""
    wrong = []
    for dim, index in cuts[tensor]:
        cut = sorted(set(range(graph.shapes[tensor][dim])) - set(index.tolist()))
        wrong.append((dim, torch.cat([torch.tensor(cut[:1]), index[1:]])))
    return wrong


def toy_graph(*sizes: int) -> ChannelGraph:
    """The graph of a network with private gates "0", "1", ... of these sizes and nothing else."""
    gates, start = {}, 0
    for i, size in enumerate(sizes):
        gates[str(i)] = torch.arange(start, start + size)
        start += size
    return ChannelGraph(
        shapes={f"{gate}.weight": (len(ids),) for gate, ids in gates.items()},
        parameters=tuple(f"{gate}.weight" for gate in gates),
        dims={(f"{gate}.weight", 0): ids for gate, ids in gates.items()},
        gates=gates,
        selecting=(),
        reads=(),
        uses={},
        folds={},
        fixed={},
    )


def configured_networks() -> dict[str, tuple[str, dict]]:
    """{yaml name: (class, arguments)} of OURS, made small; what then is equal, once."""
    found: dict[str, tuple[str, dict]] = {}
    for path in sorted(CONF / f"{name}.yaml" for name in OURS):
        arguments = read_config(path)
        target = str(arguments.pop("_target_"))
        smaller = SMALLER.get(target.rpartition(".")[2], {"width": 0.11})  # odd: 7, 14, 28, 56
        arguments |= {k: v for k, v in smaller.items() if k in arguments}
        arguments |= {k: v for k, v in FROM_DATA.items() if k in arguments and arguments[k] is None}
        if (target, arguments) not in found.values():
            found[path.stem] = (target, arguments)
    return found


def configured(name: str, **arguments) -> nn.Module:
    target, defaults = configured_networks()[name]
    torch.manual_seed(0)
    return randomise(build(target, defaults | arguments))


def takes(name: str, argument: str) -> bool:
    """Whether the configured network has this argument."""
    return argument in configured_networks()[name][1]


def read_config(path: Path) -> dict:
    own = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    merged: dict = {}
    for parent in own.pop("defaults", []):
        if isinstance(parent, str) and parent != "_self_":
            merged |= read_config(path.with_name(f"{parent}.yaml"))
    return merged | own


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


def relative_gap(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of b's largest magnitude."""
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()


def without(graph, branches, ratio: float = 0.4) -> dict:
    """A random plan from which these branches are taken as a whole."""
    keep = dict(plan(graph, random_scores(graph), ratio))
    return keep | {
        gate: torch.tensor([], dtype=torch.long) for branch in branches for gate in branch.gates
    }
