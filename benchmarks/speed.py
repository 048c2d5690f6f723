"""How much of what a cut saves in MACs arrives as time.

    python benchmarks/speed.py --out results/speed.json
    python benchmarks/speed.py --ckpt runs/NAME      # a trained network and its own gammas
    python benchmarks/speed.py --networks preresnet164 --profile    # which operations take the time

Per network and ratio: MACs of the thin network over the dense one's, its latency over the dense
one's, and the share that arrives, (1 - t_thin / t_dense) / (1 - MACs_thin / MACs_dense). Inference
in eager mode and float32 with folded BatchNorm, in the layout that `Hardware` chooses. All
networks of a row group take turns, ratios are taken within a round, and the table has their median
and quartiles. Goals are printed, never asserted: a clock is no test.

Without --ckpt, gammas are drawn at random from a fixed seed, and every layer loses the same share:
a global ranking of random numbers would only tell how many gates a stream happens to have.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.densenet import DenseNet
from models.mobilenet import MobileNetV2
from models.preresnet import PreResNet
from models.resnet import ResNet
from models.vgg import VGG
from slimming import plan, slim, trace
from slimming.checkpoint import read, restore
from slimming.surgery.fold import fold
from utils.networks.cost import count_macs
from utils.runs.environment import commit, machine, versions
from utils.runs.results import write_text
from utils.training.hardware import choose

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg19": lambda: VGG(19),
    "preresnet164": lambda: PreResNet(164),
    "resnet56": lambda: ResNet(56),
    "mobilenet_v2": MobileNetV2,
    "densenet40": DenseNet,
}
GOALS = {"vgg19": 0.8, "preresnet164": 0.6}  # share that arrives, at least
WARMUP = 3  # rounds


def networks(args: argparse.Namespace) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """{name: (network, shape of one image)}."""
    if args.ckpt:
        checkpoint = read(args.ckpt)
        name = args.ckpt.parent.name if args.ckpt.is_file() else args.ckpt.name
        return {name: (restore(checkpoint), checkpoint.input_shape)}
    found = {}
    for name in args.networks:
        model = NETWORKS[name]()
        generator = torch.Generator().manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, generator=generator)
        found[name] = (model, (3, 32, 32))
    return found


def cuts(model: nn.Module, shape: tuple[int, ...], args: argparse.Namespace) -> dict:
    """{ratio: thin network}, beginning with {0: the dense one}."""
    graph = trace(model, torch.zeros(1, *shape))
    scores = {gate: model.get_submodule(gate).weight.detach().abs() for gate in graph.gates}
    scope = "global" if args.ckpt else "layer"
    found = {0.0: model}
    for ratio in args.ratios:
        kept = plan(graph, scores, ratio, scope=scope, round_to=args.round_to)
        found[ratio] = slim(model, graph, kept)
    return found


@torch.no_grad()
def take_turns(
    models: dict[float, nn.Module], images: Tensor, rounds: int
) -> dict[float, list[float]]:
    """{ratio: milliseconds per batch, round by round}."""
    times: dict[float, list[float]] = {ratio: [] for ratio in models}
    for step in range(WARMUP + rounds):
        for ratio, model in models.items():
            start = time.perf_counter()
            model(images)
            if step >= WARMUP:
                times[ratio].append(1000 * (time.perf_counter() - start))
    return times


def quartiles(values: list[float]) -> dict[str, float]:
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}


def row(name: str, ratio: float, macs: dict[float, int], times: dict[float, list[float]]) -> dict:
    saved = 1 - macs[ratio] / macs[0.0]
    relative = [thin / dense for thin, dense in zip(times[ratio], times[0.0])]
    return {
        "network": name,
        "ratio": ratio,
        "macs": macs[ratio],
        "macs_ratio": macs[ratio] / macs[0.0],
        "ms": quartiles(times[ratio]),
        "dense_ms": quartiles(times[0.0]),
        "time_ratio": quartiles(relative),
        "share": quartiles([(1 - value) / saved for value in relative]),
        "goal": GOALS.get(name),
    }


@torch.no_grad()
def operations(model: nn.Module, images: Tensor) -> dict[str, float]:
    """{operation: milliseconds per batch}, the longest first."""
    model(images)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(5):
            model(images)
    times = {event.key: event.self_cpu_time_total / 5000 for event in profiled.key_averages()}
    return dict(sorted(times.items(), key=lambda pair: -pair[1]))


def print_profile(name: str, models: dict[float, nn.Module], images: Tensor) -> dict:
    found = {ratio: operations(model, images) for ratio, model in models.items()}
    print(f"\n{name}: ms per batch by operation\n")
    print(f"| operation | dense | {' | '.join(f'ratio {r}' for r in list(found)[1:])} |")
    print(f"| --- |{' ---: |' * len(found)}")
    longest = sorted({op for times in found.values() for op in list(times)[:6]})
    for operation in sorted(longest, key=lambda op: -found[0.0].get(op, 0)):
        cells = " | ".join(f"{times.get(operation, 0):.1f}" for times in found.values())
        print(f"| {operation.removeprefix('aten::')} | {cells} |")
    print(f"| everything | {' | '.join(f'{sum(t.values()):.1f}' for t in found.values())} |")
    return {str(ratio): times for ratio, times in found.items()}


def print_table(rows: list[dict]) -> None:
    print("\n| network | ratio | MACs | ms dense | ms thin | time | share that arrives | goal |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for r in rows:
        time_ratio, share = (
            f"{r[key]['median']:.3f} ({r[key]['q1']:.3f} to {r[key]['q3']:.3f})"
            for key in ("time_ratio", "share")
        )
        ms = f"{r['dense_ms']['median']:.1f} | {r['ms']['median']:.1f}"
        met = r["goal"] is not None and r["share"]["median"] >= r["goal"]
        goal = f"{r['goal']}: {'met' if met else 'missed'}"
        cells = f"{r['network']} | {r['ratio']} | {r['macs_ratio']:.3f} | {ms} | {time_ratio}"
        print(f"| {cells} | {share} | {goal if r['goal'] else '-'} |")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    hardware = choose(device="cpu", precision="fp32", threads=args.threads)
    rows, profiles = [], {}
    for name, (model, shape) in networks(args).items():
        images = torch.randn(args.batch, *shape, generator=torch.Generator().manual_seed(0))
        thin = cuts(model, shape, args)
        macs = {ratio: count_macs(network, shape) for ratio, network in thin.items()}
        models = {r: hardware.place(fold(network, images[:1])) for r, network in thin.items()}
        times = take_turns(models, images, args.rounds)
        rows += [row(name, ratio, macs, times) for ratio in args.ratios]
        shares = [f"{r['share']['median']:.2f}" for r in rows if r["network"] == name]
        print(f"{name}: {', '.join(shares)} of the MACs saved arrive as time", flush=True)
        if args.profile:
            profiles[name] = print_profile(name, models, images)
    gammas = f"those of {args.ckpt}" if args.ckpt else "uniform in (0, 1), seed 0"
    return {
        "gammas": gammas,
        "cut": "global ranking" if args.ckpt else "every layer loses the same share",
        "round_to": args.round_to,
        "batch": args.batch,
        "rounds": args.rounds,
        "threads": torch.get_num_threads(),
        "mode": "eager, float32, BatchNorm folded, channels_last",
        "malloc": {key: value for key, value in os.environ.items() if "MALLOC_" in key},
        "command": shlex.join(["python", "benchmarks/speed.py", *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
        "profiles": profiles,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--ckpt", type=Path, help="a model.pt or run folder, instead of networks")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--round-to", type=int, default=1, help="layers keep a multiple of this")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="default: torch's choice")
    parser.add_argument("--profile", action="store_true", help="which operations take the time")
    parser.add_argument("--out", type=Path, help="write everything to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    args = arguments()
    found = measure(args)
    print(f"\nGammas: {found['gammas']}; {found['cut']}. {found['mode']}, batch {args.batch}")
    print(f"threads: {found['threads']}; rounds: {args.rounds}; malloc: {found['malloc']}")
    print_table(found["rows"])
    if args.out:
        write_text(args.out, json.dumps(found, indent=1) + "\n")
