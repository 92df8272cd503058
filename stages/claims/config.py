"""The ``claims:`` section of a study file: every decision rule, fixed before the run.

Defaults follow the study protocol. ``supported`` always means that the claim made *for* Infini-attention (or for this
study's own soundness: C8, C13) holds, so that one column can be read from top to bottom.
Claims without an entry here (C4, C11, C12) have no measurement yet and are reported as ``not measured``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.stage import Config


class PositiveControl(Config):
    """The gate in front of every null result: the memory arms must learn what the local-only arm cannot."""

    pairs: int = Field(default=1, ge=1, description="number of key-value pairs k at which the control is judged")
    margin: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="accuracy by which a memory arm must beat the local arm, averaged over seeds",
    )


class MemoryIsUsed(Config):
    """C1. Supported: the knock-out costs more than ``margin`` of retrieval accuracy beyond the local window.

    Refuted: the cost lies within both margins (TOST) although the intact model retrieves well enough to lose something.
    """

    knockout: Literal["gate_closed", "reset", "swap", "zero_read"] = Field(
        default="gate_closed", description="the primary knock-out; the others are reported beside it"
    )
    margin: float = Field(default=0.05, gt=0, lt=1, description="retrieval accuracy, absolute ('a few percent')")
    perplexity_margin: float = Field(
        default=0.03, gt=0, lt=1, description="relative perplexity within which a knock-out counts as costless"
    )


class PerplexityFromMemory(Config):
    """C2. Supported: a memory arm has lower perplexity than the matched baseline, Holm-corrected over the primary
    family (memory arms x ``baselines``); refuted: no memory arm is better by more than ``margin`` (TOST)."""

    baselines: tuple[Literal["local", "window", "xl", "full"], ...] = Field(
        default=("local", "window", "xl"),
        min_length=1,
        description="kinds of arms that a memory arm must beat, where the study has them (the primary family)",
    )
    margin: float = Field(default=0.01, gt=0, lt=1, description="relative perplexity that counts as no difference")


class Retrieval(Config):
    """C3. Supported: at ``length`` the lower bound of passkey accuracy beyond the local window reaches ``threshold``
    and no depth's upper bound (Bonferroni) lies below it; refuted: the upper bound over all depths stays below it."""

    threshold: float = Field(default=0.9, gt=0, lt=1, description="accuracy that counts as retrieving")
    length: int | None = Field(
        default=None, ge=1, description="prompt length in tokens that decides; none: the longest one evaluated"
    )
    minimum_trials: int = Field(default=200, ge=1, description="prompts per arm at that length, over depths and seeds")
    learned: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="accuracy inside the local window below which the model has not learned the task, so that failing "
        "beyond the window says nothing about the memory",
    )


class Binding(Config):
    """C5. Supported: accuracy among k >= 2 rivals exceeds 1/k by more than ``margin``; refuted: it does not, although
    the single needle (k = 1) is retrieved: the memory carries the set of values, not their binding to keys."""

    evidence: Literal["language_model", "control"] = Field(
        default="language_model",
        description="language_model: the trained arms on text (task 'bindings'); control: the small recall models",
    )
    margin: float = Field(default=0.05, gt=0, lt=1, description="accuracy above 1/k that counts as binding")
    learned: float = Field(default=0.5, gt=0, lt=1, description="accuracy at k = 1 needed before a null result counts")


class Capacity(Config):
    """C6. Supported: the memory holds at least its rank bound (feature dimension) at ``accuracy`` recall; refuted: the
    upper bound of that point lies below it."""

    feature_map: Literal["elu1", "relu", "dpfp1", "dpfp2", "dpfp3"] = "elu1"
    rules: tuple[Literal["linear", "delta", "delta-token"], ...] = Field(
        default=("linear", "delta"), min_length=1, description="update rules that decide: the paper's two"
    )
    accuracy: float = Field(default=0.95, gt=0, lt=1, description="recall that counts as holding the associations")


class Saturation(Config):
    """C7. Supported: over training the delta rule stays stable; refuted: a limit is passed."""

    erase_lambda_max: float = Field(
        default=2.0, gt=0, description="the erase operator I - A is a contraction only up to this eigenvalue of A"
    )
    norm_growth: float = Field(
        default=10.0, gt=1, description="largest memory norm over its median in the first tenth of training"
    )


class CleanData(Config):
    """C8. Supported: no evaluation document keeps coverage above the limit after the audit, and the audit found its
    own planted canaries; refuted: one does (it is left out of all scores)."""

    coverage_limit: float = Field(default=0.01, ge=0, lt=1, description="share of an evaluation document's words")
    canary_recall: float = Field(
        default=0.95, gt=0, le=1, description="share of the planted canaries that was acted on"
    )


class Compression(Config):
    """C9. Supported: the paper's ratio is reproduced from its configuration and real states agree with the formula."""

    ratio: float = Field(default=114.0, gt=1, description="the published ratio")
    tolerance: float = Field(
        default=0.02, gt=0, lt=1, description="relative deviation allowed (183/1.6 is 114; unrounded it is 115.7)"
    )


class Summarization(Config):
    """C10. With ROUGE alone the claim stays open: the estimate is printed, the verdict is inconclusive."""

    metric: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = "rougeL"
    task: Literal["continue", "condense"] = "condense"


class ClaimsConfig(Config):
    """All decision rules of a study."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5, description="two-sided level; intervals are 1 - alpha")
    power: float = Field(default=0.8, gt=0.5, lt=1, description="power at which minimum detectable effects are given")
    minimum_seeds: int = Field(default=3, ge=2, description="seeds per arm below which no difference is decided")
    resamples: int = Field(default=2000, ge=200, description="bootstrap draws per interval")
    seed: int = Field(default=0, ge=0, description="seed of the bootstrap")
    positive_control: PositiveControl = PositiveControl()
    memory_is_used: MemoryIsUsed = MemoryIsUsed()
    perplexity_from_memory: PerplexityFromMemory = PerplexityFromMemory()
    retrieval: Retrieval = Retrieval()
    binding: Binding = Binding()
    capacity: Capacity = Capacity()
    saturation: Saturation = Saturation()
    clean_data: CleanData = CleanData()
    compression: Compression = Compression()
    summarization: Summarization = Summarization()
