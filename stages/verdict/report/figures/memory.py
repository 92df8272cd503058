"""Gates, knock-outs as a whole and head by head, and what becomes of the memory along a document."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.memory import KNOCKOUTS
from stages.verdict.report.figures.style import (
    INK,
    MUTED,
    Drawing,
    Numbers,
    Style,
    arm_styles,
    aside,
    power_axis,
    row,
    seeds,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LABELS = {
    "gate_closed": "gate closed",
    "reset": "reset each\nsegment",
    "swap": "another's\nmemory",
    "zero_read": "read zero",
}


def gates(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """g = sigmoid(beta) of every head, one panel per arm, every seed."""
    table = evidence.gates
    arms = [arm for arm in evidence.memory_arms if len(table) and (table["arm"] == arm).any()]
    if not arms:
        return None
    shown = arm_styles(evidence)

    def of(arm: str) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            rows = table[table["arm"] == arm]
            _by_head(axis, rows, rows.groupby(["layer", "head"])["gate"].mean(), "gate", shown[arm])
            axis.axhline(0.5, color=INK, lw=0.8, ls=":")
            axis.set(title=arm, ylabel="g: 0 local, 1 memory", ylim=(-0.04, 1.04))

        return panel

    return Drawing(
        "gates",
        "Gates by layer and head",
        "g = sigmoid(β) of every head at the end of training: 0 reads local attention only, 1 the memory only. "
        "Filled: mean over seeds, open: every seed. Layers are told apart by the vertical lines, heads by their order.",
        [of(arm) for arm in arms],
        table.to_dict("records"),
        evidence.sources("ablate", "gates.parquet"),
        legend=False,
        height=2.6,
    )


def _by_head(axis: Axes, rows: pd.DataFrame, mean: pd.Series, value: str, look: Style) -> None:
    """One place per head on the x axis, layers apart."""
    heads = sorted({(int(layer), int(head)) for layer, head in zip(rows["layer"], rows["head"], strict=True)})
    place = {key: i for i, key in enumerate(heads)}
    x = [place[int(layer), int(head)] for layer, head in zip(rows["layer"], rows["head"], strict=True)]
    axis.plot(
        [place[int(layer), int(head)] for layer, head in mean.index],
        mean,
        ls="none",
        marker=look.marker,
        color=look.colour,
        ms=5,
        zorder=3,
    )
    seeds(axis, [i + 0.18 for i in x], rows[value], look)
    first = [i for i, (layer, _) in enumerate(heads) if i == 0 or heads[i - 1][0] != layer]
    for i in first[1:]:
        axis.axvline(i - 0.5, color=MUTED, lw=0.7)
    step = max(1, -(-len(first) // 8))
    ends = [*first[1:], len(heads)]
    centres = [(a + b - 1) / 2 for a, b in zip(first, ends, strict=True)]
    axis.set_xticks(centres[::step], [str(heads[i][0]) for i in first][::step])
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="x", visible=False)
    axis.set_xlabel("layer (its heads in order)")


def heads(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Accuracy that one head's memory is worth: the others intact, this one knocked out."""
    table = evidence.stacked("ablate", "heads.parquet")
    if not len(table):
        return None
    table = table.assign(lost=100 * (table["intact"].astype(float) - table["correct"].astype(float)))
    each = table.groupby(["arm", "seed", "knockout", "layer", "head"], as_index=False)["lost"].mean()
    arms = [arm for arm in evidence.memory_arms if (each["arm"] == arm).any()]
    kinds = list(dict.fromkeys(each["knockout"]))
    shown = arm_styles(evidence)

    def of(arm: str, knockout: str) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            rows = each[(each["arm"] == arm) & (each["knockout"] == knockout)]
            _by_head(axis, rows, rows.groupby(["layer", "head"])["lost"].mean(), "lost", shown[arm])
            axis.axhline(0, color=INK, lw=0.9)
            axis.set(
                title=f"{arm}: {LABELS.get(knockout, knockout)}".replace("\n", " "), ylabel="accuracy lost (points)"
            )

        return panel

    return Drawing(
        "heads",
        "What each head's memory is worth",
        "Retrieval accuracy lost on the same prompts when one head's memory alone is knocked out, all others intact. "
        "Filled: mean over seeds, open: every seed.",
        [of(arm, kind) for kind in kinds for arm in arms if ((each["arm"] == arm) & (each["knockout"] == kind)).any()],
        each.to_dict("records"),
        evidence.sources("ablate", "heads.parquet"),
        legend=False,
        height=2.6,
    )


SATURATION = {
    "memory_norm": ("Norm of the memory", "|M|"),
    "z_min": ("Least normaliser", "min σ(Q) z"),
    "erase_lambda_max": ("Largest erase eigenvalue", "λ max"),
    "effective_rank": ("Effective rank of the memory", "rank"),
}


