"""The ``dedup:`` section of a study file and the declaration of its stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from stages.data.dedup.config import DedupConfig
from stages.stage import Artifact, Context, Stage, Summary


class Dedup(Stage[DedupConfig]):
    """Documents in, documents without repeats out, and one table of what became of each."""

    name: ClassVar[str] = "dedup"
    code_version: ClassVar[int] = 4
    inputs = ("documents",)

    def run(self, config: DedupConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """See ``stages.data.dedup.run.dedup``."""
        from stages.data.dedup.run import dedup

        return dedup(config, inputs["documents"], output, context)


STAGE = Dedup()
