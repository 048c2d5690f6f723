"""Methods against each other at one budget, seed by seed.

A contest holds all chains that differ in nothing but the method (with the penalty it trains with,
and whether it ranks layers together), the seed, and what followed the cut. Differences are paired:
both networks of a pair have the same seed, so the same initial weights and order of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import pandas as pd

from utils.report.groups import groups, of_chain
from utils.report.table import Run, method, network, strength, target, tuning
from utils.runs.units import si

REFERENCE = "slimming"
FREE = ("train: method", "train: strength", "prune: method", "prune: scope")
FREE += ("finetune: scratch", "finetune: epochs")
Chain = Sequence[Run]


@dataclass(frozen=True)
class Difference:
    """Of two paired samples, in points of accuracy."""

    mean: float
    half_width: float | None  # of the 95 % confidence interval; None for one pair
    n: int

    @property
    def verdict(self) -> str:
        if self.n == 0:
            return "no seed in common"
        if self.half_width is None:
            return "one seed can't tell"
        if abs(self.mean) <= self.half_width:
            return f"{self.n} seeds can't tell"
        return "better" if self.mean > 0 else "worse"

    def __str__(self) -> str:
        if self.n == 0:
            return "-"
        spread = "" if self.half_width is None else f" ± {self.half_width:.2f}"
        return f"{self.mean:+.2f}{spread}"


@dataclass(frozen=True)
class Entrant:
    """One method and what followed its cut: a chain per seed."""

    method: str
    strength: float
    tuning: str  # fine-tuned, scratch-E, scratch-B
    epochs: int | None  # of fine-tuning; those of a control follow from its network
    chains: dict[int, Chain]

    @property
    def accuracies(self) -> dict[int, float]:
        """{seed: test accuracy in %, last epoch}"""
        return {seed: 100 * c[-1]["accuracy"]["test"] for seed, c in self.chains.items()}


@dataclass(frozen=True)
class Contest:
    title: str  # "vgg11-w0.25, cifar10, macs 0.3"
    entrants: list[Entrant]

    def reference(self, entrant: Entrant) -> Entrant | None:
        """A control is compared with its own fine-tuning; that with the reference method's, at the
        lambda with the most seeds, the lowest of those."""
        tuned = [other for other in self.entrants if other.epochs is not None]
        if entrant.epochs is None:
            who = (entrant.method, entrant.strength)
            fits = [other for other in tuned if (other.method, other.strength) == who]
        else:
            fits = [other for other in tuned if other.epochs == entrant.epochs]
            fits = [other for other in fits if other.method == REFERENCE]
        best = max(fits, key=lambda other: (len(other.chains), -other.strength), default=None)
        return None if best is entrant else best


def paired(ours: dict[int, float], theirs: dict[int, float]) -> Difference:
    """Mean of ours - theirs over the seeds that both have, with Student's 95 % interval."""
    from scipy.stats import t

    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    n = len(differences)
    if n < 2:
        return Difference(differences[0] if n else 0.0, None, n)
    half = t.ppf(0.975, n - 1) * stdev(differences) / n**0.5
    return Difference(mean(differences), float(half), n)


def contests(chains: Sequence[Chain]) -> list[Contest]:
    """Those in which at least two methods met one target; ratios leave unequal MACs.

    Args:
        chains: of `table.chains`; what doesn't end in a fine-tuning or a control is passed over.
    """
    met: dict[str, list[Chain]] = {}
    for chain in chains:
        if chain[-1]["stage"] == "finetune" and target(chain):
            met.setdefault(_conditions(chain), []).append(chain)
    return [
        Contest(
            f"{network(them[0][0])}, {them[0][0]['dataset']}, {target(them[0])}",
            [_entrant(group) for group in groups(them)],
        )
        for them in met.values()
        if len({method(chain) for chain in them}) > 1
    ]


def as_text(contest: Contest) -> pd.DataFrame:
    """One row per entrant, as text."""
    lines = []
    order = sorted(contest.entrants, key=lambda e: (e.epochs is None, e.tuning))
    for entrant in order:
        other = contest.reference(entrant)
        accuracies = list(entrant.accuracies.values())
        spread = f" ± {stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        last = [chain[-1] for chain in entrant.chains.values()]
        line = {
            "method": entrant.method,
            "λ": f"{entrant.strength:g}",
            "then": entrant.tuning,
            "epochs": " / ".join(dict.fromkeys(str(run["epochs"]) for run in last)),
            "test %": f"{mean(accuracies):.2f}{spread} (n = {len(accuracies)})",
            "MACs": si(mean(run["macs"] for run in last)),
            "params": si(mean(run["params"] for run in last)),
        }
        if other is not None:
            difference = paired(entrant.accuracies, other.accuracies)
            own = entrant.epochs is None
            whose = "its fine-tuning" if own else f"{other.method}, λ {other.strength:g}"
            line |= {
                "difference": f"{difference}",
                "against": whose,
                "verdict": difference.verdict,
            }
        lines.append(line)
    return pd.DataFrame(lines).fillna("-")


def _conditions(chain: Chain) -> str:
    """What all entrants of a contest share."""
    settings = of_chain(chain)
    return repr(sorted((name, settings[name]) for name in settings if not name.startswith(FREE)))


def _entrant(group: Sequence[Chain]) -> Entrant:
    kind = tuning(group[0][-1])
    return Entrant(
        method(group[0]),
        strength(group[0]),
        kind,
        group[0][-1]["epochs"] if kind == "fine-tuned" else None,
        {chain[-1]["seed"]: chain for chain in sorted(group, key=lambda c: c[-1]["seed"])},
    )