def saturation(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Memory health along held-out documents far beyond the trained length: median over documents and heads."""
    table = evidence.stacked("ablate", "saturation.parquet")
    present = [name for name in SATURATION if name in table and table[name].notna().any()]
    if not present:
        return None
    shown = arm_styles(evidence)
    arms = [arm for arm in evidence.memory_arms if (table["arm"] == arm).any()]
    by = table.groupby(["arm", "seed", "tokens"])[present]
    middle = by.median().reset_index()
    spread = table.groupby(["arm", "tokens"])[present].quantile([0.05, 0.95]).unstack()
    trained = int(evidence.document("tokenize", "meta.json").get("sequence_length", 0))

    def of(name: str) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            for arm in arms:
                look = shown[arm]
                for place, (_, all_of_it) in enumerate(middle[middle["arm"] == arm].groupby("seed")):
                    run = all_of_it[all_of_it[name].notna()]
                    axis.plot(
                        run["tokens"],
                        run[name],
                        color=look.colour,
                        ls=look.dash,
                        lw=1.1,
                        marker=look.marker,
                        ms=3.6,
                        mfc="none",
                        markevery=max(1, len(run) // 6),
                        label=arm if place == 0 and len(run) else None,
                    )
                band = spread.loc[arm][name].dropna()
                axis.fill_between(band.index, band[0.05], band[0.95], color=look.colour, alpha=0.1, lw=0)
            if trained:
                axis.axvline(trained, color=INK, lw=0.9, ls=":")
            if name == "erase_lambda_max":
                axis.axhline(evidence.rules.saturation.erase_lambda_max, color=INK, lw=0.8, ls=(0, (5, 2)))
            power_axis(axis, table["tokens"])
            axis.set(title=SATURATION[name][0], ylabel=SATURATION[name][1], xlabel="tokens read")

        return panel

    return Drawing(
        "saturation",
        "The memory along a document",
        "Held-out documents read far beyond the length trained on (dotted). Lines: one per arm and seed, the "
        "median over "
        "documents, layers and heads; bands: the middle 90% of them. Dashed: the eigenvalue above which erasing "
        "overshoots.",
        [of(name) for name in present],
        middle.to_dict("records"),
        evidence.sources("ablate", "saturation.parquet"),
        height=2.6,
    )


def knockouts(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """What each knock-out costs: retrieval accuracy beyond the window, and perplexity after the first segment."""
    found = {
        (n.text("measure"), n.text("arm"), n.text("knockout")): n
        for n in numbers.values()
        if n.text("kind") == "knockout"
    }
    rule = evidence.rules.memory_is_used
    panels = [
        ("retrieval", "Retrieval beyond the window", "accuracy lost (points)", rule.margin),
        ("perplexity", "Perplexity after one segment", "perplexity added (%)", rule.perplexity_margin),
    ]
    panels = [panel for panel in panels if any(measure == panel[0] for measure, _, _ in found)]
    if not panels:
        return None
    shown, arms = arm_styles(evidence), evidence.memory_arms
    data: list[dict[str, Any]] = []

    def of(kind: str, title: str, unit: str, margin: float) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            axis.axvspan(-100 * margin, 100 * margin, color=MUTED, alpha=0.13, lw=0)
            axis.axvline(0, color=INK, lw=0.9)
            for i, arm in enumerate(arms):
                for place, knockout in enumerate(KNOCKOUTS):
                    number = found.get((kind, arm, knockout))
                    if number is None:
                        continue
                    y, look = place + aside(i, len(arms), 0.2), shown[arm]
                    ends = [100 * (number.estimate if end is None else end) for end in (number.low, number.high)]
                    axis.plot(ends, [y, y], color=look.colour, lw=1.6, solid_capstyle="butt")
                    axis.plot(
                        100 * number.estimate,
                        y,
                        color=look.colour,
                        marker=look.marker,
                        ms=5.5,
                        ls="none",
                        label=arm if place == 0 else None,
                    )
            axis.set_yticks(range(len(KNOCKOUTS)), [LABELS.get(name, name) for name in KNOCKOUTS])
            axis.set(title=title, xlabel=unit)
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
            axis.invert_yaxis()

        return panel

    for (kind, arm, knockout), number in found.items():
        data.append(row(number, panel=kind, arm=arm, knockout=knockout))
    return Drawing(
        "knockouts",
        "Memory knocked out",
        "Same prompts and documents with and without the memory; bars: intervals over seeds and items; grey: "
        "margins of C1.",
        [of(*panel) for panel in panels],
        data,
        [s for n in found.values() for s in n.sources],
        height=2.7,
    )
