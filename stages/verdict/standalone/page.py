"""report.html of one evaluation, or of two sides compared: the page of a study's report, with what they can fill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.data.tasks.haystack import format_of
from stages.display.numbers import percent
from stages.stage import Place
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Number
from stages.verdict.report import numbers as report_numbers
from stages.verdict.report.document import assembled
from stages.verdict.report.figures.all import draw
from stages.verdict.report.html import page
from stages.verdict.report.render import placed
from stages.verdict.standalone.compare import Comparison, Difference
from stages.verdict.standalone.scores import Reached, effective_numbers

DRAWN = ("retrieval", "perplexity")


def write_page(evidence: Evidence, facts: Mapping[str, Any], reaches: list[Reached], folder: Path) -> Path:
    """Write report.html, report.json and figures/ below ``folder``; the page's path."""
    name = next(iter(evidence.arms))
    sections: dict[str, list[Number]] = {
        "passkey": report_numbers.passkey_by_length(evidence),
        "bindings": report_numbers.bindings(evidence),
        "tasks": report_numbers.tasks(evidence),
        "effective length": effective_numbers(reaches, name),
        "perplexity": report_numbers.perplexities(evidence),
        "perplexity by position": report_numbers.by_position(evidence),
    }
    named = {number.name: number for group in sections.values() for number in group}
    figures = [(section, figure) for section, figure in draw(evidence, named, folder, DRAWN) if figure is not None]
    report = assembled(
        study=str(facts["name"]),
        title=f"Evaluation of {facts['name']}",
        description=described(facts),
        setup=setup(facts),
        numbers={section: rows for section, rows in sections.items() if rows},
        figures=figures,
    )
    said = placed(report, Place())
    for group in [*said["numbers"].values(), said["figures"]]:
        for number in group:
            for source in number["sources"]:
                source["command"] = f"{source['table']}: {source['filter'] or 'all rows'}"
    return _written(said, folder)


def described(facts: Mapping[str, Any]) -> str:
    """The evaluation in a sentence."""
    asked = facts["questions"]
    lengths = ", ".join(f"{length:,}" for length in asked["lengths"])
    parts = [f"{facts['model']['read_as']}"]
    if asked["tasks"]:
        parts.append(f"{len(asked['tasks'])} tasks at {lengths} tokens, {asked['samples']} prompts of each")
    if files := asked.get("files"):
        parts.append(f"the prompts of {len(files)} file{'s' * (len(files) > 1)}: {', '.join(files)}")
    if facts["text"]["documents"]:
        parts.append(f"{facts['text']['documents']} texts scored")
    return "; ".join(parts) + "."


def setup(facts: Mapping[str, Any]) -> dict[str, str]:
    """What was read how, in words."""
    model, tokenizer, asked, text = (facts[name] for name in ("model", "tokenizer", "questions", "haystack"))
    context = model["context"]
    rows = {
        "model": f"{model['read_as']}, {model['dtype']}",
        "digest": model["digest"],
        "context": "any length, or not said" if context is None else f"{context:,} tokens",
        "tokenizer": f"{tokenizer['vocabulary']:,} tokens",
        "a text begins with": ", ".join(tokenizer["begins_with"]) or "nothing of its own",
        "an answer ends with": ", ".join(tokenizer["ends_with"]) or "its budget alone",
        "chat template": "not used"
        if tokenizer["chat_template"] is None
        else f"{tokenizer['chat_tokens']} tokens around each prompt, {tokenizer['chat_template']}",
        "wording": format_of(asked["format"]),
        "needles lie in": f"{text['from']}, {text['tokens']:,} tokens, {text['digest']}",
        "seed": str(asked["seed"]),
    }
    if facts["text"]["cut"]:
        rows["texts cut to the context"] = str(facts["text"]["cut"])
    return rows


def write_comparison(found: Comparison, folder: Path) -> Path:
    """Write report.html and report.json of two sides compared below ``folder``; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        "scores compared": [_compared(one, "score difference") for one in found.scores],
        "texts compared": [_compared(one, f"{one.unit} difference") for one in found.texts],
    }
    setup = {"A": found.a, "B": found.b, "difference": "A minus B, on the items that both have"}
    setup |= {f"note {n}": text for n, text in enumerate(found.notes, 1)}
    setup |= {f"alone {n}": text for n, text in enumerate(found.alone, 1)}
    report = assembled(
        study=f"{found.a} and {found.b}",
        title=f"{found.a} against {found.b}",
        description=f"{len(found.scores)} cells and {len(found.texts)} comparisons of text; {found.unpaired} items "
        "without a partner are left out.",
        setup=setup,
        numbers={section: numbers for section, numbers in rows.items() if numbers},
        figures=[],
    )
    return _written(placed(report, Place()), folder)


def _compared(one: Difference, unit: str) -> Number:
    what = "text" if one.task == "text" else f"{one.task}, k = {one.k}, {one.length:,} tokens"
    shares = one.unit == "score"
    a, b = (percent(x) if shares else f"{x:.4g} {one.unit}" for x in (one.a, one.b))
    return Number(
        f"compared.{one.label}.{one.task}.k{one.k}.{one.length}",
        f"{one.label}: {what}",
        one.difference,
        one.low,
        one.high,
        one.items * one.seeds,
        "accuracy difference" if shares else unit,
        f"A {a}, B {b}; {one.seeds} seeds x {one.items} items; {one.method}",
        note=f"p = {one.p:.2g}; Benjamini-Hochberg {one.q:.2g}",
    )


def _written(report: dict[str, Any], folder: Path) -> Path:
    (folder / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False), encoding="utf-8")
    (folder / "report.html").write_text(page(report, folder), encoding="utf-8")
    return folder / "report.html"
