"""The tables of a study, opened by arm and seed, with the artifact each row came from.

Every input may be absent: its table is then empty and the rules say ``not measured``. Nothing here computes a
statistic; it only opens, joins and selects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from model.config import MixerConfig, TrunkConfig
from stages.stage import Artifact, StageError
from stages.training.align.config import BEFORE
from stages.training.pretrain.schedule import scheduled
from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.claims.verdict import Source

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

KINDS_WITH_MEMORY = ("infini",)
BASE = "base"  # the arm name under which evaluate scores what every arm started from
BEYOND = "beyond_local == True"
WITHIN = "beyond_local == False"


@dataclass(frozen=True)
class Paired:
    """Two arms (or two conditions of one arm) on the same items: values [seeds, items], weights [items]."""

    a: np.ndarray
    b: np.ndarray
    weights: np.ndarray
    seeds: tuple[int, ...]
    items: tuple[str, ...]

    @property
    def differences(self) -> np.ndarray:
        """a - b, [seeds, items]."""
        difference: np.ndarray = self.a - self.b
        return difference

    @property
    def by_seed(self) -> np.ndarray:
        """[seeds] of sum(a - b) / sum(weights)."""
        ratio: np.ndarray = self.differences.sum(1) / self.weights.sum()
        return ratio


class Evidence:
    """Everything the rules and figures may read."""

    def __init__(
        self,
        inputs: Mapping[str, Artifact],
        *,
        arms: Mapping[str, MixerConfig],
        seeds: tuple[int, ...],
        trunk: TrunkConfig,
        rules: ClaimsConfig,
        control_arms: Mapping[str, MixerConfig] | None = None,
        schedules: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """``control_arms``: the arms of the positive control, which has a ceiling and a floor of its own.
        ``schedules``: other schedules by name, with the arms that were trained on them too."""
        self.inputs, self.arms, self.seeds, self.trunk, self.rules = dict(inputs), dict(arms), seeds, trunk, rules
        self.control_arms, self.schedules = dict(control_arms or {}), dict(schedules or {})
        self._variants: dict[tuple[str, str, str], pd.DataFrame] = {}

    # --- which arms -----------------------------------------------------------------------------------------------
    @property
    def memory_arms(self) -> list[str]:
        """Arms with a compressive memory, in the order of the study file."""
        return [name for name, mixer in self.arms.items() if mixer.kind in KINDS_WITH_MEMORY]

    def arms_of_kind(self, *kinds: str) -> list[str]:
        """Arms whose mixer is one of ``kinds``, in the order of the study file."""
        return [name for name, mixer in self.arms.items() if mixer.kind in kinds]

    def control_arms_of_kind(self, *kinds: str) -> list[str]:
        """The same among the arms of the positive control."""
        return [name for name, mixer in self.control_arms.items() if mixer.kind in kinds]

    def schedules_of(self, arm: str) -> list[str]:
        """The arm's name, and its names on other schedules (``arm@schedule``), in the order of the study file."""
        return [arm, *(scheduled(arm, name) for name, arms in self.schedules.items() if arm in arms)]

    def segment_length(self) -> int:
        """N of the memory arms (of any arm where there is none), tokens."""
        names = self.memory_arms or list(self.arms)
        return self.arms[names[0]].segment_length

    # --- opening tables -------------------------------------------------------------------------------------------
    def has(self, step: str) -> bool:
        """Whether the step's artifact is among the inputs."""
        return step in self.inputs

    def runs(self, stage: str) -> list[tuple[str, int]]:
        """(arm, seed) of every input of ``stage``, in the order of the study file (the base is no arm)."""
        found = {
            (arm, int(seed))
            for arm, seed in (
                step.split("/")[1:] for step in self.inputs if step.count("/") == 2 and step.startswith(f"{stage}/")
            )
        }
        arms = self.control_arms if stage == "control" else self.arms
        return [(arm, seed) for arm in arms for seed in self.seeds if (arm, seed) in found]

    def scheduled_sources(self, table: str, row_filter: str, *names: str) -> tuple[Source, ...]:
        """Provenance over all seeds of evaluations of arms, by their names on any schedule."""
        steps = [f"evaluate/{name}/{seed}" for name in names for seed in self.seeds]
        return tuple(self.source(step, table, row_filter) for step in steps if self.has(step))

    def source(self, step: str, table: str, row_filter: str = "") -> Source:
        """Provenance of rows of ``table`` in the artifact of ``step``."""
        return Source(step, self.inputs[step].key, table, row_filter)

    def sources(self, stage: str, table: str, row_filter: str = "", *arms: str) -> tuple[Source, ...]:
        """Provenance over all seeds of ``arms`` (all arms where none is named)."""
        return tuple(
            self.source(f"{stage}/{arm}/{seed}", table, row_filter)
            for arm, seed in self.runs(stage)
            if not arms or arm in arms
        )

    def table(self, step: str, name: str) -> pd.DataFrame:
        """One Parquet table of one step; empty where step or file is absent."""
        import pandas as pd
        import pyarrow as pa
        import pyarrow.parquet as pq

        if step not in self.inputs:
            return pd.DataFrame()
        try:
            path = self.inputs[step].path(name)
        except FileNotFoundError:
            return pd.DataFrame()
        try:
            return pq.read_table(path).to_pandas()
        except (OSError, pa.ArrowInvalid) as problem:
            raise StageError(
                f"{name} of step {step} is not a readable Parquet file ({problem})",
                field="inputs",
                value=step,
                fix=f"infini-study verify, then infini-study run --force {step}",
            ) from problem

    def document(self, step: str, name: str) -> dict[str, Any]:
        """One JSON file of one step; empty where step or file is absent."""
        if step not in self.inputs:
            return {}
        try:
            path = self.inputs[step].path(name)
        except FileNotFoundError:
            return {}
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}

    def stacked(self, stage: str, name: str) -> pd.DataFrame:
        """The same table of all arms and seeds, with columns ``arm`` and ``seed`` in front."""
        import pandas as pd

        parts = []
        for arm, seed in self.runs(stage):
            part = self.table(f"{stage}/{arm}/{seed}", name)
            if len(part):
                part.insert(0, "arm", arm)
                part.insert(1, "seed", seed)
                parts.append(part)
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["arm", "seed"])

    # --- arms that were trained further -------------------------------------------------------------------------------
    @cached_property
    def variants(self) -> tuple[str, ...]:
        """Names of the alignments, in the order of the study file: steps ``align/ARM@NAME/SEED``."""
        labels = (step.split("/")[1] for step in self.inputs if step.startswith("align/") and step.count("/") == 2)
        return tuple(dict.fromkeys(label.partition("@")[2] for label in labels))

    def variant_runs(self, variant: str, stage: str) -> list[tuple[str, int]]:
        """(arm, seed) of the inputs ``STAGE/ARM@VARIANT/SEED``, the base's among them."""
        labels = [(arm, seed, f"{stage}/{arm}@{variant}/{seed}") for arm in (BASE, *self.arms) for seed in self.seeds]
        return [(arm, seed) for arm, seed, step in labels if step in self.inputs]

    def variant(self, variant: str, stage: str, name: str) -> pd.DataFrame:
        """The same table of all arms and seeds after ``variant``, with columns ``arm`` and ``seed`` in front; of text
        the scored documents only."""
        import pandas as pd

        if (variant, stage, name) not in self._variants:
            parts = []
            for arm, seed in self.variant_runs(variant, stage):
                part = self.table(f"{stage}/{arm}@{variant}/{seed}", name)
                if len(part):
                    part.insert(0, "arm", arm)
                    part.insert(1, "seed", seed)
                    parts.append(part)
            table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["arm", "seed"])
            self._variants[variant, stage, name] = self._scored(table) if "doc_id" in table else table
        return self._variants[variant, stage, name]

    def variant_sources(
        self, variant: str, stage: str, table: str, row_filter: str = "", *arms: str
    ) -> tuple[Source, ...]:
        """Provenance over all seeds of ``arms`` after ``variant``, and of the same before."""
        after = tuple(
            self.source(f"{stage}/{arm}@{variant}/{seed}", table, row_filter)
            for arm, seed in self.variant_runs(variant, stage)
            if arm in arms
        )
        return (*after, *self.sources(stage, table, row_filter, *arms))

    # --- the tables, opened once ----------------------------------------------------------------------------------
    @cached_property
    def contaminated(self) -> frozenset[str]:
        """Evaluation documents still covered above a limit after the audit, by its own or by the second count: left
        out of every score."""
        rule, found = self.rules.clean_data, set[str]()
        for table, column, limit in (
            (self.table("decontaminate", "books.parquet"), "coverage_after", rule.coverage_limit),
            (self.containment, "share", rule.containment_limit),
        ):
            if len(table):
                found |= set(table.loc[table[column] > limit, "book_id"])
        return frozenset(found)

    @cached_property
    def perplexity(self) -> pd.DataFrame:
        """arm, seed + ``perplexity.parquet`` of evaluate, scored documents only."""
        return self._scored(self.stacked("evaluate", "perplexity.parquet"))

    @cached_property
    def text(self) -> pd.DataFrame:
        """``perplexity`` of the models that language modelling is judged by: as continual pretraining left them. Where
        the study fine-tunes on tasks, which trades text for tasks, they were scored before it too."""
        before = self.variant(BEFORE, "evaluate", "perplexity.parquet")
        return before[before["arm"] != BASE] if self.tuned_on_tasks else self.perplexity

    @cached_property
    def base_text(self) -> pd.DataFrame:
        """The same of the base."""
        before = self.variant(BEFORE, "evaluate", "perplexity.parquet")
        own = before[before["arm"] == BASE] if self.tuned_on_tasks else before[:0]
        return own if len(own) else self.base_perplexity

    @cached_property
    def tuned_on_tasks(self) -> bool:
        """Whether arms were fine-tuned before they were evaluated, and scored as they were before it."""
        return any(arm != BASE for arm, _ in self.variant_runs(BEFORE, "evaluate"))

    @property
    def when(self) -> str:
        """What is said of ``text`` where it is not of the models that prompts were put to."""
        return ", before fine-tuning" if self.tuned_on_tasks else ""

    def text_sources(self, row_filter: str, *arms: str) -> tuple[Source, ...]:
        """Provenance of rows of ``text``."""
        if not self.tuned_on_tasks:
            return self.sources("evaluate", "perplexity.parquet", row_filter, *arms)
        runs = [f"evaluate/{arm}@{BEFORE}/{seed}" for arm, seed in self.variant_runs(BEFORE, "evaluate") if arm in arms]
        return tuple(self.source(step, "perplexity.parquet", row_filter) for step in runs)

    @cached_property
    def corpora(self) -> list[str]:
        """Sources of the scored documents, in order of their names."""
        ids = self.perplexity["doc_id"].unique() if len(self.perplexity) else ()
        return sorted({corpus_of(doc_id) for doc_id in ids} - {""})

    @cached_property
    def scheduled_perplexity(self) -> pd.DataFrame:
        """arm, seed + ``perplexity.parquet`` of evaluate, arms on other schedules (``arm@schedule``) included."""
        return self._with_schedules(self.perplexity, "perplexity.parquet")

    @cached_property
    def scheduled_retrieval(self) -> pd.DataFrame:
        """The same of ``retrieval.parquet``."""
        return self._with_schedules(self.retrieval, "retrieval.parquet")

    def _with_schedules(self, own: pd.DataFrame, name: str) -> pd.DataFrame:
        import pandas as pd

        others = [other for arm in self.arms for other in self.schedules_of(arm)[1:]]
        parts = [
            self.table(f"evaluate/{other}/{seed}", name).assign(arm=other, seed=seed)
            for other in others
            for seed in self.seeds
        ]
        parts = [part for part in parts if len(part)]
        if not parts:
            return own
        found = pd.concat(parts, ignore_index=True)
        return pd.concat([own, self._scored(found) if "doc_id" in found else found], ignore_index=True)

    @cached_property
    def base_steps(self) -> dict[int, str]:
        """seed -> the step that scored the base of that seed's arms; a shared base has one step for all seeds."""
        found = {int(step.rpartition("/")[2]): step for step in self.inputs if step.startswith(f"evaluate/{BASE}/")}
        if len(found) == 1 and len(self.seeds) > 1:
            return dict.fromkeys(self.seeds, next(iter(found.values())))
        return {seed: found[seed] for seed in self.seeds if seed in found}

    @cached_property
    def imported_base(self) -> bool:
        """Is the base a checkpoint from elsewhere? Then it logged no step of a training of its own."""
        steps = [step for step in self.inputs if step.partition("/")[0] == BASE]
        return any(self.document(s, "cost.json") and not len(self.table(s, "train_log.parquet")) for s in steps)

    @property
    def shared_base(self) -> bool:
        """Do all seeds start from one base? Their spread then says nothing of another base's."""
        return len(self.seeds) > 1 and len(set(self.base_steps.values())) == 1

    @cached_property
    def base_perplexity(self) -> pd.DataFrame:
        """seed + ``perplexity.parquet`` of the base that the arms of the seed started from, scored documents only."""
        import pandas as pd

        parts = [self.table(step, "perplexity.parquet").assign(seed=seed) for seed, step in self.base_steps.items()]
        return self._scored(pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["seed"]))

    @cached_property
    def retrieval(self) -> pd.DataFrame:
        """arm, seed + ``retrieval.parquet`` of evaluate."""
        return self.stacked("evaluate", "retrieval.parquet")

    @cached_property
    def tasks(self) -> pd.DataFrame:
        """arm, seed + ``tasks.parquet`` of evaluate: further tasks."""
        return self.stacked("evaluate", "tasks.parquet")

    @cached_property
    def knocked_perplexity(self) -> pd.DataFrame:
        """arm, seed + ``perplexity.parquet`` of ablate (column ``knockout``), scored documents only."""
        return self._scored(self.stacked("ablate", "perplexity.parquet"))

    @cached_property
    def knocked_retrieval(self) -> pd.DataFrame:
        """arm, seed + ``retrieval.parquet`` of ablate (column ``knockout``)."""
        return self.stacked("ablate", "retrieval.parquet")

    @cached_property
    def gates(self) -> pd.DataFrame:
        """arm, seed, layer, head, gate."""
        return self.stacked("ablate", "gates.parquet")

    @cached_property
    def gates_over_training(self) -> pd.DataFrame:
        """arm, seed, step (0: before the first), layer, head, gate."""
        return self.stacked("pretrain", "gates.parquet")

    @cached_property
    def spectrum(self) -> pd.DataFrame:
        """arm, seed + ``spectrum.parquet`` of ablate: singular values of the memory along long held-out documents."""
        return self.stacked("ablate", "spectrum.parquet")

    @cached_property
    def heads(self) -> pd.DataFrame:
        """arm, seed + ``heads.parquet`` of ablate: one head knocked out at a time."""
        return self.stacked("ablate", "heads.parquet")

    @cached_property
    def saturation(self) -> pd.DataFrame:
        """arm, seed + ``saturation.parquet`` of ablate: the memory along long held-out documents."""
        return self.stacked("ablate", "saturation.parquet")

    @cached_property
    def trained_capacity(self) -> pd.DataFrame:
        """arm, seed + ``capacity.parquet`` of ablate: associations written with the trained model's own keys."""
        return self.stacked("ablate", "capacity.parquet")

    @cached_property
    def containment(self) -> pd.DataFrame:
        """``containment.parquet`` of certify: the second count of what evaluation and training documents share."""
        return self.table("certify", "containment.parquet")

    @cached_property
    def training(self) -> pd.DataFrame:
        """arm, seed + ``train_log.parquet`` of pretrain."""
        return self.stacked("pretrain", "train_log.parquet")

    @cached_property
    def control(self) -> pd.DataFrame:
        """arm, seed + ``control.parquet``, all recorded steps."""
        return self.stacked("control", "control.parquet")

    @cached_property
    def summaries(self) -> pd.DataFrame:
        """arm, seed + ``summaries.parquet``, scored documents only."""
        return self._scored(self.stacked("summarize", "summaries.parquet"))

    def control_end(self) -> pd.DataFrame:
        """Last recorded step of every control run: rows by arm, seed, k, segments, what lies between, knock-out."""
        table = self.control
        if not len(table):
            return table
        last = table.groupby(["arm", "seed"])["step"].transform("max")
        return table[table["step"] == last].reset_index(drop=True)

    def control_trained(self) -> pd.DataFrame:
        """Of those the intact models at the number of segments they were trained on: one row per arm, seed and k."""
        table = self.control_end()
        if not len(table):
            return table
        intact = table[(table["knockout"] == "none") & (table["between"] == "filler")]
        return intact[intact["segments"] == intact["segments"].min()].reset_index(drop=True)

    def scored(self, table: pd.DataFrame) -> pd.DataFrame:
        """Rows without the documents that are contaminated."""
        return self._scored(table)

    def _scored(self, table: pd.DataFrame) -> pd.DataFrame:
        if not len(table) or not self.contaminated:
            return table
        return table[~table["doc_id"].isin(self.contaminated)].reset_index(drop=True)


