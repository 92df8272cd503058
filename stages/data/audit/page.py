"""audit.html and the pages of evidence: self-contained, without scripts, every text escaped.

audit.html holds the summary and the gravest pairs; ``evidence/001.html`` and on hold the spans, grouped by evaluation
document and by training document, a few hundred a page, so that no page grows with the corpus.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.data.audit.classify import CLASSES, NEAR
from stages.data.audit.highlight import highlighted
from stages.data.audit.wording import verdict
from stages.data.decontaminate.decide import SEVERITY
from stages.display.numbers import margin, share

TEMPLATES = Path(__file__).with_name("templates")
TOP_BOOKS, TOP_PAIRS, TOP_SPANS, TOP_NEAR = 200, 30, 3, 100  # shown on audit.html
PAGE_SPANS, PAIR_SPANS, ALL_SPANS = 150, 200, 5000  # on a page of evidence, of one pair, on all pages
ACTIONS = {"keep": "kept", "note": "noted", "cut": "cut", "drop": "dropped"}

PageRow = dict[str, Any]
MOST_HIDDEN = 200  # evaluation documents listed that no scan can find


@dataclass
class _Page:
    """A page of evidence: the books on it, each with its pairs and the numbers of their spans."""

    books: list[PageRow] = field(default_factory=list)
    spans: int = 0


def write_pages(folder: Path, drawings: Mapping[str, str]) -> list[str]:
    """Write the pages from the tables and totals in ``folder``; their names, audit.html first.

    ``drawings``: SVG markup by name (coverage, margins), drawn by this package.
    """
    from markupsafe import Markup

    totals = json.loads((folder / "audit.json").read_text())
    tables = {
        name: pq.read_table(folder / f"{name}.parquet").to_pylist()
        for name in ("books", "pairs", "sources", "uncovered", "canaries")
    }
    pairs: list[PageRow] = sorted(tables["pairs"], key=lambda pair: (-SEVERITY[pair["action"]], -pair["matched_words"]))
    for number, pair in enumerate(pairs):
        pair["number"] = number
    own = _span_rows(folder / "spans.parquet")
    titles = {book["book_id"]: book for book in tables["books"]}
    pages, place = _placed(pairs, own, [book["book_id"] for book in tables["books"]], titles)
    front = {pair["number"]: own[pair["doc_id"], pair["book_id"]][:TOP_SPANS] for pair in pairs[:TOP_PAIRS]}
    wanted = {row for rows in front.values() for row in rows}
    wanted |= {row for page in pages for book in page.books for pair in book["pairs"] for row in pair["rows"]}
    spans = _evidence(folder / "spans.parquet", wanted)
    render = _environment()

    (folder / "evidence").mkdir(exist_ok=True)
    names = ["audit.html"]
    for number, page in enumerate(pages, 1):
        names.append(f"evidence/{page_name(number)}")
        for book in page.books:
            for pair in book["pairs"]:
                pair["shown"] = [spans[row] for row in pair["rows"]]
        text = render(
            "evidence.html",
            title=f"Evidence {number}",
            number=number,
            pages=len(pages),
            books=page.books,
            name=page_name,
        )
        (folder / names[-1]).write_text(text, encoding="utf-8")
    for pair in pairs[:TOP_PAIRS]:
        pair["shown"] = [spans[row] for row in front[pair["number"]]]
        pair["page"] = f"{place[pair['number']]}#p{pair['number']}" if pair["number"] in place else "#evidence"
    first_page: dict[str, str] = {}
    for number, page in enumerate(pages, 1):
        for book in page.books:
            first_page.setdefault(book["id"], f"evidence/{page_name(number)}#b{book['number']}")
    shown = sum(page.spans for page in pages)
    body = render(
        "audit.html",
        title="Contamination audit",
        figures={name: Markup(drawings.get(name, "")) for name in ("coverage", "margins")},
        pairs=pairs[:TOP_PAIRS],
        pairs_total=len(pairs),
        spans_shown=shown,
        spans_total=sum(map(len, own.values())),
        top_spans=TOP_SPANS,
        pages=len(pages),
        near=[pair for pair in pairs if pair["near_miss"]][:TOP_NEAR],
        near_share=NEAR,
        classes=CLASSES,
        **_summary(totals, tables, first_page),
    )
    (folder / "audit.html").write_text(body, encoding="utf-8")
    return names


def page_name(number: int) -> str:
    """File name of a page of evidence, from 1."""
    return f"{number:03d}.html"


def _environment() -> Callable[..., str]:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": share, "limit": lambda value: f"{100 * value:.3g}%", "margin": margin}
    environment.globals["names"] = ACTIONS
    return lambda template, **values: environment.get_template(template).render(**values)


def _span_rows(path: Path) -> dict[tuple[str, str], list[int]]:
    """(document, evaluation document) -> numbers of its rows in the table of spans, the longest span first."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    at = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(4096, columns=["doc_id", "book_id"]):
            for pair in zip(batch["doc_id"].to_pylist(), batch["book_id"].to_pylist(), strict=True):
                found[pair].append(at)
                at += 1
    return found


def _evidence(path: Path, wanted: set[int]) -> dict[int, PageRow]:
    """The spans of these rows with both texts highlighted; the table is streamed. Of empty lines one is shown."""
    from markupsafe import Markup

    found, at = {}, 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1024):
            for i in sorted(wanted & set(range(at, at + batch.num_rows))):
                row = batch.slice(i - at, 1).to_pylist()[0]
                left, right = (
                    re.sub(r"\n\s*\n", "\n\n", t) for t in highlighted(row.pop("doc_text"), row.pop("book_text"))
                )
                found[i] = {**row, "number": i, "left": Markup(left), "right": Markup(right)}
            at += batch.num_rows
    return found


