"""The recipe: how base and arms were trained, in one table, from the study's settings and what the runs recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.training.tuning.data import LEFT_OUT
from stages.verdict.claims.evidence import Evidence
from stages.verdict.report.schedules import matched, prompts

ROWS = (
    ("steps", "optimiser steps"),
    ("lr", "peak learning rate"),
    ("gate_lr", "peak learning rate of the gates"),
    ("schedule", "schedule"),
    ("horizon", "the schedule's end (times the steps)"),
    ("warmup_steps", "warm-up steps"),
    ("min_lr_share", "last learning rate (share of peak)"),
    ("weight_decay", "weight decay (AdamW, betas 0.9 and 0.95)"),
    ("clip", "gradient norm limit"),
    ("dtype", "precision"),
    ("curriculum_share", "share of steps in which text grows to full length"),
)
"""Settings by their names in the study file, in the order of the table."""


def recipe(evidence: Evidence, settings: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of ``what``, ``base`` and ``arms`` ("" where it does not apply). ``settings``: the study's sections ``base``
    and ``pretrain`` as plain data, ``match`` where it is not by tokens, and ``schedules``; empty ones give what the
    runs recorded alone."""
    base, arms = dict(settings.get("base", {})), dict(settings.get("pretrain", {}))
    imported = base.get("init") == "hf"
    rows = [_row("start", _start(evidence, base), "the base of the same seed" if _per_seed(base) else "the one base")]
    rows += [_row("seeds", _seeds(evidence, base), ", ".join(map(str, evidence.seeds)))]
    rows += [_row(what, "", text) for what, text in matched(evidence, settings)] if arms else []
    rows += [_row("tokens in a batch", "" if imported else _tokens(base), _tokens(arms))]
    rows += [_row("tokens in all", _total(evidence, "base"), _total(evidence, "pretrain"))]
    rows += [_row("sequence length, tokens", _shown(base.get("sequence_length")), _shown(arms.get("sequence_length")))]
    rows += [
        _row(
            "segment length N, tokens", "", ", ".join(sorted({f"{m.segment_length:,}" for m in evidence.arms.values()}))
        )
    ]
    for name, what in ROWS:
        rows.append(_row(what, "" if imported else _shown(base.get(name)), _shown(arms.get(name))))
    rows += [_row("prompts", prompts(base), prompts(arms)), _row("sources", _sources(base), _sources(arms))]
    rows += further(settings, evidence)
    rows += [
        _row("parameters", "", _parameters(evidence)),
        _row("wall time of a run", _base_wall(evidence), _wall(evidence)),
    ]
    return [row for row in rows if row["base"] or row["arms"]]


def further(settings: Mapping[str, Any], evidence: Evidence) -> list[dict[str, str]]:
    """A row for each further training: what on, for how long."""
    rows = []
    for section, what, of in (
        ("finetune", "fine-tuned on", ""),
        ("finetune_summaries", "fine-tuned for summaries on", "@summaries"),
    ):
        if (tuned := settings.get(section)) is not None:
            tasks, pairs = tuned.get("tasks"), tuned.get("pairs")
            if tasks:
                phases = ", ".join(f"{p['length']:,} tokens until {p['until']:.0%}" for p in tasks["phases"])
                text = f", {tasks['text_share']:.0%} text" if tasks["text_share"] else ""
                data = f"{' and '.join(tasks['tasks'])} ({phases}{text})"
            else:
                data = f"pairs of text and summary, up to {pairs['max_tokens']:,} tokens"
                data += _left_out(evidence, "finetune", of)
            done = f"{data}; {_pace(tuned)}"
            rows.append(_row(what, done if section == "finetune" else "", done))
    for name, variant in settings.get("align", {}).get("variants", {}).items():
        source = "given rows" if variant.get("data") is not None else "rows made from the training text"
        after = f", after {variant['after']}" if variant.get("after") else ""
        data = f"{variant['method'].upper()}{after}, {source} of up to {variant['length']:,} tokens"
        if variant.get("data") is not None:
            data += _left_out(evidence, "align", f"@{name}")
        rows.append(_row(f"aligned: {name}", "", f"{data}; {_pace(variant)}"))
    return rows


