"""What two texts must share to be a match."""

from __future__ import annotations

from pydantic import Field

from stages.stage import Config


class MatchingConfig(Config):
    """Chains of n-grams that two texts share."""

    ngram: int = Field(default=5, ge=2, le=32, description="words of one seed")
    max_gap: int = Field(default=25, ge=0, le=200, description="words between two seeds of a span, at most")
    max_drift: int = Field(default=25, ge=0, le=200, description="words inserted or lost between two seeds, at most")
    min_span_words: int = Field(
        default=30, ge=1, description="words a span needs to count, agreeing or misread; half of them must agree"
    )
    min_item_words: int = Field(
        default=8,
        ge=1,
        description="words from which an evaluation document shorter than a span is found, as a whole",
    )
    max_books_per_ngram: int = Field(
        default=2, ge=1, description="n-grams in more evaluation works than this are common phrases, not evidence"
    )

    @property
    def item_words(self) -> int:
        """Words from which an evaluation document is found at all."""
        return min(self.min_item_words, self.min_span_words)
