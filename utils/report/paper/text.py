"""The paper's tables as text for people; of `rows.lines`."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from utils.report.paper.rows import cost, published

Line = Mapping[str, Any]
COLUMNS = ("row", "data", "experiment", "pass", "stage", "measure", "published", "published_std")
COLUMNS += ("confidence", "port", "ours", "ours_std", "n", "difference", "inside")
COLUMNS += ("params", "params_pruned", "ours_params", "ours_params_pruned")
COLUMNS += ("flops", "flops_pruned", "ours_flops", "ours_flops_pruned", "refused", "command")


def text(lines: Sequence[Line], twin: bool) -> pd.DataFrame:
    """What people read; a twin isn't set against the published numbers."""
    measure = lines[0]["measure"]
    header = ["row", f"paper, {measure} %", "port", "ours (n)", "difference", "band"]
    header += ["params, paper", "params, ours", "FLOPs, paper", "FLOPs, ours"]
    body = [_cells(line) for line in lines]
    hidden = {1, 2, 4, 5} if twin else set()
    # Not every table has FLOPs, or rows that the port has too.
    empty = {i for i in range(1, len(header)) if all(row[i] == "-" for row in body)} - {3, 4}
    shown = [i for i in range(len(header)) if i not in hidden | empty]
    return pd.DataFrame(body, columns=header).iloc[:, shown]


def _cells(line: Line) -> list[str]:
    recalled = "*" if line["confidence"] == "recalled" else ""
    ours = "-"
    if "ours" in line:
        ours = f"{_plus_minus(line['ours'], line['ours_std'])} ({line['n']})"
    return [
        line["row"],
        _plus_minus(line[line["measure"]], line.get("std")) + recalled,
        "-" if line["port"] is None else f"{line['port']:.2f}",
        "not averaged" if "refused" in line else ours,
        f"{line['difference']:+.2f}" if "ours" in line else "-",
        {True: "inside", False: "outside", None: "-"}[line.get("inside")],
        cost(line.get("params"), line.get("params_pruned")),
        cost(line.get("ours_params"), line.get("ours_params_pruned")),
        cost(line.get("flops"), line.get("flops_pruned")),
        cost(line.get("ours_flops"), line.get("ours_flops_pruned"))
        if "flops_per_mac" in line
        else "-",
    ]


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
        if any(line["confidence"] == "recalled" for line in lines):
            said.append("*: recalled, not checked against the source.")
    if factor := whole[table].get("flops_per_mac"):
        said.append(f"FLOPs are {factor} x MACs, as in the source.")
    said += [f"{line['row']}: {line['refused']}." for line in lines if "refused" in line]
    return [" ".join(note.split()) for note in said]


def missing(lines: Sequence[Line]) -> list[str]:
    """The commands that fill the empty rows; one may fill several."""
    return list(dict.fromkeys(line["command"] for line in lines if line["command"]))


def raw(lines: Sequence[Line]) -> pd.DataFrame:
    """All raw numbers; counts and percentages as they are."""
    named = [
        {**line, "published": line[line["measure"]], "published_std": line.get("std")}
        for line in lines
    ]
    cells = [[line.get(column) for column in COLUMNS] for line in named]
    return pd.DataFrame(cells, columns=COLUMNS, dtype=object)
