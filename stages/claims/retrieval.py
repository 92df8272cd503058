"""C3 retrieval (one passkey) and C5 binding (the asked key among rivals)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.claims.effects import effect, holm, percent, points, proportion
from stages.claims.evidence import BEYOND, WITHIN, Evidence, Paired, paired
from stages.claims.gate import behind_gate
from stages.claims.verdict import Finding, Number, conclude, decided, not_measured

if TYPE_CHECKING:
    import pandas as pd

TABLE = "retrieval.parquet"


def passkey(evidence: Evidence, arm: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Passkey prompts of one arm with the needle beyond, and within, the last segment."""
    table = evidence.retrieval
    if not len(table):
        return table, table
    rows = table[(table["arm"] == arm) & (table["task"] == "passkey")]
    beyond = rows["beyond_local"].astype(bool)
    return rows[beyond], rows[~beyond]


def accuracy(evidence: Evidence, arm: str, rows: pd.DataFrame, *, name: str, label: str, row_filter: str) -> Number:
    """Accuracy of one arm: the wider of Wilson's interval over prompts and the hierarchical one over seeds.

    Wilson's alone would count the same prompt under three seeds as three; the hierarchical one alone has width 0 where
    every prompt agrees.
    """
    from dataclasses import replace

    from stages.statistics.intervals import hierarchical

    rules = evidence.rules
    sources = evidence.sources("evaluate", TABLE, row_filter, arm)
    number = proportion(name, label, rows["correct"].tolist(), sources=sources, rules=rules)
    table = rows.pivot_table(index="seed", columns="item", values="correct", aggfunc="mean").dropna(axis=1)
    if table.shape[0] < 2 or table.shape[1] < 2:
        return number
    seeds = hierarchical(table.to_numpy(float), level=1 - rules.alpha)
    low, high = min(number.low or 0.0, seeds.low), max(number.high or 0.0, seeds.high)
    method = f"wider of Wilson and {seeds.method}"
    return replace(number, low=max(0.0, low), high=min(1.0, high), method=method)


def retrieval(evidence: Evidence) -> Finding:
    """C3: accuracy at the deciding length, per memory arm, over all depths beyond the local window."""
    if not evidence.memory_arms:
        return not_measured("the study has no arm with a compressive memory")
    rows, others = [], []
    for arm in evidence.memory_arms:
        beyond, within = passkey(evidence, arm)
        if not len(beyond):
            continue
        length = evidence.rules.retrieval.length or int(beyond["length"].max())
        at = beyond[beyond["length"] == length]
        if not len(at):
            return not_measured(f"no passkey prompt of {length:,} tokens was evaluated (claims.retrieval.length)")
        row = accuracy(
            evidence,
            arm,
            at,
            name=f"passkey.{arm}",
            label=f"{arm} at {length:,} tokens",
            row_filter=f"task == 'passkey' and length == {length} and {BEYOND}",
        )
        inside = None
        if len(within):
            inside = accuracy(
                evidence,
                arm,
                within,
                name=f"passkey_within.{arm}",
                label=f"{arm}, needle inside the window",
                row_filter=f"task == 'passkey' and {WITHIN}",
            )
            others.append(inside)
        rows.append(_judge_passkey(evidence, arm, row, at, inside))
    if not rows:
        return not_measured("no evaluation of a memory arm has passkey prompts beyond the local window")
    return conclude(rows, others)


def _judge_passkey(evidence: Evidence, arm: str, row: Number, at: pd.DataFrame, inside: Number | None) -> Number:
    from stages.statistics.intervals import wilson

    rules, rule = evidence.rules, evidence.rules.retrieval
    low, high = row.low or 0.0, row.high or 0.0
    per_seed = at.groupby("seed")["correct"].mean()
    text = f"{percent(row.estimate)} [{percent(low)}, {percent(high)}], seeds " + ", ".join(
        percent(x, 0) for x in per_seed
    )
    if len(per_seed) < rules.minimum_seeds:
        few = f"{len(per_seed)} of {rules.minimum_seeds} seeds"
        return decided(row, "inconclusive", f"{text}; {few}", "too few seeds", few)
    depths = at.groupby("depth")["correct"].agg(["sum", "count"])
    level = 1 - rules.alpha / len(depths)  # Bonferroni over depths
    failing = [
        depth
        for depth, cell in depths.iterrows()
        if wilson(round(float(cell["sum"])), int(cell["count"]), level=level).high < rule.threshold
    ]
    if high < rule.threshold:
        if inside is None:
            note = f"{text}; no prompt has its needle inside the window, so a failure cannot be laid to the memory"
            return decided(row, "inconclusive", note, "task not learned", "no needle stood inside the window")
        if (inside.low or 0.0) < rule.learned:
            note = f"{text}; inside the window {percent(inside.estimate)}: the task itself was not learned"
            return decided(
                row, "inconclusive", note, "task not learned", "the passkey is not found inside the window either"
            )
        note = f"{text} stays below {rule.threshold:.0%} (inside the window {percent(inside.estimate)})"
        short = f"below {rule.threshold:.0%}, though {percent(inside.estimate, 0)} inside the window"
        return behind_gate(evidence, arm, decided(row, "refuted", note, short=short))
    if len(at) < rule.minimum_trials:
        few = f"{len(at)} of {rule.minimum_trials} prompts"
        return decided(row, "inconclusive", f"{text}; {few}", "underpowered", few)
    if low >= rule.threshold and not failing:
        short = f"at least {rule.threshold:.0%} at every depth"
        return decided(row, "supported", f"{text} clears {rule.threshold:.0%} at every depth", short=short)
    where = f"; fails at depth {', '.join(f'{depth:.2g}' for depth in failing)}" if failing else ""
    short = f"the interval straddles {rule.threshold:.0%}{where}"
    return decided(row, "inconclusive", f"{text} straddles {rule.threshold:.0%}{where}", "underpowered", short)


