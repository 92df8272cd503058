"""What people read of an audit: the tables, the figures, and the pages with both texts side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.audit.figures import draw
from stages.data.audit.findings import Audit, ShardState
from stages.data.audit.page import write_pages
from stages.data.audit.tables import TABLES, write
from stages.data.decontaminate.balance import Balanced
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.matching.index import Index
from stages.data.matching.shards import ShardScan

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Published:
    """What a tracking server shows: title -> Parquet file, and pages and pictures, below the folder."""

    tables: dict[str, str]
    figures: list[str]


def publish(audit: Audit, folder: Path, check: Callable[[Path], Balanced] | None = None) -> Published:
    """Write tables, figures and pages, and complete the totals that ``folder``/audit.json begins.

    ``check``: compares the documents that went in with those that came out and with the decisions in the file it is
    given, where something came out (raises Imbalance). Same tables, same bytes.
    """
    path = folder / "audit.json"
    totals = json.loads(path.read_text())
    totals |= {"schema_version": SCHEMA_VERSION, **write(audit, folder)}
    config = hashlib.sha256(audit.rule.model_dump_json().encode()).hexdigest()
    digests = {"index": audit.index.digest, "config": config}
    if check is not None:
        found = check(folder / "decisions.parquet")
        totals["balance"] = found.fates
        digests |= {"input": found.input, "output": found.output}
    totals["digests"] = {**totals.get("digests", {}), **digests}
    path.write_text(json.dumps(totals, indent=1, sort_keys=True) + "\n")
    drawings = draw(folder, audit.rule)
    pages = write_pages(folder, drawings)
    return Published(dict(TABLES), [*pages, *(f"figures/{name}.png" for name in drawings)])


def observe(index: Index, books: list[dict[str, Any]], rule: DecontaminateConfig, scans: Sequence[ShardScan]) -> Audit:
    """The findings of a scan after which nothing is cleaned; exact copies among the documents are left alone."""
    states = [ShardState(scan, np.array(scan.table()["bytes"].to_numpy(), np.int64)) for scan in scans]
    audit = Audit(index, books, rule, states)
    audit.judge()
    audit.after = None
    return audit


def totals_of(audit: Audit, more: Mapping[str, float]) -> dict[str, Any]:
    """What ``publish`` needs in audit.json of an audit made by ``observe``; ``more`` metrics."""
    counts = audit.counts()
    metrics = {f"documents_{name}": float(counts[name]) for name in ("keep", "note", "cut", "drop")}
    metrics |= {name: float(counts[name]) for name in ("documents_in", "bytes_in")}
    metrics |= {
        "evaluation_documents": float(len(audit.books)),
        "evaluation_documents_hidden": float(len(audit.hidden)),
        "coverage_max": max(audit.before.values(), default=0.0),
        "quotations_acted": float(audit.quotations.acted),
    }
    ids = audit.index.book_ids
    return {
        "metrics": {**metrics, **more},
        "parameters": audit.rule.model_dump(mode="json"),
        "quotations": vars(audit.quotations),
        "cannot_be_found": audit.cannot_be_found(),
        "evaluation_documents_shared": [
            {"a": ids[a], "b": ids[b], "split_a": "", "split_b": "", "share_of_smaller": round(share, 6)}
            for a, b, share in audit.index.shared
        ],
    }
