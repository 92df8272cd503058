"""What is in the corpus, per source and split: documents, bytes, tokens, bytes per token, lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.data.tokens.pack import Counts

SOURCES = pa.schema(
    [("source", pa.string()), ("split", pa.string())]
    + [(name, pa.int64()) for name in ("documents", "bytes", "words", "tokens")]
    + [(name, pa.float64()) for name in ("bytes_per_token", "tokens_per_word")]
    + [(name, pa.int64()) for name in ("shortest", "median", "longest", "sequences")]
    + [(name, pa.int64()) for name in ("dropped_documents", "dropped_tail_tokens")]
)
LENGTHS = pa.schema(
    [("source", pa.string()), ("split", pa.string())]
    + [(name, pa.int64()) for name in ("tokens_from", "tokens_to", "documents", "tokens")]
)


@dataclass
class Statistics:
    """Counts of one source in one split. lengths: tokens of each document, in some arrays."""

    counts: Counts = field(default_factory=Counts)
    lengths: list[NDArray[np.int64]] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """A row of ``SOURCES`` without source and split. The median is the lower one."""
        lengths, c = np.concatenate(self.lengths), self.counts
        middle = (len(lengths) - 1) // 2
        return {
            **{name: getattr(c, name) for name in vars(c)},
            "bytes_per_token": c.bytes / max(1, c.tokens),
            "tokens_per_word": c.tokens / max(1, c.words),
            "shortest": int(lengths.min()),
            "median": int(np.partition(lengths, middle)[middle]),
            "longest": int(lengths.max()),
        }

    def histogram(self) -> list[dict[str, int]]:
        """Documents and their tokens by length in powers of two: tokens_from <= length < tokens_to."""
        lengths = np.concatenate(self.lengths)
        bits = np.frexp(lengths.astype(np.float64))[1]  # as int.bit_length: lengths are far below 2^53
        return [
            {
                "tokens_from": 2 ** (b - 1),
                "tokens_to": 2**b,
                "documents": int((bits == b).sum()),
                "tokens": int(lengths[bits == b].sum()),
            }
            for b in np.unique(bits).tolist()
        ]


def write(found: Mapping[tuple[str, str], Statistics], folder: Path) -> None:
    """``sources.parquet``, ``lengths.parquet`` and ``lengths.png``. Keys: (source, split)."""
    rows = [{"source": source, "split": split, **stats.row()} for (source, split), stats in found.items()]
    bins = [
        {"source": source, "split": split, **bin_}
        for (source, split), stats in found.items()
        for bin_ in stats.histogram()
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SOURCES), folder / "sources.parquet")
    pq.write_table(pa.Table.from_pylist(bins, schema=LENGTHS), folder / "lengths.parquet")
    _draw({key: stats.histogram() for key, stats in found.items()}, folder / "lengths.png")


def _draw(histograms: Mapping[tuple[str, str], list[dict[str, int]]], path: Path) -> None:
    """How much of each source's text lies in documents of which length: a colour a source, a panel a split."""
    from matplotlib.figure import Figure

    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f7a00", "#7b4fa3")
    splits = [split for split in ("train", "validation", "test") if any(key[1] == split for key in histograms)]
    sources = list(dict.fromkeys(source for source, _ in histograms))
    tallest = 0.0
    figure = Figure(figsize=(2.9 * len(splits) + 0.8, 2.8), layout="constrained")
    panels = figure.subplots(1, len(splits), sharex=True, sharey=True, squeeze=False)[0]
    for axes, split in zip(panels, splits, strict=True):
        for source in sources:
            bins = histograms.get((source, split))
            if not bins:
                continue
            total = sum(b["tokens"] for b in bins)
            by_start = {b["tokens_from"]: b["tokens"] for b in bins}
            first, last = bins[0]["tokens_from"].bit_length() - 1, bins[-1]["tokens_from"].bit_length() - 1
            heights = [100 * by_start.get(2**i, 0) / total for i in range(first, last + 1)]
            colour = colours[sources.index(source) % len(colours)]
            tallest = max(tallest, *heights)
            axes.stairs(heights, [2**i for i in range(first, last + 2)], color=colour, lw=1.6, label=source)
        axes.set(title=split, xlabel="document length (tokens)")
        axes.set_xscale("log", base=2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("share of the tokens (%)")
    figure.axes[0].set_ylim(0, 1.06 * tallest)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130, metadata={"Software": None})
