"""How many images a second we train on, against the bare network and against the usual way.

    python benchmarks/throughput.py                       # VGG-19, 32x32, batch 64
    python benchmarks/throughput.py --grid --width 0.5    # which precision and layout suit it

    bare   one batch that stays on the device: forward, backward, SGD; the ceiling
    ours   `engine.fit` with everything on: augmentation from uint8, the penalty, schedule, seeds,
           metrics; what it does once per epoch (checkpoint, histograms) is printed apart
    port   the style of the official PyTorch port (github.com/Eric-mingjie/network-slimming,
           main.py): PIL transforms in a DataLoader with one worker, fp32, a Python loop over all
           modules for the penalty. Unlike the port, which reads the loss every 100 steps and has
           its worker only beside a GPU, it reads the loss at every step and always has the worker

They take turns (bare, ours, port, bare, ...), so that a machine that slows down slows them all;
ratios are taken within a round. The goals are printed, never asserted: a clock is no test.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import fit
from models.vgg import VGG
from slimming.methods.base import Training
from slimming.methods.slimming import Slimming
from utils.data.sets import Data, fake
from utils.runs.environment import commit, machine, versions
from utils.runs.folder import Run
from utils.training import schedules
from utils.training.hardware import Hardware, choose
from utils.training.recipe import Recipe
from utils.training.tracking import NoLogger

UNTIMED = 3  # steps before the clock starts, in every turn: the port's worker is ahead by two
GOALS = {"bare": 0.95, "port": 1.8}  # ours / other, at least
LAYOUTS = {"contiguous": False, "channels_last": True}
STRENGTH = 1e-4

Step = Callable[[], None]
Rates = dict[str, list[float]]  # images/s, one per round

sgd = partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)  # the paper's


def bare(model: nn.Module, images: Tensor, labels: Tensor, hardware: Hardware) -> Step:
    """The least that training can do."""
    model = hardware.place(model).train()
    if hardware.lays_channels_last(model):
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = sgd(model.parameters())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with hardware.autocast():
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def port(model: nn.Module, data: Data, batch_size: int, device: torch.device) -> Step:
    """Per-image Python on the way in, and a loop over the modules on the way out."""
    model = model.to(device).train()
    optimizer = sgd(model.parameters(), nesterov=False)
    loader = DataLoader(
        Pictures(data),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=1,
        persistent_workers=True,  # its start belongs to no step
        pin_memory=device.type == "cuda",
    )
    batches = forever(loader)

    def step() -> None:
        images, labels = (tensor.to(device) for tensor in next(batches))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.grad.add_(STRENGTH * module.weight.detach().sign())
        optimizer.step()
        loss.item()

    return step


class Pictures(Dataset):
    """The training images one by one, through PIL and torchvision's transforms."""

    def __init__(self, data: Data):
        from torchvision import transforms

        self.images = data.train.images.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, C)
        self.labels = data.train.labels.tolist()
        steps = [
            transforms.ToPILImage(),
            transforms.Pad(4),
            transforms.RandomCrop(data.input_shape[1:]),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((data.mean / 255).tolist(), (data.std / 255).tolist()),
        ]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.images[i]), self.labels[i]


def forever(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


@dataclass(frozen=True)
class Clock:
    """Times turns of a few steps."""

    steps: int
    batch_size: int
    device: torch.device

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def rate(self, since: float) -> float:
        """Images per second of the turn that began at `since` and ends now."""
        return self.steps * self.batch_size / (self.now() - since)

    def turn(self, step: Step) -> float:
        for _ in range(UNTIMED):
            step()
        start = self.now()
        for _ in range(self.steps):
            step()
        return self.rate(start)


class Turns:
    """The engine's epoch is ours' turn; the others have theirs between two epochs.

    The engine can't be paused, but it asks for data when an epoch begins and calls its method when
    one ends: there its own turn is timed and the others are let in.
    """

    def __init__(self, clock: Clock, bare: Step, port: Step):
        self.clock, self._bare, self._port = clock, bare, port
        self.rates: Rates = {"bare": [], "ours": [], "port": []}
        self.between: list[float] = []  # seconds of the engine's work once per epoch
        self._mark = 0.0

    def epoch_begins(self) -> None:
        if self.rates["ours"]:
            self.between.append(self.clock.now() - self._mark)
        os.sync()  # or the disk is still busy with the checkpoint while the others are timed
        self.rates["bare"].append(self.clock.turn(self._bare))

    def clock_starts(self) -> None:
        self._mark = self.clock.now()

    def epoch_ends(self) -> None:
        self.rates["ours"].append(self.clock.rate(self._mark))
        self.rates["port"].append(self.clock.turn(self._port))
        last = {name: f"{rates[-1]:,.0f}" for name, rates in self.rates.items()}
        print(f"round {len(self.rates['port']) - 1} (0 warms up): {last}", file=sys.stderr)
        self._mark = self.clock.now()


@dataclass(frozen=True, eq=False)
class WatchedData(Data):
    """Data whose epochs are one turn long."""

    turns: Turns

    def steps(self, batch_size: int) -> int:
        return UNTIMED + self.turns.clock.steps

    def train_batches(self, *args, **kwargs) -> Iterator[tuple[Tensor, Tensor]]:
        self.turns.epoch_begins()
        for step, batch in enumerate(super().train_batches(*args, **kwargs), start=1):
            yield batch
            if step == UNTIMED:
                self.turns.clock_starts()


class WatchedSlimming(Slimming):
    def __init__(self, turns: Turns):
        super().__init__(STRENGTH)
        self._turns = turns

    def after_epoch(self, t: Training) -> None:
        self._turns.epoch_ends()


def compare(args: argparse.Namespace, hardware: Hardware) -> Turns:
    """All turns of all rounds; round 0 is there to warm up."""
    device = hardware.device
    enough = args.batch * (UNTIMED + args.steps)
    data = fake(num_train=max(2048, enough), num_test=10)
    placed = data.to(device)
    batch = next(placed.train_batches(args.batch, seed=0, epoch=0))
    turns = Turns(
        Clock(args.steps, args.batch, device),
        bare(network(args), *batch, hardware),
        port(network(args), data, args.batch, device),
    )
    watched = WatchedData(**vars(placed), turns=turns)
    schedule = partial(schedules.steps, milestones=(0.5, 0.75))
    recipe = Recipe(args.rounds + 1, args.batch, sgd, schedule)
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w", encoding="utf-8") as nowhere,
    ):
        run = Run(folder, "train", "throughput", 0, {})
        with run.locked(), redirect_stdout(nowhere):  # the engine's own lines
            method = WatchedSlimming(turns)
            fit(network(args), watched, recipe, method, run, hardware, NoLogger(), seed=0)
    return turns


