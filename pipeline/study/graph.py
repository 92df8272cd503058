"""From a study to its plan: which stages there are, and how arms and seeds multiply them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.engine.plan import Plan, PlanBuilder
from pipeline.errors import StudyError
from pipeline.study import tuning
from pipeline.study.checks import preflight
from pipeline.study.load import LoadedStudy
from pipeline.study.schedules import trainings, variants
from pipeline.study.study import BASE_ARM, StudyConfig
from stages.data.certify.stage import STAGE as CERTIFY
from stages.data.corpus.pin import pin
from stages.data.corpus.stage import STAGE as INGEST
from stages.data.decontaminate.pin import pin_exclusions
from stages.data.decontaminate.stage import STAGE as DECONTAMINATE
from stages.data.dedup.stage import STAGE as DEDUP
from stages.data.taskaudit.config import TaskAuditConfig
from stages.data.taskaudit.pin import pin_sources, task_of_pairs
from stages.data.taskaudit.stage import STAGE as TASK_AUDIT
from stages.data.tasks.stage import STAGE as PROMPTS
from stages.data.tasks.stage import PromptsConfig
from stages.data.tokens.pin import pin_tokenizer, vocabulary_size
from stages.data.tokens.stage import TOKENIZE, TOKENIZER
from stages.evidence.control.stage import BASE as CONTROL_BASE
from stages.evidence.control.stage import STAGE as CONTROL
from stages.evidence.control.stage import control_arms
from stages.evidence.evaluate.stage import RECORD as EVALUATE_RECORD
from stages.evidence.evaluate.stage import STAGE as EVALUATE
from stages.evidence.evaluate.stage import EvaluateConfig
from stages.evidence.summarize.stage import RECORD as SUMMARIZE
from stages.evidence.summarize.stage import REFERENCES, SummarizeConfig
from stages.record import Record
from stages.stage import Config, StageError
from stages.training.pretrain.config import BaseConfig, BaseSettings, MixtureConfig, PretrainConfig
from stages.training.pretrain.stage import BASE, PRETRAIN
from stages.verdict.report.stage import STAGE as REPORT
from stages.verdict.report.stage import ReportConfig


def expand(loaded: LoadedStudy, cache: Path | None) -> Plan:
    """All steps of the study with their keys. External inputs are pinned here: a missing or changed file shows
    in the plan, before anything runs. ``cache`` keeps digests of unchanged files (by path, size and mtime).

    Raises StudyError where an external input is missing or is not what the study file pins.
    """
    study = loaded.study
    folder = loaded.path.resolve().parent  # relative paths start at the study file
    try:
        corpus = pin(study.corpus, folder, cache)
        decontaminate = pin_exclusions(study.decontaminate, folder, cache)
        tokenizer_config = pin_tokenizer(study.tokenizer, folder)
        asked = [(record, record.pin(section, folder)) for record, section in study.asked]
        summarize = next((config for _, config in asked if isinstance(config, SummarizeConfig)), None)
        pairs = summarize.pairs if summarize is not None else None
        tasks = pin_sources(study.task_audit.sources if study.task_audit else (), folder)
        tasks += task_of_pairs(pairs, tasks)
        sections = tuning.pinned(study, folder)
        base = _base_from(study.base, folder)
        if base.init == "scratch":
            base = base.model_copy(update={"mixture": _mixture(study, "base")})
        base_configs = {
            seed: BaseConfig(**_fields(base) | {"seed": seed, "per_seed": False}, trunk=study.trunk)
            for seed in study.base_seeds
        }
        preflight(study, corpus, tokenizer_config, base_configs[study.base_seeds[0]], cache)
        vocabulary = vocabulary_size(tokenizer_config) or study.tokenizer.vocab_size
        training = trainings(study, _mixture(study, "pretrain"), vocabulary)
    except StageError as error:
        raise StudyError(f"{loaded.path}: {error}") from error
    graph = PlanBuilder()
    ingest = graph.add(INGEST, corpus, {})
    documents = graph.add(DECONTAMINATE, decontaminate, {"documents": ingest})
    made = [ingest, documents]
    if study.dedup is not None:  # after the audit, which so covers the whole corpus
        made.append(documents := graph.add(DEDUP, study.dedup, {"documents": documents}))
    made.append(graph.add(CERTIFY, study.certify, {"documents": documents}))  # of what is really trained on
    if tasks:
        task_audit = TaskAuditConfig(sources=tasks, rule=decontaminate)
        made.append(graph.add(TASK_AUDIT, task_audit, {"documents": documents}))
    tokenizer = graph.add(TOKENIZER, tokenizer_config, {"documents": documents})
    tokens = graph.add(TOKENIZE, study.tokenize, {"documents": documents, "tokenizer": tokenizer})
    data = {"tokens": tokens, "tokenizer": tokenizer}
    made += [tokenizer, tokens]
    read = {"documents": documents, **data}
    evaluate = next(config for _, config in asked if isinstance(config, EvaluateConfig))
    prompts = PromptsConfig(retrieval=evaluate.retrieval, seed=evaluate.seed)
    made.append(graph.add(PROMPTS, prompts, data))
    read["prompts"] = made[-1]
    if summarize is not None:
        given = {"documents": documents, "tokenizer": tokenizer}
        made.append(references := graph.add(REFERENCES, summarize.items(), given))
        read["references"] = references
    for record, config in asked:
        if record.per == "study":
            made.append(graph.add(record.stage, config, _inputs(record, read)))
    made += _control(graph, study)
    bases, trained = _models(graph, study, base_configs, training, data)
    made += [*dict.fromkeys(bases.values()), *trained.values()]
    files = evaluate.retrieval.files
    tuned = tuning.add_tuning(graph, study, sections, bases, trained, read, tasks, files, decontaminate)
    made += tuned.steps
    # a fine-tuned base has become an arm of that kind
    of_base = evaluate.model_copy(update={"mixer": None if study.finetune else study.base_mixer})
    made += [
        graph.add(
            EVALUATE, of_base, _inputs(EVALUATE_RECORD, {"model": tuned.bases[seed], **read}), arm=BASE_ARM, seed=seed
        )
        for seed in study.base_seeds
    ]
    for record, config in asked:
        models = tuned.summarized if record is SUMMARIZE else tuned.arms
        for (arm, seed), model in models.items() if record.per == "model" else ():
            kind = study.arms[arm].kind if arm in study.arms else None  # None: an arm on another schedule
            if record is EVALUATE_RECORD or (kind is not None and (not record.kinds or kind in record.kinds)):
                inputs = _inputs(record, {"model": model, **read})
                made.append(graph.add(record.stage, config, inputs, arm=arm, seed=seed))
    made += tuning.add_evaluations(graph, study, asked, tuned, read)
    summaries = {step: step for step in made if step == REFERENCES.name or step.startswith("summarize/")}
    for record, config in asked:
        if record.per == "summaries":
            made.append(graph.add(record.stage, config, summaries))
    # where a checkpoint lies does not count, nor an option that is not used
    unused = {"chunk_tokens"} if study.pretrain.chunk_tokens is None else set[str]()
    unused |= {"horizon"} if study.pretrain.horizon == 1 else set()
    uncounted = {"path"} | unused | (set() if study.pretrain.carry_memory else {"carry_memory"})
    graph.add(
        REPORT,
        ReportConfig(
            study=study.name,
            description=study.description,
            arms=study.arms,
            trunk=study.trunk,
            seeds=study.seeds,
            claims=study.claims,
            recipe={
                section: getattr(study, section)
                .model_copy(update={"mixture": _mixture(study, section)})
                .model_dump(mode="json", exclude=uncounted)
                for section in ("base", "pretrain")
            }
            | _matched(study, training)
            | tuning.recipes(study),
            schedules={
                name: study.schedules[name].model_copy(update={"arms": tuple(arms)})
                for name, arms in variants(study).items()
            },
            control_arms=control_arms(study.control, study.arms) if study.control is not None else {},
        ),
        {step: step for step in made},
    )
    return graph.plan(study.name)


def _models(
    graph: PlanBuilder,
    study: StudyConfig,
    base_configs: Mapping[int, BaseConfig],
    training: Mapping[str, PretrainConfig],
    data: Mapping[str, str],
) -> tuple[dict[int, str], dict[tuple[str, int], str]]:
    """The steps of the bases by seed, and of the arms by arm and seed: each seed's arms behind its base, so that a
    first whole set of models is there early; arms on other schedules (``arm@schedule``) come last."""
    bases: dict[int, str] = {}
    trained: dict[tuple[str, int], str] = {}

    def train(seed: int, base: int, arms: Iterable[str]) -> None:
        for arm in arms:
            config = training[arm].model_copy(update={"seed": seed})
            trained[arm, seed] = graph.add(PRETRAIN, config, {**data, "base": bases[base]}, arm=arm, seed=seed)

    for seed in study.seeds:
        of = seed if study.base.per_seed else study.base.seed
        if of not in bases:
            bases[of] = graph.add(BASE, base_configs[of], data, seed=of if study.base.per_seed else None)
        train(seed, of, study.arms)
    others = [arm for arm in training if arm not in study.arms]
    for seed in study.seeds:
        train(seed, seed if study.base.per_seed else study.base.seed, others)
    return bases, trained


def _matched(study: StudyConfig, training: Mapping[str, PretrainConfig]) -> dict[str, Any]:
    """What the report says of ``match`` where it is not by tokens, which is what it says otherwise."""
    if study.match.by == "tokens":
        return {}
    reference = study.match.reference_of(study.arms)
    steps = [[arm, config.steps] for arm, config in training.items()]
    return {"match": {"by": study.match.by, "reference": reference, "steps": steps}}


def _inputs(record: Record, available: Mapping[str, str]) -> dict[str, str]:
    """Those of the available steps that the stage reads."""
    return {name: available[name] for name in record.stage.inputs or ()}


def _mixture(study: StudyConfig, section: str) -> MixtureConfig:
    """The mixture of a section (base, pretrain), with the weights that stand beside the sources of the corpus."""
    mixture: MixtureConfig = getattr(study, section).mixture
    weights = {source.name: source.weight for source in study.corpus.sources}
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if not given:
        return mixture
    missing = sorted(set(weights) - set(given))
    if missing or mixture.sources:
        reason = f"source {missing[0]!r} has none" if missing else f"{section}.mixture.sources says it again"
        raise StudyError(
            f"corpus.sources: weight {given} is given, but {reason}. Fix: give every source a weight, once"
        )
    return mixture.model_copy(update={"sources": given})


def _base_from(base: BaseSettings, folder: Path) -> BaseSettings:
    """A local checkpoint (its revision is a digest) named by a relative path lies beside the study file."""
    if base.path is None or base.revision is None or not base.revision.startswith("sha256:"):
        return base
    return base.model_copy(update={"path": str(folder / base.path)})


def _fields(config: Config) -> dict[str, Any]:
    """A config's fields by name, nested configs left as they are."""
    return {name: getattr(config, name) for name in type(config).model_fields}


def _control(graph: PlanBuilder, study: StudyConfig) -> list[str]:
    """The positive control: a base per seed, and every arm of the control grafted onto it."""
    if study.control is None:
        return []
    made = []
    for seed in study.seeds:
        made.append(base := graph.add(CONTROL_BASE, study.control.of_base(seed), {}, seed=seed))
        for arm, mixer in control_arms(study.control, study.arms).items():
            made.append(graph.add(CONTROL, study.control.of_arm(mixer, seed), {"base": base}, arm=arm, seed=seed))
    return made
