"""Artifacts of a whole study with known properties, for tests of claims and report.

``Synthetic`` makes the tables of docs/formats.md; each knob is the truth a verdict should find. Prompts are the real
ones, answered by readers of known skill. Tables are kept in memory (``evidence``) and written where an artifact is
asked for (``inputs``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from model.config import MixerConfig, TrunkConfig
from stages.data.tasks.config import RetrievalConfig
from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.claims.evidence import Evidence
from tests.stages import readers
from tests.stages.readers import Reader
from tests.support import LocalArtifact

SEGMENT = 64
ARMS = {
    "infini-linear": MixerConfig(kind="infini", segment_length=SEGMENT, rule="linear"),
    "infini-delta": MixerConfig(kind="infini", segment_length=SEGMENT, rule="delta"),
    "local": MixerConfig(kind="local", segment_length=SEGMENT),
    "sliding-window": MixerConfig(kind="window", segment_length=SEGMENT),
    "full": MixerConfig(kind="full", segment_length=SEGMENT),
}
CONTROL_ARMS = {
    name: MixerConfig(kind=kind, segment_length=16, **options)
    for name, kind, options in (
        ("full", "full", {}),
        ("local", "local", {}),
        ("infini-linear", "infini", {"rule": "linear"}),
        ("infini-delta", "infini", {"rule": "delta"}),
    )
}
TRUNK = TrunkConfig(dim=96, layers=3, heads=3)
MEMORY = ("infini-linear", "infini-delta")
K = (1, 2, 4, 8)
ASKED = RetrievalConfig(
    format="compact", lengths=(64, 256, 512), trials=160, rivals=(1, 2, 4), binding_trials=60, control_trials=30
)
KNOCKED = RetrievalConfig(
    format="compact", lengths=(512,), trials=60, rivals=(1, 2), binding_trials=30, control_trials=0
)
LOCAL = readers.inside(SEGMENT)  # what a model without memory can do
KNOCKOUTS = ("gate_closed", "reset", "swap", "zero_read")
EFFECT = {"infini-linear": -0.08, "infini-delta": -0.06, "full": -0.10, "sliding-window": -0.02}


@dataclass
class Synthetic:
    """Truths. Effects are in nats per token (negative: better than local)."""

    directory: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    documents: int = 40
    effect: Mapping[str, float] = field(default_factory=lambda: EFFECT)
    seed_noise: float = 0.004  # sd of a run (arm and seed), nats per token
    base: float = 0.3  # nats that the base is worse than local
    gap_of_seed: Mapping[int, float] = field(default_factory=dict)  # added to the memory arms' effect in that seed
    draw: int = 0  # another draw of all noise
    schedules: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """name -> arm -> nats per token that the schedule adds to what the arm has on its own."""
    run_effect: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """(arm on any schedule, seed) -> nats added to that run alone."""
    reader: Reader = readers.perfect  # of the memory arms
    full: Reader = readers.perfect
    local: Reader = LOCAL
    reader_of: Mapping[str, Reader] = field(default_factory=dict)  # of an arm on another schedule
    composed: Reader = readers.complete  # of the memory arms, further tasks
    composed_full: Reader = readers.complete
    composed_local: Reader = readers.never
    knocked: Mapping[str, Reader] = field(default_factory=dict)  # default: what the local arm can do
    knocked_nats: float = 0.07
    aligned: Mapping[str, Reader] = field(default_factory=dict)  # after alignment, by arm; default: as before
    aligned_nats: Mapping[str, float] = field(default_factory=dict)  # added by alignment, by arm
    asked: RetrievalConfig = ASKED
    control: Mapping[int, float] = field(default_factory=lambda: dict.fromkeys(K, 1.0))
    control_full: float = 1.0
    control_local: float = 1 / 16
    control_rows: Mapping[str, float] = field(default_factory=dict)  # accuracy of rows of feature maps
    coverage_after: float = 0.0
    containment: float | None = 0.0
    canaries_acted: int = 40
    lambda_max: float = 1.4
    lambda_of_seed: Mapping[int, float] = field(default_factory=dict)  # in training, in place of lambda_max
    lambda_reading: float | None = 1.5
    title: str = "A plain title"
    tables: dict[str, dict[str, pd.DataFrame]] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, step: str, tables: Mapping[str, pd.DataFrame], documents: Mapping[str, Any] | None = None) -> None:
        """Make one artifact an input."""
        self.tables[step], self.files[step] = dict(tables), dict(documents or {})

    @property
    def inputs(self) -> dict[str, LocalArtifact]:
        """The artifacts as folders."""
        made = {}
        for step, tables in self.tables.items():
            folder = self.directory / step.replace("/", "_")
            folder.mkdir(parents=True, exist_ok=True)
            for name, table in tables.items():
                table.to_parquet(folder / name, index=False)
            for name, value in self.files[step].items():
                (folder / name).write_text(json.dumps(value))
            made[step] = LocalArtifact(folder, _key(step))
        return made

    def evidence(self, rules: ClaimsConfig, **changed: Any) -> Evidence:
        """What the rules see, without a file being written."""
        return InMemory(self, rules, **changed)

    def runs(self) -> list[tuple[str, int]]:
        return [(arm, seed) for arm in ARMS for seed in self.seeds]

    def scheduled(self) -> list[tuple[str, str, int, float]]:
        """Name, arm, seed and effect of what other schedules were trained."""
        return [
            (f"{arm}@{name}", arm, seed, effect)
            for name, of in self.schedules.items()
            for arm, effect in of.items()
            for seed in self.seeds
        ]

    def rng(self, *parts: object) -> np.random.Generator:
        parts = (*parts, self.draw) if self.draw else parts
        return np.random.default_rng(int(hashlib.sha256(repr(parts).encode()).hexdigest()[:12], 16))

    # --- one method per stage ---------------------------------------------------------------------------------------
    def evaluate(self, *, text: bool = True, prompts: bool = True) -> Synthetic:
        """``text``, ``prompts``: which of the two tables to make (simulations need one)."""
        items = readers.prompts(self.asked, self.draw % 5) if prompts else ()
        for arm, seed in self.runs():
            tables = {}
            if text:
                tables["perplexity.parquet"] = self._perplexity(arm, seed, self._effect(arm, seed))
            if prompts:
                asked = readers.ask(self._reader(arm), items, seed, SEGMENT, f"{arm}{self.draw or ''}")
                tables["retrieval.parquet"] = asked
            if self.asked.tasks:
                others = self.composed_full if arm == "full" else self.composed_local
                reader = self.composed if arm in MEMORY else others
                further = readers.further(self.asked, self.draw % 5)
                tables["tasks.parquet"] = readers.ask_tasks(reader, further, seed, SEGMENT, f"{arm}{self.draw or ''}")
            self.add(f"evaluate/{arm}/{seed}", tables)
        for name, arm, seed, more in self.scheduled():
            tables = {}
            if text:
                effect = self._effect(arm, seed) + more + self.run_effect.get((name, seed), 0.0)
                tables["perplexity.parquet"] = self._perplexity(name, seed, effect)
            if prompts:
                reader = self.reader_of.get(name, self._reader(arm))
                tables["retrieval.parquet"] = readers.ask(reader, items, seed, SEGMENT, f"{name}{self.draw or ''}")
            self.add(f"evaluate/{name}/{seed}", tables)
        for seed in self.seeds:
            self.add(f"evaluate/base/{seed}", {"perplexity.parquet": self._perplexity("base", seed, self.base)})
        return self

    def _effect(self, arm: str, seed: int) -> float:
        more = self.run_effect.get((arm, seed), 0.0)
        return more + self.effect.get(arm, 0.0) + (self.gap_of_seed.get(seed, 0.0) if arm in MEMORY else 0.0)

    def _reader(self, arm: str) -> Reader:
        return self.reader if arm in MEMORY else self.full if arm == "full" else self.local

    def _perplexity(self, arm: str, seed: int, effect: float) -> pd.DataFrame:
        """Two buckets a document: the first segment, and the rest, where a memory can act."""
        level = self.rng("documents").normal(3.4, 0.3, self.documents)
        run = self.rng("run", arm, seed).normal(0, self.seed_noise)
        noise = self.rng("doc", arm).normal(0, 0.01, self.documents)
        size = np.where(np.arange(self.documents) % 4 == 0, 512, 1024)
        names = np.array([f"doc-{doc:03}" for doc in range(self.documents)])
        parts = []
        for start in (0, SEGMENT):
            tokens = np.full(self.documents, SEGMENT) if start == 0 else size - SEGMENT
            nats = level + noise + run + (0.6 if start == 0 else 0.0) + (effect if start or arm == "base" else 0.0)
            parts.append(
                pd.DataFrame(
                    {
                        "doc_id": names,
                        "split": np.where(np.arange(self.documents) % 2, "test", "validation"),
                        "bucket_start": start,
                        "bucket_end": SEGMENT if start == 0 else 1024,
                        "nll_sum": nats * tokens,
                        "tokens": tokens,
                    }
                )
            )
        table = pd.concat(parts, ignore_index=True)
        table["words"], table["bytes"] = (table["tokens"] * 0.7).astype(int), table["tokens"] * 4
        return table

    def align(self, name: str = "sft") -> Synthetic:
        """Every arm evaluated again, on the same items, after an alignment called ``name``."""
        self.evaluate()
        items = readers.prompts(self.asked, self.draw % 5)
        for arm, seed in self.runs():
            moved = self.rng("aligned", arm, seed).normal(0, 0.002)  # by the training, whatever it teaches
            nats = self._effect(arm, seed) + self.aligned_nats.get(arm, 0.0) + moved
            reader = self.aligned.get(arm, self._reader(arm))
            label = f"{arm}@{name}"
            self.add(f"align/{label}/{seed}", {})
            self.add(
                f"evaluate/{label}/{seed}",
                {
                    "perplexity.parquet": self._perplexity(arm, seed, nats),
                    "retrieval.parquet": readers.ask(reader, items, seed, SEGMENT, f"{arm}{self.draw or ''}"),
                },
            )
        return self

    def ablate(self) -> Synthetic:
        items = [
            item
            for item in readers.prompts(KNOCKED, self.draw % 5)
            if item.task in ("passkey", "bindings") and item.beyond_local(SEGMENT)
        ]
        for arm, seed in self.runs():
            if arm not in MEMORY:
                continue
            perplexity, retrieval = [], []
            for knockout in ("none", *KNOCKOUTS):
                nats = 0.0 if knockout == "none" else self.knocked_nats
                table = self._perplexity(arm, seed, self._effect(arm, seed) + nats)
                perplexity.append(table.assign(knockout=knockout))
                reader = self.reader if knockout == "none" else self.knocked.get(knockout, self.local)
                name = f"{arm}{self.draw or ''}{knockout if knockout != 'none' else ''}"
                asked = readers.ask(reader, items, seed, SEGMENT, name)
                retrieval.append(asked.assign(knockout=knockout))
            rng = self.rng("gates", arm, seed)
            gates = [(layer, head, float(rng.beta(0.6, 0.8))) for layer in range(3) for head in range(3)]
            self.add(
                f"ablate/{arm}/{seed}",
                {
                    "perplexity.parquet": pd.concat(perplexity),
                    "retrieval.parquet": pd.concat(retrieval),
                    "gates.parquet": pd.DataFrame(gates, columns=["layer", "head", "gate"]),
                    "heads.parquet": self._heads(),
                    "saturation.parquet": self._saturation(arm),
                    "capacity.parquet": self._trained_capacity(arm, seed),
                },
            )
        return self

    def _heads(self) -> pd.DataFrame:
        """Head (0, 0) carries all of it, the others nothing."""
        rows = [
            (layer, head, knockout, f"item-{i}", int((layer, head) != (0, 0)), 1)
            for knockout in ("swap", "gate_closed")
            for layer in range(3)
            for head in range(3)
            for i in range(30)
        ]
        return pd.DataFrame(rows, columns=["layer", "head", "knockout", "item", "correct", "intact"])

    def _saturation(self, arm: str) -> pd.DataFrame:
        if self.lambda_reading is None:
            return pd.DataFrame(
                columns=["doc_id", "segment", "tokens", "layer", "head", "memory_norm", "z_min", "erase_lambda_max"]
            )
        delta = ARMS[arm].rule == "delta"
        rows = [
            (
                f"doc-{doc:03}",
                segment,
                (segment + 1) * SEGMENT,
                layer,
                head,
                20 + math.log1p(segment),
                3.0,
                self.lambda_reading if delta else math.nan,
                12.0,
            )
            for doc in range(2)
            for segment in range(20)
            for layer in range(3)
            for head in range(3)
        ]
        columns = ("doc_id segment tokens layer head memory_norm z_min erase_lambda_max effective_rank").split()
        return pd.DataFrame(rows, columns=columns)

    def _trained_capacity(self, arm: str, seed: int) -> pd.DataFrame:
        rows = [
            ("trained", "elu1", 32, ARMS[arm].rule, n, layer, head, *_held(n, 20.0 + seed, 4.0), 0.1)
            for n in (4, 8, 16, 32, 64)
            for layer in range(3)
            for head in range(3)
        ]
        columns = ("keys feature_map feature_dim rule associations layer head accuracy exact error").split()
        return pd.DataFrame(rows, columns=columns)

    def pretrain(self) -> Synthetic:
        for arm, seed in self.runs():
            rng, steps = self.rng("train", arm, seed), np.arange(1, 201)
            log = pd.DataFrame({"step": steps, "tokens": steps * 8192})
            log["loss"] = 2.8 + 3.2 * np.exp(-steps / 40) + rng.normal(0, 0.02, 200) + self.effect.get(arm, 0.0)
            log["lr"], log["grad_norm"], log["tokens_per_s"] = 1e-3, 1.0, 9000.0 + rng.normal(0, 300, 200)
            read = steps % 25 == 0
            if arm in MEMORY:
                log["gate_mean"] = np.where(read, 0.5 + 0.2 * steps / 200, np.nan)
                log["gate_min"], log["gate_max"] = log["gate_mean"] - 0.2, log["gate_mean"] + 0.2
                log["memory_norm"] = np.where(read, 20 + steps / 40, np.nan)
                log["z_min"] = np.where(read, 3.0, np.nan)
                peak = self.lambda_of_seed.get(seed, self.lambda_max) if ARMS[arm].rule == "delta" else math.nan
                log["erase_lambda_max"] = np.where(read, peak, np.nan)
            cost = {
                "parameters": 612_345,
                "flops_per_token": 2.4e6,
                "tokens_per_s": 9000.0,
                "wall_s": 14.0,
                "state_elements": 3 * 3 * 33 * 32 if arm in MEMORY else 0,
                "state_bytes": 3 * 3 * 33 * 32 * 4 if arm in MEMORY else 0,
                "live_kv_elements": 2 * 3 * 96 * SEGMENT,
                "live_kv_bytes": 2 * 3 * 96 * SEGMENT * 4,
            }
            self.add(f"pretrain/{arm}/{seed}", {"train_log.parquet": log}, {"cost.json": cost})
        return self

    def positive_control(self) -> Synthetic:
        for arm in (*CONTROL_ARMS, *self.control_rows):
            for seed in self.seeds:
                rows = []
                cells = [(100, 4, "filler", "none"), (200, 4, "filler", "none"), (200, 12, "filler", "none")]
                cells += [(200, 12, "pairs", "none")]
                cells += [(200, 4, "filler", knockout) for knockout in KNOCKOUTS] if arm in MEMORY else []
                for step, segments, between, knockout in cells:
                    for k in K:
                        p = self.control[k] if arm in MEMORY else self.control_full if arm == "full" else 0.0
                        p = self.control_local if arm == "local" else 1 / 16 if knockout != "none" else p
                        p = self.control_rows.get(arm, p)
                        p = max(p * (0.4 if step == 100 else 1.0), 1 / 16)
                        hits = int(self.rng("control", arm, seed, k, step, knockout, segments).binomial(2048, p))
                        rows.append((step, k, segments, between, knockout, hits, 2048, hits / 2048, 1 / k, 1 / 16, 1.0))
                columns = ("step k segments between knockout hits trials accuracy chance guess loss").split()
                self.add(f"control/{arm}/{seed}", {"control.parquet": pd.DataFrame(rows, columns=columns)})
        return self

    def capacity(self, learned: float = 120.0, exact: float = 60.0) -> Synthetic:
        """``learned``, ``exact``: number of associations at which half are recalled, or read exactly, with the best
        keys of elu1; random ones hold a twentieth."""
        rows = []
        for name, dim, scale in (("elu1", 64, 1.0), ("dpfp1", 128, 2.0)):
            for rule in ("linear", "delta"):
                for keys in ("random", "orthogonal", "learned", "learned-exact"):
                    share = 0.05 if keys == "random" else 1.0
                    for n in (2, 4, 8, 16, 24, 32, 40, 48, 56, 60, 64, 80, 100, 128, 200, 256, 340):
                        for seed in range(5):
                            if keys == "orthogonal" and n > dim // 2:
                                continue
                            recalled, _ = _held(n, learned * share * scale, 2 * scale)
                            read, _ = _held(n, exact * share * scale, 1.0 * scale)
                            rows.append((keys, name, dim, 64, rule, n, seed, recalled, 1 - read, read))
        columns = ("keys feature_map feature_dim d_key rule associations seed accuracy error exact").split()
        overwrite = [
            ("elu1", rule, n, seed, 0.9 if rule == "delta" else 0.5, 0.1 if rule == "delta" else 0.5)
            for rule in ("linear", "delta")
            for n in (8, 16, 32)
            for seed in range(3)
        ]
        forgetting = [
            ("learned", "elu1", rule, later, seed, 1 / (1 + later / 64))
            for rule in ("linear", "delta")
            for later in (0, 16, 64)
            for seed in range(3)
        ]
        self.add(
            "capacity",
            {
                "capacity.parquet": pd.DataFrame(rows, columns=columns),
                "overwrite.parquet": pd.DataFrame(
                    overwrite,
                    columns=["feature_map", "rule", "associations", "seed", "new_value_accuracy", "old_value_accuracy"],
                ),
                "forgetting.parquet": pd.DataFrame(
                    forgetting, columns=["keys", "feature_map", "rule", "later", "seed", "accuracy"]
                ),
            },
        )
        return self

    def decontaminate(self) -> Synthetic:
        books = pd.DataFrame(
            {
                "book_id": [f"doc-{i:03}" for i in range(self.documents)],
                "title": [self.title if i == 1 else f"Volume {i}" for i in range(self.documents)],
                "split": ["test" if i % 2 else "validation" for i in range(self.documents)],
                "words": 12000,
                "coverage": [1.0 if i == 1 else 0.34 if i == 2 else 0.002 * (i % 3) for i in range(self.documents)],
                "coverage_after": [self.coverage_after if i == 1 else 0.0 for i in range(self.documents)],
                "documents": 1,
                "top_document": "train-7",
            }
        )
        decisions = pd.DataFrame(
            {
                "doc_id": [f"train-{i}" for i in range(90)],
                "book_id": ["doc-001" if i < 9 else None for i in range(90)],
                "action": ["drop"] * 3 + ["cut"] * 4 + ["note"] * 2 + ["keep"] * 81,
                "reason": "",
                "matched_words": 0,
                "longest_words": 0,
                "document_share": 0.0,
                "book_share": 0.0,
                "bytes_in": 60000,
                "bytes_out": [0] * 3 + [55000] * 4 + [60000] * 83,
            }
        )
        canaries = pd.DataFrame(
            {
                "kind": ["whole", "excerpt"],
                "planted": [20, 20],
                "found": [20, 20],
                "acted": [20, self.canaries_acted - 20],
            }
        )
        self.add(
            "decontaminate",
            {"books.parquet": books, "decisions.parquet": decisions, "canaries.parquet": canaries},
            {"audit.json": {"training_documents": 90}},
        )
        if self.containment is not None:
            share = [self.containment if i == 1 else 0.001 for i in range(self.documents)]
            counted = books[["book_id", "title", "split"]].assign(
                ngrams=11000, share=share, longest=14, top_document="train-7"
            )
            counted["contained"] = (counted["ngrams"] * counted["share"]).astype(int)
            self.add("certify", {"containment.parquet": counted})
        return self

    def summarize(self) -> Synthetic:
        """Texts of one document each, at two lengths, with the summaries that no model wrote beside them."""
        for arm, seed in self.runs():
            rng, rows = self.rng("rouge", arm, seed), []
            for task, lengths in (("continue", ("400",)), ("condense", ("400", "whole"))):
                for length in lengths:
                    rows += [_summary(rng, task, doc, length) for doc in range(12)]
            self.add(f"summarize/{arm}/{seed}", {"summaries.parquet": pd.DataFrame(rows)})
        rng = self.rng("rouge", "baselines", 0)
        made = [
            {"system": system, **_summary(rng, task, doc, "", shift)}
            for task in ("continue", "condense")
            for system, shift in (("lead", 0.02), ("central", 0.0), ("shuffled", -0.05))
            for doc in range(12)
        ]
        self.add("references", {"baselines.parquet": pd.DataFrame(made)})
        return self

    def everything(self) -> Synthetic:
        return self.decontaminate().pretrain().evaluate().ablate().capacity().positive_control().summarize()


class InMemory(Evidence):
    """The evidence of a ``Synthetic``."""

    def __init__(self, study: Synthetic, rules: ClaimsConfig, **changed: Any) -> None:
        inputs = {step: LocalArtifact(study.directory, _key(step)) for step in study.tables}
        settings = {"arms": ARMS, "seeds": study.seeds, "trunk": TRUNK, "control_arms": CONTROL_ARMS}
        settings |= {"schedules": {name: tuple(of) for name, of in study.schedules.items()}} | changed
        super().__init__(inputs, rules=rules, **settings)
        self._study = study

    def table(self, step: str, name: str) -> pd.DataFrame:
        return self._study.tables.get(step, {}).get(name, pd.DataFrame()).copy()

    def document(self, step: str, name: str) -> dict[str, Any]:
        return dict(self._study.files.get(step, {}).get(name, {}))


def _key(step: str) -> str:
    return hashlib.sha256(step.encode()).hexdigest()


def _summary(rng: np.random.Generator, task: str, doc: int, length: str, shift: float = 0.0) -> dict[str, Any]:
    score = float(np.clip(rng.normal(0.12 + shift, 0.04), 0, 1))
    kinds = {"rouge1": score, "rouge2": score / 3, "rougeL": score, "rougeLsum": score, "rouge": score * 0.7}
    counted = {"names_kept": score, "words": 40.0, "copied": 0.1, "novel": 0.5, "repeated": 0.1}
    name = f"doc-{doc:03}"
    row = {"doc_id": name, "book": name, "task": task, "level": "document", "length": length}
    row |= {"prompt_tokens": 4000 if length == "whole" else 400, "decoding": "sample", "tokens": 40}
    row |= {"reference": "a reference", "hypothesis": "a hypothesis", **kinds, **counted}
    return row | {"names_true": 1.0, "numbers_true": None}


def _held(n: int, middle: float, width: float) -> tuple[float, float]:
    """(recalled, read exactly) of ``n`` associations where half are at ``middle``; exactly is half as far."""
    return 1 / (1 + math.exp((n - middle) / width)), 1 / (1 + math.exp(min(700, (n - middle / 2) / width)))
