"""Settings of decontamination, as they stand in a study file, and what they pin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from stages.data.matching.config import MatchingConfig
from stages.data.pinned import Pin
from stages.stage import Config

if TYPE_CHECKING:
    from stages.data.corpus.config import Parquet, TextFiles


class Canaries(Config):
    """Passages of evaluation documents planted in copies of clean training documents, to measure what is found."""

    count: int = Field(default=20, ge=0, le=10_000, description="planted documents per kind; 0 plants none")
    seed: int = Field(default=0, ge=0)


class Excluded(Config):
    """Texts whose n-grams are taken out of the index; in a study file its address alone will do."""

    url: str = Field(description="path, glob or fsspec URL of text or Parquet files; relative paths: to the study file")
    pin: Pin | None = Field(default=None, description="digest of the files")

    @model_validator(mode="before")
    @classmethod
    def _an_address_will_do(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    def key_fields(self) -> dict[str, Any]:
        """The files' digest; the place they lie in does not count."""
        return self.model_dump(mode="json", exclude={"url"})

    def source(self) -> Parquet | TextFiles:
        """As a source of the corpus, which knows how to find, pin and read it."""
        from stages.data.corpus.config import Parquet, TextFiles

        kind: type[Parquet] | type[TextFiles] = Parquet if self.url.endswith((".parquet", ".pq")) else TextFiles
        return kind(name="exclude", url=self.url, split="train", pin=self.pin)


class DecontaminateConfig(MatchingConfig):
    """Chained n-gram matching; the defaults separate copies from quotations on real and planted contamination.

    Per (training document, evaluation document). A span is a copy where ``copy_share`` of its words agree or nearly
    agree, else another translation or a paraphrase: noted, never acted on (unless such spans make up half of either
    text). Of copies: below ``act_words`` in the longest span the pair is noted; above, the document is dropped if
    ``drop_words`` stand densely (more copied words than others between them), or are ``drop_document_share`` of the
    document together, or stand densely and are ``drop_book_share`` of the evaluation document, and otherwise the spans
    are cut out: many quotations are no copy. Noted copies are cut out too where together they cover more than
    ``coverage_limit`` of an evaluation document (in a short one 40 words are much), spans of every kind where together
    they cover more than a tenth of it, and so is the whole of an evaluation document shorter than ``act_words``.
    """

    copy_share: float = Field(
        default=0.85, gt=0, le=1, description="words of a span that agree or nearly agree, for it to be a copy"
    )
    act_words: int = Field(default=50, ge=1, description="words of the longest span to act on")
    drop_words: int = Field(default=500, ge=1, description="words in a dense stretch from which to drop the document")
    drop_document_share: float = Field(default=0.20, gt=0, le=1, description="of the document, all copies together")
    drop_book_share: float = Field(
        default=0.05, gt=0, le=1, description="of the evaluation document, in a dense stretch of four times act_words"
    )
    coverage_limit: float = Field(default=0.01, ge=0, le=1, description="of an evaluation document, by noted spans")
    boilerplate: Literal["project-gutenberg-1", "none"] = Field(
        default="project-gutenberg-1", description="built-in list of licence wording that is no evidence"
    )
    exclude: tuple[Excluded, ...] = Field(
        default=(), description="publicly quoted texts that are no evidence: addresses of text or Parquet files"
    )
    action: Literal["clean", "report_only"] = "clean"
    remove_from: Literal["train", "evaluation"] = Field(
        default="train", description="clean the training documents, or take the contaminated evaluation documents out"
    )
    canaries: Canaries = Canaries()

    def key_fields(self) -> dict[str, Any]:
        """Everything but where the excluded texts lie."""
        return {**self.model_dump(mode="json"), "exclude": [excluded.key_fields() for excluded in self.exclude]}

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> DecontaminateConfig:
        if not self.ngram <= self.min_span_words <= self.act_words <= self.drop_words:
            raise ValueError(
                f"ngram = {self.ngram}, min_span_words = {self.min_span_words}, act_words = {self.act_words}, "
                f"drop_words = {self.drop_words}: each must be at least the one before it"
            )
        return self
