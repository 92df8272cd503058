"""The ``decontaminate:`` section of a study file and the declaration of its stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stages.stage import Artifact, Config, Context, Place, Stage, StageError, Summary


class Canaries(Config):
    """Passages of evaluation documents planted in copies of clean training documents, to measure what is found."""

    count: int = Field(default=20, ge=0, description="planted documents per kind; 0 plants none")
    seed: int = Field(default=0, ge=0)


class Excluded(Config):
    """Texts whose n-grams are taken out of the index; in a study file its address alone will do."""

    url: str = Field(description="path, glob or fsspec URL of text or Parquet files; relative paths: to the study file")
    pin: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$", description="digest of the files")

    @model_validator(mode="before")
    @classmethod
    def _an_address_will_do(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    def key_fields(self) -> dict[str, Any]:
        """The files' digest; the place they lie in does not count."""
        return self.model_dump(mode="json", exclude={"url"})

    def source(self) -> Any:
        """As a source of the corpus, which knows how to find, pin and read it."""
        from stages.data.corpus.config import Parquet, Text

        kind = Parquet if self.url.endswith((".parquet", ".pq")) else Text
        return kind(name="exclude", url=self.url, split="train", pin=self.pin)


def pin_exclusions(config: DecontaminateConfig, base_dir: Path, cache: Path | None = None) -> DecontaminateConfig:
    """The config with absolute locations and pins of the texts to exclude.

    ``cache``: see ``stages.data.corpus.pin.pin``. Raises StageError for a missing file and where a pin does not match.
    """
    if not config.exclude:
        return config
    from stages.data.corpus.pin import DigestCache, list_files, listing_digest, resolve

    digests = DigestCache(cache)
    pinned = []
    for number, excluded in enumerate(config.exclude):
        field = f"decontaminate.exclude.{number}"
        source = resolve(excluded.source(), base_dir)
        found = listing_digest(list_files(source, digests, field))
        if excluded.pin not in (None, found):
            raise StageError(
                f"the texts to exclude are not the pinned ones; they now have the digest {found}",
                field=f"{field}.pin",
                value=excluded.pin,
                fix="restore the files, or accept them by writing the new digest (or no pin) into the study file",
            )
        pinned.append(excluded.model_copy(update={"url": source.url, "pin": found}))
    digests.save()
    return config.model_copy(update={"exclude": tuple(pinned)})


class DecontaminateConfig(Config):
    """Chained n-gram matching; the defaults separate copies from quotations on real and planted contamination.

    Per (training document, evaluation document), with the sum and the longest of its verified spans: below
    ``act_words`` in the longest span it is noted; above, the document is dropped from ``drop_words``, or
    ``drop_document_share`` of the document, or ``drop_book_share`` of the evaluation document on, and otherwise the
    spans are cut out. Noted spans are cut out too where together they cover more than ``coverage_limit`` of an
    evaluation document: in a short one 40 words are much.
    """

    ngram: int = Field(default=5, ge=2, le=32, description="words of one seed")
    max_gap: int = Field(default=25, ge=0, le=200, description="words between two seeds of a span, at most")
    max_drift: int = Field(default=25, ge=0, le=200, description="words inserted or lost between two seeds, at most")
    min_span_words: int = Field(default=30, ge=1, description="matched words a span needs to count")
    act_words: int = Field(default=50, ge=1, description="matched words of the longest span to act on")
    drop_words: int = Field(default=500, ge=1, description="matched words from which the document is dropped")
    drop_document_share: float = Field(default=0.20, gt=0, le=1)
    drop_book_share: float = Field(default=0.05, gt=0, le=1)
    coverage_limit: float = Field(default=0.01, ge=0, le=1, description="of an evaluation document, by noted spans")
    max_books_per_ngram: int = Field(
        default=2, ge=1, description="n-grams in more evaluation works than this are common phrases, not evidence"
    )
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


class Decontaminate(Stage[DecontaminateConfig]):
    """Documents in, documents without evaluation text out, and the audit that shows why."""

    name: ClassVar[str] = "decontaminate"
    code_version: ClassVar[int] = 2
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