def corpus_of(doc_id: str) -> str:
    """The source of a document: what its id begins with; "" where it names none."""
    return str(doc_id).rpartition("/")[0].partition("/")[0]


def of_corpus(table: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """Rows of the documents of one source; all for ""."""
    return table[table["doc_id"].str.startswith(f"{corpus}/")] if corpus and len(table) else table


def corpus_filter(corpus: str) -> str:
    """The same as a row filter: ids that begin with the source's name and "/", which "0" follows."""
    return f"doc_id >= '{corpus}/' and doc_id < '{corpus}0'" if corpus else ""


def crossed(
    rows: pd.DataFrame, item: str, value: str, *, mean: bool = False
) -> tuple[list[Any], NDArray[Any], NDArray[np.float64]]:
    """Seeds, items and the table [seeds, items] of ``value``, for the items that every seed has; both in order.

    Several rows of one seed and item are summed (``mean``: averaged); rows without a value count as missing.
    """
    import numpy as np
    import pandas as pd

    rows = rows[rows[value].notna()]
    seed, seeds = pd.factorize(rows["seed"], sort=True)
    name, names = pd.factorize(rows[item], sort=True)
    cell, shape = seed * len(names) + name, (len(seeds), len(names))
    count = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    sums = np.bincount(cell, rows[value].to_numpy(dtype=np.float64), shape[0] * shape[1]).reshape(shape)
    whole = (count > 0).all(0)
    table: NDArray[np.float64] = sums / np.maximum(count, 1) if mean else sums.astype(np.float64)
    return list(seeds), np.asarray(names, dtype=object)[whole], table[:, whole]


def paired(a: pd.DataFrame, b: pd.DataFrame, item: str, value: str, weight: str | None = None) -> Paired | None:
    """Rows of ``a`` and ``b`` (columns ``seed``, ``item``, ``value`` and, for ratios, ``weight``) on what both have.

    Values of several rows of one item (position buckets of a document) are summed. None where nothing is shared.
    An item that any seed of either side lacks is left out: every seed must be scored on the same items.
    """
    import numpy as np

    shared = sorted(set(a["seed"].unique()) & set(b["seed"].unique())) if len(a) and len(b) else []
    if not shared:
        return None
    of_a, of_b = (table[table["seed"].isin(shared)] for table in (a, b))
    _, names, left = crossed(of_a, item, value)
    _, others, right = crossed(of_b, item, value)
    items, mine, its = np.intersect1d(names, others, assume_unique=True, return_indices=True)
    if not len(items):
        return None
    weights = np.ones(len(items))
    if weight is not None:
        first = of_a[of_a["seed"] == shared[0]]
        weights = first.groupby(item)[weight].sum().loc[items].to_numpy(dtype=float)
    return Paired(
        left[:, mine],
        right[:, its],
        weights,
        tuple(int(seed) for seed in shared),
        tuple(str(name) for name in items),
    )
