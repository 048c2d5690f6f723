"""Looks at gammas before a cut, and says on the terminal what the cut would do."""

from collections.abc import Mapping, Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from slimming import ChannelGraph, Plan, spare
from slimming.graph.twin import stored
from slimming.planning.planner import predict
from slimming.planning.sensitivity import Point, channels

SMALL = 1e-2  # a gamma below this is called dead in the tables


def show_plan(
    model: nn.Module, graph: ChannelGraph, scores: Mapping[str, Tensor], keep: Plan
) -> None:
    """Per layer: quantiles of |gamma|, channels kept; then what the whole cut would cost."""
    console = Console()
    wide = console.width >= 100
    table = Table(title="Before the cut: |gamma| per BatchNorm, and what stays")
    table.add_column("layer", overflow="fold")  # numbers are never cut
    quartiles = ("min", "25 %", "median", "75 %", "max") if wide else ("min", "median", "max")
    for name in (*quartiles, f"< {SMALL:g}", "kept"):
        least = 11 if name == "kept" else 6
        table.add_column(name, justify="right", no_wrap=name != "kept", min_width=least)
    points, tensors = torch.linspace(0, 1, len(quartiles)), stored(model)
    for gate, ids in graph.gates.items():
        gamma = tensors[graph.gammas[gate]].detach().abs().float().cpu()
        kept = len(keep[gate])
        note = "  (all but these were to go)" if kept < 3 < len(ids) else ""
        note = note if kept else "  (its branch goes)"
        table.add_row(
            gate,
            *(f"{value:.3f}" for value in gamma.quantile(points).tolist()),
            f"{(gamma < SMALL).float().mean():.0%}",
            f"{kept} / {len(ids)}{note}",
        )
    console.print(table)
    for norm, reason in graph.fixed.items():
        console.print(f"{norm} stays at full width: {reason}", highlight=False)
    everything = torch.cat([scores[gate] for gate in graph.gates])
    params, macs = predict(graph, {})
    dead = (everything.abs() < SMALL).float().mean()
    highest = f"the highest ratio that empties no layer is {keep.safe_ratio:.3f}"
    console.print(
        f"{dead:.1%} of the scores are below {SMALL:g}; "
        f"{highest if keep.safe_ratio < 1 else 'no ratio empties a layer'}\n"
        f"channels {keep.total:,} -> {keep.kept:,}, parameters {params:,} -> {keep.params:,}, "
        f"MACs {macs:,} -> {keep.macs:,}",
        highlight=False,
    )
    if keep.free < keep.total:
        console.print(f"a ratio is one of the {keep.free:,} channels that may go", highlight=False)
    if keep.latency is not None:
        console.print(f"time {keep.latency:.1%} of the dense network's", highlight=False)
    for sentence in keep.shortfalls:
        console.print(f"note: {sentence}", highlight=False)


def show_cut(keep: Plan, reached: Mapping[str, Mapping[str, float | None]]) -> None:
    """The whole cut as one line, for a sweep's log."""
    told = ", ".join(f"{100 * splits['test']:.2f} % {name}" for name, splits in reached.items())
    print(
        f"cut to {keep.kept:,} of {keep.total:,} channels, {keep.params:,} parameters, "
        f"{keep.macs:,} MACs: test {told}"
    )
    for sentence in keep.shortfalls:
        print(f"note: {sentence}")


def show_accuracies(reached: Mapping[str, Mapping[str, float | None]]) -> None:
    """{"cut": {"test": ..., "val": ...}, ...} as one line each."""
    for variant, splits in reached.items():
        shares = ", ".join(
            f"{split} {100 * value:.2f} %" for split, value in splits.items() if value is not None
        )
        print(f"  {variant:<13} {shares}")


def show_sensitivity(points: Sequence[Point], shares: Sequence[float], loss: float) -> None:
    """What each layer's cut costs in points of accuracy, and what it can lose for less than `loss`.

    Args:
        points: of `sensitivity` with these `shares`.
    """
    console = Console()
    start, *cuts = points
    lost = {(p.layer, p.removed): f"{100 * (p.accuracy - start.accuracy):+.1f}" for p in cuts}
    if console.width < 100 and len(shares) > 5:
        shares = shares[::2]
    unit = f"{loss:g} point" + ("s" if loss != 1 else "")
    table = Table(title=f"Points from {100 * start.accuracy:.2f} % on, each layer cut alone")
    table.add_column("layer", overflow="fold")
    for name in ("channels", *(f"{100 * share:g} %" for share in shares), "can lose"):
        table.add_column(name, justify="right", no_wrap=True)
    can = spare(points, loss / 100)
    for layer, size in {point.layer: point.size for point in cuts}.items():
        row = (lost.get((layer, channels(share, size)), "-") for share in shares)
        table.add_row(brief(layer), str(size), *row, f"{can[layer]:.0%}")
    console.print(table)
    console.print(
        f"can lose: up to this share, every cut of the layer alone costs less than {unit} of "
        f"validation accuracy; what several layers lose adds up",
        highlight=False,
    )


def brief(layer: str) -> str:
    """Of many norms that are cut together, the first."""
    first, *others = layer.split(" + ")
    return f"{first} (+{len(others)})" if others else first
