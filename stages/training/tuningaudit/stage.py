"""The stage ``tuningaudit``: rows that models are tuned on, looked through for text of what they are asked afterwards.

The contamination audit of a study covers its corpus. A file of summaries, conversations or preferences is trained on
as well: a row with text of a held-out document, of a text that is to be summarized or of its reference would be asked
for what it has seen. Such rows are left out of the training and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from stages.stage import Artifact, Context, Place, Stage, Summary
from stages.training.tuningaudit.config import TuningAuditConfig


class TuningAudit(Stage[TuningAuditConfig]):
    """Input: ``documents``, the held-out ones of which are looked for. Output: the tables and pages of an audit, a
    document a row (``row 12``)."""

    name: ClassVar[str] = "tuningaudit"
    code_version: ClassVar[int] = 2
    inputs = ("documents",)

    def run(self, config: TuningAuditConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """See ``stages.training.tuningaudit.match.audit_rows``."""
        from stages.training.tuningaudit.match import audit_rows

        return audit_rows(config, inputs["documents"], output, context)

    def publish(self, folder: Path, place: Place) -> None:
        """One page where pages cannot lead to one another."""
        if not place.file and (folder / "audit.html").is_file():
            from stages.data.audit.single import join

            join(folder)


STAGE = TuningAudit()
