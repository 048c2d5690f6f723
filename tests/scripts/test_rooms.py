"""The rooms of the house: what may import what, and how much a folder holds."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from door import ROOT

HOUSE = ("models", "slimming", "utils")
# Each room imports only what stands before it.
UTILS = ("data", "training", "networks", "runs", "exports", "cli", "report")
SLIMMING = ("rules", "modules", "graph", "planning", "surgery", "repair", "methods", "checkpoint")
# One file each, as many as there are: docs/extending.md.
SHELVES = {ROOT / room for room in ("models", "slimming/methods", "utils/data/sets")}
SHELVES |= {ROOT / "utils" / "training" / "schedules"}
STAGES = ("train", "prune", "finetune", "pipeline", "report", "evaluate", "export")
STAGES += ("sensitivity",)


@cache
def modules() -> dict[str, Path]:
    """{"utils.data.sets": its file} of everything but tests and benchmarks."""
    files = [*ROOT.glob("*.py"), *(f for room in HOUSE for f in (ROOT / room).rglob("*.py"))]
    names = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules of ours that are imported when this runs; what types alone need isn't."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole path"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module or ""
        else:
            yield from imports(node)


@cache
def arrows() -> dict[str, set[str]]:
    trees = {name: ast.parse(file.read_text("utf-8")) for name, file in modules().items()}
    return {name: {m for m in imports(tree) if m in modules()} for name, tree in trees.items()}


def _room(module: str) -> str:
    """ "utils.data" of "utils.data.sets"; "slimming.checkpoint" and "train" are their own."""
    return ".".join(module.split(".")[:2])


def _height(module: str) -> tuple[int, int]:
    """The floor, and the room's place on it."""
    house, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    if house in ("models", "slimming"):
        return 0, SLIMMING.index(room) if house == "slimming" and room else len(SLIMMING)
    if house == "utils":
        return 1, UTILS.index(room) if room else -1
    return 2 + (("engine", "stages").index(house) if house not in STAGES else 2), 0


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_arrow_points_upwards(name):
    for other in arrows()[name]:
        if _room(other) != _room(name):
            assert _height(other) <= _height(name), f"{name} imports {other}"


def test_there_is_no_circle():
    left = {name: set(targets) - {name} for name, targets in arrows().items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import each other: {sorted(left)}"


@pytest.mark.parametrize("name", [n for n in sorted(modules()) if n.split(".")[0] in HOUSE])
def test_what_is_installed_by_itself_reaches_for_nothing_of_ours(name):
    house = name.split(".")[0]
    reached = {target.split(".")[0] for target in arrows()[name]}
    if house == "models":
        assert reached <= {"models"}
    if house == "slimming":
        assert reached <= {"slimming"}
    assert not reached & set(STAGES) and (house != "utils" or not reached & {"engine", "stages"})


def test_only_the_edge_knows_hydra_and_slimming_least_of_all():
    for name, file in modules().items():
        if name.split(".")[0] in ("slimming", "models"):
            found = {n.split(".")[0] for n in imports(ast.parse(file.read_text("utf-8")))}
            assert not found & {"hydra", "omegaconf", "wandb", "rich", "altair"}, name


@pytest.mark.parametrize(
    "folder",
    sorted({file.parent for file in modules().values()} - SHELVES | {*(ROOT / "tests").glob("*/")}),
    ids=lambda folder: str(folder.relative_to(ROOT)),
)
def test_a_folder_holds_at_most_a_dozen_files(folder):
    files = [file for file in folder.iterdir() if file.suffix == ".py"]
    assert len(files) <= 12
