"""The two tools of `coverage.py`: from a dense network to a thin one with half of its MACs."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from benchmarks.coverage_networks import HERE, Network
from slimming import Slimming, load, plan, save, slim, trace, verify
from slimming.checkpoint import Checkpoint
from slimming.surgery.builder import build
from utils.networks.cost import count_macs

STEPS, JUMP = 2000, 40  # torch-pruning takes at most 2 % of the channels at once, at last 0.05 %

Report = Callable[..., None]  # report(traced=True, ...) notes facts as soon as they are known
Reload = Callable[[Path], nn.Module]  # saves what the tool made, and loads it again


def channels(model: nn.Module) -> int:
    """Of all its BatchNorms."""
    return sum(norm.num_features for norm in model.modules() if isinstance(norm, _BatchNorm))


def tiny() -> nn.Module:
    """For a first trace, untimed: torch loads sympy and half of itself there, for both tools."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))


def ours(network: Network, model: nn.Module, budget: float, report: Report) -> tuple:
    """-> (thin network, how to reload it)."""
    x = torch.randn(2, *network.shape)
    trace(tiny(), torch.randn(2, 3, 8, 8))
    start = time.process_time()
    graph = trace(model, x)
    traced = time.process_time()
    cuttable = sum(len(ids) for ids in graph.gates.values())
    report(traced=True, cuttable=cuttable, trace_seconds=traced - start)
    keep = plan(graph, Slimming().scores(model, graph), target={"macs": budget})
    thin = slim(model, graph, keep)
    report(seconds=time.process_time() - start, shortfalls=list(keep.shortfalls))
    report(predicted_macs=keep.macs)

    def reload(path: Path) -> nn.Module:
        save(path, Checkpoint(network.target, network.arguments, thin.state_dict(), network.shape))
        return load(path, allow=(HERE,))

    report(certificate=verify(model, graph, keep, thin, x).relative)
    return thin, reload


def torch_pruning(network: Network, model: nn.Module, budget: float, report: Report) -> tuple:
    """Its slimming pruner, set as its documentation and its reproduction script say.

    One ranking over all layers (global_pruning), gamma itself (normalizer=None; its default divides
    by the layer's mean), classifiers ignored, pruning_ratio=1.0 in many steps until the MACs are
    reached. Far from the budget it takes several steps at once; counting MACs isn't timed.
    """
    import torch_pruning as tp

    thin, x = copy.deepcopy(model), torch.randn(1, *network.shape)
    tp.DependencyGraph().build_dependency(tiny(), torch.randn(1, 3, 8, 8))
    start = time.process_time()
    pruner = tp.pruner.BNScalePruner(
        thin,
        x,
        importance=tp.importance.BNScaleImportance(normalizer=None),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[m for m in thin.modules() if _outputs(m) == network.classes],
    )
    seconds = time.process_time() - start
    report(traced=True, trace_seconds=seconds, cuttable=_cuttable(pruner))
    dense = count_macs(model, network.shape)
    share, step = 1.0, JUMP
    while share > budget and pruner.current_step < STEPS:
        start = time.process_time()
        pruner.current_step += step - 1
        pruner.step()
        seconds += time.process_time() - start
        gone = channels(model) - channels(thin)
        report(seconds=seconds, steps=pruner.current_step, gone=gone)
        before, share = share, count_macs(thin, network.shape) / dense
        report(macs_share=share)
        pace = (before - share) / step
        step = JUMP if pace <= 0 else int(0.7 * (share - budget) / pace)
        step = min(max(step, 1), JUMP, max(1, STEPS - pruner.current_step))

    def reload(path: Path) -> nn.Module:
        history = pruner.pruning_history()
        torch.save({"weights": thin.state_dict(), "history": history}, path)
        saved = torch.load(path, weights_only=True)
        fresh = build(network.target, network.arguments, (HERE,)).float()
        graph = tp.DependencyGraph().build_dependency(fresh, x)
        graph.load_pruning_history(saved["history"])
        fresh.load_state_dict(saved["weights"])
        return fresh.eval()

    return thin, reload


def _outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, _ConvNd) else None


def _cuttable(pruner: Any) -> int:
    """BatchNorm channels in a group that torch-pruning would rank."""
    found: dict[nn.Module, set[int]] = {}
    for group in pruner.DG.get_all_groups(pruner.ignored_layers, pruner.root_module_types):
        for dependency, channels in group:
            norm = dependency.target.module
            if isinstance(norm, _BatchNorm):  # it may name channels that aren't there
                real = set(channels) & set(range(norm.num_features))
                found.setdefault(norm, set()).update(real)
    return sum(len(channels) for channels in found.values())


TOOLS = {"ours": ours, "torch-pruning": torch_pruning}
