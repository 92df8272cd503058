"""What is trained further: fine-tuned before it is evaluated, aligned and evaluated again. Their steps, and what their
sections say of the rest of the study.

Under ``ARM@VARIANT`` stands a model that is no arm of its own: ``evaluate/local@sft/0``. Rules that compare arms never
see one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.engine.keys import canonical
from pipeline.engine.plan import PlanBuilder
from pipeline.study.study import BASE_ARM, StudyConfig
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.taskaudit.config import TaskSource
from stages.data.tasks.config import PromptFile
from stages.data.tasks.prompts import PromptMaker
from stages.data.tasks.registry import task_of
from stages.data.tasks.training import trained_k
from stages.evidence.ablate.stage import RECORD as ABLATE
from stages.evidence.evaluate.stage import RECORD as EVALUATE
from stages.evidence.evaluate.stage import EvaluateConfig, EvaluateSettings
from stages.record import Record
from stages.stage import Config
from stages.training.align.config import BEFORE, AlignConfig, AlignSettings, Variant, pin_align
from stages.training.align.stage import ALIGN, ALIGN_ON_FILE
from stages.training.finetune.config import FinetuneConfig, FinetuneSettings, pin_finetune
from stages.training.finetune.stage import FINETUNE, FINETUNE_ON_PAIRS
from stages.training.pretrain.config import MixtureConfig, check_workers
from stages.training.tuning.config import TuningSettings
from stages.training.tuningaudit.config import TuningAuditConfig
from stages.training.tuningaudit.stage import STAGE as TUNING_AUDIT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stages.data.tasks.haystack import Codec

SUMMARIES = "summaries"
"""``finetune/ARM@summaries/SEED``: fine-tuned on summaries."""

Models = dict[tuple[str, int], str]
"""(arm, seed) -> step."""


@dataclass(frozen=True)
class Sections:
    """The study's sections with their files pinned."""

    finetune: FinetuneSettings | None
    finetune_summaries: FinetuneSettings | None
    align: AlignSettings | None


@dataclass
class Tuned:
    """``bases`` by seed and ``arms``: what is evaluated. ``summarized``: what summaries are of. ``before``: fine-tuned
    models as they were. ``aligned``: by ARM@VARIANT. ``steps``: all that were added."""

    bases: dict[int, str]
    arms: Models
    summarized: Models
    before: Models = field(default_factory=dict)
    aligned: Models = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)


def pinned(study: StudyConfig, folder: Path) -> Sections:
    """Raises StageError for a file that is not there or is not the pinned one."""
    finetune, summaries, align = study.finetune, study.finetune_summaries, study.align
    return Sections(
        None if finetune is None else pin_finetune(finetune, folder, "finetune"),
        None if summaries is None else pin_finetune(summaries, folder, "finetune_summaries"),
        None if align is None else pin_align(align, folder),
    )


