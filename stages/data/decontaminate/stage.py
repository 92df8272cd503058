"""The ``decontaminate:`` section of a study file and the declaration of its stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from stages.data.decontaminate.config import DecontaminateConfig
from stages.stage import Artifact, Context, Place, Stage, Summary


class Decontaminate(Stage[DecontaminateConfig]):
    """Documents in, documents without evaluation text out, and the audit that shows why."""

    name: ClassVar[str] = "decontaminate"
    code_version: ClassVar[int] = 7
    inputs = ("documents",)

    def run(
        self, config: DecontaminateConfig, inputs: Mapping[str, Artifact], output: Path, context: Context
    ) -> Summary:
        """See ``stages.data.decontaminate.run.decontaminate``."""
        from stages.data.decontaminate.run import decontaminate

        return decontaminate(config, inputs["documents"], output, context)

    def publish(self, folder: Path, place: Place) -> None:
        """One page where pages cannot lead to one another."""
        if not place.file and (folder / "audit.html").is_file():
            from stages.data.audit.single import join

            join(folder)


STAGE = Decontaminate()
