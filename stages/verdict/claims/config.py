"""The ``claims:`` section of a study file: every decision rule, fixed before the run.

In every row ``supported`` means that the hypothesis as printed holds, ``refuted`` that it fails: by an interval or an
equivalence test, never by a missed detection.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from stages.stage import Config

MemoryKnockout = Literal["gate_closed", "reset", "swap", "zero_read"]


class PositiveControl(Config):
    """In front of every refusal: the ceiling (full attention) must find, in the control's task and budget, what the
    floor (local attention) does not. An instrument that cannot see what is there refuses nothing."""

    pairs: tuple[int, ...] = Field(
        default=(2, 4, 8), min_length=1, description="numbers of key-value pairs k at which ceiling and floor are read"
    )
    ceiling: float = Field(
        default=0.9, gt=0, lt=1, description="accuracy that the ceiling's lower bound must reach at every k"
    )
    floor: float = Field(
        default=0.1, gt=0, lt=1, description="accuracy above a blind guess that the floor's upper bound must not reach"
    )


class MemoryIsUsed(Config):
    """C1. Supported: every knock-out of ``knockouts`` costs more than ``margin`` of the accuracy beyond the last
    segment, in some memory arm. Refuted: every knock-out costs less than both margins (TOST) in all of them, although
    they retrieve.

    Closing the gate alone is no proof: it puts the layers where they never were in training, and may cost as much where
    nothing is read from the memory. ``swap`` leaves all statistics as they are and changes only what was stored.
    """

    knockouts: tuple[MemoryKnockout, ...] = Field(
        default=("swap", "zero_read"), min_length=2, description="knock-outs that must all cost; swap among them"
    )
    margin: float = Field(default=0.05, gt=0, lt=1, description="retrieval accuracy, absolute ('a few percent')")
    perplexity_margin: float = Field(
        default=0.03, gt=0, lt=1, description="relative perplexity within which a knock-out counts as costless"
    )

    @field_validator("knockouts")
    @classmethod
    def _swap_decides(cls, value: tuple[MemoryKnockout, ...]) -> tuple[MemoryKnockout, ...]:
        if "swap" not in value or len(set(value)) != len(value):
            raise ValueError(f"knockouts = {list(value)}: allowed are two or more distinct ones, 'swap' among them")
        return value


class PerplexityFromMemory(Config):
    """C2. The arm ``local`` (the same model trained without its memory) decides. Supported: a memory arm has lower
    perplexity than it, Holm-corrected over memory arms; refuted: in none an improvement of ``margin`` is left (TOST),
    although full attention gains that much. Every other arm is printed as a competitor."""

    margin: float = Field(default=0.01, gt=0, lt=1, description="relative perplexity that counts as no difference")


class Retrieval(Config):
    """C3. Supported: at ``length`` the lower bound of passkey accuracy beyond the last segment reaches ``threshold``
    and no part of the positions lies below it (Bonferroni); refuted: the upper bound stays below it, that of needles
    inside the last segment does not, and full attention is ahead on the same prompts."""

    threshold: float = Field(default=0.9, gt=0, lt=1, description="accuracy that counts as retrieving")
    length: int | None = Field(
        default=None, ge=1, description="prompt length in tokens that decides; none: the longest one evaluated"
    )
    minimum_trials: int = Field(default=100, ge=1, description="distinct prompts at that length, over all positions")
    positions: int = Field(default=5, ge=1, le=20, description="equal parts of the positions that are looked at alone")
    learned: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="accuracy of the ceiling, and inside the last segment, below which the task was not learned",
    )


class Compositional(Config):
    """C4. Supported: in some memory arm the lower bound of the score reaches ``threshold`` in every compositional task
    that was asked, at its longest length or ``length``, above the local arm's, and the tasks are of ``kinds`` kinds or
    more; refuted: in every memory arm the upper bound of one task stays below it (Bonferroni over tasks), in which full
    attention is ahead of the arm and not itself below the threshold, and which local attention does not find."""

    tasks: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="tasks that decide; none: every compositional one that is asked"
    )
    threshold: float = Field(default=0.9, gt=0, lt=1, description="score that counts as solving a task")
    length: int | None = Field(
        default=None, ge=1, description="prompt length in tokens that decides; none: the longest of each task"
    )
    kinds: int = Field(
        default=3, ge=1, description="kinds of task (keys, values, queries, hops, ...) below which nothing is supported"
    )
    minimum_trials: int = Field(default=100, ge=1, description="distinct prompts of each task at that length")
    learned: float = Field(default=0.5, gt=0, lt=1, description="score of the ceiling below which it was not learned")


class Binding(Config):
    """C5. Supported: at every number of rivals k >= 2 the accuracy exceeds by more than ``margin`` that of the best
    reader that does not bind (first, last, most frequent or any needle of the prompt; the arm's own answers where the
    asked word is absent); refuted: at every k it exceeds the luckiest of the first four by less than that, although one
    needle is found."""

    margin: float = Field(default=0.05, gt=0, lt=1, description="accuracy above the best reader that does not bind")
    learned: float = Field(
        default=0.5, gt=0, lt=1, description="accuracy at k = 1 and, above the margin, of the ceiling at every k"
    )


class Capacity(Config):
    """C6. Supported: at least as many associations as the feature dimension, at ``accuracy``; refuted: the upper
    bound lies below it. C6a reads values exactly (what rank bounds), C6b by argmax over the stored values (what it
    does not), both with the best keys measured; C6c by argmax with the trained models' keys."""

    feature_map: Literal["elu1", "relu", "dpfp1", "dpfp2", "dpfp3"] = "elu1"
    rules: tuple[Literal["linear", "delta", "delta-token"], ...] = Field(
        default=("linear", "delta"), min_length=1, description="update rules that decide: the paper's two"
    )
    accuracy: float = Field(default=0.95, gt=0, lt=1, description="recall that counts as holding the associations")


