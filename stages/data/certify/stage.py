"""The ``certify:`` section of a study file and the declaration of its stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from stages.data.certify.config import CertifyConfig
from stages.stage import Artifact, Context, Stage, Summary


class Certify(Stage[CertifyConfig]):
    """The documents that are trained on in, one row per evaluation document out.

    Whoever cleans must not certify: this stage shares no code with ``decontaminate``, neither its normalisation, nor
    its matching, nor its list of boilerplate, and it reads what is left after every cleaning.
    """

    name: ClassVar[str] = "certify"
    code_version: ClassVar[int] = 3
    inputs = ("documents",)

    def run(self, config: CertifyConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """See ``stages.data.certify.count.certify``."""
        from stages.data.certify.count import certify

        return certify(config, inputs["documents"], output, context)


STAGE = Certify()
