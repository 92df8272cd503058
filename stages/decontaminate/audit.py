"""What people read of an audit: the tables completed, the figures, and the pages with both texts side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

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


def publish(folder: Path, index: Index, rule: DecontaminateConfig) -> Published:
    """Complete an audit from the tables of ``tables.write`` and the totals in ``audit.json`` in ``folder``.

    Adds to the totals: schema_version, classes, near_misses, digests of index and config. Same tables, same bytes.
    """
    path = folder / "audit.json"
    totals = json.loads(path.read_text())
    totals |= {"schema_version": SCHEMA_VERSION, **derive(folder, index, rule)}
    path.write_text(json.dumps(totals, indent=1, sort_keys=True) + "\n")
    drawings = draw(folder, rule)
    pages = write_pages(folder, drawings)
    return Published(dict(TABLES), [*pages, *(f"figures/{name}.png" for name in drawings)])
