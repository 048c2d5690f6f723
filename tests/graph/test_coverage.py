"""How much of each network can be cut, and that the cut is right: ours, torchvision's, unseen ones.

`python tests/graph/test_coverage.py --write` writes coverage.yaml and
docs/coverage.md anew.
"""

import argparse
import copy
import platform
import re
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import yaml
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # when run as a script

from helpers import (  # noqa: E402
    CONF,
    OURS,
    norms,
    one_index_wrong,
    random_plan,
    randomise,
    read_config,
    relative_gap,
)
from slimming import ChannelGraph, mask, slices, slim, trace, verify  # noqa: E402
from slimming.checkpoint import build  # noqa: E402
from slimming.graph.resize import resize  # noqa: E402
from zoo_timm import QUICK as QUICK_OF_TIMM  # noqa: E402
from zoo_timm import SIZES  # noqa: E402

TABLE, PAGE = ROOT / "tests" / "coverage.yaml", ROOT / "docs" / "coverage.md"
models, segmentation = torchvision.models, torchvision.models.segmentation
video, detection = torchvision.models.video, torchvision.models.detection

SMALL = (3, 64, 64)
PLAIN = {"weights": None, "weights_backbone": None}
LITTLE = {"min_size": 64, "max_size": 96, "num_classes": 5}
QUICK = {"init_weights": False}  # the initial weights of GoogLeNet and Inception take seconds
FOREIGN: dict[str, tuple[Any, dict, tuple[int, ...]]] = {
    **{
        name: (getattr(models, name), {}, SMALL)
        for name in (
            *("resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "vgg16_bn"),
            *("densenet121", "densenet169", "mobilenet_v2", "mobilenet_v3_small", "mnasnet1_0"),
            *("efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "regnet_x_400mf"),
            *("shufflenet_v2_x1_0", "squeezenet1_0", "convnext_tiny", "swin_t"),
        )
    },
    "vit_b_16": (models.vit_b_16, {}, (3, 224, 224)),
    "maxvit_t": (models.maxvit_t, {}, (3, 224, 224)),
    "googlenet": (models.googlenet, QUICK, SMALL),
    "googlenet without aux": (models.googlenet, QUICK | {"aux_logits": False}, SMALL),
    "inception_v3": (models.inception_v3, QUICK, (3, 299, 299)),  # the least its extra head takes
    "inception_v3 without aux": (
        models.inception_v3,
        QUICK | {"aux_logits": False},
        (3, 75, 75),
    ),
    "fcn_resnet50": (segmentation.fcn_resnet50, PLAIN | {"aux_loss": True}, SMALL),
    "deeplabv3_resnet50": (segmentation.deeplabv3_resnet50, PLAIN, SMALL),
    "lraspp_mobilenet_v3_large": (segmentation.lraspp_mobilenet_v3_large, PLAIN, SMALL),
    "r3d_18": (video.r3d_18, {}, (3, 8, 32, 32)),
    "s3d": (video.s3d, {}, (3, 13, 224, 224)),  # the least it takes
    "retinanet_resnet50_fpn": (detection.retinanet_resnet50_fpn, PLAIN | LITTLE, SMALL),
    "fasterrcnn_resnet50_fpn": (detection.fasterrcnn_resnet50_fpn, PLAIN | LITTLE, SMALL),
    "ssdlite320_mobilenet_v3_large": (
        detection.ssdlite320_mobilenet_v3_large,
        PLAIN,
        (3, 320, 320),
    ),
}
FOREIGN |= {
    f"timm {name}": (timm.create_model, {"model_name": name, "num_classes": 10}, (3, size, size))
    for name, size in SIZES.items()
}
DETECT = ("retinanet", "fasterrcnn", "ssdlite")  # look at values: they run with numbers, in eval
DATA = {"num_classes": 10, "in_channels": 3, "input_shape": [3, 32, 32]}


def configured() -> dict[str, tuple[str, dict]]:
    """{model=yaml: (class, arguments)} of OURS at full size, each network once."""
    found: dict[str, tuple[str, dict]] = {}
    for name in sorted(OURS):
        arguments = read_config(CONF / f"{name}.yaml")
        target = str(arguments.pop("_target_"))
        arguments |= {k: v for k, v in DATA.items() if k in arguments and arguments[k] is None}
        if (target, arguments) not in found.values():
            found[f"model={name}"] = (target, arguments)
    return found


CONFIGURED = configured()
NETWORKS = [*CONFIGURED, *FOREIGN]
# Those whose counting takes seconds; and what is cheap enough to be cut in the default run.
SLOW_TO_TRACE = {"maxvit_t", "vit_b_16", "efficientnet_v2_s", "densenet169", "inception_v3"}
SLOW_TO_TRACE |= {"ssdlite320_mobilenet_v3_large", "fasterrcnn_resnet50_fpn", "timm mixnet_s"}
SLOW_TO_TRACE |= {"wide_resnet50_2", "resnext50_32x4d", "densenet121", "vgg16_bn"}
SLOW_TO_TRACE |= {"model=preresnet164", "model=resnet110", "deeplabv3_resnet50", "s3d"}
# Those of a kind that is there already.
SLOW_TO_TRACE |= {"model=vgg13", "model=vgg16", "model=resnet32", "model=resnet56"}
SLOW_TO_TRACE |= {
    "regnet_y_400mf",
    "googlenet without aux",
    "inception_v3 without aux",
    "fcn_resnet50",
}
SLOW_TO_TRACE |= {f"timm {name}" for name in SIZES if name not in QUICK_OF_TIMM}
CUT = ["resnet18", "googlenet", "mobilenet_v3_small", "shufflenet_v2_x1_0", "regnet_x_400mf"]
CUT += ["timm repvgg_a0", "timm mixnet_s"]


def network(name: str, device: str = "cpu") -> tuple[nn.Module, tuple[int, ...]]:
    """A network and the shape of one input."""
    if name in CONFIGURED:
        target, arguments = CONFIGURED[name]
        shape = (3, 64, 64) if target.endswith("VGGA") else (3, 32, 32)
        with torch.device(device):
            return build(target, arguments), shape
    make, options, shape = FOREIGN[name]
    with (
        warnings.catch_warnings(),
        torch.device("cpu" if "regnet" in name or name.startswith("timm") else device),
    ):
        warnings.simplefilter("ignore", FutureWarning)  # what GoogLeNet says of its weights
        return make(**options), shape


def example(shape: tuple[int, ...], device: str = "cpu", number: int = 2) -> Tensor:
    return torch.randn(number, *shape, device=device)


# -- the table ------------------------------------------------------------------------------------


def row(name: str) -> dict[str, Any]:
    """What is pinned of a network: channels that have a BatchNorm, and how many of them can go."""
    device = "cpu" if name.startswith((*DETECT, "timm")) else "meta"
    model, shape = network(name, device)
    x = torch.rand(2, *shape, device=device)
    graphs = {mode: trace(model.eval(), x, mode) for mode in ("prune", "keep")}
    assert all({*g.gates, *g.fixed} == {*norms(model)} for g in graphs.values())
    return {"channels": sum(each["channels"] for each in graphs["prune"].explain())} | {
        mode: {"cuttable": sum(map(len, graph.gates.values())), "stays": stays(graph)}
        for mode, graph in graphs.items()
    }


def stays(graph: ChannelGraph) -> dict[str, int]:
    """{reason: channels that stay because of it}; layers and lines of code aren't named."""
    found: Counter[str] = Counter()
    for each in graph.explain():
        if each["gate"] in graph.fixed:
            reason = re.sub(r" ?\(?\w+\.py:\d+\)?", "", graph.fixed[each["gate"]]).strip()
            found[re.sub(r"'[^']*'", "…", reason)] += each["channels"]
    return dict(sorted(found.items()))


def marked(names: list[str], long: set[str]) -> list:
    return [pytest.param(n, marks=pytest.mark.long) if n in long else n for n in names]


@pytest.mark.parametrize("name", marked(NETWORKS, SLOW_TO_TRACE))
def test_the_channels_that_can_be_cut(name):
    expected = yaml.safe_load(TABLE.read_text())[name]
    assert row(name) == expected
    for mode in (expected["prune"], expected["keep"]):
        assert mode["cuttable"] + sum(mode["stays"].values()) == expected["channels"]


def test_the_table_has_every_network_and_the_page_shows_it():
    table = yaml.safe_load(TABLE.read_text())
    assert list(table) == NETWORKS
    cells = [text.split(" | ")[:4] for text in PAGE.read_text().splitlines()]
    for name, counts in table.items():
        numbers = (counts["channels"], *(counts[m]["cuttable"] for m in ("prune", "keep")))
        assert [f"| {name}", *map(str, numbers)] in cells


# -- the cut --------------------------------------------------------------------------------------


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor)]


