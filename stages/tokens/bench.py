"""Tokenising beside the library's own batch call on the same cores: ``python -m stages.tokens.bench [FOLDER]``.

The text is that of ``FOLDER/**/*.txt`` (the first 6 MB), or Python's own source: as documents of a megabyte, and the
same text as documents of 4 KB. The library gets a list of Python strings in memory and gives back its encodings; ours
is the whole stage, from Parquet files to Arrow shards and tables. Each row is a process bound to its cores; within it
they take turns, three rounds, and the best of each counts: by the clock, and by the processor's time, which other work
on the machine does not disturb (not for Ray tasks: theirs is spent in other processes).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.stage import Execution

BYTES, ROUNDS, VOCABULARY = 6_000_000, 3, 8192
SHAPES = {"1 MB documents": 1_000_000, "4 KB documents": 4_000}


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m stages.tokens.bench")
    parser.add_argument("folder", nargs="?", help="texts, else Python's own source")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.row:
        print(json.dumps(_row(Path(given.folder), **json.loads(given.row))))
        return
    cores = sorted({1, min(2, os.cpu_count() or 1)})
    with tempfile.TemporaryDirectory() as name:
        print(_prepare(Path(name), given.folder), flush=True)
        print(f"{'MB/s':34} {'encode_batch':>12} {'.._fast':>9} {'tokenize':>9} {'ratio':>7} {'ratio of CPU time':>18}")
        for shape in SHAPES:
            for count in cores:
                for ray in (False, True) if count > 1 else (False,):
                    row = _run(name, {"shape": shape, "cores": count, "ray": ray})
                    how = f"{shape}, {count} core{'s' * (count > 1)}{', Ray tasks' if ray else ''}"
                    of_cpu = "" if ray else f"{row['cpu_ratio']:18.2f}"
                    rates = f"{row['batch']:12.2f} {row['fast']:9.2f} {row['ours']:9.2f} {row['ratio']:7.2f}"
                    print(f"{how:34} {rates} {of_cpu}", flush=True)


def _prepare(folder: Path, source: str | None) -> str:
    """The documents artifacts and the tokenizer; one line that describes them."""
    from stages.corpus.documents import DocumentsWriter
    from stages.tokens.stage import TOKENIZER, TokenizerConfig

    found = (
        sorted(Path(source).rglob("*.txt")) if source else sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    )
    text = ""
    for path in found:
        text += path.read_text(encoding="utf-8", errors="ignore")
        if len(text) > BYTES:
            break
    text = (text * (BYTES // max(1, len(text)) + 1))[:BYTES]
    for shape, size in SHAPES.items():
        writer = DocumentsWriter(folder / shape / "documents")
        for i, start in enumerate(range(0, len(text), size)):
            row = {"doc_id": f"d/{i:06d}", "source": "d", "split": "train" if i else "test", "sha256": ""}
            writer.write({**row, **dict.fromkeys(("title", "author", "year")), "text": text[start : start + size]})
        writer.close()
    (folder / "tokenizer").mkdir()
    config = TokenizerConfig(kind="bpe", vocab_size=VOCABULARY, train_bytes=4_000_000)
    TOKENIZER.run(config, {"documents": _Folder(folder / next(iter(SHAPES)))}, folder / "tokenizer", _Silent())
    return f"{len(text.encode()) / 1e6:.1f} MB of {source or 'Python source'}, byte-level BPE of {VOCABULARY} tokens"


def _run(folder: str, row: dict[str, Any]) -> dict[str, float]:
    environment = {**os.environ, "RAYON_NUM_THREADS": str(row["cores"]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", __spec__.name, folder, "--row", json.dumps(row)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(folder: Path, shape: str, cores: int, ray: bool) -> dict[str, float]:
    """Best MB/s of each over the rounds; how many times as fast as ``encode_batch`` ours is, by clock and by CPU."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    from tokenizers import Tokenizer

    from stages.corpus.documents import read_documents
    from stages.tokens.stage import TOKENIZE, TokenizeConfig

    documents, tokenizer = _Folder(folder / shape), _Folder(folder / "tokenizer")
    library = Tokenizer.from_file(str(tokenizer.path("tokenizer.json")))
    texts = [row["text"] for row in read_documents(documents.path("documents"))]
    size = sum(len(text.encode()) for text in texts) / 1e6
    config = TokenizeConfig(sequence_length=2048, segment_length=128)

    def ours() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as output:
            TOKENIZE.run(config, {"documents": documents, "tokenizer": tokenizer}, Path(output), _Silent())

    ways = {
        "batch": lambda: library.encode_batch(texts, add_special_tokens=False),
        "fast": lambda: library.encode_batch_fast(texts, add_special_tokens=False),
        "ours": ours,
    }
    if ray:
        import ray as cluster

        cluster.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="error")
        ours()  # workers start once for a run
    best, cpu = dict.fromkeys(ways, float("inf")), dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began, spent = time.perf_counter(), time.process_time()
            way()
            best[name] = min(best[name], time.perf_counter() - began)
            cpu[name] = min(cpu[name], time.process_time() - spent)
    rates = {name: size / seconds for name, seconds in best.items()}
    return {**rates, "ratio": rates["ours"] / rates["batch"], "cpu_ratio": cpu["batch"] / cpu["ours"]}


@dataclass
class _Folder:
    """A folder as a stage's input."""

    folder: Path
    key: str = "0" * 64
    summary: dict[str, Any] = field(default_factory=dict)

    def path(self, name: str = "") -> Path:
        return self.folder / name


class _Silent:
    """A context nobody listens to."""

    execution, work_url = Execution(), ""

    def progress(self, done: float, total: float, unit: str, **numbers: float) -> None: ...
    def metrics(self, step: int, **values: float) -> None: ...
    def log(self, message: str) -> None: ...
    def warn(self, message: str) -> None: ...


if __name__ == "__main__":
    main(sys.argv[1:])
