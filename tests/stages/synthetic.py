"""Artifacts of a whole study with known properties, for tests of claims and report.

``Synthetic`` writes the tables of docs/formats.md; each knob is the truth a verdict should find.
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
from tests.support import LocalArtifact

SEGMENT = 64
ARMS = {
    "infini-linear": MixerConfig(kind="infini", segment_length=SEGMENT, rule="linear"),
    "infini-delta": MixerConfig(kind="infini", segment_length=SEGMENT, rule="delta"),
    "local": MixerConfig(kind="local", segment_length=SEGMENT),
    "sliding-window": MixerConfig(kind="window", segment_length=SEGMENT),
    "transformer-xl": MixerConfig(kind="xl", segment_length=SEGMENT),
}
TRUNK = TrunkConfig(dim=96, layers=3, heads=3)
MEMORY = ("infini-linear", "infini-delta")
LENGTHS = (128, 256, 512, 1024)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
K = (1, 2, 4, 8)


@dataclass
class Synthetic:
    """Truths. Effects are in nats per token (negative: better than local); accuracies are probabilities."""

    directory: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    documents: int = 40
    effect: Mapping[str, float] = field(default_factory=lambda: {"infini-linear": -0.08, "infini-delta": -0.06})
    seed_noise: float = 0.004  # sd between runs, nats per token
    passkey: float = 0.97
    within: float = 0.98
    binding: Mapping[int, float] = field(default_factory=lambda: {k: 1 / k for k in K})
    knockout_accuracy: float = 0.02
    knockout_nats: float = 0.07
    trials: int = 20
    control: Mapping[int, float] = field(default_factory=lambda: {1: 1.0, 2: 0.5, 4: 0.25, 8: 0.125})
    coverage_after: float = 0.0
    canaries_acted: int = 40
    lambda_max: float = 1.4
    title: str = "A plain title"
    inputs: dict[str, LocalArtifact] = field(default_factory=dict)

    def add(self, step: str, tables: Mapping[str, pd.DataFrame], documents: Mapping[str, Any] | None = None) -> None:
        """Write one artifact and register it as an input."""
        folder = self.directory / step.replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            table.to_parquet(folder / name, index=False)
        for name, value in (documents or {}).items():
            (folder / name).write_text(json.dumps(value))
        self.inputs[step] = LocalArtifact(folder, hashlib.sha256(step.encode()).hexdigest())

    def runs(self) -> list[tuple[str, int]]:
        return [(arm, seed) for arm in ARMS for seed in self.seeds]

    def rng(self, *parts: object) -> np.random.Generator:
        return np.random.default_rng(int(hashlib.sha256(repr(parts).encode()).hexdigest()[:12], 16))

    # --- one method per stage ---------------------------------------------------------------------------------------
    def evaluate(self) -> Synthetic:
        for arm, seed in self.runs():
            perplexity = self._perplexity(arm, seed, self.effect.get(arm, 0.01))
            self.add(
                f"evaluate/{arm}/{seed}",
                {"perplexity.parquet": perplexity, "retrieval.parquet": self._retrieval(arm, seed)},
            )
        return self

    def _perplexity(self, arm: str, seed: int, effect: float) -> pd.DataFrame:
        level = self.rng("documents").normal(3.4, 0.3, self.documents)
        run = self.rng("run", arm, seed).normal(0, self.seed_noise)
        rows = []
        for doc in range(self.documents):
            noise = self.rng("doc", doc, arm).normal(0, 0.01)
            start, size = 0, 1024 if doc % 4 else 512
            while start < size:
                end = max(SEGMENT, start * 2)
                gain = effect * (start >= SEGMENT) * (1 + math.log2(max(start, 1) / SEGMENT) / 6 if start else 0)
                nats = level[doc] + 0.6 * (start == 0) - 0.02 * math.log2(end) + gain + run + noise
                rows.append(
                    (
                        f"doc-{doc:03}",
                        "test" if doc % 2 else "validation",
                        start,
                        end,
                        nats * (end - start),
                        end - start,
                    )
                )
                start = end
        table = pd.DataFrame(rows, columns=["doc_id", "split", "bucket_start", "bucket_end", "nll_sum", "tokens"])
        table["words"] = (table["tokens"] * 0.7).astype(int)
        table["bytes"] = table["tokens"] * 4
        return table

    def _retrieval(self, arm: str, seed: int, skill: float | None = None, drop: str = "none") -> pd.DataFrame:
        rng, rows = self.rng("retrieval", arm, seed, drop), []
        memory = arm in MEMORY

        def ask(task: str, length: int, depth: float, k: int, trial: int, *, p: float, beyond: bool) -> None:
            right = int(rng.random() < p)
            expected = str(10000 + rng.integers(40000))
            rows.append(
                (task, f"{task}/{length}/{depth:g}/{k}/{trial}", length, length, depth, k, expected,
                 expected if right else "77", right, 0.05 if right else 6.0 + rng.random(), beyond)
            )  # fmt: skip

        for length in LENGTHS:
            for depth in DEPTHS:
                beyond = depth < 1.0
                p = (self.passkey if memory else 0.0) if beyond else self.within
                for trial in range(self.trials):
                    ask(
                        "passkey", length, depth, 1, trial, p=p if skill is None or not beyond else skill, beyond=beyond
                    )
            for trial in range(10):
                ask("passkey_absent", length, 0.5, 0, trial, p=0.0, beyond=True)
        for k in K:
            for trial in range(self.trials * 2):
                p = self.binding[k] if memory else 0.0
                ask("bindings", 1024, 0.25, k, trial, p=p if skill is None else skill, beyond=True)
            for trial in range(10):
                ask("bindings_absent", 1024, 0.25, k, trial, p=1 / k if memory else 0.0, beyond=True)
        columns = ["task", "item", "length", "prompt_tokens", "depth", "rivals", "expected", "answer", "correct",
                   "answer_nll", "beyond_local"]  # fmt: skip
        table = pd.DataFrame(rows, columns=columns)
        known = (table["task"] == "bindings") & memory
        return table.assign(in_set=table["correct"].where(~known, 1))

    def ablate(self) -> Synthetic:
        for arm, seed in self.runs():
            if arm not in MEMORY:
                continue
            perplexity, retrieval = [], []
            for knockout in ("none", "gate_closed", "reset", "swap", "zero_read"):
                nats = 0.0 if knockout == "none" else self.knockout_nats
                table = self._perplexity(arm, seed, self.effect.get(arm, 0.0) + nats)
                perplexity.append(table.assign(knockout=knockout))
                skill = None if knockout == "none" else self.knockout_accuracy
                retrieval.append(self._retrieval(arm, seed, skill, knockout).assign(knockout=knockout))
            rng = self.rng("gates", arm, seed)
            gates = [(layer, head, float(rng.beta(0.6, 0.8))) for layer in range(3) for head in range(3)]
            self.add(
                f"ablate/{arm}/{seed}",
                {
                    "perplexity.parquet": pd.concat(perplexity),
                    "retrieval.parquet": pd.concat(retrieval),
                    "gates.parquet": pd.DataFrame(gates, columns=["layer", "head", "gate"]),
                },
            )
        return self

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
                peak = self.lambda_max if ARMS[arm].rule == "delta" else math.nan
                log["erase_lambda_max"] = np.where(read, peak, np.nan)
            cost = {
                "parameters": 612_345, "flops_per_token": 2.4e6, "tokens_per_s": 9000.0, "wall_s": 14.0,
                "state_elements": 3 * 3 * 33 * 32 if arm in MEMORY else 0,
                "state_bytes": 3 * 3 * 33 * 32 * 4 if arm in MEMORY else 0,
                "live_kv_elements": 2 * 3 * 96 * SEGMENT, "live_kv_bytes": 2 * 3 * 96 * SEGMENT * 4,
            }  # fmt: skip
            self.add(f"pretrain/{arm}/{seed}", {"train_log.parquet": log}, {"cost.json": cost})
        return self

    def positive_control(self) -> Synthetic:
        for arm, seed in self.runs():
            if ARMS[arm].kind not in ("infini", "local"):
                continue
            rows = []
            for step in (100, 200):
                for k in K:
                    p = self.control[k] * (1.0 if step == 200 else 0.4) if arm in MEMORY else 1 / 64
                    hits = self.rng("control", arm, seed, k, step).binomial(512, p)
                    rows.append((k, hits / 512, 512, 1 / k, step, 1.0))
            columns = ["k", "accuracy", "trials", "chance", "step", "loss"]
            self.add(f"control/{arm}/{seed}", {"control.parquet": pd.DataFrame(rows, columns=columns)})
        return self

    def capacity(self, middle: float = 55.0) -> Synthetic:
        rows = []
        for name, dim, scale in (("elu1", 64, 1.0), ("dpfp1", 128, 2.0), ("dpfp2", 256, 4.0)):
            for rule in ("linear", "delta"):
                for n in (8, 16, 24, 32, 40, 48, 60, 80, 100, 128, 200, 256, 340):
                    for seed in range(5):
                        shift = middle * scale * (1.2 if rule == "delta" else 1.0)
                        accuracy = 1 / (1 + math.exp((n - shift) / (4 * scale)))
                        rows.append((name, dim, 64, rule, n, seed, accuracy, 1 - accuracy))
        columns = ["feature_map", "feature_dim", "d_key", "rule", "associations", "seed", "accuracy", "mse"]
        overwrite = [
            (rule, n, seed, 0.9 if rule == "delta" else 0.5, 0.1 if rule == "delta" else 0.5)
            for rule in ("linear", "delta") for n in (8, 16, 32) for seed in range(3)
        ]  # fmt: skip
        reference = [("elu1", 64, "linear", 40, 60), ("dpfp1", 128, "linear", 100, None)]
        self.add(
            "capacity",
            {
                "capacity.parquet": pd.DataFrame(rows, columns=columns),
                "overwrite.parquet": pd.DataFrame(
                    overwrite, columns=["rule", "associations", "seed", "new_value_accuracy", "old_value_accuracy"]
                ),
                "reference.parquet": pd.DataFrame(
                    reference, columns=["feature_map", "feature_dim", "rule", "holds", "fails"]
                ),
            },
        )
        return self

    def decontaminate(self) -> Synthetic:
        books = pd.DataFrame({
            "book_id": [f"doc-{i:03}" for i in range(self.documents)],
            "title": [self.title if i == 1 else f"Volume {i}" for i in range(self.documents)],
            "split": ["test" if i % 2 else "validation" for i in range(self.documents)],
            "words": 12000,
            "coverage": [1.0 if i == 1 else 0.34 if i == 2 else 0.002 * (i % 3) for i in range(self.documents)],
            "coverage_after": [self.coverage_after if i == 1 else 0.0 for i in range(self.documents)],
            "documents": 1,
            "top_document": "train-7",
        })  # fmt: skip
        decisions = pd.DataFrame({
            "doc_id": [f"train-{i}" for i in range(90)],
            "book_id": ["doc-001" if i < 9 else None for i in range(90)],
            "action": ["drop"] * 3 + ["excise"] * 4 + ["note"] * 2 + ["keep"] * 81,
            "reason": "", "matched_words": 0, "longest_words": 0, "document_share": 0.0, "book_share": 0.0,
            "bytes_in": 60000, "bytes_out": [0] * 3 + [55000] * 4 + [60000] * 83,
        })  # fmt: skip
        canaries = pd.DataFrame(
            {"kind": ["whole", "excerpt"], "planted": [20, 20], "found": [20, 20],
             "acted": [20, self.canaries_acted - 20]}
        )  # fmt: skip
        self.add(
            "decontaminate",
            {"books.parquet": books, "decisions.parquet": decisions, "canaries.parquet": canaries},
            {"audit.json": {"training_documents": 90}},
        )
        return self

    def summarize(self) -> Synthetic:
        for arm, seed in self.runs():
            rng, rows = self.rng("rouge", arm, seed), []
            for task in ("continue", "condense"):
                for doc in range(12):
                    score = float(np.clip(rng.normal(0.12, 0.04), 0, 1))
                    rows.append(
                        (f"doc-{doc:03}", task, 400, "a reference", "a hypothesis", score, score / 3, score, score)
                    )
            columns = [
                "doc_id",
                "task",
                "prompt_tokens",
                "reference",
                "hypothesis",
                "rouge1",
                "rouge2",
                "rougeL",
                "rougeLsum",
            ]
            self.add(f"summarize/{arm}/{seed}", {"summaries.parquet": pd.DataFrame(rows, columns=columns)})
        return self

    def everything(self) -> Synthetic:
        return self.decontaminate().pretrain().evaluate().ablate().capacity().positive_control().summarize()
