"""audit.html: what was found, with both texts side by side, in one file that needs nothing else."""

from __future__ import annotations

import difflib
import html
import re
from pathlib import Path
from typing import TYPE_CHECKING

from stages.decontaminate.chain import Span
from stages.decontaminate.decide import SEVERITY, Pair
from stages.decontaminate.stage import DecontaminateConfig
from stages.decontaminate.tables import action, shortened

if TYPE_CHECKING:
    from stages.decontaminate.run import Audit

TOP_PAIRS, TOP_SPANS = 30, 3

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}
table{border-collapse:collapse;margin:1rem 0;font-size:14px}td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;
text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}
.sides{display:grid;grid-template-columns:1fr 1fr;gap:1rem;margin:.5rem 0 1rem}
.sides div{background:#f7f7f5;padding:.6rem .8rem;white-space:pre-wrap;font:13px/1.45 ui-monospace,monospace;
overflow-wrap:anywhere}mark{background:#ffe08a}.drop{color:#a40000}.excise{color:#9a5b00}.note{color:#555}
h3{margin:1.6rem 0 .2rem;font-size:16px}small{color:#555}"""


def write_audit_page(audit: Audit, rule: DecontaminateConfig, path: Path) -> None:
    """Write the page: totals, canaries, the most covered evaluation documents, and evidence of the worst pairs."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Contamination audit</title>",
        f"<style>{STYLE}</style><h1>Contamination audit</h1>",
        _totals(audit, rule),
        _canaries(audit),
        _books(audit),
        _shared(audit),
        _pairs(audit),
        "</html>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _totals(audit: Audit, rule: DecontaminateConfig) -> str:
    counts = {name: 0 for name in SEVERITY}
    for i in range(len(audit.documents)):
        counts[action(audit, i)] += 1  # type: ignore[index]
    copies = sum(document.copy_of is not None for document in audit.documents)
    size_in, size_out = sum(d.bytes for d in audit.documents) / 1e6, sum(audit.bytes_out) / 1e6
    return (
        f"<p>{len(audit.documents)} training documents ({size_in:.1f} MB) were compared with {len(audit.books)} "
        f"evaluation documents. Kept: {counts['keep']}, noted: {counts['note']}, cut: {counts['excise']}, dropped: "
        f"{counts['drop']} ({copies} of them exact copies of other training documents). {size_out:.1f} MB are left."
        "</p>"
        f"<p><small>Rule: a span counts from {rule.min_span_words} agreeing words; a document is acted on from "
        f"{rule.act_words} in one span, and dropped from {rule.drop_words} words, {rule.drop_document_share:.0%} of "
        f"the document or {rule.drop_book_share:.0%} of the evaluation document. Shorter spans are cut where they "
        f"cover more than {rule.coverage_limit:.0%} of an evaluation document. Action: {rule.action}, removed from: "
        f"{rule.remove_from}.</small></p>"
    )


def _canaries(audit: Audit) -> str:
    rows = [[r.kind, str(r.planted), str(r.found), str(r.acted)] for r in (*audit.recalls, audit.quotations)]
    return (
        "<h2>Canaries</h2><p>Evaluation text planted in copies of clean training documents. Quotations of 20 words "
        "should not be acted on.</p>" + _table(["kind", "planted", "found", "acted on"], rows)
    )


def _books(audit: Audit) -> str:
    order = sorted(audit.before, key=lambda book: (-audit.before[book], book))[:50]
    rows = [
        [
            audit.index.book_ids[book],
            audit.books[book]["title"] or "",
            audit.books[book]["split"],
            f"{audit.index.words_in(book):,}",
            f"{audit.before[book]:.1%}",
            "removed" if book in audit.removed_books else f"{audit.after.get(book, 0.0):.1%}",
        ]
        for book in order
    ]
    head = ["evaluation document", "title", "split", "words", "found in training", "after"]
    return f"<h2>Evaluation documents found in training ({len(audit.before)})</h2>" + _table(head, rows)


def _shared(audit: Audit) -> str:
    if not audit.index.shared:
        return ""
    rows = [
        [
            f"{audit.index.book_ids[a]} ({audit.books[a]['split']})",
            f"{audit.index.book_ids[b]} ({audit.books[b]['split']})",
            f"{share:.1%}",
        ]
        for a, b, share in audit.index.shared[:30]
    ]
    return "<h2>Text shared among evaluation documents</h2>" + _table(["", "", "of the smaller one"], rows)


def _pairs(audit: Audit) -> str:
    found = [(i, pair) for i, decision in enumerate(audit.decisions) for pair in decision.pairs]
    found.sort(key=lambda item: (-SEVERITY[item[1].action], -item[1].matched, item[0]))
    parts = [f"<h2>Evidence ({min(TOP_PAIRS, len(found))} of {len(found)} pairs)</h2>"]
    for i, pair in found[:TOP_PAIRS]:
        parts.append(_pair(audit, i, pair))
    return "\n".join(parts)


def _pair(audit: Audit, i: int, pair: Pair) -> str:
    document, book = html.escape(audit.documents[i].doc_id), html.escape(audit.index.book_ids[pair.book])
    head = (
        f"<h3><span class={pair.action}>{pair.action}</span> · {document} shares text with {book}</h3>"
        f"<small>{html.escape(pair.reason)}; {pair.matched:,} words in {len(pair.spans)} span(s), "
        f"{pair.document_share:.1%} of the document, {pair.book_share:.1%} of the evaluation document</small>"
    )
    longest = sorted(pair.spans, key=lambda span: (-span.matched, span))[:TOP_SPANS]
    return head + "".join(_side_by_side(audit, i, span) for span in longest)


def _side_by_side(audit: Audit, i: int, span: Span) -> str:
    own = shortened(audit.evidence[i][span.doc_start : span.doc_end].decode(errors="replace"))
    other = shortened(audit.index.evidence(span.book, span.book_start, span.book_end))
    left, right = highlighted(own, other)
    return (
        f"<div class=sides><div><small>training, bytes {span.doc_start:,}–{span.doc_end:,}</small>\n{left}</div>"
        f"<div><small>evaluation, bytes {span.book_start:,}–{span.book_end:,}</small>\n{right}</div></div>"
    )


def highlighted(left: str, right: str) -> tuple[str, str]:
    """Both texts as HTML, the words they share in the same order marked."""
    a, b = re.split(r"(\W+)", left), re.split(r"(\W+)", right)
    matcher = difflib.SequenceMatcher(
        a=[part.lower() for part in a[::2]], b=[part.lower() for part in b[::2]], autojunk=False
    )
    marked_a: set[int] = set()
    marked_b: set[int] = set()
    for block in matcher.get_matching_blocks():
        marked_a |= {2 * (block.a + k) for k in range(block.size)}
        marked_b |= {2 * (block.b + k) for k in range(block.size)}
    return _marked(a, marked_a), _marked(b, marked_b)


def _marked(parts: list[str], marked: set[int]) -> str:
    return "".join(
        f"<mark>{html.escape(part)}</mark>" if k in marked and part else html.escape(part)
        for k, part in enumerate(parts)
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = ["<tr>" + "".join(map(_cell, range(len(row)), row)) + "</tr>" for row in rows]
    return f"<table><tr>{titles}</tr>{''.join(lines)}</table>"


def _cell(column: int, text: str) -> str:
    number = column > 0 and re.fullmatch(r"[\d.,%]+", text)
    return f"<td{' class=n' if number else ''}>{html.escape(text)}</td>"
