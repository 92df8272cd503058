"""The ``certify:`` section of a study file and the declaration of its stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from stages.stage import Artifact, Config, Context, Stage, Summary


class CertifyConfig(Config):
    """Plain n-gram containment, as GPT-3's authors and others count it (Brown et al., 2020, appendix C: 13 words)."""

    ngram: int = Field(default=13, ge=2, le=64, description="words of an n-gram")


class Certify(Stage[CertifyConfig]):
    """The documents that are trained on in, one row per evaluation document out.

    Whoever cleans must not certify: this stage shares no code with ``decontaminate``, neither its normalisation, nor
    its matching, nor its list of boilerplate, and it reads what is left after every cleaning.
    """

    name: ClassVar[str] = "certify"
    code_version: ClassVar[int] = 2
    inputs = ("documents",)

    def run(self, config: CertifyConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        """See ``stages.data.certify.count.certify``."""
        from stages.data.certify.count import certify

        return certify(config, inputs["documents"], output, context)


STAGE = Certify()
