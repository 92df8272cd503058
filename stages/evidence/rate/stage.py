"""The stage ``rate``: what local models say of all summaries of a study, and of those that no model wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.evidence.rate.config import RateConfig, pin_models, without_transformers
from stages.record import Record
from stages.stage import Artifact, Context, Execution, Resources, Stage, StageError, Summary


class Rate(Stage[RateConfig]):
    """Inputs: ``references`` and every ``summarize/ARM/SEED``. Output: ratings.parquet."""

    name = "rate"
    code_version = 1
    inputs = None

    def resources(self, config: RateConfig, execution: Execution) -> Resources:
        return Resources(cpus=execution.task_cpus, gpus=execution.gpus_per_worker)

    def missing(self, config: RateConfig, *, at_once: bool) -> StageError | None:
        """The library that reads the models."""
        return without_transformers("rate")

    def run(self, config: RateConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """See ``stages.evidence.rate.run.rate``."""
        from stages.evidence.rate.run import rate

        return rate(config, inputs, output, context)


STAGE = Rate()
RECORD = Record(stage=STAGE, config=RateConfig, per="summaries", pin=pin_models)
