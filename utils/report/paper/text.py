"""The paper's tables as text for people; of `rows.lines`."""

from collections.abc import Mapping, Sequence
from typing import Any

from utils.report import groups
from utils.report.paper.rows import cost, published
from utils.report.render import Column, Table

Line = Mapping[str, Any]
WITHIN = {True: "inside", False: "outside", None: "-"}
COLUMNS = ("row", "data", "experiment", "pass", "stage", "measure", "published", "published_std")
COLUMNS += ("confidence", "port", "ours", "ours_std", "n", "difference", "inside")
COLUMNS += ("params", "params_pruned", "ours_params", "ours_params_pruned")
COLUMNS += ("flops", "flops_pruned", "ours_flops", "ours_flops_pruned", "refused", "command")


def text(table: str, lines: Sequence[Line], twin: bool) -> Table:
    """What people read; a twin isn't set against the published numbers."""
    measure = lines[0]["measure"]
    columns = [
        Column("row", [line["row"] for line in lines], words=True),
        Column(f"paper, {measure} %", [_published(line) for line in lines]),
        Column("port", [_number(line["port"]) for line in lines], minor=4),
        Column(f"ours, {measure} % (n)", [_ours(line) for line in lines]),
        Column("difference", [_number(line.get("difference"), "+.2f") for line in lines], minor=1),
        Column("band", [WITHIN[line.get("inside")] for line in lines], minor=2),
        *(Column(name, cells, minor=3) for name, cells in _costs(lines).items()),
    ]
    hidden = {1, 2, 4, 5} if twin else set()
    # Not every table has FLOPs, or rows that the port has too.
    empty = {i for i, one in enumerate(columns) if {*one.cells} == {"-"}} - {3}
    shown = [one for i, one in enumerate(columns) if i not in hidden | empty]
    return Table(shown, title(table, twin), notes(table, lines, twin))


def _published(line: Line) -> str:
    return _plus_minus(line[line["measure"]], line.get("std")) + _star(line)


def _star(line: Line) -> str:
    return "*" if line["confidence"] == "recalled" else ""


def _ours(line: Line) -> str:
    if "refused" in line:
        return "not averaged"
    return f"{_plus_minus(line['ours'], line['ours_std'])} ({line['n']})" if "ours" in line else "-"


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _costs(lines: Sequence[Line]) -> dict[str, list[str]]:
    """{"params, paper": [one for each line], ...}"""
    columns: dict[str, list[str]] = {}
    for key, word in (("params", "params"), ("flops", "FLOPs")):
        paper = [cost(line.get(key), line.get(f"{key}_pruned")) for line in lines]
        ours = [cost(line.get(f"ours_{key}"), line.get(f"ours_{key}_pruned")) for line in lines]
        if key == "flops":
            ours = [o if "flops_per_mac" in line else "-" for o, line in zip(ours, lines)]
        stars = [p + (_star(line) if p != "-" else "") for p, line in zip(paper, lines)]
        columns |= {f"{word}, paper": stars, f"{word}, ours": ours}
    return columns


def _plus_minus(value: float, std: float | None) -> str:
    return f"{value:.2f}" + ("" if std is None else f" ± {std:.2f}")


def title(table: str, twin: bool) -> str:
    source = published()["tables"][table]["source"]
    return f"{source}: the twins for a laptop" if twin else source


def notes(table: str, lines: Sequence[Line], twin: bool) -> list[str]:
    """What a reader has to know to compare the columns."""
    whole, port, band = (published()[key] for key in ("tables", "port", "band"))
    said = ["Ours: test set, last epoch, mean ± standard deviation over n seeds."]
    if twin:
        said.append("A quarter of the width, few epochs, the fast recipe: not the paper's numbers.")
    else:
        said += [whole[table]["note"]] if "note" in whole[table] else []
        said += [f"Port: {port['note']}"] if any(line["port"] is not None for line in lines) else []
        if any(line["data"] in band for line in lines):
            said.append(
                f"Band: within {band['cifar10']} points on CIFAR-10, {band['cifar100']} on "
                "CIFAR-100, up to about which two runs differ, as the port's authors say."
            )
        if any("difference" in line for line in lines):
            better = "-" if lines[0]["measure"] == "error" else "+"
            said.append(f"Difference: ours less the published, in points; {better} is better.")
        if any(line["confidence"] == "recalled" for line in lines):
            said.append("*: recalled; nobody has read it in the source.")
    if factor := whole[table].get("flops_per_mac"):
        said.append(f"FLOPs are {factor} × MACs, as in the source.")
    said += [f"{line['row']}: {line['refused']}." for line in lines if "refused" in line]
    said += [
        f"{line['row']} is empty, though there are runs like it: they differ in {line['near']}."
        for line in lines
        if "near" in line
    ]
    return [" ".join(note.split()) for note in said]


def missing(lines: Sequence[Line]) -> list[str]:
    """The commands that fill the empty rows; one may fill several."""
    return list(dict.fromkeys(line["command"] for line in lines if line["command"]))


def raw(lines: Sequence[Line]) -> Table:
    """All raw numbers; counts and percentages as they are."""
    named = [
        {**line, "published": line[line["measure"]], "published_std": line.get("std")}
        for line in lines
    ]
    columns = {name: [line.get(name) for line in named] for name in COLUMNS}
    return Table(
        [Column(name, [*map(groups.value, cells)], cells) for name, cells in columns.items()]
    )
