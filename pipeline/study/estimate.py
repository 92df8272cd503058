"""What a study costs before it runs: tokens, FLOPs, hours, memory and storage, from the arms' formulas.

Counted is what dominates: the training of bases and arms, and the prompts and scored text of ``evaluate`` and
``ablate`` as far as the study file bounds them. FLOPs are those of ``model.cost`` (matrix products, a multiply-add is
2). Hours follow from the rate of trainings the store has, else on GPUs from an assumed one, which is said.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from model.config import MixerConfig, ModelConfig
from model.cost import Cost, cost
from pipeline.engine.control import Commit
from pipeline.engine.plan import Plan, Step, StepDecision
from pipeline.engine.store import Store
from pipeline.study.study import StudyConfig
from stages.data.tasks.config import RetrievalConfig
from stages.data.tokens.config import TokenizerConfig
from stages.data.tokens.pin import vocabulary_size
from stages.evidence.ablate.config import AblateConfig
from stages.evidence.evaluate.config import EvaluateConfig, PerplexityConfig
from stages.training.pretrain.config import BaseConfig, PretrainConfig

ASSUMED: Mapping[str, float] = {"bf16": 0.4 * 989e12, "fp32": 0.4 * 67e12}
"""FLOP/s of a GPU where none was measured: 40% of what an H100 is sold for in that type."""
_OPTIMIZED = 16  # bytes a parameter in fp32, shared out over the workers: weight, gradient, two moments of AdamW
_RESUME = 12  # of these in a resume point
_RESUME_POINTS = 3  # two that are kept, and the one being written
_CHECKPOINTED_FROM = 16_384  # tokens; longer rows keep a layer's input only
_LARGEST_VOCABULARY = 32_768  # of a repository that cannot be reached


@dataclass
class StudyCost:
    """Of the steps that are to run. ``flops``: in training and in evaluation; ``memory``: bytes of a worker while it
    trains the largest arm; ``storage``: bytes of the models that stay, ``resume``: of one training's resume points;
    ``hours``: of one training or evaluation after the other, on all its workers; None: no rate is known."""

    trainings: int = 0
    tokens: float = 0.0
    training_flops: float = 0.0
    evaluations: int = 0
    read_tokens: float = 0.0
    evaluation_flops: float = 0.0
    parameters: int = 0
    memory: float = 0.0
    storage: float = 0.0
    resume: float = 0.0
    gpus: float = 0.0  # of a training
    hours: float | None = None
    gpu_hours: float | None = None
    rate: float | None = None  # FLOP/s of a training on all its workers
    rate_from: str = ""
    unbounded: list[str] = field(default_factory=list)  # what the study file puts no number to

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def estimate(study: StudyConfig, plan: Plan, decisions: Mapping[str, StepDecision], store: Store) -> StudyCost:
    """The cost of the steps that ``decisions`` would run. Reads of a remote store nothing that was not read before."""
    found = StudyCost()
    vocabulary = vocabulary_of(plan)
    for step in plan.steps:
        if decisions[step.id].action == "run":
            _add(found, study, step, vocabulary)
    found.unbounded = sorted(set(found.unbounded))
    found.gpus = gpus(study)
    made = [d.commit for s, d in decisions.items() if d.commit is not None and s.split("/")[0] in ("base", "pretrain")]
    found.rate, found.rate_from = training_rate(study, store, made)
    if found.rate:
        found.hours = (found.training_flops + found.evaluation_flops) / found.rate / 3600
        if found.gpus:
            found.gpu_hours = found.hours * found.gpus
    return found


def _add(found: StudyCost, study: StudyConfig, step: Step, vocabulary: int) -> None:
    config, trunk = step.config, study.trunk
    if isinstance(config, PretrainConfig):
        tokens = config.steps * config.batch_sequences * config.sequence_length
        model = ModelConfig(trunk=trunk, mixer=config.mixer, vocab_size=vocabulary)
        _add_training(found, study, model, tokens, config.sequence_length, config.batch_sequences, config.dtype)
        if config.chunk_tokens is not None:
            found.unbounded.append("memory is less: rows are read in pieces (pretrain.chunk_tokens)")
    elif isinstance(config, BaseConfig) and config.init == "scratch":
        assert config.steps and config.batch_tokens and config.sequence_length
        full = MixerConfig(kind="full", segment_length=config.sequence_length)
        rows = config.batch_tokens // config.sequence_length
        model = ModelConfig(trunk=trunk, mixer=full, vocab_size=vocabulary)
        tokens = config.steps * config.batch_tokens
        _add_training(found, study, model, tokens, config.sequence_length, rows, config.dtype)
    elif isinstance(config, EvaluateConfig):
        mixer = config.mixer or (study.arms.get(str(step.arm), study.base_mixer))
        model = ModelConfig(trunk=trunk, mixer=mixer, vocab_size=vocabulary)
        _add_evaluation(found, model, config.retrieval, config.perplexity, "evaluate", 1)
    elif isinstance(config, AblateConfig) and step.arm in study.arms:
        model = ModelConfig(trunk=trunk, mixer=study.arms[step.arm], vocab_size=vocabulary)
        times = len(config.knockouts)
        _add_evaluation(found, model, config.retrieval, config.perplexity, "ablate", times)


def _add_training(
    found: StudyCost, study: StudyConfig, model: ModelConfig, tokens: int, length: int, rows: int, dtype: str
) -> None:
    costs = _cost(model, length)
    found.trainings += 1
    found.tokens += tokens
    found.training_flops += tokens * costs.flops_per_token_training
    found.parameters = max(found.parameters, costs.parameters)
    found.storage += 4 * costs.parameters
    found.resume = max(found.resume, _RESUME_POINTS * _RESUME * costs.parameters)
    share = max(1, rows // study.execution.train_workers)
    at_once = min(share, study.execution.micro_batch or share)
    workers = study.execution.train_workers
    held = _OPTIMIZED * costs.parameters / workers + (4 * costs.parameters / model.trunk.layers if workers > 1 else 0)
    found.memory = max(found.memory, held + activations(model, length, dtype) * at_once)


def activations(model: ModelConfig, length: int, dtype: str) -> float:
    """Bytes kept for the backward pass of one row of ``length`` tokens, about: per layer its input, what the norms,
    projections and the gated feed-forward layer keep, or of long rows the input alone and one layer's rest; the
    logits with their gradient in fp32."""
    size = 2 if dtype == "bf16" else 4
    trunk = model.trunk
    whole = size * (6 * trunk.dim + 4 * trunk.heads * trunk.d_head + 3 * trunk.d_ffn)
    layers = trunk.layers * size * trunk.dim + whole if length >= _CHECKPOINTED_FROM else trunk.layers * whole
    return float(length * (layers + 8 * model.vocab_size))


def _add_evaluation(
    found: StudyCost, model: ModelConfig, retrieval: RetrievalConfig, text: PerplexityConfig, section: str, times: int
) -> None:
    found.evaluations += 1
    for grid in (*retrieval.needles, *retrieval.further):
        for length in grid.lengths:
            tokens = times * length * len(grid.ks) * (grid.trials + grid.control_trials)
            found.read_tokens += tokens
            found.evaluation_flops += tokens * _cost(model, length).flops_per_token_forward
    if retrieval.files:
        found.unbounded.append(f"prompts of {section}.retrieval.files")
    documents, longest = text.max_documents, text.max_tokens_per_document
    if documents is None or longest is None:
        limits = {"max_documents": documents, "max_tokens_per_document": longest}
        lacking = " and ".join(name for name, limit in limits.items() if limit is None)
        found.unbounded.append(f"text of {section}.perplexity (no {lacking})")
        return
    tokens = times * documents * len(text.splits) * longest
    found.read_tokens += tokens
    found.evaluation_flops += tokens * _cost(model, longest).flops_per_token_forward


@lru_cache(maxsize=4096)
def _cost(model: ModelConfig, length: int) -> Cost:
    return cost(model, length)


def vocabulary_of(plan: Plan) -> int:
    """Tokens of the study's models: those of the tokenizer's file, else as many as are asked for."""
    tokenizer = plan["tokenizer"].config
    assert isinstance(tokenizer, TokenizerConfig)
    return vocabulary_size(tokenizer) or tokenizer.vocab_size or _LARGEST_VOCABULARY


def gpus(study: StudyConfig) -> float:
    """Of one training, all its workers together; 0: it runs on CPUs."""
    execution = study.execution
    on_gpus = execution.gpus_per_worker or execution.device == "cuda"
    return execution.train_workers * max(execution.gpus_per_worker, 1.0) if on_gpus else 0.0


def training_rate(study: StudyConfig, store: Store, made: Iterable[Commit] = ()) -> tuple[float | None, str]:
    """FLOP/s of a training on all its workers and where the number is from: all trainings of a local store, of a
    remote one those ``made``; None where none was timed and no GPU is asked for."""
    if store.local:
        made = [commit for stage in ("base", "pretrain") for commit in store.commits(stage)]
    rates, on = [], gpus(study)
    hardware = ""
    for commit in sorted(made, key=lambda commit: commit.created):
        rate = commit.metrics.get("flops_per_token", 0.0) * commit.metrics.get("tokens_per_s", 0.0)
        where = str(commit.meta.get("hardware", ""))
        if rate > 0 and (";" in where) == bool(on):  # after it stand the GPUs that were used
            rates.append(rate)
            hardware = where
    if rates:
        trainings = "1 earlier training" if len(rates) == 1 else f"{len(rates)} earlier trainings"
        return statistics.median(rates), f"measured in {trainings} on {hardware or 'this store'}"
    if not on:
        return None, "no training was timed yet"
    dtype = study.pretrain.dtype
    return on * ASSUMED[dtype], f"assumed: 40% of an H100's peak in {dtype}; no training was timed yet"


def lines(found: StudyCost) -> list[list[str]]:
    """(what, how much) for people."""
    from stages.display.numbers import size

    if not found.trainings and not found.evaluations:
        return []
    rows = []
    if found.trainings:
        flops = f"{count(found.training_flops)}FLOP"
        rows.append(["training", f"{found.trainings} models, {count(found.tokens).rstrip()} tokens, {flops}"])
    if found.evaluations:
        flops = f"{count(found.evaluation_flops)}FLOP"
        rows.append(["evaluation", f"{found.evaluations} steps, {count(found.read_tokens).rstrip()} tokens, {flops}"])
    if found.rate:
        hours = f"{found.gpu_hours:,.1f} GPU-hours" if found.gpu_hours is not None else f"{found.hours:,.2f} hours"
        rows.append(["time", f"{hours} at {count(found.rate)}FLOP/s ({found.rate_from})"])
    elif found.rate_from:
        rows.append(["time", f"unknown ({found.rate_from})"])
    if found.trainings:
        rows.append(["memory", f"about {size(found.memory)} for each worker, {found.parameters:,} parameters at most"])
        rows.append(["storage", f"{size(found.storage)} of models, {size(found.resume)} more while one is trained"])
    rows += [["not counted", text] for text in found.unbounded]
    return rows


def count(value: float) -> str:
    """1.5e9 -> '1.5 G', a unit's prefix with the space before it."""
    for prefix, factor in (("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * factor:  # 999,999 is 1 M, not 1e+03 k
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.0f} "
