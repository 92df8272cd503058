"""What sections of a study, and its external inputs, say of each other, found before anything runs (and in every
``plan``): names that must exist, lists without repeats, options without effect, prompts that fit. Many would otherwise
show after hours of training, or never."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cluster.storage import StorageError, check_bare
from model.config import check_reach
from pipeline.errors import suggestion
from pipeline.study import tuning
from pipeline.study.schedules import faults as schedule_faults
from pipeline.study.schedules import variants
from pipeline.study.study import LONGEST_NAME, StudyConfig
from stages.data.corpus.config import IngestConfig
from stages.data.corpus.files import DigestCache
from stages.data.corpus.pin import most_test_bytes, possible_splits
from stages.data.tasks import later
from stages.data.tasks.checked import Checked
from stages.data.tasks.drill import Drill
from stages.data.tasks.haystack import Codec, Haystack
from stages.data.tasks.prompts import PromptMaker
from stages.data.tasks.registry import task_of
from stages.data.tasks.training import trained_k
from stages.data.tokens.config import TokenizerConfig
from stages.data.tokens.load import StudyTokenizer
from stages.data.tokens.pin import vocabulary_size
from stages.data.tokens.preview import preview
from stages.evidence.control.stage import CONTROL_ARMS
from stages.stage import StageError
from stages.training.pretrain.config import BaseConfig, MixtureConfig, PretrainConfig, check_workers
from stages.training.pretrain.recipe import check_execution, of_pretrain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def disagreements(study: StudyConfig) -> list[str]:
    """All of them, one line each: field, value, what is wrong, the fix."""
    values = study.model_dump(mode="json")
    return [
        *_repeats(values, ""),
        *_sizes(values, ""),
        *_passwords(values, ""),
        *_models(study),
        *_warmup(study),
        *_mixture(study),
        *_arms(study),
        *tuning.disagreements(study),
        *_claims(study),
        *study.match.faults(study.arms),
        *schedule_faults(study),
        *_summaries(study),
    ]


_LARGEST = 10**11  # of any number; what is counted is tokens, steps, prompts
_LARGEST_OF = {"trunk.dim": 10**6, "trunk.layers": 10**4, "trunk.heads": 10**4, "trunk.kv_heads": 10**4}
_LARGEST_RATE = {"lr": 10, "gate_lr": 10, "weight_decay": 10, "z_loss": 10}  # by name, wherever it stands
_LONGEST = 4096  # characters of a path, a URL or a name
_MOST_MODELS = 10_000


def _sizes(value: Any, place: str) -> Iterator[str]:
    """Numbers and texts that cannot be meant: work with them would end in no memory, or never."""
    if isinstance(value, dict):
        for name, item in value.items():
            if len(name) > LONGEST_NAME:
                yield (
                    f"{place}: a name of {len(name)} characters, {name[:40]!r}... (allowed: at most {LONGEST_NAME}). "
                    "Fix: a shorter one"
                )
                return
            yield from _sizes(item, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _sizes(item, f"{place}.{index}")
    elif isinstance(value, int | float) and abs(value) > (
        most := _LARGEST_OF.get(place) or _LARGEST_RATE.get(place.rpartition(".")[2], _LARGEST)
    ):
        shown = f"{value:.6g}" if abs(value) < 10**300 else "a number of more than 300 digits"
        yield f"{place} = {shown}: cannot be meant (allowed: at most {most:,}). Fix: a smaller number"
    elif (
        isinstance(value, str)
        and place != "description"
        and len(value) > (most := LONGEST_NAME if place.endswith(".name") else _LONGEST)
    ):
        yield f"{place} = {value[:40]!r}...: {len(value)} characters (allowed: at most {most})"


def _passwords(value: Any, place: str) -> Iterator[str]:
    """URLs that nobody else should see: MLflow and the step's log show them."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _passwords(item, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _passwords(item, f"{place}.{index}")
    elif isinstance(value, str):
        try:
            check_bare(value, place)
        except StorageError as error:
            yield str(error)