class Saturation(Config):
    """C7. Each seed has its worst reading over training and held-out documents longer than those. Supported: the
    intervals over seeds stay within both limits and no seed passes one; refuted: one lies above its limit."""

    erase_lambda_max: float = Field(
        default=2.0, gt=0, description="the erase operator I - A is a contraction only up to this eigenvalue of A"
    )
    norm_growth: float = Field(
        default=10.0,
        gt=1,
        description="largest memory norm (along a document: per token read) over its median in the first tenth",
    )


class CleanData(Config):
    """C8. Supported: neither the audit nor a second, independent count leaves an evaluation document above its limit,
    and the audit found its own planted canaries; refuted: one of them does. Of an imported base nobody here knows what
    it was trained on before: it stays open, unless that text was audited as well."""

    coverage_limit: float = Field(default=0.01, ge=0, lt=1, description="share of an evaluation document's words")
    containment_limit: float = Field(
        default=0.01, ge=0, lt=1, description="share of its distinct 13-grams, in the independent count"
    )
    canary_recall: float = Field(
        default=0.95, gt=0, le=1, description="share of the planted canaries that was acted on"
    )
    base_audited: bool = Field(
        default=False, description="an imported base's own training text was audited against the same documents"
    )

    def key_fields(self) -> dict[str, Any]:
        """What came later counts where it is not at its default."""
        return {name: value for name, value in super().key_fields().items() if name != "base_audited" or value}


class Compression(Config):
    """C9a: the paper's ratio follows from its configuration. C9b: it also holds with the live segment's keys and values
    counted on both sides."""

    ratio: float = Field(default=114.0, gt=1, description="the published ratio")
    tolerance: float = Field(
        default=0.02, gt=0, lt=1, description="relative deviation allowed (183/1.6 is 114; unrounded it is 115.7)"
    )


class Summarization(Config):
    """C10. People, a judge and entailment decide, each where it tells a text's own reference from another book's.
    Supported: in some memory arm one of them prefers its summaries to the local arm's (Holm over arms and sources),
    also to lead and shuffled ones, and none contradicts; refuted: each excludes a gain of ``margin`` (TOST) in every
    arm. With ROUGE, embeddings and BERTScore alone the claim stays open: they are printed, the verdict is
    inconclusive."""

    metric: Literal["rouge1", "rouge2", "rougeL", "rougeLsum", "rouge"] = "rougeL"
    task: Literal["continue", "condense"] = "condense"
    level: Literal["book", "chapter", "document"] | None = Field(
        default=None, description="what texts decide; none: whole books where there are any, then chapters"
    )
    decoding: Literal["sample", "greedy"] = "sample"
    margin: float = Field(
        default=0.05, gt=0, lt=0.5, description="share won above one half, or entailment, that counts as no gain"
    )

    def key_fields(self) -> dict[str, Any]:
        """Fields that came later count where they are not at their defaults."""
        fields = super().key_fields()
        later = {"level": None, "decoding": "sample", "margin": 0.05}
        return {name: value for name, value in fields.items() if name not in later or value != later[name]}


