"""The stage ``ablate``: knock the memory out of one trained model in several ways, on the same items.

Knock-outs (model.mixers.base.Knockout): ``gate_closed`` g = 0; ``reset`` the memory forgets all but the previous
segment; ``swap`` it is another document's; ``zero_read`` A_mem = 0 at the trained gate. Beside the knock-outs of the
whole model: those of one head at a time, the state of the memory along long documents, and how many associations it
holds under the keys the model has learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.evidence.ablate.config import AblateConfig
from stages.record import Record
from stages.stage import Artifact, Context, Execution, Resources, Stage, StageError, Summary

if TYPE_CHECKING:
    from stages.data.tasks.prompts import Item

__all__ = ["STAGE", "Ablate", "AblateConfig"]


class Ablate(Stage[AblateConfig]):
    """Inputs: ``model`` (pretrain, kind infini), ``tokens``, ``tokenizer``. Outputs: perplexity, retrieval, gates,
    heads, saturation, capacity (the last three where the config has them)."""

    name = "ablate"
    code_version = 5
    inputs = ("model", "documents", "tokens", "tokenizer")

    def resources(self, config: AblateConfig, execution: Execution) -> Resources:
        return Resources(cpus=execution.task_cpus, gpus=execution.gpus_per_worker)

    def run(self, config: AblateConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        from stages.data.tasks.prompts import evaluation_items, haystack_of
        from stages.data.tokens.load import document_tokens, load_tokenizer, token_meta
        from stages.evidence.ablate import heads, keys, probes, recall, saturation
        from stages.evidence.evaluate import perplexity, retrieval, tables
        from stages.evidence.evaluate.forward import load_model
        from stages.training.device import torch_device

        tokenizer = load_tokenizer(inputs["tokenizer"])
        decoder = load_model(inputs["model"], tokenizer, torch_device(context.execution))
        gates = decoder.gates()
        if gates is None:
            raise StageError(
                "this arm has no memory to knock out",
                field="mixer.kind",
                value=decoder.config.mixer.kind,
                allowed="infini",
                fix="ablate the infini arms only",
            )
        rows = [
            {"layer": layer, "head": head, "gate": gate}
            for layer, heads in enumerate(gates.tolist())
            for head, gate in enumerate(heads)
        ]
        tables.write(output / "gates.parquet", rows, tables.GATES)

        longest = config.perplexity.max_tokens_per_document
        long_only = config.perplexity.model_copy(update={"min_tokens_per_document": longest})
        documents: list[perplexity.ScoredDocument] = []
        whole: list[perplexity.ScoredDocument] = []  # of every length, uncut
        uncut = config.perplexity.model_copy(
            update={
                "min_tokens_per_document": 2,
                "max_tokens_per_document": None,
                "max_documents": None,
                "max_documents_per_source": None,
            }
        )
        for split in config.perplexity.splits:
            found, short = perplexity.choose(
                document_tokens(inputs["tokens"], split), split, long_only, tokenizer.eos_id
            )
            context.log(f"{split}: {len(found)} documents of {longest} tokens, {short} shorter ones left out")
            documents += found
            if config.saturation or config.trained_keys or config.probes:
                whole += perplexity.choose(document_tokens(inputs["tokens"], split), split, uncut, tokenizer.eos_id)[0]
        haystack = haystack_of(document_tokens(inputs["tokens"], "test"), tokenizer.eos_id, tokenizer.bos_id)
        segment = decoder.config.mixer.segment_length
        items = [
            item
            for item in evaluation_items(config.retrieval, tokenizer, haystack, config.seed, "ablate")
            if item.asked_rank >= 0 and item.beyond_local(segment)
        ]
        _check_neighbours(config, len(documents), [item.length for item in items], segment)

        long = saturation.longest(whole, config.saturation, segment) if config.saturation else []
        if config.saturation and not long:
            raise StageError(
                f"no held-out document has two segments of {segment} tokens",
                field="ablate.saturation",
                value=config.saturation.model_dump(),
                fix="add longer held-out documents, or set it to null",
            )
        windowed, window = [], 0
        if config.probes:
            window = config.probes.window or token_meta(inputs["tokens"])["sequence_length"]
            windowed = probes.long_enough(whole, config.probes, window)
            if window % segment or not windowed:
                raise StageError(
                    f"no held-out document has two windows of whole segments of {segment} tokens",
                    field="ablate.probes.window",
                    value=window,
                    allowed=f"multiples of {segment}, half of a held-out document at most",
                    fix="another window, or longer held-out documents",
                )
        recalled: list[Item] = []
        if config.probes and config.probes.recall:
            recalled = recall.items_of(
                config.probes.recall, tokenizer, haystack, config.retrieval.format, segment, config.seed
            )
        one_by_one = heads.choose(items, config.heads) if config.heads else []
        count = decoder.config.trunk.layers * decoder.config.trunk.heads
        total = (sum(len(d.tokens) for d in documents) + sum(len(i.prompt) for i in items)) * len(config.knockouts)
        if config.heads:
            several = count + config.heads.layers * decoder.config.trunk.layers
            total += sum(len(i.prompt) for i in one_by_one) * len(config.heads.knockouts) * several
        total += sum(len(item.prompt) for item in recalled)
        total += sum(len(d.tokens) for d in long) + 2 * sum(len(d.tokens) for d in windowed)
        if config.probes:
            many = len(config.probes.gates) + config.probes.other_rule
            total += (sum(len(d.tokens) for d in documents) + sum(len(i.prompt) for i in items)) * many
        if config.trained_keys:
            total += min(config.trained_keys.tokens, sum(len(d.tokens) for d in whole))
        done = 0

        def progress(tokens: int) -> None:
            nonlocal done
            done += tokens
            context.progress(done, total, "tokens")

        text: list[dict[str, Any]] = []
        asked: list[dict[str, Any]] = []
        metrics = {"gate_mean": gates.mean().item(), "gate_min": gates.min().item(), "gate_max": gates.max().item()}
        for knockout in config.knockouts:
            scored = perplexity.score(decoder, tokenizer, documents, config.perplexity, progress, knockout=knockout)
            metrics[f"{knockout}.perplexity"] = perplexity.totals(scored)["perplexity"]
            answers = retrieval.score(decoder, tokenizer, items, progress, knockout=knockout)
            for task in ("passkey", "bindings"):
                of_task = [row for row in answers if row["task"] == task]
                for column, name in (("correct", "accuracy"), ("answer_nll", "answer_nll")):
                    if of_task:
                        metrics[f"{knockout}.{task}.{name}"] = sum(row[column] for row in of_task) / len(of_task)
            text += [row | {"knockout": knockout} for row in scored]
            asked += [row | {"knockout": knockout} for row in answers]
        tables.write(output / "perplexity.parquet", text, tables.with_knockout(tables.PERPLEXITY))
        tables.write(output / "retrieval.parquet", asked, tables.with_knockout(tables.RETRIEVAL))
        made = {
            "knockout perplexity": "perplexity.parquet",
            "knockout retrieval": "retrieval.parquet",
            "gates": "gates.parquet",
        }
        if config.probes:
            probed: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
            for probe, twin in probes.probed(decoder, config.probes):
                scored = perplexity.score(twin, tokenizer, documents, config.perplexity, progress)
                metrics[f"{probe}.perplexity"] = perplexity.totals(scored)["perplexity"]
                answers = retrieval.score(twin, tokenizer, items, progress)
                for table, added in zip(probed, (scored, answers), strict=True):
                    table += [row | {"knockout": probe} for row in added]
            tables.write(output / "probe_perplexity.parquet", probed[0], tables.with_knockout(tables.PERPLEXITY))
            tables.write(output / "probe_retrieval.parquet", probed[1], tables.with_knockout(tables.RETRIEVAL))
            read = probes.windows(decoder, windowed, window, progress)
            tables.write(output / "windows.parquet", read, probes.WINDOWS)
            made |= {
                "probes perplexity": "probe_perplexity.parquet",
                "probes retrieval": "probe_retrieval.parquet",
                "memory carried or emptied": "windows.parquet",
            }
        if recalled:
            asked_later = recall.score(decoder, tokenizer, recalled, progress)
            tables.write(output / "recall.parquet", asked_later, recall.RECALL)
            made["recall of an item after segments"] = "recall.parquet"
        if config.heads:
            intact = {row["item"]: row for row in asked if row["knockout"] == "none"}
            by_head = heads.score(decoder, tokenizer, one_by_one, config.heads, intact, progress)
            tables.write(output / "heads.parquet", by_head, heads.HEADS)
            made["heads"] = "heads.parquet"
            if config.heads.layers:
                by_layer = heads.score(decoder, tokenizer, one_by_one, config.heads, intact, progress, layers=True)
                tables.write(output / "layers.parquet", by_layer, heads.LAYERS)
                made["layers"] = "layers.parquet"
        if config.saturation:
            along = saturation.score(decoder, long, config.saturation, progress)
            context.log(f"memory along {len(long)} documents of up to {max(len(d.tokens) for d in long)} tokens")
            if config.saturation.spectrum:
                tables.write(output / "spectrum.parquet", saturation.spectra(along), saturation.SPECTRUM)
                made["spectrum of the memory"] = "spectrum.parquet"
            own = [{name: row[name] for name in saturation.SATURATION.names} for row in along]
            tables.write(output / "saturation.parquet", own, saturation.SATURATION)
            metrics |= saturation.numbers(along)
            made["saturation"] = "saturation.parquet"
        if config.trained_keys:
            learned = keys.collect(decoder, whole, config.trained_keys.tokens, progress)
            context.log(f"keys of {len(learned[0])} distinct held-out tokens")
            held = keys.score(decoder, learned, config.trained_keys, config.seed)
            tables.write(output / "capacity.parquet", held, keys.CAPACITY)
            made["capacity of trained keys"] = "capacity.parquet"
        return Summary(headline=_headline(config, metrics), metrics=metrics, tables=made)


def _check_neighbours(config: AblateConfig, documents: int, lengths: list[int], segment: int) -> None:
    """StageError unless there is something to score, and a second document and prompt of each length for ``swap``."""
    least = 2 if "swap" in config.knockouts else 1
    longest = config.perplexity.max_tokens_per_document
    if documents < least:
        raise StageError(
            f"{documents} held-out documents are that long, the knock-outs need {least}",
            field="ablate.perplexity.max_tokens_per_document",
            value=longest,
            fix="lower it or add longer held-out documents",
        )
    if not lengths or min(lengths.count(length) for length in lengths) < least:
        raise StageError(
            f"fewer than {least} needles of some length lie outside the last segment of {segment} tokens",
            field="ablate.retrieval.lengths",
            value=list(config.retrieval.lengths),
            allowed=f"lengths above {segment} with at least {least} trials",
            fix="ask longer prompts or more trials",
        )


def _headline(config: AblateConfig, metrics: Mapping[str, float]) -> str:
    parts = [f"gates {metrics['gate_min']:.2f} to {metrics['gate_max']:.2f}"]
    for knockout in config.knockouts:
        if knockout != "none":
            ratio = metrics[f"{knockout}.perplexity"] / metrics["none.perplexity"]
            parts.append(f"{knockout} {ratio - 1:+.2%}")
    return ", ".join(parts) + " perplexity"


STAGE = Ablate()
RECORD = Record(stage=STAGE, config=AblateConfig, kinds=("infini",))
