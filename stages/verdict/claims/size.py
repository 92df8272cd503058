"""What of a study file sets what its claims can decide: arms, seeds, prompts. Known before any run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from model.config import MixerConfig
from stages.data.tasks.config import RetrievalConfig
from stages.evidence.ablate.config import AblateConfig
from stages.evidence.control.config import ControlSettings
from stages.evidence.evaluate.config import EvaluateSettings
from stages.training.pretrain.schedule import scheduled
from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.claims.evidence import KINDS_WITH_MEMORY


@dataclass(frozen=True)
class Size:
    """Of a study. ``control_arms``: of the control; ``schedules``: with their arms; ``alignments``: that decide."""

    arms: Mapping[str, MixerConfig]
    seeds: tuple[int, ...]
    rules: ClaimsConfig
    evaluate: EvaluateSettings
    ablate: AblateConfig | None = None
    control: ControlSettings | None = None
    control_arms: Mapping[str, MixerConfig] | None = None
    schedules: Mapping[str, Sequence[str]] | None = None
    alignments: Sequence[str] = ()

    @property
    def memory_arms(self) -> list[str]:
        """Arms with a compressive memory, in the order of the study file."""
        return [name for name, mixer in self.arms.items() if mixer.kind in KINDS_WITH_MEMORY]

    @property
    def baselines(self) -> list[str]:
        """Arms whose schedules decide C12, in the order of the study file."""
        return [name for name, mixer in self.arms.items() if mixer.kind in self.rules.schedule.baselines]

    def schedules_of(self, arm: str) -> list[str]:
        """The arm's name, and its names on other schedules (``arm@schedule``)."""
        return [arm, *(scheduled(arm, name) for name, arms in (self.schedules or {}).items() if arm in arms)]

    @property
    def other_schedules(self) -> int:
        """Schedules that the baselines of C12 are trained on beside the study's own."""
        return sum(len(self.schedules_of(arm)) - 1 for arm in self.baselines)

    @property
    def segment(self) -> int:
        """Longest segment of the memory arms, tokens."""
        return max(self.arms[name].segment_length for name in self.memory_arms)

    @property
    def length(self) -> int:
        """Of the passkey prompts that decide C3, tokens."""
        return self.rules.retrieval.length or max(self.evaluate.retrieval.lengths)

    def passkeys(self, asked: RetrievalConfig, length: int) -> int:
        """Passkey prompts of one length whose needle lies before the last segment (about: needles have a width)."""
        start = (length - 1) // self.segment * self.segment  # of the last segment
        if asked.depths is None:
            return round(asked.trials * start / length)
        return asked.trials * sum(depth * length < start for depth in asked.depths)

    def bindings(self, length: int, trials: int) -> int:
        """Bindings prompts whose asked needle, at a random place, lies before the last segment (about)."""
        return round(trials * ((length - 1) // self.segment * self.segment) / length)

    def cells(self) -> list[AskedCell]:
        """What C4 would be decided on."""
        rule = self.rules.compositional
        found = []
        for grid in self.evaluate.retrieval.further:
            if not grid.task.composes or grid.task.name not in (rule.tasks or (grid.task.name,)):
                continue
            length = rule.length or max(grid.lengths)
            if length in grid.lengths:
                found += [AskedCell(grid.task.composes, length, grid.trials) for _ in grid.ks]
        return found

    def shortfalls(self) -> Iterator[str]:
        """Claims that this study is too small for: their rule demands more seeds, prompts or tasks. How many
        passkeys count is known only about, so that C3 may be named with just enough."""
        rules = self.rules
        if len(self.seeds) < rules.minimum_seeds:
            yield (
                f"seeds = {list(self.seeds)}: what is drawn over seeds stays open (claims.minimum_seeds = "
                f"{rules.minimum_seeds}). Fix: name at least {rules.minimum_seeds} seeds"
            )
        if self.memory_arms:
            yield from self._few_passkeys()
        cells, rule = self.cells(), rules.compositional
        kinds = len({cell.kind for cell in cells})
        if cells and kinds < rule.kinds:
            yield (
                f"C4 cannot be supported: {kinds} of claims.compositional.kinds = {rule.kinds} kinds of compositional "
                "task are asked. Fix: ask further ones (evaluate.retrieval.tasks)"
            )
        if cells and (fewest := min(cell.prompts for cell in cells)) < rule.minimum_trials:
            yield (
                f"C4 cannot be supported: of one task {fewest} prompts are asked, claims.compositional.minimum_trials "
                f"= {rule.minimum_trials}. Fix: raise its trials"
            )
        others, least = self.other_schedules, rules.schedule.minimum
        if self.memory_arms and 0 < others < least:
            yield (
                f"C12 cannot be supported: {' and '.join(self.baselines)} trains on {others} of "
                f"claims.schedule.minimum = {least} other schedules. Fix: name further ones (schedules)"
            )

    def _few_passkeys(self) -> Iterator[str]:
        asked, least = self.evaluate.retrieval, self.rules.retrieval.minimum_trials
        found = self.passkeys(asked, self.length)
        if found >= least or self.length not in asked.lengths:
            return
        fix = "longer prompts"
        if found:
            more = asked
            while self.passkeys(more, self.length) < least:
                more = more.model_copy(update={"trials": more.trials + 1})
            fix = f"evaluate.retrieval.trials = {more.trials}"
        yield (
            f"C3 may stay open: about {found} of the passkeys of {self.length:,} tokens lie beyond the last "
            f"segment, claims.retrieval.minimum_trials = {least}. Fix: {fix}"
        )


@dataclass(frozen=True)
class AskedCell:
    """A compositional task at one k: prompts at its deciding length."""

    kind: str
    length: int
    prompts: int
