"""Find the channels of a network by running it, and run it once more, thinner, to be sure."""

from collections import Counter
from collections.abc import Collection
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from slimming.graph.assemble import Discovery, Run, assemble
from slimming.graph.channel_graph import ChannelGraph
from slimming.graph.record import Recorder
from slimming.graph.replay import Differs, Thinned, grouped_gates, replay, trial
from slimming.graph.resize import cut
from slimming.graph.twin import KINDS, Example, Twin, stored, uncollected
from slimming.modules.selection import selects
from slimming.modules.widths import Widths, guess
from slimming.rules.call import Found
from slimming.rules.channel_ids import Ids

Coupled = Literal["prune", "keep"]
Unscored = Literal["prune", "keep"]
GUESSED = 3  # second runs, where one may fit by chance
TRIES = 200  # of the second run, each of which pins something


def check_streams(coupled: str = "prune", unscored: str = "keep") -> None:
    """
    Raises:
        ValueError: streams can't be treated like this.
    """
    for option, value, kind in (("coupled", coupled, Coupled), ("unscored", unscored, Unscored)):
        if value not in get_args(kind):
            choices = ", ".join(get_args(kind))
            raise ValueError(f"{option} is one of {choices}; got {value!r}")


@uncollected()
def trace(
    model: nn.Module, example: Any, coupled: Coupled = "prune", unscored: Unscored = "keep"
) -> ChannelGraph:
    """Find the channels of `model` that can be cut.

    Args:
        model: any network. It isn't changed.
        example: an input, a tuple of inputs, or {"args": (...), "kwargs": {...}}; batch first. Only
            shapes and types matter, unless the network looks at values: then the graph holds for
            the way that this example takes.
        coupled: channels that are added to others (residual streams) are cut together, or kept.
        unscored: where a layer without BatchNorm adds to such a stream, its gammas don't tell what
            a channel is worth: these streams are cut all the same, or kept.

    Raises:
        ValueError: the network can't take this input.
    """
    _refuse(model)
    check_streams(coupled, unscored)
    return _Search(model, Example.of(example), coupled, unscored).graph()


