"""Gates, knock-outs and the capacity of the mechanism."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.claims.evidence import Evidence
from stages.claims.memory import KNOCKOUTS
from stages.claims.verdict import Number
from stages.report.figures.style import INK, MARKERS, MUTED, PALETTE, Figure, arm_styles, canvas, finish, legend_below

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Numbers = Mapping[str, Sequence[Number]]


def gates(evidence: Evidence, numbers: Numbers, folder: Path) -> Figure | None:
    """Heat map of g = sigmoid(beta), layers x heads, one panel per arm and seed."""
    table = evidence.gates
    if not len(table):
        return None
    arms = [arm for arm in evidence.memory_arms if (table["arm"] == arm).any()]
    seeds = sorted(table["seed"].unique())[:5]
    layers = table["layer"].nunique()
    figure, axes = canvas(len(seeds), len(arms), height=min(3.2, 1.0 + 0.2 * layers))
    image = None
    for place, axis in enumerate(axes):
        arm, seed = arms[place // len(seeds)], seeds[place % len(seeds)]
        rows = table[(table["arm"] == arm) & (table["seed"] == seed)]
        if not len(rows):
            axis.set_visible(False)
            continue
        grid = rows.pivot_table(index="layer", columns="head", values="gate")
        image = axis.imshow(grid.to_numpy(float), vmin=0, vmax=1, cmap="RdBu_r", aspect="auto", interpolation="none")
        if grid.size <= 48:
            for i, j in np.ndindex(grid.shape):
                dark = abs(grid.iat[i, j] - 0.5) > 0.33
                axis.text(j, i, f"{grid.iat[i, j]:.2f}", ha="center", va="center", fontsize=6.5,
                          color="#ffffff" if dark else "#101010")  # fmt: skip
        axis.set_xticks(range(grid.shape[1]), [str(h) for h in grid.columns])
        axis.set_yticks(range(grid.shape[0]), [str(layer) for layer in grid.index])
        axis.set_title(f"{arm}, seed {seed}", fontsize=8.5)
        axis.grid(visible=False)
        axis.set_xlabel("head" if place // len(seeds) == len(arms) - 1 else "")
        axis.set_ylabel("layer" if place % len(seeds) == 0 else "")
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01, aspect=25, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["local 0", "0.5", "memory 1"])
        bar.outline.set_visible(False)
    caption = "g = sigmoid(β) of every head at the end of training: 0 reads local attention only, 1 the memory only."
    return finish(
        figure, folder, name="gates", title="Gates by layer and head", caption=caption,
        sources=evidence.sources("ablate", "gates.parquet"),
    )  # fmt: skip


def knockouts(evidence: Evidence, numbers: Numbers, folder: Path) -> Figure | None:
    """What each knock-out costs: retrieval accuracy beyond the window, and perplexity after the first segment."""
    found = {n.name: n for section in numbers.values() for n in section if n.name.startswith("knockout.")}
    rule = evidence.rules.memory_is_used
    panels = [
        ("retrieval", "Retrieval beyond the local window", "accuracy lost (points)", rule.margin),
        ("perplexity", "Perplexity after the first segment", "perplexity added (%)",
         rule.perplexity_margin),
    ]  # fmt: skip
    panels = [panel for panel in panels if any(name.startswith(f"knockout.{panel[0]}.") for name in found)]
    if not panels:
        return None
    figure, axes = canvas(len(panels), height=2.7, sharey=True)
    styles, arms = arm_styles(evidence), evidence.memory_arms
    labels = ("gate closed (g = 0)", "memory reset each segment", "another document's memory", "read set to zero")
    for axis, (kind, title, unit, margin) in zip(axes, panels, strict=True):
        axis.axvspan(-100 * margin, 100 * margin, color=MUTED, alpha=0.13, lw=0)
        axis.axvline(0, color=INK, lw=0.9)
        for i, arm in enumerate(arms):
            shift = 0.16 * (i - (len(arms) - 1) / 2)
            for place, knockout in enumerate(KNOCKOUTS):
                number = found.get(f"knockout.{kind}.{arm}.{knockout}")
                if number is None:
                    continue
                y, style = place + shift, styles[arm]
                ends = [100 * (number.low or 0), 100 * (number.high or 0)]
                axis.plot(ends, [y, y], color=style.colour, lw=1.6, solid_capstyle="butt")
                axis.plot(100 * number.estimate, y, color=style.colour, marker=style.marker, ms=5.5, ls="none",
                          label=arm if place == 0 else None)  # fmt: skip
        axis.set_yticks(range(len(KNOCKOUTS)), labels)
        axis.set(title=title, xlabel=unit)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    axes[0].invert_yaxis()
    legend_below(figure, axes[0])
    caption = (
        "Same prompts and documents with and without the memory; bars: hierarchical intervals; grey: margins of C1."
    )
    return finish(
        figure, folder, name="knockouts", title="Memory knocked out", caption=caption,
        sources=[s for n in found.values() for s in n.sources],
    )  # fmt: skip


def capacity(evidence: Evidence, numbers: Numbers, folder: Path) -> Figure | None:
    """Recall over the number of stored associations, one panel per rule, rank bounds and published points; the last
    panel is overwriting."""
    table = evidence.table("capacity", "capacity.parquet")
    if not len(table):
        return None
    overwrite = evidence.table("capacity", "overwrite.parquet")
    reference = evidence.table("capacity", "reference.parquet")
    rules = list(dict.fromkeys(table["rule"]))
    panels = len(rules) + bool(len(overwrite))
    columns = 2 if panels in {2, 4} else min(3, panels)
    figure, axes = canvas(columns, -(-panels // columns), height=2.5)
    for axis in axes[panels:]:
        axis.set_visible(False)
    for axis, rule in zip(axes, rules, strict=False):
        _recall(
            axis, table[table["rule"] == rule], reference[reference["rule"] == rule] if len(reference) else reference
        )
        axis.set_title(f"Recall, {rule} rule")
    legend_below(figure, axes[0], columns=6)
    if len(overwrite):
        _overwrite(axes[len(rules)], overwrite)
    caption = (
        "Random associations written into the real memory module, no model around it: share of keys whose nearest "
        "value is the right one, mean and range over seeds. Ticks on top: rank bound (feature dimension) of each map. "
        "Triangles at the foot: published points with learned keys (Schlag et al., 2021), up where it still holds, "
        "down where it fails. Last panel: the same keys written again with new values."
    )
    names = ("capacity.parquet", "reference.parquet", "overwrite.parquet")
    return finish(
        figure, folder, name="capacity", title="Capacity of the mechanism alone", caption=caption,
        sources=[evidence.source("capacity", name) for name in names],
    )  # fmt: skip


def _recall(axis: Axes, table: pd.DataFrame, reference: pd.DataFrame) -> None:
    maps = list(dict.fromkeys(table["feature_map"]))
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(maps)}
    for i, (name, rows) in enumerate(table.groupby("feature_map", sort=False)):
        curve = rows.groupby("associations")["accuracy"].agg(["mean", "min", "max"])
        axis.plot(curve.index, curve["mean"], color=colours[name], label=name)
        axis.fill_between(curve.index, curve["min"], curve["max"], color=colours[name], alpha=0.12, lw=0)
        dim, wide = rows["feature_dim"].iloc[0], 5.5 - 0.8 * i  # maps of equal dimension stay visible behind each other
        axis.plot([dim, dim], [1.02, 1.08], color=colours[name], lw=wide, clip_on=False, solid_capstyle="butt")
    for row in reference.itertuples(index=False):
        for place, marker in ((float(row.holds), "^"), (float("nan" if row.fails is None else row.fails), "v")):
            if not np.isnan(place):  # the paper names no such number
                axis.plot(place, 0.05, marker=marker, color=colours.get(row.feature_map, MUTED), ms=5.5, ls="none")
    _associations(axis, table)
    axis.set(ylabel="share recalled", ylim=(0, 1.08))


def _associations(axis: Axes, table: pd.DataFrame) -> None:
    """A log2 axis with whole powers as ticks."""
    axis.set_xscale("log", base=2)
    least, most = (int(np.log2(table["associations"].agg(end))) for end in ("min", "max"))
    ticks = [2**i for i in range(least, most + 1)]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("associations stored")


def _overwrite(axis: Axes, overwrite: pd.DataFrame) -> None:
    for i, (rule, rows) in enumerate(overwrite.groupby("rule", sort=False)):
        means = rows.groupby("associations")[["new_value_accuracy", "old_value_accuracy"]].mean()
        look: dict[str, Any] = {"color": PALETTE[(i + 5) % len(PALETTE)], "marker": MARKERS[i], "ms": 3.5}
        axis.plot(means.index, means["new_value_accuracy"], label=f"{rule}: new", **look)
        axis.plot(means.index, means["old_value_accuracy"], mfc="none", ls=(0, (1, 1.5)), label=f"{rule}: old", **look)
    _associations(axis, overwrite)
    axis.set(title="Same key, new value", ylabel="share read back", ylim=(-0.03, 1.08))
    axis.legend(fontsize=6.5, loc="upper right", ncols=1)