def _placed(
    pairs: Sequence[PageRow],
    own: Mapping[tuple[str, str], list[int]],
    order: Sequence[str],
    titles: Mapping[str, PageRow],
) -> tuple[list[_Page], dict[int, str]]:
    """(pages, number of a pair -> file it begins on). The gravest pairs' spans are chosen, then grouped by book."""
    left = ALL_SPANS
    chosen: dict[str, list[tuple[PageRow, list[int]]]] = defaultdict(list)
    for pair in pairs:
        rows = own[pair["doc_id"], pair["book_id"]][: min(PAIR_SPANS, left)]
        left -= len(rows)
        if rows:
            chosen[pair["book_id"]].append((pair, rows))
    pages: list[_Page] = []
    place: dict[int, str] = {}
    for number, name in enumerate(order):
        for pair, rows in chosen.get(name, ()):
            for at in range(0, len(rows), PAGE_SPANS):
                part = rows[at : at + PAGE_SPANS]
                if not pages or pages[-1].spans + len(part) > PAGE_SPANS:
                    pages.append(_Page())
                page = pages[-1]
                if not page.books or page.books[-1]["id"] != name:
                    page.books.append({"number": number, "id": name, "title": titles[name]["title"], "pairs": []})
                page.books[-1]["pairs"].append({**pair, "rows": part, "from": at + 1, "to": at + len(part)})
                page.spans += len(part)
                place.setdefault(pair["number"], f"evidence/{page_name(len(pages))}")
    return pages, place


def _summary(totals: PageRow, tables: Mapping[str, list[PageRow]], first_page: Mapping[str, str]) -> PageRow:
    """What stands above the evidence, and below it."""
    parameters, metrics = totals["parameters"], totals["metrics"]
    found = [book for book in tables["books"] if book["coverage"] > 0]
    sources: dict[str, list[PageRow]] = defaultdict(list)
    for row in tables["sources"]:
        sources[row["book_id"]].append(row)
    for book in found:
        book |= {"sources": sources[book["book_id"]][:3], "page": first_page.get(book["book_id"], "")}
    longest: dict[str, PageRow] = {}
    for row in tables["uncovered"]:
        longest.setdefault(row["book_id"], {**row, "text": textwrap.shorten(row["text"], 240, placeholder=" …")})
    canaries = list(tables["canaries"]) if metrics_planted(tables["canaries"]) else []
    if canaries:
        canaries.append({**totals["canaries"], "kind": "all"})
        quoted = totals["quotations"]
        canaries.append({"recall": None, **quoted, "kind": f"{quoted['kind']} (should not be acted on)"})
    rescan = totals.get("rescan")
    contents = [("books", "Evaluation documents"), ("classes", "Kinds"), ("near", "Near misses")]
    contents += [("evidence", "Evidence")]
    contents += [("balance", "Balance")] if totals.get("balance") else []
    contents += [("canaries", "Canaries")] if canaries else []
    return {
        "verdict": verdict(totals, tables["books"]),
        "tiles": _tiles(totals, metrics),
        "contents": [*contents, ("method", "Method")],
        "rescanned": rescan is not None,
        "books": found[:TOP_BOOKS],
        "books_left": max(0, len(found) - TOP_BOOKS),
        "clean_books": len(tables["books"]) - len(found) - len(totals.get("cannot_be_found", [])),
        "hidden": totals.get("cannot_be_found", [])[:MOST_HIDDEN],
        "remainders": list(longest.values())[:TOP_BOOKS],
        "counts": totals["classes"],
        "balance": totals.get("balance"),
        "balance_order": ("in", "kept", "cut", "dropped", "out"),
        "canaries": canaries,
        "shared": totals.get("evaluation_documents_shared", [])[:30],
        "parameters": parameters,
        "method": [
            *((f"digest of {name}", value) for name, value in sorted(totals.get("digests", {}).items())),
            ("parameters", json.dumps(parameters, sort_keys=True)),
        ],
    }


def metrics_planted(canaries: Sequence[PageRow]) -> int:
    """Canaries planted in all."""
    return sum(row["planted"] for row in canaries)


def _tiles(totals: PageRow, metrics: Mapping[str, float]) -> list[dict[str, str]]:
    tiles = [
        (f"{metrics['documents_in']:,.0f}", f"training documents, {metrics['bytes_in'] / 1e6:,.1f} MB"),
        (f"{metrics['documents_keep']:,.0f}", "clean"),
        (f"{metrics['documents_note']:,.0f}", "noted"),
        (f"{metrics['documents_cut']:,.0f}", "to cut" if totals.get("rescan") is None else "cut"),
        (f"{metrics['documents_drop']:,.0f}", "to drop" if totals.get("rescan") is None else "dropped"),
    ]
    if "bytes_out" in metrics:
        tiles.append((f"{metrics['bytes_out'] / max(1.0, metrics['bytes_in']):.1%}", "of the text is left"))
    if (canaries := totals["canaries"])["recall"] is not None:
        interval = f"{share(canaries['low'])}–{share(canaries['high'])}"
        tiles.append((share(canaries["recall"]), f"of {canaries['planted']} canaries acted on ({interval})"))
    return [{"value": value, "label": label} for value, label in tiles]
