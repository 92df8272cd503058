"""Perplexity of held-out documents, by document and by position, in one pass per document."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.decoder import Decoder
from stages.display.numbers import LARGEST
from stages.evidence.evaluate.config import PerplexityConfig
from stages.evidence.evaluate.forward import PASS_TOKENS, Progress, batches, document_nll

if TYPE_CHECKING:
    from stages.data.tokens.load import StudyTokenizer


@dataclass(frozen=True)
class ScoredDocument:
    """A document as it is scored: cut, without its end-of-text mark. The first token is context, the rest is scored."""

    doc_id: str
    split: str
    tokens: NDArray[np.int32]


def choose(
    documents: Iterator[tuple[str, NDArray[np.int32]]], split: str, config: PerplexityConfig, eos_id: int
) -> tuple[list[ScoredDocument], int]:
    """The documents of a split to score, sorted by id, and the number left out as too short.

    With ``max_documents``, or ``max_documents_per_source``, those with the smallest sha256 of the id: a stable sample
    that a new document hardly changes.
    """
    chosen, short = [], 0
    for doc_id, tokens in documents:
        text = tokens[tokens != eos_id][: config.max_tokens_per_document]
        if len(text) < config.min_tokens_per_document:
            short += 1
        else:
            chosen.append(ScoredDocument(doc_id, split, text))
    chosen.sort(key=lambda d: hashlib.sha256(d.doc_id.encode()).digest())
    if (most := config.max_documents_per_source) is not None:
        several: dict[str, list[ScoredDocument]] = {}
        for document in chosen:
            several.setdefault(source_of(document.doc_id), []).append(document)
        kept = {document.doc_id for some in several.values() for document in some[:most]}
        chosen = [document for document in chosen if document.doc_id in kept]
    return sorted(chosen[: config.max_documents], key=lambda d: d.doc_id), short


def score(
    decoder: Decoder,
    tokenizer: StudyTokenizer,
    documents: list[ScoredDocument],
    config: PerplexityConfig,
    progress: Progress,
    *,
    knockout: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of perplexity.parquet, sorted by document and bucket."""
    edges = edges_of(documents, config)
    rows: list[dict[str, Any]] = []
    for batch in batches_of(documents, next(decoder.parameters()).device.type, pairs=knockout == "swap"):
        rows += score_batch(decoder, tokenizer, [documents[i] for i in batch], edges, progress, knockout=knockout)
    return in_order(rows)


def edges_of(documents: Sequence[ScoredDocument], config: PerplexityConfig) -> list[int]:
    """Borders of the position buckets, [0, ..., longest]."""
    return config.edges(max((len(d.tokens) for d in documents), default=2))


def batches_of(documents: Sequence[ScoredDocument], device: str, *, pairs: bool = False) -> list[list[int]]:
    """Which documents are read together."""
    return batches([len(d.tokens) for d in documents], PASS_TOKENS[device], pairs=pairs)


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorted by document and bucket."""
    return sorted(rows, key=lambda r: (r["split"], r["doc_id"], r["bucket_start"]))


def score_batch(
    decoder: Decoder,
    tokenizer: StudyTokenizer,
    documents: Sequence[ScoredDocument],
    edges: Sequence[int],
    progress: Progress,
    *,
    knockout: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of documents that are read together.

    ``words`` and ``bytes`` are those of the scored text (all but the first token), the same on each row of a document,
    so that word perplexity and bits per byte divide what was scored by what was scored.
    """
    device = next(decoder.parameters()).device
    rows: list[dict[str, Any]] = []
    lengths = [len(document.tokens) for document in documents]
    tokens = torch.zeros(len(documents), max(lengths), dtype=torch.long)  # pads stand behind the text: never read
    for row, document in enumerate(documents):
        tokens[row, : lengths[row]] = torch.from_numpy(document.tokens.astype(np.int64))
    # of what is read the pads do not count, nor does a document's last token fail to
    share = sum(lengths) / (len(lengths) * (max(lengths) - 1))
    told = 0.0

    def tell(read: int) -> None:
        nonlocal told
        before, told = round(told), told + read * share
        progress(round(told) - before)

    nll = document_nll(decoder, tokens.to(device), knockout, progress=tell).double().cpu().numpy()
    for row, document in enumerate(documents):
        text = tokenizer.decode(document.tokens[1:].tolist())
        # column t - 1 of nll belongs to the token at position t
        for start, end in pairwise(edges):
            first, last = max(start, 1), min(end, lengths[row])
            if last > first:
                rows.append(
                    {
                        "doc_id": document.doc_id,
                        "split": document.split,
                        "bucket_start": start,
                        "bucket_end": end,
                        "nll_sum": float(nll[row, first - 1 : last - 1].sum()),
                        "tokens": last - first,
                        "words": len(text.split()),
                        "bytes": len(text.encode()),
                    }
                )
    return rows


def source_of(doc_id: str) -> str:
    """The source of the corpus that a document is from."""
    return doc_id.partition("/")[0]


def totals_by_source(rows: list[dict[str, Any]]) -> dict[str, float]:
    """``totals`` of each source by itself, as ``source.SOURCE.perplexity`` and so on; {} where there is but one."""
    sources = sorted({source_of(row["doc_id"]) for row in rows})
    return {
        f"source.{source}.{name}": value
        for source in (sources if len(sources) > 1 else ())
        for name, value in totals([row for row in rows if source_of(row["doc_id"]) == source]).items()
    }


def totals(rows: list[dict[str, Any]]) -> dict[str, float]:
    """perplexity, bits_per_byte, word_perplexity and documents of some rows; {} for none."""
    if not rows:
        return {}
    nats, tokens = sum(r["nll_sum"] for r in rows), sum(r["tokens"] for r in rows)
    size = {(r["split"], r["doc_id"]): (r["words"], r["bytes"]) for r in rows}
    words, octets = (sum(column) for column in zip(*size.values(), strict=True))
    return {
        "perplexity": float(np.exp(min(nats / tokens, LARGEST))),
        "word_perplexity": float(np.exp(min(nats / max(words, 1), LARGEST))),
        "bits_per_byte": float(nats / np.log(2) / max(octets, 1)),
        "documents": float(len(size)),
        "tokens": float(tokens),
    }
