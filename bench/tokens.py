"""Tokenising beside the library's own batch call on the same cores: ``python -m bench.tokens [FOLDER]``.

The text is that of ``FOLDER/**/*.txt`` (the first 24 MB), or Python's own source: as documents of a megabyte, and the
same text as documents of 4 KB. The library gets a list of Python strings in memory and gives back its encodings, by
batches of the size that suits it best; ours is the whole stage, from Parquet files to Arrow shards, tables and figure,
by the clock. It runs in a new process each time (imports count, nothing is known from the round before), as do the Ray
tasks; only Ray itself and its empty workers are there already, as in a study. They take turns; the best of each counts.

A smaller corpus, the first quarter of the text, tells the fixed costs of the stage from what grows with the corpus.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.silent import SilentContext
from stages.folder import FolderArtifact

BYTES, VOCABULARY = 24_000_000, 8192
SHAPES = {"1 MB documents": 1_000_000, "4 KB documents": 4_000}
BATCHES = (250_000, 1_000_000, 6_000_000)  # characters the library gets at a time
PART = 4  # the smaller corpus is one in so many of the text


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.tokens")
    parser.add_argument("folder", nargs="?", help="texts, else Python's own source")
    parser.add_argument("--rounds", type=int, default=2, help="of which the best counts (default: 2)")
    parser.add_argument("--megabytes", type=float, default=BYTES / 1e6, help="of text (default: 24)")
    parser.add_argument("--documents", choices=["1 MB", "4 KB"], help="one kind only")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.row:
        way = json.loads(given.row)
        measure = _library if way.pop("way") == "library" else _stage
        print(json.dumps(measure(Path(given.folder), **way)))
        return
    cores = sorted({1, min(2, os.cpu_count() or 1)})
    with tempfile.TemporaryDirectory() as name:
        print(_prepare(Path(name), given.folder, int(given.megabytes * 1e6)), flush=True)
        print(f"{'':34} {'encode_batch':>12} {'tokenize':>9} {'ratio':>6} {'fixed':>7} {'growing':>8} {'ratio':>6}")
        print(f"{'':34} {'MB/s':>12} {'MB/s':>9} {'':6} {'s':>7} {'MB/s':>8}", flush=True)
        for shape in SHAPES:
            if given.documents is None or shape.startswith(given.documents):
                for count in cores:
                    _rows(Path(name), shape, count, given.rounds)


def _rows(folder: Path, shape: str, cores: int, rounds: int) -> None:
    """Measure and print a line without Ray and, on several cores, one with Ray tasks."""
    ways: dict[str, dict[str, Any]] = {"": {"ray": False}}
    if cores > 1:
        ways[", Ray tasks"] = {"ray": True}
    seconds: dict[tuple[str, str], list[float]] = {}
    sizes: dict[str, float] = {}
    batch = int(_run(folder, cores, way="library", shape=f"{shape}, part", batches=BATCHES)["batch"])
    for _ in range(rounds):
        found = _run(folder, cores, way="library", shape=f"{shape}, whole", batches=[batch])
        sizes["whole"], sizes["part"] = found["megabytes"], found["megabytes"] / PART
        seconds.setdefault(("library", "whole"), []).append(found["seconds"])
        for how, options in ways.items():
            for size in ("whole",) if options["ray"] else ("part", "whole"):
                spent = _run(folder, cores, way="stage", shape=f"{shape}, {size}", cores=cores, **options)["seconds"]
                seconds.setdefault((how, size), []).append(spent)
    best = {key: min(values) for key, values in seconds.items()}
    library = sizes["whole"] / best["library", "whole"]
    for how, options in ways.items():
        ours = sizes["whole"] / best[how, "whole"]
        label = f"{shape}, {cores} core{'s' * (cores > 1)}{how}"
        line = f"{label:34} {library:12.2f} {ours:9.2f} {ours / library:6.2f}"
        if not options["ray"]:  # with Ray a small corpus is not worth tasks, so the two sizes do not compare
            more = sizes["whole"] - sizes["part"]
            growing = more / max(best[how, "whole"] - best[how, "part"], 1e-9)
            fixed = best[how, "whole"] - sizes["whole"] / growing
            line += f" {fixed:7.2f} {growing:8.1f} {growing / library:6.1f}"
        print(line, flush=True)


def _prepare(folder: Path, source: str | None, size: int) -> str:
    """The documents artifacts and the tokenizer; one line that describes them."""
    from stages.data.corpus.documents import DocumentsWriter
    from stages.data.tokens.config import TokenizerConfig
    from stages.data.tokens.stage import TOKENIZER

    found = (
        sorted(Path(source).rglob("*.txt")) if source else sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    )
    text = ""
    for path in found:
        text += path.read_text(encoding="utf-8", errors="ignore")
        if len(text) > size:
            break
    if len(text) < size:
        text, size = text or "no text", len(text) or 7
    text = text[:size]
    for shape, length in SHAPES.items():
        for which, end in (("part", size // PART), ("whole", size)):
            writer = DocumentsWriter(folder / f"{shape}, {which}" / "documents")
            for i, start in enumerate(range(0, end, length)):
                row = {"doc_id": f"d/{i:06d}", "source": "d", "split": "train" if i else "test", "sha256": ""}
                piece = text[start : min(end, start + length)]
                writer.write({**row, **dict.fromkeys(("title", "author", "year")), "text": piece})
            writer.close()
    (folder / "tokenizer").mkdir()
    config = TokenizerConfig(kind="bpe", vocab_size=VOCABULARY, train_bytes=4_000_000)
    documents = FolderArtifact(folder / f"{next(iter(SHAPES))}, whole")
    TOKENIZER.run(config, {"documents": documents}, folder / "tokenizer", SilentContext(str(folder)))
    return f"{len(text.encode()) / 1e6:.1f} MB of {source or 'Python source'}, byte-level BPE of {VOCABULARY} tokens"


def _run(folder: Path, on: int, **row: Any) -> dict[str, float]:
    """A measurement in a process of its own, bound to its cores."""
    environment = {**os.environ, "RAYON_NUM_THREADS": str(on), "OMP_NUM_THREADS": "1"}
    environment.pop("TOKENIZERS_PARALLELISM", None)
    command = [sys.executable, "-m", __spec__.name, str(folder), "--row", json.dumps(row)]
    if hasattr(os, "sched_setaffinity"):
        bound = sorted(os.sched_getaffinity(0))[:on]
        options: dict[str, Any] = {"preexec_fn": lambda: os.sched_setaffinity(0, bound)}
    else:
        options = {}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, **options)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _library(folder: Path, shape: str, batches: list[int]) -> dict[str, float]:
    """Seconds of ``encode_batch`` over the texts, in the batches (characters) that take it the shortest."""
    from tokenizers import Tokenizer

    from stages.data.corpus.documents import read_texts

    library = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    texts = [str(one.data, "utf-8") for one in read_texts(folder / shape / "documents")]

    def encode(characters: int) -> None:
        size = max(1, characters // len(texts[0]))
        for start in range(0, len(texts), size):
            library.encode_batch(texts[start : start + size], add_special_tokens=False)

    encode(batches[0]) if len(batches) > 1 else library.encode_batch(texts[:1])  # threads, the library's own cache
    seconds = {batch: _seconds(partial(encode, batch)) for batch in batches}
    best = min(batches, key=seconds.__getitem__)
    return {"megabytes": sum(len(text.encode()) for text in texts) / 1e6, "batch": best, "seconds": seconds[best]}


def _stage(folder: Path, shape: str, cores: int, ray: bool) -> dict[str, float]:
    """Seconds of the stage over the documents."""
    from stages.data.tokens.config import TokenizeConfig
    from stages.data.tokens.stage import TOKENIZE

    inputs = {"documents": FolderArtifact(folder / shape), "tokenizer": FolderArtifact(folder / "tokenizer")}
    config = TokenizeConfig(sequence_length=2048, segment_length=128)
    if ray:
        import ray as cluster

        cluster.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        wait = cluster.remote(num_cpus=1)(lambda: time.sleep(0.5))
        cluster.get([wait.remote() for _ in range(cores)])  # workers start once for a study
    with tempfile.TemporaryDirectory(dir=folder) as output, tempfile.TemporaryDirectory(dir=folder) as work:
        return {"seconds": _seconds(lambda: TOKENIZE.run(config, inputs, Path(output), SilentContext(work)))}


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(sys.argv[1:])
