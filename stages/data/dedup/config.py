"""Settings of deduplication, as they stand in a study file."""

from __future__ import annotations

import difflib

from pydantic import Field, field_validator, model_validator

from stages.stage import Config

LANGUAGES = frozenset(
    """
    ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr
    fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko
    ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru
    rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo
    yue zh zu
    """.split()
)


"""Codes the language identifier knows (ISO 639), said here so that a study file is checked without loading it."""


FOUND_AT_THRESHOLD = 0.9  # of the pairs that are just similar enough; more of all others


class Editions(Config):
    """MinHash with banding: pairs that agree in all rows of any band are compared, and count by their true Jaccard.

    Natural editions of one book were seen between 0.71 and 0.91, books that only quote one another below 0.04; 20 bands
    of 5 rows let 2.5% of the pairs at 0.7 go unnoticed, and 0.7% of those at 0.74.
    """

    threshold: float = Field(default=0.7, gt=0, le=1, description="Jaccard similarity of the sets of n-grams")
    bands: int = Field(default=20, ge=1, le=256)
    rows: int = Field(default=5, ge=1, le=32, description="MinHash values per band")

    @model_validator(mode="after")
    def _bands_reach_the_threshold(self) -> Editions:
        found = 1 - (1 - self.threshold**self.rows) ** self.bands
        if found < FOUND_AT_THRESHOLD:
            raise ValueError(
                f"threshold = {self.threshold}: {self.bands} bands of {self.rows} rows find only {found:.0%} of the "
                f"pairs at it (at least {FOUND_AT_THRESHOLD:.0%} are asked). Fix: more bands or fewer rows"
            )
        return self


class Containment(Config):
    """Documents that are part of a longer one: volumes in collected works, stories in anthologies.

    One n-gram in ``sample``, by its hash, is kept as a fingerprint (FracMinHash, Irber et al. 2022), 8 bytes of memory
    each; what they suggest counts by the true share of the smaller document's n-grams.
    """

    threshold: float = Field(default=0.8, gt=0, le=1, description="share of the document's n-grams in the longer one")
    min_words: int = Field(default=1000, ge=1, description="shorter documents are not looked for in longer ones")
    sample: int = Field(default=64, ge=1, description="one n-gram in so many is a fingerprint")

    @model_validator(mode="after")
    def _enough_fingerprints(self) -> Containment:
        if self.min_words < 8 * self.sample:
            raise ValueError(
                f"min_words = {self.min_words}: with one n-gram in {self.sample} kept, documents below "
                f"{8 * self.sample} words have too few fingerprints. Fix: raise min_words or lower sample"
            )
        return self


class Language(Config):
    """Drops documents recognised as written in another language; what is not recognised is kept."""

    keep: tuple[str, ...] = Field(min_length=1, description="ISO 639 codes")
    min_confidence: float = Field(default=0.5, ge=0, le=1, description="to recognise a language at all")

    @field_validator("keep")
    @classmethod
    def _known(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
        for code in keep:
            if code not in LANGUAGES:
                near = difflib.get_close_matches(code, LANGUAGES, 3, 0.5) or ["en", "de", "zh"]
                raise ValueError(
                    f"{code!r} is no language known here (allowed: {len(LANGUAGES)} ISO 639 codes, such as "
                    f"{', '.join(near)})"
                )
        return keep


class Length(Config):
    """Drops documents outside of these bounds, both inclusive; None sets no bound."""

    min_bytes: int | None = Field(default=None, ge=1)
    max_bytes: int | None = Field(default=None, ge=1)
    min_words: int | None = Field(default=None, ge=1)
    max_words: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _something_between(self) -> Length:
        if not self.model_dump(exclude_none=True):
            raise ValueError("has no effect without a bound. Fix: set min_bytes, max_bytes, min_words or max_words")
        for low, high in (("min_bytes", "max_bytes"), ("min_words", "max_words")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{low} = {least}, {high} = {most}: no document lies between them. Fix: swap them")
        return self


class DedupConfig(Config):
    """What leaves the training text after the audit. A part that is null (or false) is not done.

    Filters come first, so that a filtered document never stands for others. Of documents with the same words, of
    editions, and of a document and its parts, the one with the most distinct n-grams is kept, then the earliest year,
    then the smallest id: it holds the most text, the year prefers originals to reprints, the id settles the rest.
    """

    ngram: int = Field(default=5, ge=2, le=32, description="words of an n-gram, normalised as in the audit")
    exact: bool = Field(default=True, description="drop documents with the same bytes or the same words as another")
    editions: Editions | None = Editions()
    containment: Containment | None = Containment()
    language: Language | None = None
    length: Length | None = None

    @model_validator(mode="after")
    def _does_something(self) -> DedupConfig:
        if not (self.exact or self.editions or self.containment or self.language or self.length):
            raise ValueError("has no effect, all of it is switched off. Fix: remove the section")
        return self
