"""Inside a trained memory: gates over training, recall of item i after j segments, the spectrum along a book, and the
memory carried through a book against emptied at every window."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Number
from stages.verdict.report.figures.style import (
    INK,
    MUTED,
    Drawing,
    Numbers,
    arm_styles,
    power_axis,
    row,
    styles,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SHARES = (0.5, 0.9)  # of the sum of singular values, that so many of them make up


def gates_over_training(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """g of every layer and head at every reading, seeds in the same colour."""
    table = evidence.gates_over_training
    arms = [arm for arm in evidence.arms if len(table) and (table["arm"] == arm).any()]
    if not arms:
        return None

    def of(arm: str) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            rows = table[table["arm"] == arm]
            looks = styles([f"layer {layer}" for layer in sorted(rows["layer"].unique())])
            named: set[int] = set()
            for (layer, _, _), run in rows.groupby(["layer", "head", "seed"]):
                look = looks[f"layer {layer}"]
                label = None if layer in named else f"layer {layer}"
                axis.plot(run["step"], run["gate"], color=look.colour, ls=look.dash, lw=0.9, label=label)
                named.add(layer)
            axis.axhline(0.5, color=INK, lw=0.8, ls=":")
            axis.set(title=arm, ylabel="g: 0 local, 1 memory", xlabel="step", ylim=(-0.04, 1.04))

        return panel

    return Drawing(
        "gates-training",
        "Gates by layer and head over training",
        "g = sigmoid(β), one line per layer, head and seed, from before the first step to the end; colours tell layers "
        "apart.",
        [of(arm) for arm in arms],
        table.to_dict("records"),
        evidence.sources("pretrain", "gates.parquet", "", *arms),
        height=2.6,
    )


def recall(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Share found of item i after j segments, a panel per arm and number of items."""
    found: dict[tuple[str, int], list[Number]] = {}
    for number in numbers.values():
        if number.text("kind") == "recall":
            found.setdefault((number.text("arm"), number.integer("items")), []).append(number)
    if not found:
        return None

    def of(arm: str, items: int) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            own = found[arm, items]
            looks = styles([f"item {n.integer('asked') + 1}" for n in own if n.integer("asked") < items])
            for asked in sorted({n.integer("asked") for n in own}):
                line = sorted((n for n in own if n.integer("asked") == asked), key=lambda n: n.integer("segments"))
                look = looks[f"item {asked + 1}"]
                axis.plot(
                    [n.integer("segments") for n in line],
                    [100 * n.estimate for n in line],
                    color=look.colour,
                    ls=look.dash,
                    marker=look.marker,
                    label=f"item {asked + 1}",
                )
            power_axis(axis, {n.integer("segments") for n in own})
            title = f"{arm}: {'one item' if items == 1 else f'one of {items} items'}"
            axis.set(title=title, ylabel="found (%)", xlabel="segments since", ylim=(-4, 104))

        return panel

    return Drawing(
        "recall",
        "Recall of item i after j segments",
        "Items written one after the other into the first segment, one of them asked so many segments later; mean over "
        "seeds and prompts.",
        [of(*key) for key in found],
        [row(n, arm=n.text("arm")) for numbers_of in found.values() for n in numbers_of],
        [s for numbers_of in found.values() for n in numbers_of for s in n.sources],
    )


def spectrum(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """How many singular values make up the memory, and how z grows, along whole documents: medians."""
    table = evidence.spectrum
    if not len(table):
        return None
    table = table.assign(**{f"of_{share:g}": [_count(v, share) for v in table["singular_values"]] for share in SHARES})
    arms = [arm for arm in evidence.memory_arms if (table["arm"] == arm).any()]
    shown = arm_styles(evidence)
    values = [f"of_{share:g}" for share in SHARES]
    middle = table.groupby(["arm", "tokens"])[[*values, "z_norm"]].median().reset_index()

    def of(name: str, title: str, unit: str) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            for arm in arms:
                run, look = middle[middle["arm"] == arm], shown[arm]
                axis.plot(run["tokens"], run[name], color=look.colour, ls=look.dash, marker=look.marker, label=arm)
            power_axis(axis, middle["tokens"])
            axis.set(title=title, ylabel=unit, xlabel="tokens read")
            if name == "z_norm":
                axis.set_yscale("log")

        return panel

    panels = [of(f"of_{share:g}", f"{share:.0%} of the spectrum", "singular values") for share in SHARES]
    return Drawing(
        "spectrum",
        "The spectrum of the memory along a document",
        "How many singular values of M, the largest first, make up that share of their sum; and |z|, which a steady "
        "text makes grow in proportion to the tokens. Medians over documents, layers, heads and seeds.",
        [*panels, of("z_norm", "Growth of z", "|z|")],
        middle.to_dict("records"),
        evidence.sources("ablate", "spectrum.parquet"),
        height=2.6,
    )


def _count(values: pd.Series, share: float) -> int:
    """How many of the values (descending) make up ``share`` of their sum; 0 of an empty memory."""
    total, left = float(sum(values)), share
    if not total:
        return 0
    for count, value in enumerate(values, 1):
        left -= value / total
        if left <= 1e-9:
            return count
    return len(values)


def windows(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """What an emptied memory costs by position, with its interval."""
    lines: dict[str, list[Number]] = {}
    for number in numbers.values():
        if number.text("kind") == "window":
            lines.setdefault(number.text("arm"), []).append(number)
    if not lines:
        return None
    shown = arm_styles(evidence)

    def panel(axis: Axes) -> None:
        for arm, own in lines.items():
            look = shown[arm]
            x = [n.integer("end") for n in own]
            low, high = (
                [100 * (n.estimate if e is None else e) for n in own for e in (getattr(n, end),)]
                for end in ("low", "high")
            )
            axis.plot(
                x, [100 * n.estimate for n in own], color=look.colour, ls=look.dash, marker=look.marker, label=arm
            )
            axis.fill_between(x, low, high, color=look.colour, alpha=0.1, lw=0)
        axis.axhline(0, color=MUTED, lw=0.9)
        power_axis(axis, {n.integer("end") for own in lines.values() for n in own})
        axis.set(title="Memory emptied at every window", ylabel="perplexity added (%)", xlabel="position (tokens)")

    return Drawing(
        "windows",
        "A memory carried through a document, and one emptied at every window",
        "The same tokens of held-out documents; above zero the carried memory is better. Bands: intervals over seeds "
        "and documents.",
        [panel],
        [row(n, arm=arm) for arm, own in lines.items() for n in own],
        [s for own in lines.values() for n in own for s in n.sources],
        columns=1,
    )
