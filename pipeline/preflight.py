"""What a study and its external inputs say of each other, found before anything runs (and in every ``plan``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.corpus.pin import DigestCache, possible_splits
from stages.pretrain.config import BaseConfig
from stages.stage import StageError
from stages.tasks.prompts import PromptMaker
from stages.tokens.preview import preview
from stages.tokens.stage import TokenizerConfig, vocabulary_size

if TYPE_CHECKING:
    from pipeline.study import Study
    from stages.corpus.config import IngestConfig


def check(study: Study, corpus: IngestConfig, tokenizer: TokenizerConfig, base: BaseConfig, cache: Path | None) -> None:
    """``corpus``, ``tokenizer`` and ``base`` are the pinned ones, with absolute paths. Raises StageError."""
    _splits(study, corpus)
    vocabulary = vocabulary_size(tokenizer)
    if base.init == "hf":
        from stages.pretrain.imported import check_folder

        digests = DigestCache(cache)
        check_folder(base, vocabulary, lambda file: digests.digest(str(file), file.stat()).removeprefix("sha256:"))
        digests.save()
    _workers(study)
    _prompts(study, tokenizer)


def _splits(study: Study, corpus: IngestConfig) -> None:
    """Every split that is read must have documents. The haystack of the prompts is the test split's text."""
    there = set[str]().union(*(possible_splits(source) for source in corpus.sources))
    wanted = [("train", "training", "pretrain"), ("test", "the text around the needles", "evaluate.retrieval")]
    sections = (("evaluate", study.evaluate.perplexity), ("ablate", study.ablate and study.ablate.perplexity))
    for name, section in (*((f"{n}.perplexity", s) for n, s in sections), ("summarize", study.summarize)):
        wanted += [(split, "scoring", f"{name}.splits") for split in (section.splits if section else ())]
    for split, purpose, field in wanted:
        if split not in there:
            raise StageError(
                f"no source has documents of the split {split!r}, which {field} needs for {purpose}",
                field="corpus.sources",
                value=[source.name for source in corpus.sources],
                fix=f"add a source with such documents (a folder {split}/, a share, a split column)",
            )


def _prompts(study: Study, tokenizer: TokenizerConfig) -> None:
    """Prompts must hold their needles with this tokenizer, those that are asked and those that are trained on. Of one
    that is still to be trained only the fewest tokens are known; what passes then is found at the first prompt."""
    codec = preview(tokenizer)
    if codec is None:
        return
    haystack = range(2**62)  # of which only the length is asked; that of the real one is known after tokenize
    sections = [("evaluate", study.evaluate.retrieval)]
    if study.ablate is not None:
        sections.append(("ablate", study.ablate.retrieval))
    for section, asked in sections:
        maker = PromptMaker(codec, haystack, asked.format, 0, "evaluation")  # type: ignore[arg-type]
        for length in asked.lengths:
            maker.check(length, 1, field=f"{section}.retrieval.lengths", bindings=False)
        if asked.binding_trials or asked.control_trials:
            field = f"{section}.retrieval." + ("lengths" if asked.binding_lengths is None else "binding_lengths")
            for length in asked.lengths_of_bindings:
                maker.check(length, max(asked.rivals), field=field, bindings=True)
    for section, mixture in (("base", study.base.mixture), ("pretrain", study.pretrain.mixture)):
        maker = PromptMaker(codec, haystack, mixture.retrieval_format, 0, "training")  # type: ignore[arg-type]
        for index, phase in enumerate(mixture.prompts):
            if not phase.share:
                continue
            for task in mixture.retrieval_tasks:
                k = max(mixture.retrieval_rivals) if task == "bindings" else 1
                field = f"{section}.mixture.prompts.{index}.length"
                maker.check(phase.length, k, field=field, bindings=task == "bindings")


def _workers(study: Study) -> None:
    """The global batch is shared out equally."""
    workers, batches = study.execution.train_workers, {"pretrain.batch_sequences": study.pretrain.batch_sequences}
    if study.base.batch_tokens and study.base.sequence_length:
        batches["base.batch_tokens / base.sequence_length"] = study.base.batch_tokens // study.base.sequence_length
    for name, sequences in batches.items():
        if sequences % workers:
            raise StageError(
                "each worker takes the same number of the global batch's sequences",
                field="execution.train_workers",
                value=workers,
                allowed=f"divisors of {name} = {sequences}",
                fix="change one of them",
            )
