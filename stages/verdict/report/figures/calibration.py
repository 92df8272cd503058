"""What the instrument measures where the answer is known: published capacities and recall tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.verdict.claims.evidence import Evidence
from stages.verdict.report.calibration import recall_published
from stages.verdict.report.figures.style import INK, Drawing, Numbers, Style, arms_over, power_axis, seeds, styles

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

STEP = "calibrate"


def schlag(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Recall of trained keys over the number of associations, with the points of Schlag et al. (2021)."""
    table = evidence.table(STEP, "schlag.parquet")
    if not len(table):
        return None
    published = evidence.table(STEP, "reference.parquet")
    published = published[published["feature_map"].notna()] if "feature_map" in published else published
    looks = styles(dict.fromkeys(table["feature_map"]))
    data: list[dict[str, Any]] = []

    def panel(axis: Axes) -> None:
        for name, look in looks.items():
            rows = table[table["feature_map"] == name].sort_values("associations")
            dim = int(rows["feature_dim"].iloc[0])
            mean = rows.groupby("associations")["accuracy"].mean()
            axis.plot(mean.index, mean, color=look.colour, marker=look.marker, ls=look.dash, label=f"{name} ({dim})")
            seeds(axis, rows["associations"], rows["accuracy"], look)
        for name, end, marker, y in _points(published, looks):
            axis.plot(end, y, marker=marker, color=looks[name].colour, ms=7, ls="none", clip_on=False)
        power_axis(axis, table["associations"])
        axis.set(
            title="Capacity, trained keys", xlabel="associations stored", ylabel="share recalled", ylim=(-0.03, 1.09)
        )

    data += table.assign(published="").to_dict("records")
    data += [
        {"feature_map": name, "associations": end, "published": "holds" if marker == "^" else "fails"}
        for name, end, marker, _ in _points(published, looks)
    ]
    sources = [evidence.source(STEP, "schlag.parquet")]
    sources += [evidence.source(STEP, "reference.parquet")] if len(published) else []
    return Drawing(
        "calibration-capacity",
        "Calibration: published capacities",
        "Associations written with keys that were trained, by Schlag et al.'s (2021) recipe; in brackets the feature "
        "dimension, which bounds what can be told apart. Lines: means, open: seeds. Triangles: what the paper reports, "
        "up (above) where a map still holds so many, down (below) where it fails.",
        [panel],
        data,
        sources,
        columns=1,
        height=3.1,
    )


def _points(published: pd.DataFrame, looks: dict[str, Style]) -> list[tuple[str, float, str, float]]:
    """(feature map, associations, marker, height) of every published number."""
    found = []
    for record in published.to_dict("records") if len(published) else ():
        for field, marker, y in (("holds", "^", 1.06), ("fails", "v", 0.0)):
            value = record.get(field)
            if record["feature_map"] in looks and value is not None and np.isfinite(value):
                found.append((record["feature_map"], float(value), marker, y))
    return found


def mqar(evidence: Evidence, numbers: Numbers) -> Drawing | None:
    """Multi-query associative recall: accuracy over model width, one panel per number of pairs."""
    table = evidence.table(STEP, "mqar.parquet")
    if not len(table):
        return None
    looks = styles(dict.fromkeys(table["arm"]), grey=[name for name in set(table["arm"]) if name == "local"])

    published = recall_published(evidence)

    def of(pairs: int) -> Callable[[Axes], None]:
        def panel(axis: Axes) -> None:
            arms_over(axis, table[table["pairs"] == pairs], looks, "dim", 0.05)
            for (arm, dim, count), least in published.items():
                if count == pairs and arm in looks:
                    axis.plot(dim, least, marker="_", ms=14, mew=1.6, color=looks[arm].colour, ls="none", zorder=1)
            axis.axhline(1 / pairs, color=INK, lw=0.9, ls=(0, (1, 2)))
            power_axis(axis, table["dim"])
            axis.set(title=f"{pairs} pairs", xlabel="model width", ylabel="share recalled", ylim=(-0.03, 1.06))

        return panel

    every = sorted(table["pairs"].unique())
    return Drawing(
        "calibration-recall",
        "Calibration: multi-query associative recall",
        "The smallest cells of Zoology's MQAR (Arora et al., 2023): full attention is the ceiling, the others "
        "depend on "
        "width and number of pairs. Lines: means, open: seeds; dashes: what the paper reports at least; "
        "dotted: 1/k.",
        [of(int(pairs)) for pairs in every],
        table.to_dict("records"),
        [evidence.source(STEP, "mqar.parquet")],
        columns=min(3, len(every)),
        height=2.7,
    )
