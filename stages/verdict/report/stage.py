"""The last step: artifacts in, verdicts and a page out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.stage import Artifact, Context, Place, Stage, Summary
from stages.verdict.report.config import ReportConfig

__all__ = ["STAGE", "Report", "ReportConfig"]


class Report(Stage[ReportConfig]):
    """Inputs are named by their step ids ("ingest", "pretrain/<arm>/<seed>", ...); any may be absent, and the claims
    that need them are then ``not measured``."""

    name = "report"
    code_version = 13
    deterministic = False  # prints measured tokens per second

    def run(self, config: ReportConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        from stages.verdict.report.build import build

        return build(config, inputs, output, context)

    def publish(self, folder: Path, place: Place) -> None:
        """The pages again, with commands and links of that place."""
        from stages.verdict.report.render import rewrite

        rewrite(folder, place)


STAGE = Report()
