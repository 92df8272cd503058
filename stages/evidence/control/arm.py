"""The work of ``control``: an arm grafted onto its seed's base learns to recall across segments, and is then asked with
its memory knocked out, and from farther away than it was trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F

from model import checkpoint
from model.decoder import Decoder, Knockout
from stages.evidence.control import tables
from stages.evidence.control.config import ControlConfig
from stages.evidence.control.sequences import DISTANCE, EVALUATION, TRAINING, Between, between, draw
from stages.evidence.control.training import Score, ask, train
from stages.stage import Artifact, Context, Summary

ROWS = 10
"""Sequences read side by side far beyond the trained length: few, so that what is made of them stays in the cache."""


def run(config: ControlConfig, base: Artifact, output: Path, context: Context) -> Summary:
    """Graft, train, score, write control.parquet."""
    recall_of_base = base.summary["accuracy"]
    if not base.summary["learned"]:
        context.warn(
            f"grafted onto a base that has not learned to recall ({recall_of_base:.0%} at its hardest k): what this "
            "arm cannot do says nothing of its memory"
        )
    decoder = checkpoint.graft(base.path("model"), config.mixer, seed=config.seed)
    steps, seen = train(
        decoder,
        config,
        config.graft,
        segments=config.segments,
        pairs=config.pairs,
        asked=config.pairs,
        stream=(config.seed, TRAINING),
        field="control.graft",
        context=context,
    )
    rows = [tables.row(config, score, step=step, k=k, segments=config.segments) for step, k, score in seen]
    ends: dict[str, dict[int, float]] = {}
    knockouts = tuple(Knockout) if config.mixer.kind == "infini" else (Knockout.none,)
    for knockout in knockouts:
        for k in config.pairs:
            drawn = draw(config, config.trials, (k,), config.seed, EVALUATION, k)
            if knockout is not Knockout.none:
                drawn = drawn.first(config.knockout_trials)
            score = ask(decoder, drawn, config, config.segments, knockout)
            rows.append(tables.row(config, score, step=steps, k=k, segments=config.segments, knockout=knockout.value))
            ends.setdefault(knockout.value, {})[k] = score.accuracy
            cells = sum(map(len, ends.values()))
            context.progress(cells, len(knockouts) * len(config.pairs), "cells (k and knock-out)")
    far: dict[str, float] = {}
    for kind in get_args(Between):
        for more, score in _from_afar(decoder, config, kind, context):
            rows.append(
                tables.row(
                    config, score, step=steps, k=config.distance_pairs, segments=config.segments + more, between=kind
                )
            )
            far[f"{kind}_{more}"] = score.accuracy
    intact = ends["none"]
    context.metrics(steps, **{f"accuracy_k{k}": accuracy for k, accuracy in intact.items()})
    said = ", ".join(f"k={k} {accuracy:.0%}" for k, accuracy in intact.items())
    knocked = [max(of.values()) for name, of in ends.items() if name != "none"]
    return Summary(
        f"recall {said} after {steps} steps" + (f", knocked out at most {max(knocked):.0%}" if knocked else ""),
        {"steps": steps, "base_accuracy": recall_of_base}
        | {f"accuracy_k{k}": accuracy for k, accuracy in intact.items()}
        | {f"{name}.accuracy_k{k}": a for name, of in ends.items() if name != "none" for k, a in of.items()}
        | {f"accuracy_{place}": accuracy for place, accuracy in far.items()},
        tables.write(output, rows, recall_of_base),
    )


@torch.no_grad()
def _from_afar(decoder: Decoder, config: ControlConfig, kind: Between, context: Context) -> Iterator[tuple[int, Score]]:
    """The scores after so many more segments than trained, nearest first, on the same pairs and queries: each sequence
    is read once, and asked at every distance from the state it has there. Other pairs also stand in the segments
    between of the trained length (0 more), where filler is what was trained and scored already."""
    distances = sorted(config.distances if kind == "filler" else {0, *config.distances})
    hits, losses = dict.fromkeys(distances, 0), dict.fromkeys(distances, 0.0)
    if not distances:
        return
    k, n = config.distance_pairs, config.segment_length
    stream = (config.seed, DISTANCE, get_args(Between).index(kind))
    drawn = draw(config, config.distance_trials, (k,), *stream, 0)
    middle = torch.from_numpy(between(config, kind, drawn, config.segments - 2 + distances[-1], *stream, 1))
    expected = torch.from_numpy(drawn.answers[:, -1])
    for start in range(0, config.distance_trials, ROWS):
        at = slice(start, start + ROWS)
        _, state = decoder.hidden(torch.from_numpy(drawn.pairs[at]))
        read = 0
        for more in distances:
            until = config.segments - 2 + more
            _, state = decoder.hidden(middle[at, read * n : until * n], state)
            read = until
            hidden, _ = decoder.hidden(torch.from_numpy(drawn.queries[at]), state)
            logits = decoder.project(hidden[:, -1])
            hits[more] += int((logits.argmax(-1) == expected[at]).sum())
            losses[more] += F.cross_entropy(logits, expected[at], reduction="sum").item()
        done = min(start + ROWS, config.distance_trials)
        context.progress(done, config.distance_trials, f"sequences, {kind} between")
    for more in distances:
        yield more, Score(hits[more], config.distance_trials, losses[more] / config.distance_trials)