def add_tuning(
    graph: PlanBuilder,
    study: StudyConfig,
    sections: Sections,
    bases: Mapping[int, str],
    trained: Models,
    read: Mapping[str, str],
    tasks: tuple[TaskSource, ...],
    prompts: Mapping[str, PromptFile],
    rule: DecontaminateConfig,
) -> Tuned:
    """Steps of all further trainings of ``bases`` (by seed) and ``trained``; ``read``: documents, tokens, tokenizer.
    An arm on another schedule (``ARM@SCHEDULE``) is fine-tuned as the arm is, so that they are evaluated alike; it is
    neither aligned nor does it write summaries. Files of rows are audited against the held-out documents, ``tasks``
    and files of ``prompts`` by ``rule`` before anything is trained on them."""
    tuned = Tuned(dict(bases), dict(trained), dict(trained))
    data = {name: read[name] for name in ("tokens", "tokenizer")}
    audits: dict[str, str] = {}  # key of what is audited -> step

    def audited(part: str, **of: Any) -> dict[str, str]:
        config = TuningAuditConfig(**of, tasks=tasks, prompts=dict(prompts), rule=rule)
        what = canonical(config.key_fields())
        if what not in audits:
            audits[what] = graph.add(TUNING_AUDIT, config, {"documents": read["documents"]}, part=part)
            tuned.steps.append(audits[what])
        return {"audit": audits[what]}

    def finetuned(section: FinetuneSettings, model: str, arm: str, seed: int, of: str = "", **more: Any) -> str:
        config = FinetuneConfig(**_fields(section), seed=seed, **more)
        label = f"{arm}@{of}" if of else arm
        if (pairs := section.pairs) is None:
            return graph.add(FINETUNE, config, {"model": model, **data}, arm=label, seed=seed)
        part = "finetune_summaries" if of else "finetune"
        audit = audited(part, layout="pairs", path=pairs.path, texts=pairs.texts, splits=pairs.splits, pin=pairs.pin)
        return graph.add(FINETUNE_ON_PAIRS, config, {"model": model, **data, **audit}, arm=label, seed=seed)

    if sections.finetune is not None:
        for seed, base in bases.items():
            tuned.before[BASE_ARM, seed] = base
            tuned.bases[seed] = finetuned(sections.finetune, base, BASE_ARM, seed, mixer=study.base_mixer)
        for (arm, seed), model in trained.items():
            if arm in study.arms:
                tuned.before[arm, seed] = model
            tuned.arms[arm, seed] = finetuned(sections.finetune, model, arm, seed)
        tuned.summarized = dict(tuned.arms)
        tuned.steps += [*tuned.bases.values(), *tuned.arms.values()]
    if sections.finetune_summaries is not None:
        for (arm, seed), model in trained.items():
            if arm in study.arms:
                tuned.summarized[arm, seed] = finetuned(sections.finetune_summaries, model, arm, seed, SUMMARIES)
        tuned.steps += tuned.summarized.values()
    for name, variant in sections.align.variants.items() if sections.align is not None else ():
        assert sections.align is not None
        for (arm, seed), model in tuned.arms.items():
            if arm not in study.arms:
                continue
            start = model if variant.after is None else tuned.aligned[f"{arm}@{variant.after}", seed]
            aligned = AlignConfig(**_fields(variant), chat=sections.align.chat, seed=seed)
            inputs = {"model": start, **{key: read[key] for key in ("documents", "tokens", "tokenizer")}}
            if variant.data is not None:
                inputs |= audited(name, layout="turns", path=variant.data.path, pin=variant.data.pin)
            label, stage = f"{arm}@{name}", ALIGN if variant.data is None else ALIGN_ON_FILE
            tuned.aligned[label, seed] = graph.add(stage, aligned, inputs, arm=label, seed=seed)
    tuned.steps += tuned.aligned.values()
    return tuned


def add_evaluations(
    graph: PlanBuilder,
    study: StudyConfig,
    asked: Sequence[tuple[Record, Config]],
    tuned: Tuned,
    read: Mapping[str, str],
) -> list[str]:
    """Aligned models on the items of ``evaluate`` and ``ablate``; and what fine-tuned ones were before, on text."""
    made = []
    for record, config in asked:
        if record not in (EVALUATE, ABLATE):
            continue
        for (label, seed), model in tuned.aligned.items():
            if not record.kinds or study.arms[label.partition("@")[0]].kind in record.kinds:
                made.append(graph.add(record.stage, config, _inputs(record, model, read), arm=label, seed=seed))
    if tuned.before:
        settings = next(config for record, config in asked if record is EVALUATE)
        assert isinstance(settings, EvaluateSettings)
        for (arm, seed), model in tuned.before.items():
            on_text = text_alone(settings, study, base=arm == BASE_ARM)
            inputs = _inputs(EVALUATE, model, read)
            made.append(graph.add(EVALUATE.stage, on_text, inputs, arm=f"{arm}@{BEFORE}", seed=seed))
    return made


def _inputs(record: Record, model: str, read: Mapping[str, str]) -> dict[str, str]:
    available = {"model": model, **read}
    return {name: available[name] for name in record.stage.inputs or ()}


def text_alone(settings: EvaluateSettings, study: StudyConfig, *, base: bool) -> EvaluateConfig:
    """``settings`` with one prompt: what a model is asked whose perplexity alone is wanted."""
    one: dict[str, Any] = {"lengths": (min(settings.retrieval.lengths),), "depths": None, "trials": 1}
    one |= {"binding_trials": 0, "binding_lengths": None, "control_trials": 0, "tasks": {}, "files": {}}
    retrieval = settings.retrieval.model_copy(update=one)
    fields = {name: getattr(settings, name) for name in EvaluateSettings.model_fields} | {"retrieval": retrieval}
    return EvaluateConfig(**fields, mixer=study.base_mixer if base else None)


