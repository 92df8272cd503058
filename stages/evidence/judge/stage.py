"""The stage ``judge``: what a model says of the summaries, in pairs and sentence by sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.evidence.judge.config import JudgeConfig, pin_judge
from stages.record import Record
from stages.stage import Artifact, Context, Execution, Resources, Stage, StageError, Summary


class Judge(Stage[JudgeConfig]):
    """Inputs: ``references`` and every ``summarize/ARM/SEED``. Output: answers.parquet (raw), comparisons.parquet,
    sentences.parquet, quality.json, cost.json."""

    name = "judge"
    code_version = 1
    deterministic = False  # servers do not answer the same twice
    inputs = None

    def resources(self, config: JudgeConfig, execution: Execution) -> Resources:
        return Resources(cpus=execution.task_cpus, gpus=execution.gpus_per_worker if config.local else 0.0)

    def missing(self, config: JudgeConfig, *, at_once: bool) -> StageError | None:
        """The API key; a server that answers, where it is needed later; transformers for a local judge."""
        from stages.evidence.judge.reachable import missing

        return missing(config, at_once=at_once)

    def run(self, config: JudgeConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """See ``stages.evidence.judge.run.judge``."""
        from stages.evidence.judge.run import judge

        return judge(config, inputs, output, context)


STAGE = Judge()
RECORD = Record(stage=STAGE, config=JudgeConfig, per="summaries", pin=pin_judge)
