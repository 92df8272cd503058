"""What a study's claims have to go by, before any of it is run."""

from __future__ import annotations

from pipeline.engine.plan import Plan
from pipeline.study.schedules import variants
from pipeline.study.study import StudyConfig
from stages.evidence.control.config import ControlConfig
from stages.verdict.claims.size import Size


def size_of(study: StudyConfig, plan: Plan) -> Size:
    """Of the study that the plan is made of. The arms of the positive control are those of its steps."""
    control = {
        step.arm: step.config.mixer for step in plan.steps if isinstance(step.config, ControlConfig) and step.arm
    }
    aligned = study.align.variants if study.align is not None else {}
    return Size(
        arms=study.arms,
        seeds=study.seeds,
        rules=study.claims,
        evaluate=study.evaluate,
        ablate=study.ablate,
        control=study.control,
        control_arms=control,
        schedules=variants(study),
        alignments=[name for name in aligned if name in (study.claims.alignment.variants or aligned)],
    )