class _Search:
    """Discovers, tries the discovery out, and pins what doesn't hold, until all of it holds."""

    def __init__(self, model: nn.Module, example: Example, coupled: str, unscored: str):
        self.model, self.coupled, self.unscored = model, coupled, unscored
        self.choices: dict[str, int] = {}
        self.pins: list[tuple[str, str]] = []  # gate, reason
        self.notes: list[str] = []
        self.widths: Widths = {}
        self.failed: Counter[str] = Counter()  # lines of code, which then fail wherever they run
        self.example, self.twin, self.modes = example, None, ()

    def graph(self) -> ChannelGraph:
        found = self._first()
        for _ in range(TRIES):
            try:
                self._try_out(found, set())
                return found.graph
            except Differs as difference:
                self._learn(found, difference)
            found = self._discover()
        raise AssertionError("a network with nothing left to cut differs from itself")

    def _first(self) -> Discovery:
        """In both modes, as some heads exist in one only; on fake tensors, if they will do."""
        problems = []
        for self.kind in KINDS:
            looked = problems[-1:]  # why it doesn't run without numbers
            for self.modes in ((True, False), (False,)):
                self.twin, self.notes = None, []
                if self.kind == "real":
                    why = f"it holds for the way the example takes: {_first_line(looked[0])}"
                    self.notes.append(why)
                if self.modes == (False,):
                    why = f"found in eval mode: training fails: {_first_line(problems[-1])}"
                    self.notes.append(why)
                try:
                    return self._discover()
                except Exception as error:  # whatever the network's own code raises
                    problems.append(error)
        backbone = isinstance(getattr(self.model, "backbone", None), nn.Module)
        advice = " Perhaps its backbone can be cut by itself: give model.backbone."
        raise ValueError(
            f"{type(self.model).__name__} can't take an input of shape {self.example}: "
            f"{_first_line(problems[-1])}{advice if backbone else ''}"
        ) from problems[-1]

    def _discover(self) -> Discovery:
        ids = Ids()
        runs = [self._run(ids, training) for training in self.modes]
        for run in runs:
            if self.unscored == "keep":
                for channels, reason in run.found.unscored:
                    ids.pin(channels, reason)
            if self.coupled == "keep":
                for channels, reason in run.found.joined:
                    ids.pin(channels, f"{reason}, and coupled=keep")
        for gamma, reason in self.pins:
            ids.pin(ids.dims[gamma, 0], reason)
        found = assemble(self.model, ids, runs, self.notes)
        found.graph.widths.update(self.widths)
        return found

    def _run(self, ids: Ids, training: bool) -> Run:
        if self.twin is None:
            self.twin = Twin(self.model, self.example, self.kind)
        found = Found(self.twin.batch, ids=ids, choices=dict(self.choices))
        recorder, first = Recorder(found, _picks(self.model)), len(ids.made)
        for name, tensor in stored(self.twin.model).items():
            found.store(name, tensor)
        _pin_states(self.twin.model, ids)
        with self.twin.running():
            outputs = recorder.run(self.twin, training)
        found.pin([p for t in outputs for p in found.planes(t)], "it is the network's output")
        return Run(training, found, recorder.records, outputs, (first, len(ids.made)))

    # The second run

    def _try_out(self, found: Discovery, whole: Collection[str]) -> None:
        """Run a thinner twin, in which these gates stay whole.

        Raises:
            Differs: it does something else than the dense one.
        """
        for run in found.runs:
            if run.training and run.alike(found.runs[-1]):
                continue
            guessed = run.found.loose or found.graph.widths
            for seed in range(GUESSED if guessed else 1):
                keep, stays = trial(found, whole, 2 * seed + int(run.training))
                if keep:
                    self._hold(found, run, keep, stays)
            pairs = {gate for gate, own in found.graph.gates.items() if len(own.unique()) == 2}
            if not pairs <= {*whole}:  # of two channels one can go, which tells less
                others = {*whole, *found.graph.gates.keys() - pairs}
                keep, stays = trial(found, others, 0, least=1)
                self._hold(found, run, keep, stays, follow=False)

    def _hold(
        self,
        found: Discovery,
        run: Run,
        keep: dict[str, Tensor],
        stays: Tensor,
        follow: bool = True,
    ) -> None:
        picks = _picks(self.model)
        for gate in (gate for gate in found.graph.selecting if gate in keep):
            path, kept = f"{gate}.pick", keep[gate]
            picks[path] = picks[path][kept] if path in picks else kept
        twin = self.twin or Twin(self.model, self.example, self.kind)
        self.twin = None  # it is made thin itself
        cut(twin.model, found.graph, keep)
        replay(twin, run, Thinned(found, run, stays), picks, follow)

    def _learn(self, found: Discovery, difference: Differs) -> None:
        """Read the line that failed in another way, or pin what it depends on."""
        where, readings = difference.where, difference.run.found.readings
        if self.choices.get(where, 0) + 1 < readings.get(where, 0):
            self.choices[where] = self.choices.get(where, 0) + 1
            return
        if self._follows(found, difference):
            return
        groups = grouped_gates(found.graph)
        self.failed[where] += 1
        for alike in (False, True) if self.failed[where] == 1 else (True,):
            gates = difference.gates(found, alike)
            near = [group for group in groups if group & gates]
            if self._cures(found, difference, near):
                guilty = near if alike else self._smallest(found, difference, near)
                break
        else:
            guilty = self._smallest(found, difference, groups)
        for gate in set().union(*guilty):
            self.pins.append((found.graph.gammas[gate], difference.reason))

    def _follows(self, found: Discovery, difference: Differs) -> bool:
        """Whether numbers in the modules that run this line only have to follow their widths."""
        widths = guess(self.model, found.graph.dims, difference.met(found))
        if not widths or widths.items() <= self.widths.items():
            return False
        before = dict(found.graph.widths)
        found.graph.widths.update(widths)
        if self._gets_past(found, difference, set()):
            self.widths.update(widths)
            return True
        found.graph.widths.clear()
        found.graph.widths.update(before)
        return False

    def _smallest(
        self, found: Discovery, difference: Differs, groups: list[frozenset[str]]
    ) -> list[frozenset[str]]:
        """Halve them as long as one half alone makes the difference."""
        while len(groups) > 1:
            middle = len(groups) // 2
            halves = groups[:middle], groups[middle:]
            every = grouped_gates(found.graph)
            for half in halves:
                if not self._cures(found, difference, [g for g in every if g not in half]):
                    groups = half
                    break
            else:
                return groups
        return groups

    def _cures(self, found: Discovery, difference: Differs, groups: list[frozenset[str]]) -> bool:
        """Whether the network gets past the difference where these stay whole."""
        return bool(groups) and self._gets_past(found, difference, set().union(*groups))

    def _gets_past(self, found: Discovery, difference: Differs, whole: Collection[str]) -> bool:
        try:
            self._try_out(found, whole)
        except Differs as other:
            later = found.runs.index(other.run), other.at
            return later > (found.runs.index(difference.run), difference.at)
        return True


def _pin_states(model: nn.Module, ids: Ids) -> None:
    """A recurrent layer reads channels; what it remembers of them keeps its size."""
    for path, module in model.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            for dim, size in enumerate(tensor.shape if isinstance(module, nn.RNNBase) else ()):
                if not name.startswith("weight_ih_l0") or dim == 0:
                    own = ids.number(f"{path}.{name}" if path else name, dim, size)
                    ids.pin(own, f"'{path}' keeps the size of its state")


def _picks(model: nn.Module) -> dict[str, Tensor]:
    modules = model.named_modules()
    return {f"{path}.pick": m.index.cpu() for path, m in modules if selects(m)}


def _refuse(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"give a network, an nn.Module; got {type(model).__name__}")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(f"give the network inside: {type(model).__name__}(...).module")
    if hasattr(model, "_orig_mod"):
        raise ValueError("give the network that was compiled: compiled._orig_mod")
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                raise ValueError(
                    f"{type(model).__name__} can't be copied, as '{name}' keeps {attribute} of a "
                    f"forward pass with gradients: run it once under torch.no_grad()"
                )
        mine = vars(module).get("forward")
        if mine is None or isinstance(module, torch.jit.ScriptModule):
            continue
        if getattr(mine, "__func__", None) is type(module).forward:
            continue  # what accelerate leaves when it is unwrapped: the class's own again
        whose, way_out = "", "define it in a class"
        if "_original_forward" in vars(module):
            whose = " by accelerate"
            way_out = "give accelerator.unwrap_model(model, keep_fp32_wrapper=False)"
        # Its code isn't seen, and copies of the network may run that of the original.
        raise ValueError(
            f"the forward of '{name or type(model).__name__}' was replaced on the object{whose}: "
            f"{way_out}"
        )


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
    return line if line.endswith(".") else f"{line}."
