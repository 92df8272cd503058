"""C10 against truths that are known: who writes better, which sources can tell, what a baseline does, on both sides."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.evidence.summarize.written import NO_SEED
from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.claims.evidence import Evidence
from stages.verdict.claims.table import CLAIMS, decide
from stages.verdict.claims.verdict import Verdict
from stages.verdict.report.summaries import numbers
from tests.stages.synthetic import ARMS, MEMORY, TRUNK, Synthetic

S, R, I = "supported", "refuted", "inconclusive"
RULES = ClaimsConfig()
C10 = next(claim for claim in CLAIMS if claim.id == "C10")


@dataclass
class Truth:
    """Chances that a memory arm's summary is preferred to local's (``gain``), to the lead (``lead``) and to another
    book's reference (``shuffled``), and a text's own reference to another's (``knows``); what entailment adds."""

    gain: float = 0.8
    lead: float = 0.8
    shuffled: float = 0.9
    knows: float = 0.97
    sources: tuple[str, ...] = ("judge",)
    human_gain: float | None = None
    nli: float = 0.15
    seeds: tuple[int, ...] = (0, 1, 2)
    books: int = 40
    chapters: int = 1
    trained: int = 0  # books found in the training corpus
    trained_gain: float | None = None
    arms: tuple[str, ...] = MEMORY  # those with the gain; the others of MEMORY have none
    changed: dict[str, Any] = field(default_factory=dict)


def study(truth: Truth, folder: Path) -> Synthetic:
    made = Synthetic(folder, seeds=truth.seeds)
    rng = np.random.default_rng(7)
    texts = [(f"book-{b}", f"book-{b}/{c}") for b in range(truth.books) for c in range(truth.chapters)]
    named = {"task": "condense", "level": "chapter"}
    for arm in ARMS:
        for seed in truth.seeds:
            rows = [
                {"doc_id": doc, "book": book, **named, "length": "400", "decoding": "sample", "prompt_tokens": 400}
                | {"rougeL": 0.1 + 0.05 * rng.random(), "rouge1": 0.2, "words": 30.0}
                for book, doc in texts
            ]
            made.add(f"summarize/{arm}/{seed}", {"summaries.parquet": pd.DataFrame(rows)})
    baselines = [
        {"system": system, "doc_id": doc, "book": book, **named, "rougeL": 0.2, "rouge1": 0.3, "words": 30.0}
        for system in ("lead", "shuffled")
        for book, doc in texts
    ]
    items = pd.DataFrame(
        [{"doc_id": doc, "book": book, **named, "rows": [n]} for n, (book, doc) in enumerate(texts, 1)]
    )
    made.add("references", {"baselines.parquet": pd.DataFrame(baselines), "items.parquet": items})
    audit = [{"task": "summarize", "item": n + 1, "id": f"book-{n}", "found": "id"} for n in range(truth.trained)]
    made.add("taskaudit", {"tasks.parquet": pd.DataFrame(audit, columns=["task", "item", "id", "found"])})
    for source in truth.sources:
        made.add(*(_rate(truth, rng, texts, named) if source == "nli" else _compare(truth, rng, texts, named, source)))
    return made


def _compare(
    truth: Truth, rng: np.random.Generator, texts: list[Any], named: dict[str, str], source: str
) -> tuple[str, dict[str, Any]]:
    rows = []
    gain = truth.human_gain if source == "human" and truth.human_gain is not None else truth.gain
    for book, doc in texts:
        trained = int(book.split("-")[1]) < truth.trained and truth.trained_gain is not None
        own = truth.trained_gain if trained else gain
        for arm in MEMORY:
            p = own if arm in truth.arms else 0.5
            seeds = truth.seeds if source == "judge" else [truth.seeds[rng.integers(len(truth.seeds))]]
            for seed in seeds:
                for other, chance in (("local", p), ("lead", truth.lead), ("shuffled", truth.shuffled)):
                    rows.append((arm, other, seed, doc, book, float(rng.random() < chance)))
        rows.append(("reference", "shuffled", NO_SEED, doc, book, float(rng.random() < truth.knows)))
    table = pd.DataFrame(rows, columns=["a", "b", "seed", "doc_id", "book", "score"]).assign(**named)
    return source, {"comparisons.parquet": table}


def _rate(
    truth: Truth, rng: np.random.Generator, texts: list[Any], named: dict[str, str]
) -> tuple[str, dict[str, Any]]:
    rows = []
    level = {"lead": truth.lead / 2, "shuffled": 0.1 if truth.knows > 0.6 else truth.lead / 2, "local": 0.5}
    for book, doc in texts:
        for system in (*ARMS, "lead", "shuffled"):
            for seed in truth.seeds if system in ARMS else (NO_SEED,):
                centre = level.get(system, 0.5 + (truth.nli if system in truth.arms else 0.0))
                decoding = "sample" if system in ARMS else ""
                rows.append((system, seed, decoding, doc, book, centre + 0.05 * rng.standard_normal()))
    table = pd.DataFrame(rows, columns=["system", "seed", "decoding", "doc_id", "book", "nli"]).assign(**named)
    return "rate", {"ratings.parquet": table.assign(embedding=None, bertscore=None)}