def recipes(study: StudyConfig) -> dict[str, Any]:
    """The sections as plain data, for the report's table; none where there are none. Where files lie does not count."""
    found: dict[str, Any] = {}
    for name in ("finetune", "finetune_summaries", "align"):
        section = getattr(study, name)
        if section is not None:
            found[name] = section.model_dump(mode="json", exclude_none=True)
            for part in (found[name].get("pairs"), *(v.get("data") for v in found[name].get("variants", {}).values())):
                if part:
                    part.pop("path")
                    part.pop("texts", None)
            found[name].get("chat", {}).pop("template", None)
    return found


def disagreements(study: StudyConfig) -> Iterator[str]:
    """What the sections say that the study cannot do, a line each."""
    aligned: Mapping[str, Variant] = study.align.variants if study.align is not None else {}
    for place, names in (("schedules", study.schedules), ("align.variants", aligned)):
        for name in (BEFORE, SUMMARIES):
            if name in names:
                yield f"{place}.{name}: models before and after fine-tuning are called so. Fix: another name"
    for name in study.schedules:
        if name in aligned:
            yield f"schedules.{name}: an alignment has this name too, and both make ARM@{name}. Fix: rename one"
    segments = {name: arm.segment_length for name, arm in study.arms.items()}
    for name, settings, length in _trainings(study):
        if settings.warmup_steps > settings.steps:
            yield (
                f"{name}.warmup_steps = {settings.warmup_steps}: training ends before, at {name}.steps = "
                f"{settings.steps} (allowed: at most that many)"
            )
        if odd := settings.check_chunks(length, segments):
            yield f"{name}.{odd}"
    for name in ("finetune", "finetune_summaries"):
        section: FinetuneSettings | None = getattr(study, name)
        if section is not None and section.tasks is not None and section.tasks.text_share:
            whole, length = study.tokenize.sequence_length, section.tasks.length
            if whole % length:
                yield (
                    f"{name}.tasks.text_share = {section.tasks.text_share}: text comes in rows of "
                    f"tokenize.sequence_length = {whole}, which the longest phase's {length} does not divide. "
                    "Fix: change one of them, or set text_share: 0"
                )
    summaries = study.finetune_summaries
    if summaries is not None and summaries.pairs is None:
        yield "finetune_summaries.tasks: it trains on summaries. Fix: give pairs, or name the section finetune"
    if summaries is not None and study.summarize is None:
        yield "finetune_summaries: has no effect without summarize. Fix: add that section, or remove this one"


def check_prompts(study: StudyConfig, codec: Codec) -> None:
    """Prompts that are trained on must hold their needles with this tokenizer. Raises StageError."""
    haystack = cast("NDArray[np.int32]", range(2**62))
    if study.finetune is None or study.finetune.tasks is None:
        return
    mixture = study.finetune.tasks
    maker = PromptMaker(codec, haystack, mixture.format, 0, "finetuning")
    for index, phase in enumerate(mixture.phases):
        for task in map(task_of, mixture.tasks):
            k = max(phase.k.get(task.name) or trained_k(task, MixtureConfig().retrieval_rivals))
            maker.check(task, phase.length, k, field=f"finetune.tasks.phases.{index}.length")


def check_batches(study: StudyConfig) -> None:
    """The global batches are shared out equally. Raises StageError."""
    for name, settings, _ in _trainings(study):
        check_workers(settings.batch_sequences, study.execution.train_workers, f"{name}.batch_sequences")


def _trainings(study: StudyConfig) -> Iterator[tuple[str, TuningSettings, int]]:
    """(section, settings, most tokens of a row) of each further training."""
    for name in ("finetune", "finetune_summaries"):
        section: FinetuneSettings | None = getattr(study, name)
        if section is not None:
            yield name, section, section.length
    variants: Mapping[str, Variant] = study.align.variants if study.align is not None else {}
    for name, variant in variants.items():
        yield f"align.variants.{name}", variant, variant.length


def _fields(config: Config) -> dict[str, Any]:
    """A config's fields by name, nested configs left as they are."""
    return {name: getattr(config, name) for name in type(config).model_fields}
