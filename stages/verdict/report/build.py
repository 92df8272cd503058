"""Carries out the report: evidence, verdicts, numbers, figures, files."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.arms import arm_of
from model.config import MixerConfig
from stages.data.tasks.registry import TASKS
from stages.stage import Artifact, Context, Place, Summary
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.table import CLAIMS, decide
from stages.verdict.claims.verdict import DECISIONS, Number, Verdict
from stages.verdict.report.calibration import sentences
from stages.verdict.report.config import ReportConfig
from stages.verdict.report.document import document
from stages.verdict.report.figures.all import FIGURES, draw
from stages.verdict.report.figures.style import FinishedFigure
from stages.verdict.report.numbers import collect, costs
from stages.verdict.report.recipe import recipe
from stages.verdict.report.render import write

AUDITS = {
    "decontaminate": ("audit", "the contamination audit"),
    "taskaudit": ("audit-tasks", "the audit of the tasks' own texts"),
}
"""Step -> folder for its pages, and what they are."""
TUNING_AUDIT = "tuningaudit"


def build(config: ReportConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
    """Write every file of the report below ``output`` and say what is in it."""
    total = len(CLAIMS) + len(FIGURES) + 2
    evidence = Evidence(
        inputs,
        arms=config.arms,
        seeds=config.seeds,
        trunk=config.trunk,
        rules=config.claims,
        control_arms=config.control_arms,
        schedules={name: schedule.arms or () for name, schedule in config.schedules.items()},
    )
    verdicts: list[Verdict] = []
    for claim in CLAIMS:
        verdicts.append(decide(claim, evidence))
        context.progress(len(verdicts), total, "parts")
        context.log(f"{claim.id} {claim.name}: {verdicts[-1].label}. {verdicts[-1].reason}")
    collected = collect(evidence, verdicts)
    numbers = collected.sections
    context.progress(len(CLAIMS) + 1, total, "parts")
    figures: list[tuple[str, FinishedFigure]] = []
    for done, (section, figure) in enumerate(draw(evidence, collected.named, output), start=len(CLAIMS) + 2):
        if figure is not None:
            figures.append((section, figure))
        context.progress(done, total, "parts")
    report = document(
        config,
        verdicts,
        numbers,
        figures,
        costs(evidence),
        setup(evidence),
        recipe=recipe(evidence, config.recipe | {"schedules": config.schedules}),
        calibration=sentences(evidence, collected.named),
        pages=copy_pages(inputs, output),
    )
    write(report, output, Place())
    _write_verdicts(verdicts, output / "verdicts.parquet")
    _write_numbers(numbers, output / "numbers.parquet")
    context.progress(total, total, "parts")
    if evidence.contaminated:
        names = ", ".join(sorted(evidence.contaminated)[:5])
        context.warn(
            f"{len(evidence.contaminated)} contaminated evaluation documents are left out of all scores: {names}"
        )
    counts: dict[str, int] = {
        decision: sum(verdict.decision == decision for verdict in verdicts) for decision in DECISIONS
    }
    return Summary(
        headline=", ".join(f"{count} {decision}" for decision, count in counts.items() if count),
        metrics=_metrics(counts, verdicts, numbers),
        tables={"verdicts": "verdicts.parquet", "numbers": "numbers.parquet"},
        figures=["report.html", "report.md", "report.json", *_files(figures)],
    )


def _files(figures: Sequence[tuple[str, FinishedFigure]]) -> list[str]:
    return [name for _, figure in figures for name in (figure.png, figure.svg, figure.narrow, figure.data)]


def copy_pages(inputs: Mapping[str, Artifact], output: Path) -> list[dict[str, str]]:
    """The pages of the audits below ``output``, so that the report leads to them wherever it is copied to."""
    made = []
    of_tuning = [step for step in inputs if step.startswith(f"{TUNING_AUDIT}/")]
    audits = AUDITS | {
        step: (f"audit-{part}", f"the audit of the rows that models are tuned on ({part})")
        for step, part in ((step, step.partition("/")[2]) for step in of_tuning)
    }
    for step, (folder, title) in audits.items():
        if step not in inputs or (page := _part(inputs[step], "audit.html")) is None:
            continue
        (output / folder).mkdir()
        shutil.copyfile(page, output / folder / "audit.html")
        if (evidence := _part(inputs[step], "evidence")) is not None:
            shutil.copytree(evidence, output / folder / "evidence")
        made.append({"step": step, "key": inputs[step].key, "title": title, "path": f"{folder}/audit.html"})
    return made


def _part(artifact: Artifact, name: str) -> Path | None:
    """A file or folder of it, fetched where storage is remote; None where it has none of that name."""
    try:
        return artifact.path(name)
    except FileNotFoundError:
        return None


def setup(evidence: Evidence) -> dict[str, str]:
    """What was trained on what, in words."""
    trunk = evidence.trunk
    tokens = evidence.document("tokenize", "meta.json")
    tokenizer = evidence.document("tokenizer", "meta.json")
    rows = {
        "trunk": f"{trunk.layers} layers, width {trunk.dim}, {trunk.heads} heads of {trunk.d_head}"
        + (f" ({trunk.n_kv_heads} for keys and values)" if trunk.n_kv_heads != trunk.heads else ""),
        "seeds": ", ".join(str(seed) for seed in evidence.seeds),
    }
    for arm, mixer in evidence.arms.items():
        rows[f"arm {arm}"] = describe(mixer)
    for task in dict.fromkeys(evidence.tasks["task"] if len(evidence.tasks) else ()):
        if task in TASKS:
            rows[f"task {task}"] = TASKS[task].sentence
    if tokenizer:
        rows["tokenizer"] = f"{tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens"
        if tokenizer.get("bos_id") is not None:
            rows["tokenizer"] += f"; documents and prompts begin with token {tokenizer['bos_id']}"
        if chat := tokenizer.get("chat"):
            around = len(chat["before"]) + len(chat["behind"])
            rows["chat template"] = f"{around} tokens around each prompt of evaluate and ablate, {chat['template']}"
    if tokens:
        rows["sequence length"] = f"{tokens['sequence_length']:,} tokens"
        for split, numbers in tokens.get("splits", {}).items():
            rows[f"{split} split"] = f"{numbers['documents']:,} documents, {numbers['tokens']:,} tokens"
    present = [stage for stage in ("evaluate", "ablate", "control", "summarize") if evidence.runs(stage)]
    rows["evidence"] = ", ".join(f"{stage}: {len(evidence.runs(stage))} runs" for stage in present) or "none"
    return rows


def describe(mixer: MixerConfig) -> str:
    """One arm in words: what it attends to, and what it keeps of the rest."""
    return f"{mixer.kind}: {arm_of(mixer.kind).sentence(mixer)}"


def _metrics(
    counts: Mapping[str, int], verdicts: Sequence[Verdict], numbers: Mapping[str, Sequence[Number]]
) -> dict[str, float]:
    """Counts of verdicts, their estimates, and the main level of every arm, for the tracking server."""
    metrics = {f"verdict.{decision.replace(' ', '_')}": float(count) for decision, count in counts.items()}
    for verdict in verdicts:
        for name in ("estimate", "low", "high"):
            value = getattr(verdict, name)
            if value is not None and math.isfinite(value):
                metrics[f"{verdict.claim}.{name}"] = float(value)
    for number in numbers.get("perplexity", ()):
        metrics[number.name] = number.estimate
    return metrics


def _write_verdicts(verdicts: Sequence[Verdict], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "claim": verdict.claim,
            "name": verdict.name,
            "verdict": verdict.label,
            "summary": verdict.summary,
            "estimate": verdict.estimate,
            "low": verdict.low,
            "high": verdict.high,
            "n": verdict.n,
            "unit": verdict.unit,
            "reason": verdict.reason,
            "rule": verdict.rule,
            "question": verdict.question,
            "hypothesis": verdict.hypothesis,
            "sources": _sources(verdict.sources),
        }
        for verdict in verdicts
    ]
    strings = ("claim", "name", "verdict", "summary", "unit", "reason", "rule", "question", "hypothesis", "sources")
    schema = pa.schema(
        [(name, pa.string() if name in strings else pa.int64() if name == "n" else pa.float64()) for name in rows[0]]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _write_numbers(numbers: Mapping[str, Sequence[Number]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("section", pa.string()),
            ("name", pa.string()),
            ("label", pa.string()),
            ("estimate", pa.float64()),
            ("low", pa.float64()),
            ("high", pa.float64()),
            ("n", pa.int64()),
            ("unit", pa.string()),
            ("method", pa.string()),
            ("verdict", pa.string()),
            ("note", pa.string()),
            ("sources", pa.string()),
        ]
    )
    rows: list[dict[str, Any]] = [
        {
            "section": section,
            "name": number.name,
            "label": number.label,
            "estimate": float(number.estimate),
            "low": number.low,
            "high": number.high,
            "n": number.n,
            "unit": number.unit,
            "method": number.method,
            "verdict": number.decision,
            "note": number.note,
            "sources": _sources(number.sources),
        }
        for section, section_numbers in numbers.items()
        for number in section_numbers
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _sources(sources: Sequence[Any]) -> str:
    """Readable provenance: 'step key table: filter', one a line."""
    return "\n".join(f"{s.step} {s.key} {s.table}" + (f": {s.filter}" if s.filter else "") for s in sources)