def compare_choices(args: argparse.Namespace, hardware: Hardware) -> Rates:
    """The bare loop in both precisions and layouts; round 0 is there to warm up."""
    clock = Clock(args.steps, args.batch, hardware.device)
    images = torch.randn(args.batch, 3, 32, 32, device=hardware.device)
    labels = torch.arange(args.batch, device=hardware.device) % 10
    loops = {
        f"{precision} {layout}": bare(
            network(args),
            images,
            labels,
            replace(hardware, precision=precision, channels_last=channels_last),
        )
        for precision in ("fp32", "bf16")
        for layout, channels_last in LAYOUTS.items()
    }
    rates: Rates = {name: [] for name in loops}
    for _ in range(args.rounds + 1):
        for name, step in loops.items():
            rates[name].append(clock.turn(step))
    return rates


def network(args: argparse.Namespace) -> VGG:
    torch.manual_seed(0)
    return VGG(args.depth, width=args.width)


def ratios(upper: list[float], lower: list[float]) -> list[float]:
    return [a / b for a, b in zip(upper, lower)]


def show(name: str, values: list[float], form: str = ",.0f", note: str = "") -> None:
    """One line: the median, and the range in brackets."""
    low, middle, high = (f"{f(values):{form}}" for f in (min, statistics.median, max))
    print(f"{name:<20} {middle:>8}  ({low} to {high}){note}")


def show_turns(turns: Turns) -> Rates:
    rates = {name: values[1:] for name, values in turns.rates.items()}
    for name, values in rates.items():
        show(name, values)
    for other, goal in GOALS.items():
        shares = ratios(rates["ours"], rates[other])
        met = "reached" if statistics.median(shares) >= goal else "MISSED"
        show(f"ours / {other}", shares, ".3f", f"  goal {goal}: {met}")
    if turns.between:
        show("s between epochs", turns.between, ".2f", "  checkpoint and histograms")
    return rates


def show_choices(rates: Rates, chosen: str) -> Rates:
    rates = {name: values[1:] for name, values in rates.items()}
    for name, values in rates.items():
        show(name, values, note="  <- chosen" if name == chosen else "")
        if name != chosen:
            show("  chosen / it", ratios(rates[chosen], values), ".3f")
    return rates


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=19)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="besides a warm-up")
    parser.add_argument("--steps", type=int, default=8, help=f"timed, after {UNTIMED} that aren't")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--layout", default="auto", choices=["auto", *LAYOUTS])
    parser.add_argument("--grid", action="store_true", help="bare, in all precisions and layouts")
    parser.add_argument("--json", type=Path, help="file for the rates of every round")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    hardware = choose(args.device, args.precision, LAYOUTS.get(args.layout), threads=args.threads)
    last = hardware.lays_channels_last(network(args))
    chosen = f"{hardware.precision} {'channels_last' if last else 'contiguous'}"
    here = machine()
    print(
        f"images/s, VGG-{args.depth} of width {args.width:g} at 32x32, batch {args.batch}, {chosen}"
        f"\n{here['gpu'] or here['cpu']}, {here['threads']} threads; median (range) of "
        f"{args.rounds} rounds of {args.steps} steps"
    )
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"something else is running (load {load:.1f}): rates are too low, ratios are rough")
    between: list[float] = []
    if args.grid:
        rates = show_choices(compare_choices(args, hardware), chosen)
    else:
        turns = compare(args, hardware)
        rates, between = show_turns(turns), turns.between
    if args.json:
        facts = {"chosen": chosen, "load": load, "machine": here, "versions": versions()}
        options = {key: value for key, value in vars(args).items() if key != "json"}
        whole = {"options": options, **facts, "commit": commit(), "rates": rates}
        args.json.write_text(json.dumps({**whole, "between_epochs_s": between}, indent=1) + "\n")


if __name__ == "__main__":
    main()
