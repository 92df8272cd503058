"""The claims of the study, one row each: question, hypothesis, the evidence it needs, its rule, its function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stages.verdict.claims import (
    alignment,
    binding,
    compositional,
    compression,
    data,
    mechanism,
    memory,
    perplexity,
    retrieval,
    saturation,
    schedule,
    summaries,
)
from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.verdict import Finding, Verdict, unique_sources


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


_BEHIND = "behind the positive control (full attention finds it, local attention does not)"


def _level(rules: ClaimsConfig) -> str:
    return f"{rules.minimum_seeds} seeds or more, {1 - rules.alpha:.0%} intervals over seeds and items"


def _gap(rules: ClaimsConfig) -> str:
    margins = {
        "perplexity": f"{rules.schedule.margin:.0%} perplexity",
        "retrieval": f"{100 * rules.schedule.retrieval_margin:g} points of passkeys",
    }
    return " or ".join(margins[measure] for measure in rules.schedule.measures)


def _binding_rule(rules: ClaimsConfig) -> str:
    return (
        f"supported: at every k >= 2 accuracy is more than {rules.binding.margin:.0%} above the best reader that does "
        f"not bind (first, last, most frequent or any needle, the arm's answers to an absent word), in some memory arm "
        f"(Holm over arms); refuted: at every k it is less than that above the luckiest one (TOST), though one "
        f"needle is found at {rules.binding.learned:.0%} or better, {_BEHIND}; " + _level(rules)
    )


def _capacity_rule(rules: ClaimsConfig, what: str) -> str:
    return (
        f"{what}, {rules.capacity.feature_map}: supported: the point of {rules.capacity.accuracy:.0%} lies at or above "
        f"the feature dimension under every rule of update; refuted: its upper bound lies below it under every one; "
        f"{1 - rules.alpha:.0%} intervals over seeds"
    )


CLAIMS: list[Claim] = [
    Claim(
        "C1",
        "memory-is-used",
        "Is the memory branch more than decoration?",
        "A memory arm loses retrieval beyond the last segment when what is stored is exchanged or not read.",
        ("ablate", "control"),
        lambda r: (
            f"supported: {' and '.join(r.memory_is_used.knockouts)} each cost more than {r.memory_is_used.margin:.0%} "
            f"accuracy beyond the last segment in some memory arm (Holm over arms); refuted: each costs less than that "
            f"and less than {r.memory_is_used.perplexity_margin:.0%} perplexity in every one (TOST), {_BEHIND}; "
            + _level(r)
        ),
        memory.memory_is_used,
    ),
    Claim(
        "C2",
        "perplexity-from-memory",
        "Does compressive memory, not positional or schedule adaptation, lower perplexity?",
        "A memory arm has lower perplexity than the same model trained without its memory (local).",
        ("evaluate", "control"),
        lambda r: (
            f"same base, data order, steps and documents; supported: some memory arm is better than local (Holm over "
            f"arms); refuted: none is better by {r.perplexity_from_memory.margin:.0%} (TOST), although full attention "
            f"is, {_BEHIND}; arms whose held-out loss did not fall below their base's decide nothing; models that are "
            "fine-tuned on tasks are compared as they were before it; " + _level(r)
        ),
        perplexity.perplexity_from_memory,
    ),
    Claim(
        "C3",
        "retrieval",
        "Is a passkey found at any position of a long context?",
        "A memory arm finds the passkey wherever it stands beyond the last segment.",
        ("evaluate", "control"),
        lambda r: (
            f"at {f'{r.retrieval.length:,} tokens' if r.retrieval.length else 'the longest length evaluated'}: "
            f"supported: lower bound of accuracy at least {r.retrieval.threshold:.0%} over at least "
            f"{r.retrieval.minimum_trials} prompts, no part of the positions found below it; refuted: upper bound "
            f"below it in every memory arm, although the needle inside the last segment is found as often as asked, "
            f"and full attention finds it at that length ({r.retrieval.learned:.0%} or more, and more than the arm) "
            f"and local does not, {_BEHIND}; " + _level(r)
        ),
        retrieval.retrieval,
    ),
    Claim(
        "C4",
        "compositional",
        "Does it survive multi-key, multi-value, multi-query, variable tracking, aggregation, fact chains, QA?",
        "A memory arm solves every compositional task that it is asked at long context.",
        ("evaluate", "control"),
        lambda r: (
            f"every compositional task at "
            f"{f'{r.compositional.length:,} tokens' if r.compositional.length else 'its longest length'}: supported: "
            f"lower bound of the score at least {r.compositional.threshold:.0%} and above local attention's in each, "
            f"{r.compositional.kinds} kinds or more, at least {r.compositional.minimum_trials} prompts each, in some "
            f"memory arm (Bonferroni over arms); refuted: in every memory arm the upper bound of a task stays below "
            f"that (Bonferroni over tasks), although full attention does not stay below it as well, is ahead of the "
            f"arm and finds it ({r.compositional.learned:.0%} or more), and local does not, {_BEHIND}; " + _level(r)
        ),
        compositional.compositional,
    ),
    Claim(
        "C5a",
        "binding-in-control",
        "Can the memory bind values to keys at all, where it is the only path to the answer?",
        "A memory arm of the control answers with the asked key's value, at every number of rivals.",
        ("control",),
        lambda r: f"recall models of the control, which says nothing of passkeys in text; {_binding_rule(r)}",
        binding.binding_control,
    ),
    Claim(
        "C5b",
        "binding-in-text",
        "Is the asked passkey found among rival passkeys in a long text?",
        "A memory arm answers with the asked word's number, at every number of rivals.",
        ("evaluate", "control"),
        lambda r: f"trained arms on text; {_binding_rule(r)}",
        binding.binding_models,
    ),
    Claim(
        "C6a",
        "capacity-exact",
        "How many associations can be read back exactly?",
        "With the best keys the memory reads back exactly as many associations as its feature dimension.",
        ("capacity",),
        lambda r: _capacity_rule(r, "mechanism alone, best of learned and orthogonal keys, exact readout"),
        mechanism.exact_readout,
    ),
    Claim(
        "C6b",
        "capacity-recall",
        "How many associations can be told apart?",
        "With the best keys the memory recalls (nearest value) at least as many associations as its feature dimension.",
        ("capacity",),
        lambda r: _capacity_rule(r, "mechanism alone, best of learned and orthogonal keys, nearest stored value"),
        mechanism.recall,
    ),
    Claim(
        "C6c",
        "capacity-trained",
        "How many associations do the trained models' own keys hold?",
        "With the keys that training made the memory recalls as many associations as its feature dimension.",
        ("ablate",),
        lambda r: _capacity_rule(r, "keys of the trained memory arms on held-out text, mean over heads, nearest value"),
        mechanism.trained_models,
    ),
    Claim(
        "C7",
        "saturation",
        "When does the delta rule forget or blow up?",
        "The delta rule stays stable over training and over documents longer than its sequences.",
        ("pretrain", "ablate"),
        lambda r: (
            f"each seed's worst reading, training and held-out documents: supported: the interval of the erase "
            f"eigenvalue over seeds stays within {r.saturation.erase_lambda_max:g} and that of |M| (along documents: "
            f"per token read) within {r.saturation.norm_growth:g} times its early median, and no seed passes one; "
            f"refuted: an interval lies above its limit"
        ),
        saturation.saturation,
    ),
    Claim(
        "C8",
        "data-are-clean",
        "Are the evaluation documents disjoint from the training corpus?",
        "No evaluation document is covered by training documents after the audit.",
        ("decontaminate", "certify"),
        lambda r: (
            f"supported: no evaluation document is covered above {r.clean_data.coverage_limit:.0%} of its words after "
            f"the audit, nor above {r.clean_data.containment_limit:.0%} of its 13-grams in an independent count, and "
            f"at least {r.clean_data.canary_recall:.0%} of the planted canaries were acted on, and the base was "
            "trained here or its text audited as well; refuted: one is"
        ),
        data.clean_data,
    ),
    Claim(
        "C9a",
        "compression-published",
        "Does the published ratio of 114 follow from the paper's configuration?",
        "The published ratio follows from the formulas, and real states are as small as the formulas say.",
        (),
        lambda r: (
            f"supported: the ratio is {r.compression.ratio:g} within {r.compression.tolerance:.0%} and the measured "
            f"state of every arm equals its formula; refuted otherwise"
        ),
        compression.published,
    ),
    Claim(
        "C9b",
        "compression-honest",
        "Is a model with this memory 114 times smaller in what it holds while it reads?",
        "The ratio also holds with the live segment's keys and values, which both models need, on both sides.",
        (),
        lambda r: (
            f"supported: at least {r.compression.ratio:g} within {r.compression.tolerance:.0%}; refuted otherwise"
        ),
        compression.with_live_segment,
    ),
    Claim(
        "C10",
        "summarization",
        "Is book summarization better beyond ROUGE?",
        "Memory arms summarize better.",
        ("summarize",),
        lambda r: (
            f"people, judge and entailment, each where it prefers a text's own reference to another book's; books "
            f"drawn: "
            f"supported: in some memory arm one of them prefers its summaries to local's (Holm over arms and sources), "
            f"and to lead and shuffled ones, none contradicting; refuted: each excludes a gain of "
            f"{r.summarization.margin:.0%} in every one (TOST); never on ROUGE alone; books in the training corpus are "
            f"left out; " + _level(r)
        ),
        summaries.summarization,
    ),
    Claim(
        "C11",
        "alignment",
        "Does instruction tuning silently remove long-context ability?",
        "A memory arm keeps its long-context retrieval and perplexity through alignment.",
        ("align", "evaluate"),
        lambda r: (
            f"on the same items before and after {' and '.join(r.alignment.variants or ('every alignment',))}, in "
            f"every memory arm: refuted: one finds "
            f"{r.alignment.margin:.0%} fewer passkeys beyond the last segment"
            f"{f' (up to {r.alignment.length:,} tokens)' if r.alignment.length else ''}, although local attention "
            f"keeps those inside its own, or its perplexity beyond the first segment rises by "
            f"{r.alignment.perplexity_margin:.0%} more than local's (Holm over all); supported: such losses are "
            f"excluded in each (TOST); " + _level(r)
        ),
        alignment.alignment,
    ),
    Claim(
        "C12",
        "schedule",
        "How sensitive are the gains to the baseline's training schedule?",
        "A memory arm's gain outlasts every schedule of the baseline that was tried.",
        ("evaluate", "control"),
        lambda r: (
            f"{' and '.join(r.schedule.measures)} against {' and '.join(r.schedule.baselines)} on every schedule; "
            f"supported: some memory arm is ahead of each of them on one of its own schedules, the same in every "
            f"measure (Holm over those and the arms), {r.schedule.minimum} or more other schedules trained; refuted: "
            f"in every memory arm, on every schedule of it, a gap of {_gap(r)} to some schedule of the baseline is "
            f"excluded (TOST, Bonferroni over them), where its own schedule had shown one, or {_BEHIND}; undertrained "
            "arms decide nothing; " + _level(r)
        ),
        schedule.schedule,
    ),
    Claim(
        "C13",
        "seeds",
        "Is the gap larger than run-to-run variance?",
        "A memory arm's perplexity is lower than local's by more than runs vary.",
        ("evaluate", "control"),
        lambda r: (
            f"seeds are the unit, the margin is fixed here: supported: over seeds the gap in favour of a memory arm is "
            f"larger than {r.seeds.margin:.1%} (t, Holm over arms); refuted: a gap of {r.seeds.margin:.1%} in its "
            f"favour is excluded in every one (TOST), although full attention gains, {_BEHIND}; undertrained arms "
            f"decide nothing; models that are fine-tuned on tasks are compared as they were before it; "
            f"{r.minimum_seeds} seeds or more, alpha {r.alpha:g}"
        ),
        perplexity.seeds,
    ),
]


def register(claim: Claim) -> None:
    """Add a row to the table, at its end. Raises ValueError if another has its id."""
    if any(known.id == claim.id for known in CLAIMS):
        raise ValueError(f"claim {claim.id!r}: there is one already. Fix: another id")
    CLAIMS.append(claim)


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