class Alignment(Config):
    """C11. Refuted: after some alignment some memory arm finds ``margin`` fewer passkeys beyond the last segment,
    although the local arm still finds those inside its own, or its perplexity there rose by ``perplexity_margin`` more
    than the local arm's (Holm over all of them); supported: such losses are excluded in every one (TOST)."""

    margin: float = Field(default=0.05, gt=0, lt=1, description="retrieval accuracy, absolute")
    perplexity_margin: float = Field(
        default=0.03, gt=0, lt=1, description="relative perplexity, more than what the local arm's changes by"
    )
    length: int | None = Field(
        default=None, ge=1, description="prompts of at most so many tokens decide; none: those of all lengths"
    )
    variants: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="alignments that decide; none: all. Others are controls"
    )


class Seeds(Config):
    """C13. Supported: over seeds, each with a base of its own, the mean gap in favour of a memory arm is larger than
    ``margin``; refuted: a gap of ``margin`` in its favour is excluded (TOST). The margin stands here, before the run:
    one estimated from the seeds that it judges would move with them."""

    margin: float = Field(
        default=0.005, gt=0, lt=1, description="relative perplexity by which a gap must exceed run-to-run variation"
    )


class ScheduleRule(Config):
    """C12. Supported: a memory arm, on its own schedule or one of its others, does better than every schedule of the
    baseline (an intersection-union test; Holm over the memory arms' schedules); refuted: in every memory arm and on
    every schedule of it, against some schedule of the baseline a gap of the margin is excluded (TOST, Bonferroni over
    the baseline's schedules). Neither picks a best schedule first and tests it afterwards on the same runs."""

    baselines: tuple[Literal["local", "window", "full"], ...] = Field(
        default=("local",), min_length=1, description="kinds of arms whose schedules decide; others stand beside"
    )
    measures: tuple[Literal["perplexity", "retrieval"], ...] = Field(
        default=("perplexity",),
        min_length=1,
        description="in each of these, on one schedule of the arm, the gap must outlast them",
    )
    margin: float = Field(default=0.01, gt=0, lt=1, description="relative perplexity that counts as no gap")
    retrieval_margin: float = Field(default=0.05, gt=0, lt=1, description="passkey accuracy that counts as no gap")
    minimum: int = Field(
        default=3, ge=1, description="other schedules of the baseline that trained, below which nothing is supported"
    )


class PilotConfig(Config):
    """How much answers and losses are expected to vary, for ``infini-study power`` before there is a run to take it
    from. The defaults are round numbers of small studies, not of this one: a finished run replaces them."""

    accuracy: float = Field(default=0.9, gt=0, lt=1, description="accuracy of a prompt at which these spreads hold")
    accuracy_seed_sd: float = Field(default=0.05, ge=0, lt=0.5, description="of the seeds' true accuracies")
    accuracy_item_sd: float = Field(default=0.1, ge=0, lt=0.5, description="of the prompts' own, shared by all seeds")
    accuracy_residual_sd: float = Field(
        default=0.4, gt=0, le=1, description="of one answer, or of one answer minus another on the same prompt"
    )
    loss_seed_sd: float = Field(
        default=0.005, ge=0, description="of the seeds' differences between two arms, nats per token"
    )
    loss_item_sd: float = Field(
        default=0.02, ge=0, description="of the documents' differences shared by all seeds, nats per token"
    )
    loss_residual_sd: float = Field(
        default=0.01, gt=0, description="of what is left of one document and seed, nats per token"
    )
    documents: int = Field(
        default=100, ge=2, description="held-out documents, where evaluate.perplexity.max_documents sets no number"
    )


class ClaimsConfig(Config):
    """All decision rules of a study."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5, description="two-sided level; intervals are 1 - alpha")
    power: float = Field(default=0.8, gt=0.5, lt=1, description="power at which detectable effects and n are given")
    minimum_seeds: int = Field(default=3, ge=2, description="seeds per arm below which no difference is decided")
    positive_control: PositiveControl = PositiveControl()
    memory_is_used: MemoryIsUsed = MemoryIsUsed()
    perplexity_from_memory: PerplexityFromMemory = PerplexityFromMemory()
    retrieval: Retrieval = Retrieval()
    compositional: Compositional = Compositional()
    binding: Binding = Binding()
    capacity: Capacity = Capacity()
    saturation: Saturation = Saturation()
    clean_data: CleanData = CleanData()
    compression: Compression = Compression()
    summarization: Summarization = Summarization()
    alignment: Alignment = Alignment()
    seeds: Seeds = Seeds()
    schedule: ScheduleRule = ScheduleRule()
    pilot: PilotConfig = PilotConfig()
    seed: int = Field(default=0, ge=0, description="of the simulated studies that say what would have been decided")

    def key_fields(self) -> dict[str, Any]:
        """The rules of schedules and alignment only where they are not the default: they came later than the others."""
        fields = super().key_fields()
        if self.schedule == ScheduleRule():
            fields.pop("schedule")
        if self.alignment == Alignment():
            fields.pop("alignment")
        return fields
