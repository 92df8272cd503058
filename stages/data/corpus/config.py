"""The ``corpus:`` section of a study file: where documents come from and how they are split.

A source's ``pin`` is the digest of what it read; ``stages.data.corpus.pin`` fills it in at plan time. The pin is in
the key, the place (``url``, a local ``path``) is not, so the same books give the same key on every machine.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from stages.data.pinned import Pin
from stages.stage import Config

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


class SplitShares(Config):
    """Shares of documents held out, by a stable hash of the document's id; the rest is training text."""

    validation: float = Field(default=0.05, ge=0, le=1)
    test: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> SplitShares:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation = {self.validation}, test = {self.test}: their sum must stay below 1, "
                "or no training document is left. Fix: lower one of them"
            )
        return self


def check_encodings(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names as they are. Raises ValueError for one that is no encoding of text."""
    import codecs

    for name in names:
        try:
            "".encode(name)  # also refuses codecs that turn bytes into bytes
            codecs.lookup(name)
        except (LookupError, UnicodeError):
            fix = "Fix: name one that Python knows, such as latin-1, cp1252, utf-16"
            raise ValueError(f"encoding = {name!r}: no encoding of text. {fix}") from None
    return names


Encodings = Annotated[
    tuple[str, ...],
    # a tuple, since what a validator hands on is no JSON any more, where a list would do
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    ),
    AfterValidator(check_encodings),
    Field(
        min_length=1,
        description="of the text: the first that fits a file (a line of JSON Lines); a byte-order mark of UTF-16 or "
        "UTF-32 counts where any but utf-8 is named",
    ),
]
"""One name or several; in the order in which they are tried."""


class Columns(Config):
    """Names of the columns that hold a document's parts; None where the table has no such column.

    A name with dots that is no column's leads into nested columns: ``content.text``. Files may lack any but ``text``
    and ``split``. Without ``id`` a document is called ``<file>:<row>``. ``id_pattern`` is a regular expression whose
    first group is taken out of the id column (``/(\\d+)$`` turns a Gutenberg address into its number).
    """

    text: str = "text"
    id: str | None = None
    id_pattern: str | None = None
    title: str | None = None
    author: str | None = None
    year: str | None = None
    split: str | None = Field(default=None, description="column holding train, validation or test")

    @model_validator(mode="after")
    def _pattern_fits(self) -> Columns:
        if self.id_pattern is not None:
            import re

            if self.id is None:
                raise ValueError("id_pattern has no effect without id. Fix: name the id column or remove id_pattern")
            try:
                groups = re.compile(self.id_pattern).groups
            except re.error as error:
                raise ValueError(f"id_pattern = {self.id_pattern!r}: not a regular expression ({error})") from error
            if groups != 1:
                raise ValueError(f"id_pattern = {self.id_pattern!r}: exactly one group is needed, it has {groups}")
        return self


class SourceBase(Config):
    """What every source has."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="first part of its documents' ids")
    weight: float | None = Field(
        default=None, gt=0, description="share of the training text, relative to the other sources' weights"
    )
    pin: Pin | None = Field(default=None, description="digest of the external input")

    def key_fields(self) -> dict[str, Any]:
        """The fields that decide which documents come out. The weight acts later, in training."""
        return self.model_dump(mode="json", exclude={"url", "weight"})


class WithPapers(SourceBase):
    """A source whose texts may be LaTeX (see ``stages.data.corpus.latex``)."""

    papers: bool = Field(default=False, description="LaTeX: a folder, or what begins with \\documentclass, is a paper")

    def key_fields(self) -> dict[str, Any]:
        """``papers`` counts where it is set."""
        fields = super().key_fields()
        if not self.papers:
            fields.pop("papers")
        return fields


class PythonDocs(SourceBase):
    """The manuals every machine with this environment has: no network needed.

    CPython's ``pydoc_data.topics`` (one document a topic), and for the standard library and each of ``packages`` one
    document a module: its docstrings with the signatures they belong to, found by parsing the source.
    """

    kind: Literal["python-docs"] = "python-docs"
    packages: tuple[str, ...] = Field(default=("numpy", "scipy"), description="installed packages, by import name")
    min_bytes: int = Field(default=1500, ge=0, description="shorter documents are left out")
    split: SplitShares = SplitShares()


class Pg19(SourceBase):
    """A folder in PG-19's layout: ``train/ validation/ test/<id>.txt``, optionally ``metadata.csv``."""

    kind: Literal["pg19"] = "pg19"
    url: str = Field(description="folder or fsspec URL; relative paths start at the study file")
    limit: int | None = Field(default=None, ge=1, description="books per split: those with the smallest hash of the id")
    ids: tuple[str, ...] | None = Field(default=None, description="only these books", min_length=1)
    encoding: Encodings = ("utf-8",)

    @field_validator("ids", mode="before")
    @classmethod
    def _ids_may_be_numbers(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        return tuple(str(item) if type(item) is int else item for item in value)

    @model_validator(mode="after")
    def _ids_or_limit(self) -> Pg19:
        if self.ids is not None and self.limit is not None:
            raise ValueError("ids and limit exclude each other. Fix: remove one of them")
        return self


class TableSource(WithPapers):
    """Files found by a glob; ``split`` names one split for all documents or shares by a stable hash."""

    url: str = Field(description="path, glob or fsspec URL; relative paths start at the study file")
    split: SplitName | SplitShares | None = None
    columns: Columns = Columns()

    @model_validator(mode="after")
    def _one_way_to_split(self) -> TableSource:
        if (self.split is None) == (self.columns.split is None):
            raise ValueError(
                "split: exactly one of split (train, validation, test, or {validation: share, test: share}) "
                "and columns.split is needed"
            )
        return self


class Parquet(TableSource):
    """Parquet files, one row a document."""

    kind: Literal["parquet"] = "parquet"


class JsonLines(TableSource):
    """JSON Lines files (``.gz`` and the like are unpacked), one object a document."""

    kind: Literal["jsonl"] = "jsonl"
    encoding: Encodings = ("utf-8",)


class TextFiles(WithPapers):
    """Plain text files, one file a document; its id is the path below the glob's fixed part."""

    kind: Literal["text"] = "text"
    url: str = Field(description="path, glob or fsspec URL; relative paths start at the study file")
    split: SplitName | SplitShares
    encoding: Encodings = ("utf-8",)


class Hub(WithPapers):
    """A data set on the Hugging Face Hub, or a local folder of the same layout, read by ``datasets.load_dataset``."""

    kind: Literal["hub"] = "hub"
    path: str = Field(description="Hub id (owner/name) or a local folder")
    revision: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{40}$",
        description="commit of the data set on the Hub (40 hex digits; a branch can move); none for a local folder",
    )
    config: str | None = Field(default=None, description="configuration name of the data set")
    splits: dict[SplitName, str] = Field(
        default={"train": "train", "validation": "validation", "test": "test"},
        description="this study's split -> the data set's split (datasets' slicing allowed, e.g. train[:100])",
        min_length=1,
    )
    columns: Columns = Columns()

    @model_validator(mode="after")
    def _splits_decide(self) -> Hub:
        if self.columns.split is not None:
            raise ValueError("columns.split has no effect on a hub source. Fix: use splits")
        return self

    def key_fields(self) -> dict[str, Any]:
        # The pin covers path and revision (on the Hub) or every file (in a folder, which may lie anywhere).
        return {name: value for name, value in super().key_fields().items() if name != "path"}


CorpusSource = Annotated[PythonDocs | Pg19 | Parquet | JsonLines | TextFiles | Hub, Field(discriminator="kind")]


class IngestConfig(Config):
    """All sources of a study, and what to do with a document that cannot be read."""

    sources: tuple[CorpusSource, ...] = Field(min_length=1)
    on_bad_document: Literal["skip", "fail"] = Field(
        default="skip", description="undecodable, empty, NUL bytes, duplicate, ...: skip and report, or stop"
    )

    @model_validator(mode="after")
    def _names_differ(self) -> IngestConfig:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"sources: the name {name!r} is used twice. Fix: give every source its own name")
        return self

    def key_fields(self) -> dict[str, Any]:
        """What the key is made of: see ``SourceBase.key_fields``."""
        fields = self.model_dump(mode="json", exclude={"sources"})
        fields["sources"] = [source.key_fields() for source in self.sources]
        return fields
