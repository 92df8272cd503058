"""One evaluation's parts on one worker and on several of an embedded Ray."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.silent import SilentContext
from model import checkpoint
from model.decoder import Decoder
from stages.data.tasks.config import RetrievalConfig
from stages.data.tasks.prompts import Item
from stages.data.tokens.load import StudyTokenizer
from stages.evidence.evaluate import parts
from stages.evidence.evaluate.config import EvaluateConfig
from stages.evidence.evaluate.spreading import Evaluation
from stages.folder import FolderArtifact
from stages.stage import Execution


def seconds_by_workers(
    decoder: Decoder, codec: StudyTokenizer, items: Sequence[Item], most: int, repeats: int
) -> list[dict[str, Any]]:
    """Seconds of an evaluation of ``items`` by 1, 2, ... ``most`` workers, each of one CPU, in turns."""
    import ray

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        checkpoint.save(decoder, root / "model")
        codec.backend.save(str(root / "tokenizer.json"))
        meta = f'{{"vocab_size": {codec.vocab_size}, "eos_id": {codec.eos_id}, "pad_id": {codec.pad_id}}}'
        (root / "meta.json").write_text(meta)
        inputs: Any = {"model": FolderArtifact(root), "tokenizer": FolderArtifact(root)}
        config = EvaluateConfig(retrieval=RetrievalConfig(lengths=(1024,), trials=1))
        parts.WORTH_FLOPS = 0.0
        os.environ["OMP_NUM_THREADS"] = "1"  # of every worker, however many CPUs it is counted as
        seconds: dict[int, list[float]] = {}
        rows = []
        ray.init(address="local", num_cpus=most, include_dashboard=False, log_to_driver=False)
        try:
            for round_ in range(repeats + 1):
                for workers in range(1, most + 1):  # of ``most`` CPUs a task takes so many that ``workers`` run at once
                    execution = Execution(device="cpu", task_cpus=most / workers)
                    work = root / f"{round_}-{workers}"
                    evaluation = Evaluation(config, inputs, codec, SilentContext(str(work), execution))
                    began = time.perf_counter()
                    rows.append(evaluation.rows([], items, iter(()), 0)["retrieval"])
                    if round_:
                        seconds.setdefault(workers, []).append(time.perf_counter() - began)
        finally:
            ray.shutdown()
        assert all(one == rows[0] for one in rows)
    return [
        {
            "workers": workers,
            "seconds": statistics.median(of),
            "x_one": statistics.median(a / b for a, b in zip(seconds[1], of, strict=True)),
        }
        for workers, of in seconds.items()
    ]