def verdict(truth: Truth, folder: Path) -> Verdict:
    return decide(C10, study(truth, folder).evidence(RULES))


DISAGREE = {"sources": ("human", "judge"), "gain": 0.2, "human_gain": 0.9, "chapters": 5}
ORACLE: list[tuple[str, dict[str, Any], str, str]] = [
    ("a judge prefers the memory arms, also to baselines", {}, S, ""),
    ("people do", {"sources": ("human",), "chapters": 5}, S, ""),
    ("entailment does", {"sources": ("nli",)}, S, ""),
    ("all three do", {"sources": ("human", "judge", "nli")}, S, ""),
    ("one memory arm of two", {"arms": MEMORY[:1]}, S, ""),
    ("books in the training corpus say the contrary", {"books": 80, "trained": 40, "trained_gain": 0.0}, S, ""),
    ("a judge sees no difference", {"gain": 0.5, "books": 400}, R, ""),
    ("memory arms are worse", {"gain": 0.2}, R, ""),
    ("no difference by entailment", {"sources": ("nli",), "nli": 0.0}, R, ""),
    ("worse in the eyes of people", {"sources": ("human",), "gain": 0.15}, R, ""),
    ("ROUGE alone, though a gain", {"sources": ()}, I, "ROUGE only"),
    ("a judge that knows nothing prefers them", {"knows": 0.5}, I, "judge cannot tell"),
    ("a judge that knows nothing sees nothing", {"gain": 0.5, "knows": 0.5, "books": 400}, I, "judge cannot tell"),
    ("entailment that cannot tell", {"sources": ("nli",), "knows": 0.5}, I, "nli cannot tell"),
    ("better than local, not than the lead", {"lead": 0.5}, I, "a baseline is as good"),
    ("better than local, not than another book's summary", {"shuffled": 0.4}, I, "a baseline is as good"),
    ("people prefer them, the judge does not", DISAGREE, I, "sources disagree"),
    ("one seed", {"seeds": (0,)}, I, "too few seeds"),
    ("few books", {"gain": 0.6, "books": 8}, I, "underpowered"),
    ("one book of many chapters", {"books": 1, "chapters": 60}, I, ""),
    ("every book in the training corpus", {"trained": 40}, I, ""),
]


@pytest.mark.parametrize(("what", "truth", "expected", "qualifier"), ORACLE, ids=[row[0] for row in ORACLE])
def test_the_verdict_is_what_the_truth_implies(what, truth, expected, qualifier, tmp_path):
    found = verdict(Truth(**truth), tmp_path)
    assert found.decision == expected, found.reason
    assert not qualifier or found.qualifier == qualifier, found.label
    assert found.summary and (found.decision != I or found.qualifier)


def test_every_source_is_a_row_with_its_decision_and_rouge_has_none(tmp_path):
    found = verdict(Truth(sources=("human", "judge", "nli")), tmp_path)
    rows = {n.name: n.decision for n in found.numbers if n.decision}
    assert {name.split(".")[0] for name in rows} >= {"human", "judge", "rouge"}  # nli among the metrics
    assert sum(name.endswith(".nli") for name in rows) == len(MEMORY)
    assert not any(name.endswith("rougeL") for name in rows)
    assert all(
        "no evidence: lead has 20.0%" in n.note for n in found.numbers if n.name.endswith("local.condense.rougeL")
    )


def test_false_alarms_are_as_rare_as_the_level_says(tmp_path):
    """Equal arms, 25 books, three seeds: supported in at most a few of many studies."""
    truth = Truth(gain=0.5, books=25)
    whole = study(truth, tmp_path)
    texts, named = [(f"book-{b}", f"book-{b}/0") for b in range(truth.books)], {"task": "condense", "level": "chapter"}
    wrong = 0
    for draw in range(40):
        whole.add(*_compare(truth, np.random.default_rng(draw), texts, named, "judge"))
        wrong += decide(C10, whole.evidence(RULES)).decision == S
    assert wrong <= 3


