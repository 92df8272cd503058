"""The stage ``human``: people's judgements, checked against the summaries of the study that they are about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.evidence.human.config import HumanConfig, pin_results
from stages.record import Record
from stages.stage import Artifact, Context, Stage, StageError, Summary


class Human(Stage[HumanConfig]):
    """Inputs: ``references`` and every ``summarize/ARM/SEED``. Output: ratings.parquet, comparisons.parquet."""

    name = "human"
    code_version = 1
    inputs = None

    def missing(self, config: HumanConfig, *, at_once: bool) -> StageError | None:
        """Results as human import writes them."""
        from stages.evidence.human.results import read_results

        try:
            read_results(Path(config.results).read_bytes(), config.results)
        except StageError as error:
            return error
        return None

    def run(self, config: HumanConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """See ``stages.evidence.human.results.tables``."""
        from stages.evidence.human.results import tables

        return tables(config, inputs, output, context)


STAGE = Human()
RECORD = Record(stage=STAGE, config=HumanConfig, per="summaries", pin=pin_results)