def binding(evidence: Evidence) -> Finding:
    """C5: accuracy above 1/k among k >= 2 rivals, Holm over memory arms."""
    rules, rule = evidence.rules, evidence.rules.binding
    if not evidence.memory_arms:
        return not_measured("the study has no arm with a compressive memory")
    collect = _control_excess if rule.evidence == "control" else _model_excess
    found = [(arm, collected) for arm in evidence.memory_arms if (collected := collect(evidence, arm)) is not None]
    others = [number for arm in evidence.memory_arms for number in control_accuracies(evidence, arm)]
    if not found:
        what = "control" if rule.evidence == "control" else "evaluation"
        return not_measured(f"no {what} of a memory arm has rows with k >= 2 rivals", others)
    effects = [effect(pair, rules, null=rule.margin) for _, (pair, _, _) in found]
    adjusted = holm([one.p for one in effects])
    rows = []
    for (arm, (_, single, template)), one, p in zip(found, effects, adjusted, strict=True):
        row = Number(
            f"binding.{arm}", arm, one.estimate, one.low, one.high, one.items * one.seeds,
            "accuracy above 1/k", one.method, template.sources,
        )  # fmt: skip
        text = f"{points(one.estimate)} above 1/k" + (
            f", single needle {percent(single)}" if single is not None else ", no single needle (k = 1) asked"
        )
        if one.seeds < rules.minimum_seeds:
            few = f"{one.seeds} of {rules.minimum_seeds} seeds"
            row = decided(row, "inconclusive", f"{text}; {few}", "too few seeds", few)
        elif p < rules.alpha and one.low > rule.margin:
            note = f"{text}, more than {rule.margin:.0%}, Holm p = {p:.2g}"
            row = decided(
                row, "supported", note, short=f"more than {rule.margin:.0%} above knowing only the set of values"
            )
        elif single is None or single < rule.learned:
            note = f"{text}: not even one needle is retrieved"
            row = decided(row, "inconclusive", note, "task not learned", "not even one needle is retrieved")
        elif one.narrow_high < rule.margin:
            short = "the set of values is known, their binding to keys is not (TOST)"
            row = behind_gate(evidence, arm, decided(row, "refuted", f"{text}: {short}", short=short))
        else:
            least = rule.margin + one.detectable
            note = f"{text}, Holm p = {p:.2g}; detectable at {rules.power:.0%} power: {least:.1%}"
            short = f"only {least:.0%} above 1/k would have been detected"
            row = decided(row, "inconclusive", note, "underpowered", short)
        rows.append(row)
    return conclude(rows, others)


Excess = tuple[Paired, float | None, Number]


def _model_excess(evidence: Evidence, arm: str) -> Excess | None:
    """correct - 1/k per prompt beyond the window, the accuracy at k = 1, and the rows used."""
    table = evidence.retrieval
    if not len(table):
        return None
    rows = table[(table["arm"] == arm) & table["beyond_local"].astype(bool)]
    many = rows[(rows["task"] == "bindings") & (rows["rivals"] >= 2)]
    if not len(many):
        return None
    pair = paired(many, many.assign(correct=1.0 / many["rivals"]), "item", "correct")
    assert pair is not None
    single = rows[((rows["task"] == "bindings") & (rows["rivals"] == 1)) | (rows["task"] == "passkey")]
    known = float(single["correct"].mean()) if len(single) else None
    sources = evidence.sources("evaluate", TABLE, f"task == 'bindings' and rivals >= 2 and {BEYOND}", arm)
    return pair, known, Number("", arm, 0.0, sources=sources)


def _control_excess(evidence: Evidence, arm: str) -> Excess | None:
    """Mean accuracy above chance over k >= 2 at the end of the control, one value per seed."""
    import numpy as np

    table = evidence.control_end()
    if not len(table):
        return None
    rows = table[table["arm"] == arm]
    many = rows[rows["k"] >= 2].groupby("seed")[["accuracy", "chance"]].mean()
    if not len(many):
        return None
    single = rows[rows["k"] == 1]["accuracy"]
    pair = Paired(
        many["accuracy"].to_numpy(float)[:, None],
        many["chance"].to_numpy(float)[:, None],
        np.ones(1),
        tuple(int(seed) for seed in many.index),
        ("mean over k",),
    )
    sources = evidence.sources("control", "control.parquet", "k >= 2 and step == step.max()", arm)
    return pair, float(single.mean()) if len(single) else None, Number("", arm, 0.0, sources=sources)


def control_accuracies(evidence: Evidence, arm: str) -> list[Number]:
    """Accuracy of the positive control per k, mean over seeds with the pooled Wilson interval."""
    table = evidence.control_end()
    if not len(table):
        return []
    numbers = []
    for k, rows in table[table["arm"] == arm].groupby("k"):
        trials = rows["trials"].sum()
        hits = round(float((rows["accuracy"] * rows["trials"]).sum()))
        sources = evidence.sources("control", "control.parquet", f"k == {k} and step == step.max()", arm)
        correct = [1.0] * hits + [0.0] * (int(trials) - hits)
        label = f"{arm}, control, k = {k}"
        numbers.append(proportion(f"control.{arm}.k{k}", label, correct, sources=sources, rules=evidence.rules))
    return numbers
