"""What people read of an audit: the tables completed, the figures, and the pages with both texts side by side."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from stages.decontaminate.balance import balance, documents_digest
from stages.decontaminate.derive import derive
from stages.decontaminate.figures import draw
from stages.decontaminate.index import Index
from stages.decontaminate.page import write_pages
from stages.decontaminate.stage import DecontaminateConfig
from stages.decontaminate.tables import TABLES

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Published:
    """What a tracking server shows: title -> Parquet file, and pages and pictures, below the folder."""

    tables: dict[str, str]
    figures: list[str]


def publish(folder: Path, index: Index, rule: DecontaminateConfig, source: Path | None = None) -> Published:
    """Complete an audit from the tables of ``tables.write`` and the totals in ``audit.json`` in ``folder``.

    ``source``: the documents that went in, where ``folder`` holds those that came out: then in = kept + cut + dropped
    is checked on the files (Imbalance is raised where it does not hold) and both get their digests. Same tables, same
    bytes.
    """
    path = folder / "audit.json"
    totals = json.loads(path.read_text())
    totals |= {"schema_version": SCHEMA_VERSION, **derive(folder, index, rule)}
    digests = {"index": index.digest, "config": hashlib.sha256(rule.model_dump_json().encode()).hexdigest()}
    if source is not None:
        totals["balance"] = balance(source, folder / "documents", folder / "decisions.parquet")
        digests |= {"input": documents_digest(source), "output": documents_digest(folder / "documents")}
    totals["digests"] = {**totals.get("digests", {}), **digests}
    path.write_text(json.dumps(totals, indent=1, sort_keys=True) + "\n")
    drawings = draw(folder, rule)
    pages = write_pages(folder, drawings)
    return Published(dict(TABLES), [*pages, *(f"figures/{name}.png" for name in drawings)])
