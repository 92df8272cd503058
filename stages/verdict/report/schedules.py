"""What other schedules did to each arm, and what was matched: numbers, and rows of the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stages.stage import Config
from stages.verdict.claims.effects import accuracy, effect
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.schedule import Measure, measure_of
from stages.verdict.claims.schedulevariance import variation
from stages.verdict.claims.verdict import Number

WORDS = {
    "lr": "peak learning rate {}",
    "gate_lr": "of the gates {}",
    "warmup_steps": "warm-up of {} steps",
    "schedule": "{}",
    "min_lr_share": "last learning rate {} of the peak",
    "horizon": "decays over {} times the steps",
    "curriculum_share": "text grows over {} of the steps",
    "rope_theta": "RoPE base {}",
}


def numbers(evidence: Evidence) -> list[Number]:
    """Per schedule and arm: perplexity against the arm's own schedule, passkeys found at the deciding length; and how
    far schedules and seeds move each arm."""
    if not evidence.schedules:
        return []
    text, passkeys = (measure_of(evidence, name) for name in ("perplexity", "retrieval"))
    found = [
        number
        for arm in evidence.arms
        for name in evidence.schedules_of(arm)[1:]
        for number in (_against_own(evidence, text, arm, name), _found(evidence, passkeys, name))
    ]
    varied = [arm for arm in evidence.arms if len(evidence.schedules_of(arm)) > 1]
    return [n for n in found if n is not None] + [n for arm in varied for n in variation(evidence, arm)]


def _against_own(evidence: Evidence, measure: Measure, arm: str, name: str) -> Number | None:
    pair = measure.pair(name, arm) if len(measure.rows) else None
    return None if pair is None else measure.number(evidence, name, arm, effect(pair, evidence.rules))


def _found(evidence: Evidence, measure: Measure, name: str) -> Number | None:
    rows = measure.rows[measure.rows["arm"] == name] if len(measure.rows) else measure.rows
    if not len(rows):
        return None
    length = int(rows["length"].iloc[0])
    sources = evidence.scheduled_sources("retrieval.parquet", measure.filter, name)
    label = f"{name} at {length:,} tokens"
    return accuracy(f"passkey.{name}.{length}", label, rows, sources=sources, rules=evidence.rules)


def matched(evidence: Evidence, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of the recipe: what the arms have in common, the steps of each where they differ, and every schedule with
    its arms. ``settings``: as the report's config has them."""
    match = settings.get("match") or {}
    if not match:
        yield "matched by", "tokens: the same steps and batches for every arm, not the same FLOPs or time"
    else:
        what = {"flops": "FLOPs by formula", "wall": "time at the stated tokens per second"}[match["by"]]
        yield "matched by", f"{match['by']}: as many steps as the {what} of {match['reference']} allow"
        yield "steps of each", ", ".join(f"{arm} {steps:,}" for arm, steps in match["steps"])
    for name, schedule in (settings.get("schedules") or {}).items():
        arms = ", ".join(evidence.schedules[name]) if name in evidence.schedules else ""
        yield f"schedule {name}", f"{arms}: {changes(schedule)}"


def changes(schedule: Config | Mapping[str, Any]) -> str:
    """A schedule in words."""
    fields = dict(schedule) if isinstance(schedule, Mapping) else schedule.key_fields()
    given = [(words, fields[name]) for name, words in WORDS.items() if fields.get(name) is not None]
    parts = [words.format(value if isinstance(value, str) else f"{value:g}") for words, value in given]
    if scaling := fields.get("rope_scaling"):
        parts.append(f"RoPE scaling {scaling['type']} by {scaling['factor']:g}")
    if fields.get("mixture") is not None:
        said = prompts({"mixture": fields["mixture"]})
        parts.append(f"mixture of its own{f': {said}' if said else ''}")
    return "; ".join(parts)


def prompts(section: Mapping[str, Any]) -> str:
    """The prompt schedule of the mixture in words."""
    mixture = section.get("mixture") or {}
    phases = mixture.get("prompts") or ()
    parts = []
    for phase in phases:
        length = f" of {phase['length']:,} tokens" if phase.get("length") else ""
        text = f", text of {phase['text_length']:,}" if phase.get("text_length") else ""
        words = (phase.get("drill") or {}).get("words")
        drill = "" if words is None else f", drills of {'the cues' if words == 'cues' else f'{words} words'}"
        parts.append(f"{phase['share']:.0%} of the tokens{length}{drill}{text} until {phase['until']:.0%} of the steps")
    if not parts and mixture.get("retrieval_share"):
        parts.append(f"{mixture['retrieval_share']:.0%} of the sequences")
    return "; ".join(parts)