def randomised(name: str) -> tuple[nn.Module, Tensor]:
    """In float64, without anything that draws random numbers."""
    torch.manual_seed(0)
    model, shape = network(name)
    for module in model.modules():
        if isinstance(module, (nn.Dropout, torchvision.ops.StochasticDepth)):
            module.p = 0.0
    return randomise(model).double(), example(shape, number=2).double()


@pytest.mark.parametrize(
    "name", marked([n for n in NETWORKS if n in FOREIGN], {n for n in FOREIGN if n not in CUT})
)
def test_the_thin_network_computes_what_the_masked_one_does(name):
    model, x = randomised(name)
    graph = trace(model, x)
    if not graph.gates:
        assert not norms(model)
        return
    keep = random_plan(graph, 0.2 + 0.6 * torch.rand(()).item(), seed=len(name))
    thin, masked = slim(model, graph, keep), mask(model, graph, keep)
    with torch.no_grad():
        modes = (False,) if name.startswith(DETECT) else (False, True)
        for training in modes:  # some heads exist in one mode only
            pair = [outputs(m.train(training), x) for m in (copy.deepcopy(thin), masked)]
            for small, big in zip(*pair, strict=True):
                assert relative_gap(small, big) < 1e-9
        (small, *_), (dense, *_) = outputs(thin.eval(), x), outputs(model.eval(), x)
        assert small.shape != dense.shape or relative_gap(small, dense) > 1e-6
        # No graph: gamma = beta = 0, and every activation between BatchNorms gives 0 for 0.
        for gate, kept in keep.items():
            goes = torch.ones(len(model.get_submodule(gate).weight), dtype=torch.bool)
            goes[kept] = False
            model.get_submodule(gate).weight[goes] = 0
            model.get_submodule(gate).bias[goes] = 0
        assert relative_gap(small, outputs(model, x)[0]) < 1e-9