def _left_out(evidence: Evidence, stage: str, of: str) -> str:
    """How many rows the audit of the file kept away from the models, as the first of them noted it."""
    for arm in evidence.arms:
        for seed in evidence.seeds:
            if noted := evidence.document(f"{stage}/{arm}{of}/{seed}", "data.json"):
                count = noted.get("skipped", {}).get(LEFT_OUT, 0)
                return f", without {count:,} rows that hold text of what is asked" if count else ""
    return ""


def _pace(section: Mapping[str, Any]) -> str:
    return f"{section['steps']:,} steps of {section['batch_sequences']:,}, peak learning rate {section['lr']:g}"


def _row(what: str, base: str, arms: str) -> dict[str, str]:
    return {"what": what, "base": base, "arms": arms}


def _per_seed(base: Mapping[str, Any]) -> bool:
    return bool(base.get("per_seed", False))


def _start(evidence: Evidence, base: Mapping[str, Any]) -> str:
    if base.get("init") == "hf":
        return f"imported: {base.get('path', 'a local checkpoint')}, {str(base.get('revision', ''))[:19]}"
    return "from scratch" if base else ""


def _seeds(evidence: Evidence, base: Mapping[str, Any]) -> str:
    if not base:
        return ""
    return "one base per seed" if _per_seed(base) else f"one base (seed {base.get('seed', 0)}) shared by all seeds"


def _tokens(section: Mapping[str, Any]) -> str:
    if section.get("batch_tokens"):
        return _shown(section["batch_tokens"])
    if section.get("batch_sequences") and section.get("sequence_length"):
        return _shown(section["batch_sequences"] * section["sequence_length"])
    return ""


def _total(evidence: Evidence, stage: str) -> str:
    """Tokens seen at the end of training, as logged: of one run, or from the least to the most."""
    seen = set()
    for step in evidence.inputs:
        if step == stage or step.startswith(f"{stage}/"):
            log = evidence.table(step, "train_log.parquet")
            if len(log) and "tokens" in log:
                seen.add(int(log["tokens"].max()))
    return " to ".join(f"{value:,}" for value in sorted({min(seen), max(seen)})) if seen else ""


def _sources(section: Mapping[str, Any]) -> str:
    sources = (section.get("mixture") or {}).get("sources") or {}
    total = sum(sources.values())
    return ", ".join(f"{name} {weight / total:.0%}" for name, weight in sources.items()) if total else ""


def _parameters(evidence: Evidence) -> str:
    from stages.verdict.report.numbers import costs

    return ", ".join(f"{row.arm} {row.parameters:,.0f}" for row in costs(evidence))


def _base_wall(evidence: Evidence) -> str:
    """Seconds of a base's training, mean over the bases."""
    steps = [step for step in evidence.inputs if step == "base" or step.startswith("base/")]
    seconds = [float(cost["wall_s"]) for step in steps if (cost := evidence.document(step, "cost.json")).get("wall_s")]
    return f"{sum(seconds) / len(seconds):,.0f} s" if seconds else ""


def _wall(evidence: Evidence) -> str:
    """Seconds of the training runs, by arm."""
    parts = []
    for arm in evidence.arms:
        seconds = [
            float(cost["wall_s"])
            for name, seed in evidence.runs("pretrain")
            if name == arm
            and (cost := evidence.document(f"pretrain/{arm}/{seed}", "cost.json")).get("wall_s") is not None
        ]
        if seconds:
            parts.append(f"{arm} {sum(seconds) / len(seconds):,.0f} s")
    return ", ".join(parts)


def _shown(value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