def test_the_report_says_what_judge_and_people_are_worth(tmp_path):
    """Judge and people agree on three of four; the numbers carry their tables."""
    made = study(Truth(books=4), tmp_path)
    named = {"task": "condense", "level": "chapter", "seed": 0}
    pairs = pd.DataFrame(
        [
            {"a": "infini-delta", "b": "local", "doc_id": f"book-{n}/0", "book": f"book-{n}", "score": score, **named}
            for n, score in enumerate((1.0, 1.0, 1.0, 0.0))
        ]
    )
    labels = pd.DataFrame(
        [{"system": "local", "doc_id": f"d{n}", "book": f"b{n}", "score": 0.5 + n / 10, **named} for n in range(3)]
    )
    quality = {"answers": 80, "malformed": 8, "first_wins": 0.7, "known_truth": 0.9, "self_agreement": None}
    made.add("judge", {"comparisons.parquet": pairs, "sentences.parquet": labels}, {"quality.json": quality})
    people = pairs.assign(score=1.0, item=[f"i{n}" for n in range(4)], raters=2, metrics='{"rouge1": 0.1, "words": -2}')
    shown = pd.concat([people.assign(rater=r, choice=["left", "right", "left", "right"]) for r in ("ann", "bob")])
    made.add("human", {"comparisons.parquet": people, "ratings.parquet": shown})
    evidence = Evidence(made.inputs, arms=ARMS, seeds=(0, 1, 2), trunk=TRUNK, rules=RULES)
    found = {n.name: n for n in numbers(evidence)}
    assert found["judge.people"].estimate == 0.75 and found["judge.first_wins"].estimate == 0.7
    assert found["judge.malformed"].estimate == 0.1 and "judge.self_agreement" not in found
    assert found["judge.sentences.local"].estimate == pytest.approx(0.6)
    assert found["human.wins.infini-delta.local"].estimate == 1 and found["human.alpha"].estimate == 1
    assert found["human.metric.rouge1"].estimate == 1 and found["human.metric.words"].estimate == 0
    assert found["human.strength.infini-delta"].estimate > 0
    assert all(n.sources for n in found.values())


def test_a_metric_that_another_books_summary_wins_is_marked_and_one_that_none_wins_is_not(tmp_path):
    made = study(Truth(sources=()), tmp_path)
    others = made.tables["references"]["baselines.parquet"]
    low = others.assign(rougeL=[0.3 if system == "shuffled" else 0.01 for system in others["system"]], rouge1=0.01)
    made.add("references", dict(made.tables["references"]) | {"baselines.parquet": low})
    found = {n.name: n for n in numbers(made.evidence(RULES))}
    for arm in ARMS:
        assert found[f"rouge.{arm}.condense.rougeL"].note == "no evidence: shuffled has 30.0%"
        assert found[f"rouge.{arm}.condense.rouge1"].note == ""


def test_books_in_the_training_corpus_stand_apart_in_every_table(tmp_path):
    """Their scores are others: 0.9 where the others' are 0.1 to 0.15."""
    made = study(Truth(sources=(), books=10, trained=4), tmp_path)
    known = [f"book-{n}" for n in range(4)]
    for step in [step for step in made.tables if step.startswith("summarize/")]:
        rows = made.tables[step]["summaries.parquet"]
        higher = rows.assign(
            rougeL=[0.9 if book in known else r for book, r in zip(rows["book"], rows["rougeL"], strict=True)]
        )
        made.add(step, {"summaries.parquet": higher})
    found = {n.name: n for n in numbers(made.evidence(RULES))}
    for arm in ARMS:
        own, apart = (found[f"rouge.{arm}.condense.rougeL{end}"] for end in ("", ".in_training"))
        assert 0.1 < own.estimate < 0.15 and own.n == 6
        assert apart.estimate == pytest.approx(0.9) and apart.n == 4 and "books in the training corpus" in apart.label


def test_the_figure_by_length_has_every_length_of_every_arm(tmp_path):
    made = study(Truth(sources=(), books=6), tmp_path)
    for step in [step for step in made.tables if step.startswith("summarize/")]:
        rows = made.tables[step]["summaries.parquet"].assign(rouge=0.1)
        longer = [
            rows.assign(length=name, prompt_tokens=read, rouge=rouge)
            for name, read, rouge in (("800", 800, 0.2), ("whole", 5000, 0.3))
        ]
        made.add(step, {"summaries.parquet": pd.concat([rows, *longer])})
    found = [n for n in numbers(made.evidence(RULES)) if n.name.startswith("summary_length.")]
    seen = {(n.text("arm"), n.integer("read"), round(n.estimate, 3)) for n in found}
    assert seen == {(arm, read, r) for arm in ARMS for read, r in ((400, 0.1), (800, 0.2), (5000, 0.3))}
    assert all(n.n == 6 and n.low is not None for n in found)


def test_a_judge_that_cannot_be_read_is_said_to_be_so(tmp_path: Path):
    """It was asked: "no judge in this study" would be wrong, and nothing of what it said decides."""
    made = study(Truth(sources=()), tmp_path)
    nothing = pd.DataFrame(columns=["a", "b", "seed", "doc_id", "book", "score", "task", "level"])
    made.add("judge", {"comparisons.parquet": nothing}, {"quality.json": {"answers": 62, "malformed": 58}})
    found = decide(C10, made.evidence(RULES))
    assert found.label == "inconclusive (no comparison counts)"
    assert "58 of the judge's 62 answers were unreadable" in found.reason and "none of them is part" not in found.reason