def _models(study: StudyConfig) -> Iterator[str]:
    trained = len(study.arms) + sum(map(len, variants(study).values()))
    if (models := trained * len(study.seeds)) > _MOST_MODELS:
        yield (
            f"arms, schedules, seeds: {trained} x {len(study.seeds)} = {models} models (allowed: at most "
            f"{_MOST_MODELS}). Fix: several studies with one store"
        )


def _warmup(study: StudyConfig) -> Iterator[str]:
    for name, section in (("base", study.base), ("pretrain", study.pretrain)):
        if section.steps is not None and section.warmup_steps > section.steps:
            yield (
                f"{name}.warmup_steps = {section.warmup_steps}: training ends before, at {name}.steps = "
                f"{section.steps} (allowed: at most that many)"
            )


def _repeats(value: Any, place: str) -> Iterator[str]:
    """Lists in which an entry stands twice: a document, a prompt or a trial would count twice."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _repeats(item, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        plain = [item for item in value if not isinstance(item, dict | list)]
        if len(set(map(repr, plain))) != len(plain):
            yield f"{place} = {value}: an entry stands twice. Fix: keep one of each"
        for index, item in enumerate(value):
            yield from _repeats(item, f"{place}.{index}")


def _mixture(study: StudyConfig) -> Iterator[str]:
    known = [source.name for source in study.corpus.sources]
    sections = [("base", study.base.mixture), ("pretrain", study.pretrain.mixture), *_of_schedules(study)]
    for section, mixture in sections:
        for name in mixture.sources:
            if name not in known:
                yield f"{section}.mixture.sources.{name}: the corpus has no such source{suggestion(name, known)}"


def _of_schedules(study: StudyConfig) -> list[tuple[str, MixtureConfig]]:
    """Section and mixture of the schedules that have one."""
    return [(f"schedules.{name}", one.mixture) for name, one in study.schedules.items() if one.mixture is not None]


def _arms(study: StudyConfig) -> Iterator[str]:
    """Sections that would make no step, and prompts too short to tell memory from the local segment."""
    for name, arm in study.arms.items():
        if arm.memory_layer is not None and arm.memory_layer >= study.trunk.layers:
            yield (
                f"arms.{name}.memory_layer = {arm.memory_layer}: the trunk has layers 0 to {study.trunk.layers - 1}. "
                "Fix: name one of them, or leave it out"
            )
        try:
            check_reach(study.trunk, arm)
        except ValueError as error:
            yield f"arms.{name}: {error}"
    for record, _ in study.asked:
        if record.kinds and not any(arm.kind in record.kinds for arm in study.arms.values()):
            kinds = " or ".join(record.kinds)
            lack = f"has no effect, no arm has kind {kinds}"
            yield f"{record.stage.name}: {lack}. Fix: add one to arms, or remove the section"
    memories = {name: arm for name, arm in study.arms.items() if arm.kind == "infini"}
    if study.control is not None:
        for name, arm in memories.items():
            if (kind := CONTROL_ARMS.get(name, "infini")) != "infini":
                yield (
                    f"arms.{name}.kind = {arm.kind!r}: in the positive control {name!r} is the arm of kind {kind!r}. "
                    "Fix: give the arm another name"
                )
    if study.ablate is not None and memories:
        asked = study.ablate.retrieval
        name, arm = max(memories.items(), key=lambda item: item[1].segment_length)
        short = [n for n in (*asked.lengths, *asked.lengths_of_bindings) if n <= arm.segment_length]
        if short:
            yield (
                f"ablate.retrieval.lengths = {list(asked.lengths)}: a prompt of {short[0]} tokens lies within a "
                f"segment of arms.{name} ({arm.segment_length}), its memory is never read. Fix: ask longer prompts"
            )


def _claims(study: StudyConfig) -> Iterator[str]:
    """Decision rules that name what the study does not measure; a default that is not measured is no fault."""
    claims = study.claims
    further = study.evaluate.retrieval.further
    composed = [grid.task.name for grid in further if grid.task.composes]
    lengths = sorted({length for grid in further for length in grid.lengths})
    measured = (
        ("retrieval", "length", "evaluate.retrieval.lengths", study.evaluate.retrieval.lengths),
        ("compositional", "tasks", "compositional ones of evaluate.retrieval.tasks", composed),
        ("compositional", "length", "lengths of evaluate.retrieval.tasks", lengths),
        ("memory_is_used", "knockouts", "ablate.knockouts", study.ablate and study.ablate.knockouts),
        ("positive_control", "pairs", "control.pairs", study.control and study.control.pairs),
        ("capacity", "feature_map", "capacity.feature_maps", study.capacity and study.capacity.feature_maps),
        ("capacity", "rules", "capacity.rules", study.capacity and study.capacity.rules),
        ("alignment", "variants", "align.variants", study.align and list(study.align.variants)),
        ("summarization", "task", "summarize.tasks", study.summarize and study.summarize.tasks),
        ("summarization", "decoding", "summarize.decodings", study.summarize and study.summarize.decodings),
    )
    for claim, field, section, allowed in measured:
        rule = getattr(claims, claim)
        if field not in rule.model_fields_set or allowed is None:
            continue
        value = getattr(rule, field)
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None and item not in allowed:
                yield f"claims.{claim}.{field} = {item!r}: not measured (allowed: {section} = {list(allowed)})"


def _summaries(study: StudyConfig) -> Iterator[str]:
    """Sections that read summaries, and what they name of them."""
    for record, _ in study.asked:
        if record.per == "summaries" and study.summarize is None:
            name = record.stage.name
            yield f"{name}: has no effect without summaries. Fix: add the section summarize, or remove this one"
    if study.judge is None or study.summarize is None:
        return
    judge, written = study.judge, study.summarize
    named = (
        ("arms", judge.arms or (), list(study.arms)),
        ("against", judge.against, list(study.arms)),
        ("tasks", judge.tasks, list(written.tasks)),
        ("decoding", (judge.decoding,), list(written.decodings)),
    )
    for field, values, allowed in named:
        for value in values:
            if value not in allowed:
                yield f"judge.{field} = {value!r}: not among what is summarized (allowed: {allowed})"


def preflight(
    study: StudyConfig, corpus: IngestConfig, tokenizer: TokenizerConfig, base: BaseConfig, cache: Path | None
) -> None:
    """``corpus``, ``tokenizer`` and ``base`` are the pinned ones, with absolute paths. Raises StageError."""
    _splits(study, corpus)
    vocabulary = vocabulary_size(tokenizer)
    if base.init == "hf":
        from stages.training.pretrain.imported import check_folder

        digests = DigestCache(cache)

        def digest(file: Path) -> str:
            return digests.digests([(str(file), file.stat())])[0].removeprefix("sha256:")

        check_folder(base, vocabulary, digest)
        digests.save()
    _workers(study)
    tuning.check_batches(study)
    _prompts(study, tokenizer)
    _held_out(study, corpus)


def _held_out(study: StudyConfig, corpus: IngestConfig) -> None:
    """Prompts in prose are no longer than the test split, as far as sizes of files say; a token has a byte at least, or
    is one of two where a word begins."""
    sizes = [most_test_bytes(source) for source in corpus.sources]
    if None in sizes:
        return
    most = 2 * sum(size for size in sizes if size is not None)
    haystack = Haystack(cast("Codec", None), cast("NDArray[np.int32]", range(most)), "compact")
    sections = [("evaluate", study.evaluate.retrieval)]
    sections += [] if study.ablate is None else [("ablate", study.ablate.retrieval)]
    for section, asked in sections:
        for grid in (*asked.needles, *asked.further):
            for length in grid.lengths if grid.trials or grid.control_trials else ():
                if length > min(grid.task.longest(haystack, k) for k in grid.ks):
                    raise StageError(
                        f"the test split, the text around the needles of {grid.task.name}, has {most // 2:,} bytes",
                        field=f"{section}.retrieval.{grid.field}",
                        value=length,
                        allowed=f"tokens of one document after another: fewer than {most:,}",
                        fix="shorten the prompts, or add documents to the test split",
                    )


def _splits(study: StudyConfig, corpus: IngestConfig) -> None:
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


def _prompts(study: StudyConfig, tokenizer: TokenizerConfig) -> None:
    """Prompts must hold their needles with this tokenizer, those that are asked and those that are trained on. Of one
    that is still to be trained only the fewest tokens are known; what passes then is found at the first prompt."""
    codec = preview(tokenizer)
    if codec is None:
        return
    tuning.check_prompts(study, codec)
    # Only its length is asked, and that of the real one is known after tokenize.
    haystack = cast("NDArray[np.int32]", range(2**62))
    sections = [("evaluate", study.evaluate.retrieval)]
    if study.ablate is not None:
        sections.append(("ablate", study.ablate.retrieval))
    for section, asked in sections:
        maker = PromptMaker(codec, haystack, asked.format, 0, "evaluation")
        maker.check_grids((*asked.needles, *asked.further), f"{section}.retrieval")
    if study.ablate is not None and study.ablate.probes is not None and (recall := study.ablate.probes.recall):
        maker = PromptMaker(codec, haystack, study.ablate.retrieval.format, 0, "evaluation")
        for arm in study.arms.values():
            if arm.kind == "infini":
                field = "ablate.probes.recall.segments"
                later.check(maker, recall.items, recall.segments, arm.segment_length, field=field)
    if tokenizer.kind in ("file", "hub"):
        _characters(study, codec)
    for section, mixture in (
        ("base", study.base.mixture),
        ("pretrain", study.pretrain.mixture),
        *((section, _filled(study, mixture)) for section, mixture in _of_schedules(study)),
    ):
        maker = PromptMaker(codec, haystack, mixture.retrieval_format, 0, "training")
        for index, phase in enumerate(mixture.prompts):
            if not phase.share:
                continue
            if phase.drill is not None:
                if tokenizer.kind in ("file", "hub"):  # of others the words of one token are not known yet
                    field = f"{section}.mixture.prompts.{index}.drill.words"
                    ks = phase.drill.k
                    Drill(codec, 0).rows(phase.length, len(ks), 0, words=phase.drill.words, ks=ks, field=field)
                continue
            for task in map(task_of, mixture.retrieval_tasks):
                k = max(trained_k(task, phase.rivals or mixture.retrieval_rivals))
                maker.check(task, phase.length, k, field=f"{section}.mixture.prompts.{index}.length")


def _characters(study: StudyConfig, codec: StudyTokenizer) -> None:
    """A given tokenizer must give back what the tasks say: one prompt of each shows it."""
    import numpy as np

    asked = study.evaluate.retrieval
    fix = "leave the task out, or give a tokenizer that has these characters"
    for grid in (*asked.needles, *asked.further):
        checked = Checked(codec, f"evaluate.retrieval (task {grid.task.name})", fix)
        length = min(grid.lengths)
        maker = PromptMaker(checked, np.zeros(length, np.int32), asked.format, 0, "evaluation")
        for k in grid.ks if grid.trials else ():
            maker.item(grid.task, length, k, 0, grid.depth_of(0))


def _filled(study: StudyConfig, mixture: MixtureConfig) -> MixtureConfig:
    """A schedule's mixture with what it takes over from ``pretrain``."""
    return study.pretrain.mixture.model_copy(update={n: getattr(mixture, n) for n in mixture.model_fields_set})


def _workers(study: StudyConfig) -> None:
    """The global batch is shared out equally, and the sequences that several workers have together."""
    for mixer in study.arms.values():
        config = PretrainConfig(**dict(study.pretrain), mixer=mixer, seed=0)
        check_execution(of_pretrain(config), mixer, study.execution, "pretrain.batch_sequences")
    if study.base.batch_tokens and study.base.sequence_length:
        sequences = study.base.batch_tokens // study.base.sequence_length
        check_workers(sequences, study.execution.train_workers, "base.batch_tokens / base.sequence_length")
