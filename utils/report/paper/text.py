"""The paper's tables as text: Markdown, LaTeX (booktabs), CSV, terminal; of `paper.lines`."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from utils.report.paper.rows import cost, published

Line = Mapping[str, Any]
COLUMNS = ("row", "data", "experiment", "pass", "stage", "measure", "published", "published_std")
COLUMNS += ("confidence", "port", "ours", "ours_std", "n", "difference", "inside")
COLUMNS += ("params", "params_pruned", "ours_params", "ours_params_pruned")
COLUMNS += ("flops", "flops_pruned", "ours_flops", "ours_flops_pruned", "refused", "command")


def cells(lines: Sequence[Line], twin: bool) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of what people read; a twin isn't set against the published numbers."""
    measure = lines[0]["measure"]
    header = ["row", f"paper, {measure} %", "port", "ours (n)", "difference", "band"]
    header += ["params, paper", "params, ours", "FLOPs, paper", "FLOPs, ours"]
    body = [_cells(line) for line in lines]
    hidden = {1, 2, 4, 5} if twin else set()
    # Not every table has FLOPs, or rows that the port has too.
    empty = {i for i in range(1, len(header)) if all(row[i] == "-" for row in body)} - {3, 4}
    shown = [i for i in range(len(header)) if i not in hidden | empty]
    return [header[i] for i in shown], [[row[i] for i in shown] for row in body]


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


def markdown(table: str, lines: Sequence[Line], twin: bool) -> str:
    header, body = cells(lines, twin)
    rule = ["---", *("---:" for _ in header[1:])]
    text = [f"# {title(table, twin)}", ""]
    text += ["| " + " | ".join(row) + " |" for row in (header, rule, *body)]
    text += ["", *(line for note in notes(table, lines, twin) for line in (note, ""))]
    if commands := missing(lines):
        text += ["To fill the empty rows:", ""]
        text += [f"- `{command}`" for command in commands]
    return "\n".join(text).rstrip() + "\n"


def latex(table: str, lines: Sequence[Line], twin: bool) -> str:
    r"""A table for \usepackage{booktabs}."""
    header, body = cells(lines, twin)
    rows = [" & ".join(map(_escape, row)) + r" \\" for row in (header, *body)]
    text = [
        *("% needs \\usepackage{booktabs}", *(f"% empty: {command}" for command in missing(lines))),
        *(r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}"),
        *(r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}"),
        rf"\caption{{{_escape(' '.join([title(table, twin) + '.', *notes(table, lines, twin)]))}}}",
        r"\end{table}",
    ]
    return "\n".join(text) + "\n"


def _escape(text: str) -> str:
    for plain in "%&_#$":
        text = text.replace(plain, f"\\{plain}")
    return text.replace("±", r"$\pm$").replace("\\%", r"\,\%").replace(r" \,", r"\,")


def comma_separated(lines: Sequence[Line]) -> str:
    """All raw numbers; counts and percentages as they are."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        names = {"published": line[line["measure"]], "published_std": line.get("std")}
        writer.writerow({**line, **names})
    return out.getvalue()


def terminal(table: str, lines: Sequence[Line], twin: bool):
    """A rich table; the commands stand below it."""
    from rich import box
    from rich.table import Table

    header, body = cells(lines, twin)
    shown = Table(title=title(table, twin), box=box.SIMPLE, padding=(0, 1, 0, 0))
    for i, name in enumerate(header):
        shown.add_column(name, justify="right" if i else "left", no_wrap=i > 0)
    for row in body:
        shown.add_row(*row)
    return shown
