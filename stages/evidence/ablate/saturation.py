"""What becomes of the memory along held-out documents that are longer than anything trained on (claim C7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import torch

from model.decoder import Decoder
from model.trace import memory_along
from stages.evidence.ablate.config import SaturationConfig
from stages.evidence.evaluate.forward import PASS_TOKENS
from stages.evidence.evaluate.perplexity import ScoredDocument

SATURATION = pa.schema(
    [
        ("doc_id", pa.string()),
        ("segment", pa.int64()),
        ("tokens", pa.int64()),
        ("layer", pa.int64()),
        ("head", pa.int64()),
        ("memory_norm", pa.float64()),
        ("z_min", pa.float64()),
        ("erase_lambda_max", pa.float64()),
        ("effective_rank", pa.float64()),
    ]
)


SPECTRUM = pa.schema(
    [
        *(SATURATION.field(name) for name in ("doc_id", "segment", "tokens", "layer", "head")),
        ("z_norm", pa.float64()),
        ("singular_values", pa.list_(pa.float64())),
    ]
)


def longest(documents: Sequence[ScoredDocument], config: SaturationConfig, segment: int) -> list[ScoredDocument]:
    """The longest ``documents`` of two segments at least, cut to whole segments within ``max_tokens``."""
    size = {id(d): len(d.tokens[: config.max_tokens]) // segment * segment for d in documents}
    fit = [d for d in documents if size[id(d)] >= 2 * segment]
    fit.sort(key=lambda d: (-size[id(d)], d.doc_id))
    return [ScoredDocument(d.doc_id, d.split, d.tokens[: size[id(d)]]) for d in fit[: config.documents]]


def picked(segments: int, points: int) -> list[int]:
    """At most ``points`` of 0 .. segments - 1, the first and the last among them: dense at first, then a constant ratio
    apart, since what grows with the number of segments grows visibly in its logarithm."""
    if segments <= points:
        return list(range(segments))
    ratio = segments ** (1 / (points - 1))
    return sorted({min(segments, max(1, round(ratio**i))) - 1 for i in range(points)} | {segments - 1})


def score(
    decoder: Decoder, documents: Sequence[ScoredDocument], config: SaturationConfig, progress: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Rows of saturation.parquet, and of spectrum.parquet where the config asks for it (see ``spectra``). The first
    segment has no z_min and erase_lambda_max (null): nothing is read there. ``progress`` is called with the tokens of
    each chunk."""
    device = next(decoder.parameters()).device
    segment = decoder.config.mixer.segment_length
    rows: list[dict[str, Any]] = []
    for document in documents:
        tokens = torch.from_numpy(document.tokens.astype("int64")).to(device)
        segments = picked(len(tokens) // segment, config.points)
        chunk = max(1, PASS_TOKENS[device.type] // segment)
        for row in memory_along(decoder, tokens, segments, chunk, progress, spectrum=config.spectrum):
            known = {n: None if isinstance(value, float) and math.isnan(value) else value for n, value in row.items()}
            rows.append({"doc_id": document.doc_id} | known)
    return rows


def spectra(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of ``score`` as those of spectrum.parquet."""
    return [{**{n: row[n] for n in SPECTRUM.names[:-1]}, "singular_values": row["spectrum"]} for row in rows]


def numbers(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The worst of the run: largest norm and erase operator, smallest divisor, and the effective rank at the end."""
    if not rows:
        return {}
    last = {(r["doc_id"], r["layer"], r["head"]): r for r in rows}.values()
    found = {
        "saturation.tokens": float(max(r["tokens"] for r in rows)),
        "saturation.memory_norm_max": max(r["memory_norm"] for r in rows),
        "saturation.effective_rank_end": sum(r["effective_rank"] for r in last) / len(last),
    }
    for name, worst in (("z_min", min), ("erase_lambda_max", max)):
        values = [r[name] for r in rows if r[name] is not None]
        if values:
            found[f"saturation.{name}"] = worst(values)
    return found
