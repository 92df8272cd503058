"""The declaration of ``ingest``: external text in, one table of documents out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from stages.data.corpus.config import IngestConfig
from stages.stage import Artifact, Context, Stage, Summary


class Ingest(Stage[IngestConfig]):
    """Reads every source into ``documents/*.parquet``; what cannot be read is listed in ``problems.parquet``."""

    name: ClassVar[str] = "ingest"
    code_version: ClassVar[int] = 4
    inputs = ()

    def changes(self, config: IngestConfig, before: Artifact) -> list[str]:
        """Files that were added, removed or changed: ``changed: train/11.txt``."""
        import json

        from stages.data.corpus.pin import changes, listing

        return changes(json.loads(before.path("listing.json").read_text()), listing(config, Path()))

    def run(self, config: IngestConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """See ``stages.data.corpus.ingest.ingest``."""
        from stages.data.corpus.ingest import ingest

        return ingest(config, output, context)


STAGE = Ingest()
