"""Carries out ``references`` and ``summarize``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.tokens.load import load_tokenizer
from stages.evidence.summarize import baselines
from stages.evidence.summarize.config import ItemsConfig, SummarizeConfig
from stages.evidence.summarize.items import (
    SummaryExample,
    condensations,
    continuations,
    from_pairs,
    held_out,
    load,
    prompt_of,
    write,
)
from stages.evidence.summarize.lexical import COLUMNS, SourceText, measured
from stages.stage import Artifact, Context, StageError, Summary

if TYPE_CHECKING:
    from stages.data.tokens.load import StudyTokenizer

NAMED = [(name, pa.string()) for name in ("doc_id", "book", "task", "level")]
MEASURED = [(name, pa.float64()) for name in COLUMNS]
BASELINES = pa.schema([("system", pa.string()), *NAMED, ("hypothesis", pa.large_string()), *MEASURED])
SUMMARIES = pa.schema(
    [
        *NAMED,
        ("length", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("decoding", pa.string()),
        ("tokens", pa.int64()),
        ("reference", pa.large_string()),
        ("hypothesis", pa.large_string()),
        *MEASURED,
    ]
)
SHOWN = 3  # summaries in summaries.md


def references(config: ItemsConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
    """items.parquet: what is summarized. baselines.parquet: lead, central and shuffled summaries of it, measured."""
    tokenizer = load_tokenizer(inputs["tokenizer"])
    examples = _examples(config, inputs["documents"], tokenizer, context)
    write(examples, output / "items.parquet")
    others = baselines.shuffled(examples)
    rows = []
    for done, (example, other) in enumerate(zip(examples, others, strict=True), 1):

        def fits(text: str) -> bool:
            return len(tokenizer.encode(text)) <= config.new_tokens

        source = SourceText.of(example.text)
        made = {"lead": baselines.lead(example.text, fits), "central": baselines.central(example.text, fits)}
        made |= {"shuffled": other} if other is not None else {}
        rows += [
            {"system": system, **_named(example), "hypothesis": text, **measured(example.references, text, source)}
            for system, text in made.items()
        ]
        context.progress(done, len(examples), "texts")
    pq.write_table(pa.Table.from_pylist(rows, BASELINES), output / "baselines.parquet", compression="zstd")
    if any(other is None for other in others):
        context.warn("shuffled references: a task has texts of one book only, so there is no reference of another")
    counts = {f"{task}.{level}": 0.0 for task, level in dict.fromkeys((e.task, e.level) for e in examples)}
    for example in examples:
        counts[f"{example.task}.{example.level}"] += 1
    return Summary(
        headline=", ".join(f"{name.replace('.', ' ')}: {count:.0f}" for name, count in counts.items()),
        metrics=counts,
        tables={"baselines": "baselines.parquet"},
    )


def _examples(
    config: ItemsConfig, artifact: Artifact, tokenizer: StudyTokenizer, context: Context
) -> list[SummaryExample]:
    documents = [] if _only_pairs(config) else held_out(artifact, config.splits)
    examples: list[SummaryExample] = []
    for task in config.tasks:
        if task == "continue":
            made = continuations(documents, tokenizer, config)
        elif config.pairs is not None:
            made = from_pairs(config.pairs, config)
            long = sum(min(len(tokenizer.encode(r)) for r in e.references) > config.new_tokens for e in made)
            if long:
                context.warn(
                    f"{long} of {len(made)} texts have no reference as short as new_tokens = {config.new_tokens}"
                )
        else:
            made = condensations(documents, tokenizer, config)
        if not made:
            raise StageError(
                f"no held-out document is long enough to {task}",
                field="summarize.prompt_tokens",
                value=config.prompt_tokens,
                fix="lower prompt_tokens or new_tokens, or add longer documents",
            )
        if len(made) < config.documents:
            context.warn(f"{task}: {len(made)} of {config.documents} documents asked for are long enough")
        examples += made
    return examples


def _only_pairs(config: ItemsConfig) -> bool:
    return config.pairs is not None and "continue" not in config.tasks


def _named(example: SummaryExample) -> dict[str, str]:
    return {"doc_id": example.doc_id, "book": example.book, "task": example.task, "level": example.level}


def summaries(config: SummarizeConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
    """summaries.parquet: what the model wrote of every item, at every length and by every decoding, measured."""
    import torch

    from model.generate import generate
    from stages.evidence.evaluate.forward import PASS_TOKENS, load_model
    from stages.training.device import torch_device

    device = torch_device(context.execution)
    tokenizer = load_tokenizer(inputs["tokenizer"])
    decoder = load_model(inputs["model"], tokenizer, device)
    examples = load(inputs["references"])
    rounds = list(_rounds(config, examples, tokenizer))
    total, rows = sum(len(prompts) for *_, prompts in rounds), list[dict[str, Any]]()
    sources: dict[tuple[str, str, str], SourceText] = {}
    for length, decoding, prompts in rounds:
        generator = torch.Generator(device).manual_seed(config.seed)
        for batch in _batches(prompts, PASS_TOKENS[device.type]):
            said = generate(
                decoder,
                [prompt for _, prompt in batch],
                config.new_tokens,
                temperature=config.temperature if decoding == "sample" else 0.0,
                top_p=config.top_p,
                stop_ids=(tokenizer.eos_id,),
                generator=generator,
                prefill_chunk=PASS_TOKENS[device.type],
            )
            for (example, prompt), ids in zip(batch, said, strict=True):
                hypothesis = tokenizer.decode(ids)
                source = sources.setdefault(example.name, SourceText.of(example.text))
                rows.append(
                    _named(example)
                    | {"length": length, "prompt_tokens": len(prompt), "decoding": decoding, "tokens": len(ids)}
                    | {"reference": example.references[0], "hypothesis": hypothesis}
                    | measured(example.references, hypothesis, source)
                )
            context.progress(len(rows), total, "summaries")
    pq.write_table(pa.Table.from_pylist(rows, SUMMARIES), output / "summaries.parquet", compression="zstd")
    (output / "summaries.md").write_text(_page(rows), encoding="utf-8")
    first = [r for r in rows if (r["length"], r["decoding"]) == (config.lengths[0], config.decodings[0])]
    metrics: dict[str, float] = {}
    for task in config.tasks:
        of_task = [row for row in first if row["task"] == task]
        metrics |= {f"{task}.{kind}": sum(r[kind] for r in of_task) / len(of_task) for kind in _HEADLINE}
        metrics[f"{task}.documents"] = float(len(of_task))
    return Summary(
        headline=", ".join(f"{task} ROUGE-L {metrics[f'{task}.rougeL']:.3f}" for task in config.tasks),
        metrics=metrics,
        tables={"summaries": "summaries.parquet"},
        figures=["summaries.md"],
    )


_HEADLINE = ("rouge1", "rouge2", "rougeL", "rougeLsum", "rouge")

Prompted = tuple[SummaryExample, tuple[int, ...]]


def _rounds(
    config: SummarizeConfig, examples: list[SummaryExample], tokenizer: StudyTokenizer
) -> Iterator[tuple[str, str, list[Prompted]]]:
    """(length, decoding, examples with their prompts): all at the first length, those of condense at the others."""
    for length in config.lengths:
        asked = [e for e in examples if length == config.lengths[0] or e.task == "condense"]
        prompts = [(e, prompt_of(e, tokenizer, length, config.cue)) for e in asked]
        for decoding in config.decodings:
            yield length, decoding, prompts


def _batches(prompts: list[Prompted], budget: int) -> Iterator[list[Prompted]]:
    """In their order, as many as a pass holds at the first one's length."""
    start = 0
    while start < len(prompts):
        size = max(1, budget // len(prompts[start][1]))
        yield prompts[start : start + size]
        start += size


def _page(rows: list[dict[str, Any]]) -> str:
    """The first summaries beside their references, to read."""
    lines = ["# Summaries as they were written", ""]
    for row in rows[:SHOWN] if len({r["task"] for r in rows}) == 1 else _of_each_task(rows):
        said = f"{row['task']}, {row['level']}, {row['prompt_tokens']:,} tokens read, {row['decoding']}"
        lines += [f"## {_plain(row['doc_id'])}", "", f"{said}.", ""]
        lines += [
            "**written:**",
            "",
            _quoted(row["hypothesis"]),
            "",
            "**reference:**",
            "",
            _quoted(row["reference"]),
            "",
        ]
    return "\n".join(lines)


def _of_each_task(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        row for task in dict.fromkeys(r["task"] for r in rows) for row in [r for r in rows if r["task"] == task][:2]
    ]


def _quoted(text: str) -> str:
    return "\n".join(f"> {_plain(line)}" for line in (text.strip() or "(nothing)").split("\n"))


def _plain(text: str) -> str:
    """Text that cannot become markup."""
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("[", "\\["), ("`", "\\`"), ("#", "\\#")):
        text = text.replace(sign, safe)
    return text