@pytest.mark.parametrize("name", marked(["resnet18", "googlenet"], {"googlenet"}))
def test_gradients_of_a_training_step(name):
    model, x = randomised(name)
    graph = trace(model, x)
    keep = random_plan(graph, 0.5)
    thin, masked = slim(model, graph, keep).train(), mask(model, graph, keep).train()
    for m in (thin, masked):
        sum(output.square().sum() for output in outputs(m, x)).backward()
    cuts, big = slices(graph, keep), dict(masked.named_parameters())
    largest = max(p.grad.abs().max().item() for p in big.values())
    for parameter, small in thin.named_parameters():
        expected = big[parameter].grad
        for dim, index in cuts.get(parameter, []):
            expected = expected.index_select(dim, index)
        torch.testing.assert_close(small.grad, expected, rtol=1e-6, atol=1e-9 * largest)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("resnet18", "layer2.0.conv1.weight"), ("shufflenet_v2_x1_0", "stage3.1.branch2.0.weight")],
)
def test_one_wrong_index_fails_the_certificate(name, tensor):
    model, x = randomised(name)
    for norm in norms(model).values():
        nn.init.uniform_(norm.bias, 3.0, 5.0)  # no channel is dead, so each one matters
    graph = trace(model, x)
    keep = random_plan(graph, 0.5)
    cuts = slices(graph, keep)
    wrong = copy.deepcopy(model)
    thin = slim(model, graph, keep)
    assert verify(model, graph, keep, thin, x).holds
    resize(wrong, {tensor: one_index_wrong(graph, cuts, tensor)})
    with torch.no_grad():
        thin.get_parameter(tensor).copy_(wrong.get_parameter(tensor))
    proof = verify(model, graph, keep, thin, x)
    assert not proof.holds and proof.first_difference == tensor.rpartition(".")[0]


# -- writing the table ----------------------------------------------------------------------------

HEAD = """# What can be cut

For each network: the channels that have a BatchNorm, how many of them can be cut where residual
streams are cut as well (`coupled=prune`) or left whole (`coupled=keep`), and why the rest stays.
Under `keep`, what goes beyond that is residual streams. `graph.explain()` says it layer by layer.
`tests/graph/test_coverage.py` pins these numbers (`tests/coverage.yaml` has every reason under
both) and checks the networks of torchvision, as `tests/slimming/test_surgery.py` does ours: thin
equals masked in float64, in evaluation and training mode, and equals the original with gamma =
beta = 0.

Channels without a BatchNorm aren't scored. A stream that a convolution without one adds to stays,
unless `unscored=prune` lets the BatchNorms of the others decide for it.

Seconds of processor time: one run each, one thread, {machine}, torch {torch}, other work on the
machine; half of the channels, random scores. Command:
`OMP_NUM_THREADS=1 python tests/graph/test_coverage.py --write`

| network | BN channels | prune | keep | why the rest stays | trace, s | plan + slim, s |
|---|---:|---:|---:|---|---:|---:|
"""


def timed(name: str) -> tuple[float, float | None]:
    """Seconds for trace, and for plan and slim together."""
    model, shape = network(name)
    start = time.process_time()
    graph = trace(model, example(shape))
    traced = time.process_time()
    if not graph.gates:
        return traced - start, None
    slim(model, graph, random_plan(graph, 0.5))
    return traced - start, time.process_time() - traced


def line(name: str, counts: dict[str, Any]) -> str:
    seconds, more = timed(name)
    why = "; ".join(f"{number}: {reason}" for reason, number in counts["prune"]["stays"].items())
    if not counts["channels"]:
        why = "it has no BatchNorm"
    cuttable = " | ".join(str(counts[mode]["cuttable"]) for mode in ("prune", "keep"))
    times = f"{seconds:.1f} | {'-' if more is None else f'{more:.1f}'}"
    return f"| {name} | {counts['channels']} | {cuttable} | {why} | {times} |"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    found = re.search(r"model name\s*: (.+)", text)
    return found[1] if found else platform.processor()


def write() -> None:
    table = {}
    for name in NETWORKS:
        table[name] = row(name)
        print(name, table[name], flush=True)
    lines = [line(name, counts) for name, counts in table.items()]
    head = HEAD.format(machine=processor(), torch=torch.__version__.partition("+")[0])
    TABLE.write_text(yaml.safe_dump(table, sort_keys=False, allow_unicode=True, width=200))
    PAGE.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True)
    parser.parse_args()
    torch.set_num_threads(1)
    write()
