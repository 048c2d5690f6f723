"""A whole comparison at a glance: one line per network and ratio, one column per step."""

import pandas as pd

from utils.table import goals, si


def by_ratio(data: pd.DataFrame) -> pd.DataFrame:
    """Text: test accuracy in % right after training, after each kind of cut, after fine-tuning.

    Args:
        data: DataFrame of `table.frame`, one recipe.

    Seeds become mean ± standard deviation (n); where one seed has several values, such as
    fine-tunings of different lengths, all are shown.
    """
    cut = r"^cut ([\d.]+ %|to [^+]*[^+ ])"
    data = data.assign(what=data["step"].str.replace(cut, "cut", regex=True))
    data["what"] = data["what"].replace({"baseline": "trained", "sparse": "trained"})
    lines = []
    for (network, name, strength, _, _, number), group in data.groupby(
        ["network", "data", "lambda", "ratio", "target", "pass"], sort=False, dropna=False
    ):
        kept = 100 * (group["kept"] / group["total"]).mean()
        line = {
            "network": network,
            "data": name,
            "λ": f"{strength:g}",
            "ratio": goals(group)[0],
            **({"pass": f"{number:g}"} if (data["pass"] > 1).any() else {}),
            "channels": f"{kept:.0f} %",
            "params": si(float(group["params"].mean())),
            "MACs": si(float(group["macs"].mean())),
        }
        if data["latency_64_ms"].notna().any():
            line["ms / 64"] = f"{group['latency_64_ms'].mean():.3g}"
        cells = {what: _cell(rows) for what, rows in group.groupby("what", sort=False)}
        lines.append({**line, **cells})
    text = pd.DataFrame(lines).fillna("-")
    cuts = [column for column in text if column.startswith("cut")]
    after = [column for column in data["what"].unique() if column not in {"trained", *cuts}]
    return text[[column for column in text if column not in after] + after]


def _cell(rows: pd.DataFrame) -> str:
    values = rows[["seed", "test"]].drop_duplicates()
    percents = 100 * values["test"]
    if len(values) == 1:
        return f"{percents.iloc[0]:.2f}"
    if values["seed"].is_unique:
        return f"{percents.mean():.2f} ± {percents.std():.2f} (n = {len(values)})"
    return " / ".join(f"{percent:.2f}" for percent in percents)
