"""How many associations the mechanism holds, by the kind of keys: what is nearest, and what is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stages.verdict.claims.evidence import Evidence
from stages.verdict.report.figures.style import INK, Drawing, Numbers, Style, power_axis, seeds, styles, tokens

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

KEYS = {
    "random": "Random keys",
    "orthogonal": "Orthogonal keys",
    "learned": "Keys learned for recall",
    "learned-exact": "Keys learned for exact readout",
    "trained": "Keys of the models",
}
RULE_DASHES: dict[str, Any] = {"linear": "-", "delta": (0, (4, 1.5)), "delta-token": (0, (1, 1.2))}
TABLE = "capacity.parquet"


def table_by_keys(evidence: Evidence) -> pd.DataFrame:
    """capacity.parquet of the mechanism alone and of the trained models (``keys`` = trained), with a column ``run``:
    the seed, and the arm where there is one."""
    import pandas as pd

    alone = evidence.table("capacity", TABLE)
    parts = []
    if len(alone):
        parts.append((alone if "keys" in alone else alone.assign(keys="random")).assign(run=alone["seed"].astype(str)))
    models = evidence.trained_capacity
    models = models[models["keys"] == "trained"] if "keys" in models else models
    if len(models):
        parts.append(models.assign(run=models["arm"] + "/" + models["seed"].astype(str)))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def by_keys(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Argmax recall beside exact readout, one row of panels per kind of keys."""
    table = table_by_keys(evidence)
    if not len(table):
        return None
    kinds = [kind for kind in KEYS if (table["keys"] == kind).any()]
    looks = styles(dict.fromkeys(table["feature_map"]))
    measures = [("accuracy", "nearest value is right")]
    if "exact" in table and table["exact"].notna().any():
        measures.append(("exact", "read back exactly"))

    def of(kind: str, measure: str, label: str) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            rows = table[(table["keys"] == kind) & table[measure].notna()]
            for name, look in looks.items():
                for rule, cell in rows[rows["feature_map"] == name].groupby("rule", sort=False):
                    _line(axis, cell, measure, look, str(rule), f"{name}, {rule}")
            for name, look in looks.items():
                dims = rows.loc[rows["feature_map"] == name, "feature_dim"].unique()
                for dim in dims:
                    axis.plot([dim, dim], [1.02, 1.09], color=look.colour, lw=2.2, clip_on=False)
            power_axis(axis, table["associations"])
            axis.set(title=KEYS[kind], ylabel=f"share: {label}", xlabel="associations stored", ylim=(-0.03, 1.09))

        return panel

    present = [
        (kind, *measure)
        for kind in kinds
        for measure in measures
        if (table.loc[table["keys"] == kind, measure[0]].notna().any() if measure[0] in table else False)
    ]
    group = ["keys", "feature_map", "feature_dim", "rule", "associations"]
    data = table.groupby(group)[[m for m, _ in measures]].agg(["mean", "min", "max"])
    data.columns = [f"{measure}_{how}" for measure, how in data.columns]
    sources = [evidence.source("capacity", TABLE)] if evidence.has("capacity") else []
    sources += evidence.sources("ablate", TABLE) if "trained" in kinds else ()
    return Drawing(
        "capacity",
        "Capacity of the memory, by kind of keys",
        "Associations written into the real memory module. Left: share whose nearest value is the right one, which "
        "well-spread keys keep up beyond the rank. Right: share read back within the tolerance, which rank "
        "bounds: ticks "
        "on top mark each map's feature dimension. Colour and marker: feature map; line: rule; bands: range over "
        "seeds.",
        [of(*one) for one in present],
        data.reset_index().to_dict("records"),
        sources,
        columns=len(measures),
        height=2.6,
    )


def _line(axis: Axes, cell: pd.DataFrame, measure: str, look: Style, rule: str, label: str) -> None:
    by = cell.groupby("associations")[measure].agg(["mean", "min", "max"])
    axis.plot(
        by.index,
        by["mean"],
        color=look.colour,
        marker=look.marker,
        ms=3.6,
        ls=RULE_DASHES.get(rule, "-"),
        label=label,
        lw=1.3,
    )
    axis.fill_between(by.index, by["min"], by["max"], color=look.colour, alpha=0.1, lw=0)


def rewriting(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Overwriting (same key, new value) and forgetting (recall of an item after later writes)."""
    overwrite = evidence.table("capacity", "overwrite.parquet")
    forgetting = evidence.table("capacity", "forgetting.parquet")
    panels: list[Callable[[Axes], None]] = []
    data: list[dict[str, Any]] = []
    sources = []
    looks = styles(RULE_DASHES)

    def over(axis: Axes) -> None:
        for rule, rows in overwrite.groupby("rule", sort=False):
            look = looks.get(str(rule), Style(INK, "o", "-"))
            mean = rows.groupby("associations")[["new_value_accuracy", "old_value_accuracy"]].mean()
            axis.plot(
                mean.index, mean["new_value_accuracy"], color=look.colour, marker=look.marker, label=f"{rule}: new"
            )
            axis.plot(
                mean.index,
                mean["old_value_accuracy"],
                color=look.colour,
                marker=look.marker,
                mfc="none",
                ls=(0, (1, 1.5)),
                label=f"{rule}: old",
            )
        power_axis(axis, overwrite["associations"])
        axis.set(title="Same key, new value", xlabel="associations", ylabel="share read back", ylim=(-0.03, 1.06))

    def later(kind: str) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            rows = forgetting[forgetting["keys"] == kind] if "keys" in forgetting else forgetting
            rows = rows[rows["feature_map"] == rows["feature_map"].iloc[0]]
            for rule, cell in rows.groupby("rule", sort=False):
                look = looks.get(str(rule), Style(INK, "o", "-"))
                mean = cell.groupby("later")["accuracy"].mean()
                axis.plot(mean.index, mean, color=look.colour, marker=look.marker, ls=look.dash, label=str(rule))
                seeds(axis, cell["later"], cell["accuracy"], look)
            axis.set_xscale("symlog", base=2, linthresh=1)
            ticks = [int(n) for n in sorted(rows["later"].unique())]
            ticks = ticks[:: max(1, -(-len(ticks) // 6))]
            axis.set_xticks(ticks, [tokens(tick) for tick in ticks])
            axis.minorticks_off()
            title = f"{KEYS.get(kind, 'Forgetting')}, {rows['feature_map'].iloc[0]}"
            axis.set(title=title, xlabel="later writes", ylabel="share recalled", ylim=(-0.03, 1.06))

        return panel

    if len(overwrite):
        panels.append(over)
        data += overwrite.assign(measure="overwrite").to_dict("records")
        sources.append(evidence.source("capacity", "overwrite.parquet"))
    if len(forgetting):
        kinds = list(dict.fromkeys(forgetting["keys"])) if "keys" in forgetting else [""]
        panels += [later(kind) for kind in kinds]
        data += forgetting.assign(measure="forgetting").to_dict("records")
        sources.append(evidence.source("capacity", "forgetting.parquet"))
    if not panels:
        return None
    return Drawing(
        "rewriting",
        "Overwriting and forgetting",
        "Filled: the new value is read for a key written twice; open, dotted: the old one still is. Then: recall of an "
        "association after so many later writes, lines means, open markers seeds.",
        panels,
        data,
        sources,
        height=2.6,
    )
