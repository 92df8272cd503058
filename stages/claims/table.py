"""The claims of the study, one row each: question, hypothesis, the evidence it needs, its rule, its function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stages.claims import compression, data, mechanism, memory, perplexity, retrieval, summaries
from stages.claims.config import ClaimsConfig
from stages.claims.evidence import Evidence
from stages.claims.verdict import Finding, Verdict, not_measured, unique_sources


@dataclass(frozen=True)
class Claim:
    """One claim. needs: stages whose artifacts it reads (any arm and seed), or why nothing can measure it yet."""

    id: str
    name: str
    question: str
    hypothesis: str
    needs: tuple[str, ...]
    rule: Callable[[ClaimsConfig], str]
    decide: Callable[[Evidence], Finding]


def absent(reason: str) -> Callable[[Evidence], Finding]:
    """The decision of a claim that no stage of this version measures."""
    return lambda evidence: not_measured(reason)


def _no_rule(rules: ClaimsConfig) -> str:
    return "no rule: nothing in this study measures it"


def _level(rules: ClaimsConfig) -> str:
    return f"{rules.minimum_seeds} seeds or more, {1 - rules.alpha:.0%} intervals over seeds and items"


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1",
        "memory-is-used",
        "Is the memory branch more than decoration?",
        "Knocking the memory out costs retrieval beyond the local window.",
        ("ablate", "control"),
        lambda r: (
            f"supported: knock-out '{r.memory_is_used.knockout}' costs more than {r.memory_is_used.margin:.0%} "
            f"accuracy beyond the last segment in some memory arm (Holm); refuted: less than that and less than "
            f"{r.memory_is_used.perplexity_margin:.0%} perplexity in every one (TOST), behind the positive control; "
            + _level(r)
        ),
        memory.memory_is_used,
    ),
    Claim(
        "C2",
        "perplexity-from-memory",
        "Does compressive memory, not positional or schedule adaptation, lower perplexity?",
        "A memory arm has lower perplexity than every matched arm without a compressive memory.",
        ("evaluate", "control"),
        lambda r: (
            f"supported: some memory arm is better than every arm of kind "
            f"{', '.join(r.perplexity_from_memory.baselines)} (same base, data order and steps; Holm); refuted: none "
            f"is better by {r.perplexity_from_memory.margin:.0%} (TOST), behind the positive control; " + _level(r)
        ),
        perplexity.perplexity_from_memory,
    ),
    Claim(
        "C3",
        "retrieval",
        "Is a passkey found at any position of a long context?",
        "The memory arm finds the passkey wherever it stands.",
        ("evaluate", "control"),
        lambda r: (
            f"at {f'{r.retrieval.length:,} tokens' if r.retrieval.length else 'the longest length evaluated'}, beyond "
            f"the last segment: supported: lower bound of accuracy at least {r.retrieval.threshold:.0%} from at least "
            f"{r.retrieval.minimum_trials} prompts and no depth below it; refuted: upper bound below it although "
            f"accuracy inside the window is at least {r.retrieval.learned:.0%}, behind the positive control; "
            + _level(r)
        ),
        retrieval.retrieval,
    ),
    Claim(
        "C4",
        "compositional",
        "Does it survive multi-key, multi-value, multi-query, variable tracking, aggregation, fact chains, QA?",
        "Compositional tasks are solved at long context.",
        (),
        _no_rule,
        absent("the compositional tasks are not part of this version; rival keys alone are claim C5"),
    ),
    Claim(
        "C5",
        "binding",
        "Is the asked passkey found among rival passkeys?",
        "The memory binds values to keys: accuracy among k rivals is above 1/k.",
        ("evaluate", "control"),
        lambda r: (
            f"evidence: {'trained arms on text' if r.binding.evidence == 'language_model' else 'control models'}; "
            f"supported: over k >= 2 accuracy exceeds 1/k by more than {r.binding.margin:.0%} in some memory arm "
            f"(Holm); refuted: it does not in any, although one needle is retrieved at {r.binding.learned:.0%} or "
            f"better, behind the positive control; " + _level(r)
        ),
        retrieval.binding,
    ),
    Claim(
        "C6",
        "capacity",
        "How many associations fit, and how close to the rank bound?",
        "The memory holds as many associations as its rank bound.",
        ("capacity",),
        lambda r: (
            f"mechanism alone, {r.capacity.feature_map}, rules {' and '.join(r.capacity.rules)}: supported: the point "
            f"of {r.capacity.accuracy:.0%} recall lies at or above the feature dimension under every rule; refuted: "
            f"its upper bound lies below it under every rule; {1 - r.alpha:.0%} intervals over seeds"
        ),
        mechanism.capacity,
    ),
    Claim(
        "C7",
        "saturation",
        "When does the delta rule forget or blow up?",
        "The delta rule stays stable over the lengths trained on.",
        ("pretrain",),
        lambda r: (
            f"worst seed: supported: erase eigenvalue at most {r.saturation.erase_lambda_max:g} and |M| at most "
            f"{r.saturation.norm_growth:g} times its early median; refuted: a limit is passed"
        ),
        memory.saturation,
    ),
    Claim(
        "C8",
        "data-are-clean",
        "Are the evaluation documents disjoint from the training corpus?",
        "No evaluation document is covered by training documents after the audit.",
        ("decontaminate",),
        lambda r: (
            f"supported: no evaluation document is covered above {r.clean_data.coverage_limit:.0%} of its words after "
            f"the audit, and at least {r.clean_data.canary_recall:.0%} of the planted canaries were acted on; refuted: "
            f"one is (it is left out of all scores)"
        ),
        data.clean_data,
    ),
    Claim(
        "C9",
        "compression",
        "Is the memory 114x smaller?",
        "The published ratio follows from the paper's configuration, and real states are as small as the formula says.",
        (),
        lambda r: (
            f"supported: the ratio is {r.compression.ratio:g} within {r.compression.tolerance:.0%} and the measured "
            f"state of every arm equals its formula; refuted otherwise"
        ),
        compression.compression,
    ),
    Claim(
        "C10",
        "summarization",
        "Is book summarization better beyond ROUGE?",
        "Memory arms summarize better.",
        ("summarize",),
        lambda r: (
            f"{r.summarization.metric} with document-clustered intervals is printed; never decided on ROUGE alone "
            f"(embedding, NLI, judge and human comparison are needed)"
        ),
        summaries.summarization,
    ),
    Claim(
        "C11",
        "alignment",
        "Does instruction tuning silently remove long-context ability?",
        "Gates, retrieval and perplexity are the same after alignment.",
        (),
        _no_rule,
        absent("there is no alignment stage in this version, so nothing is compared before and after"),
    ),
    Claim(
        "C12",
        "schedule",
        "How sensitive are the gains to the baseline's training schedule?",
        "The gains outlast other schedules of the baseline.",
        (),
        _no_rule,
        absent("the study trains every arm on one schedule; variants of the baseline's are not part of this version"),
    ),
    Claim(
        "C13",
        "seeds",
        "Is the gap larger than run-to-run variance?",
        "The perplexity gap to the matched baseline is larger than the spread between seeds, in either direction.",
        ("evaluate",),
        lambda r: (
            f"supported: paired t over seeds (Holm) and a gap above the run-to-run standard deviation; refuted: the "
            f"gap lies within one standard deviation (TOST); {r.minimum_seeds} seeds or more, alpha {r.alpha:g}"
        ),
        perplexity.seeds,
    ),
)


def decide(claim: Claim, evidence: Evidence) -> Verdict:
    """The verdict of one claim."""
    finding = claim.decide(evidence)
    lead = finding.headline
    return Verdict(
        claim=claim.id,
        name=claim.name,
        question=claim.question,
        hypothesis=claim.hypothesis,
        decision=finding.decision,
        rule=claim.rule(evidence.rules),
        reason=finding.reason,
        summary=finding.summary or finding.reason,
        qualifier=finding.qualifier,
        estimate=lead.estimate if lead else None,
        low=lead.low if lead else None,
        high=lead.high if lead else None,
        n=lead.n if lead else 0,
        unit=lead.unit if lead else "",
        numbers=finding.numbers,
        sources=unique_sources(finding.numbers),
    )
