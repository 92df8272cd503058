"""Settings of the independent count."""

from __future__ import annotations

from pydantic import Field

from stages.stage import Config


class CertifyConfig(Config):
    """Plain n-gram containment, as GPT-3's authors and others count it (Brown et al., 2020, appendix C: 13 words)."""

    ngram: int = Field(default=13, ge=2, le=64, description="words of an n-gram")
