"""From a study to its plan: which stages there are, and how arms and seeds multiply them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pipeline import preflight
from pipeline.errors import StudyError
from pipeline.plan import Plan, PlanBuilder
from pipeline.study import LoadedStudy, Study
from stages.ablate.stage import STAGE as ABLATE
from stages.capacity.stage import STAGE as CAPACITY
from stages.certify.stage import STAGE as CERTIFY
from stages.control.stage import STAGE as CONTROL
from stages.control.stage import ControlConfig
from stages.corpus.pin import pin
from stages.corpus.stage import STAGE as INGEST
from stages.decontaminate.stage import STAGE as DECONTAMINATE
from stages.decontaminate.stage import pin_exclusions
from stages.decontaminate.taskaudit import STAGE as TASK_AUDIT
from stages.decontaminate.taskaudit import TaskAuditConfig, pin_sources, task_of_pairs
from stages.dedup.stage import STAGE as DEDUP
from stages.evaluate.stage import STAGE as EVALUATE
from stages.pretrain.config import BaseConfig, BaseSettings, MixtureConfig, PretrainConfig
from stages.pretrain.stage import BASE, PRETRAIN
from stages.report.stage import STAGE as REPORT
from stages.report.stage import ReportConfig
from stages.stage import Config, StageError
from stages.summarize.stage import STAGE as SUMMARIZE
from stages.summarize.stage import pin_pairs
from stages.tokens.stage import TOKENIZE, TOKENIZER, pin_tokenizer


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
        summarize = study.summarize and pin_pairs(study.summarize, folder)
        tasks = pin_sources(study.task_audit.sources if study.task_audit else (), folder)
        tasks += task_of_pairs(summarize and summarize.pairs, tasks)
        base_config = BaseConfig(**_fields(_base_from(study.base, folder)), trunk=study.trunk)
        preflight.check(study, corpus, tokenizer_config, base_config, cache)
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
    base = graph.add(BASE, base_config, data)
    made += [tokenizer, tokens, base]
    if study.capacity is not None:
        made.append(graph.add(CAPACITY, study.capacity, {}))
    made += _control(graph, study)
    mixture = _mixture(study)
    trained = {
        (arm, seed): graph.add(
            PRETRAIN,
            PretrainConfig(**_fields(study.pretrain) | {"mixture": mixture}, mixer=mixer, seed=seed),
            {**data, "base": base},
            arm=arm,
            seed=seed,
        )
        for seed in study.seeds  # seeds outside, so that a first whole set of arms is there early
        for arm, mixer in study.arms.items()
    }
    made += trained.values()
    for stage, config in ((EVALUATE, study.evaluate), (ABLATE, study.ablate), (SUMMARIZE, summarize)):
        for (arm, seed), model in trained.items():
            if config is not None and (stage is not ABLATE or study.arms[arm].kind == "infini"):
                made.append(
                    graph.add(stage, config, {"model": model, "documents": documents, **data}, arm=arm, seed=seed)
                )
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
                "base": study.base.model_dump(mode="json", exclude={"path"}),  # where it lies does not count
                "pretrain": study.pretrain.model_copy(update={"mixture": mixture}).model_dump(mode="json"),
            },
        ),
        {step: step for step in made},
    )
    return graph.plan(study.name)


def _mixture(study: Study) -> MixtureConfig:
    """The training mixture, with the weights that stand beside the sources of the corpus."""
    weights = {source.name: source.weight for source in study.corpus.sources}
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if not given:
        return study.pretrain.mixture
    missing = sorted(set(weights) - set(given))
    if missing or study.pretrain.mixture.sources:
        reason = f"source {missing[0]!r} has none" if missing else "pretrain.mixture.sources says it again"
        raise StudyError(
            f"corpus.sources: weight {given} is given, but {reason}. Fix: give every source a weight, once"
        )
    return study.pretrain.mixture.model_copy(update={"sources": given})


def _base_from(base: BaseSettings, folder: Path) -> BaseSettings:
    """A local checkpoint (its revision is a digest) named by a relative path lies beside the study file."""
    if base.path is None or base.revision is None or not base.revision.startswith("sha256:"):
        return base
    return base.model_copy(update={"path": str(folder / base.path)})


def _fields(config: Config) -> dict[str, Any]:
    """A config's fields by name, nested configs left as they are."""
    return {name: getattr(config, name) for name in type(config).model_fields}


def _control(graph: PlanBuilder, study: Study) -> list[str]:
    """The positive control: the arms with a memory, and the one without, on a task only memory can solve."""
    if study.control is None:
        return []
    return [
        graph.add(
            CONTROL,
            ControlConfig(
                **_fields(study.control),
                mixer=dataclasses.replace(mixer, segment_length=study.control.segment_length),
                seed=seed,
            ),
            {},
            arm=arm,
            seed=seed,
        )
        for seed in study.seeds
        for arm, mixer in study.arms.items()
        if mixer.kind in ("infini", "local")
    ]
