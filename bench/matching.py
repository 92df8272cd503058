"""MB of text per second of one core, side by side in one run: ``python -m bench.matching [FOLDER]``.

The text is that of ``FOLDER/**/*.txt``, or the manuals that come with Python and its packages: a fifth of the documents
are evaluation documents; the others, but for those that share text with these by themselves, are training text: clean,
and with 1% and 10% of evaluation passages put in. Beside our chain stand plain Python with the usual rule (flag a
document that shares any 13-gram of words) and, with ``--datatrove PYTHON`` (an interpreter that has it), datatrove's
n-gram decontamination: every row in a process of its own, so that its peak memory is its own. The slow ones see the
first two megabytes: all rates are per byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stages.data.corpus.documents import DocumentsWriter, read_texts
from stages.data.decontaminate.config import DecontaminateConfig

PARTS = {"clean": 0.0, "1%": 0.01, "10%": 0.1}
OURS_BYTES, THEIRS_BYTES = 40_000_000, 2_000_000
DOCUMENT_BYTES = 100_000
ROUNDS = 3
RULE = DecontaminateConfig()


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.matching")
    parser.add_argument("folder", nargs="?", help="texts, else the manuals")
    parser.add_argument("--datatrove", metavar="PYTHON", help="an interpreter that can import datatrove")
    parser.add_argument("--row", choices=sorted(ROWS), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.row:
        print(json.dumps(ROWS[given.row](Path(given.folder))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(write_texts(folder, given.folder), flush=True)
        commands = {row: [sys.executable, "-m", __spec__.name, "--row", row, name] for row in ("ours", "plain")}
        if given.datatrove:
            script = Path(__file__).with_name("matching_datatrove.py")
            commands["datatrove"] = [given.datatrove, str(script), str(folder / "few")]
        rows: dict[str, dict[str, Any]] = {}
        for _ in range(ROUNDS):  # in turn, so that what else the machine does falls on all of them
            for row, command in commands.items():
                rows[row] = _better(_run(command), rows.get(row))
        cores = _run([sys.executable, "-m", __spec__.name, "--row", "cores", name])
    _print(rows, cores)
    if not given.datatrove:
        print("datatrove: not measured; make bench-corpus installs it into an environment of its own")


def write_texts(folder: Path, source: str | None) -> str:
    """Write the corpora below ``folder``; one line that describes them."""
    from bench.dedup_accuracy import texts_at_hand

    evaluation: list[str] = []
    training: list[str] = []
    for n, text in enumerate(texts_at_hand(source)):
        (evaluation if n % 5 == 0 else training).append(text)
    clean = "\n".join(_unrelated(training, evaluation)).encode()
    passages = b"\n\n".join(text.encode() for text in evaluation)
    distinct = len(clean)
    clean = (clean * (OURS_BYTES // len(clean) + 1))[:OURS_BYTES]
    writer = DocumentsWriter(folder / "evaluation")
    for n, text in enumerate(evaluation):
        writer.write(_row(f"e{n:06d}", "test", text))
    writer.close()
    _write_few(folder / "few" / "evaluation", evaluation)
    for part, share in PARTS.items():
        documents = _mixed(clean, passages, share)
        writer = DocumentsWriter(folder / part)
        for n, text in enumerate(documents):
            writer.write(_row(f"{n:06d}", "train", text))
        writer.close()
        _write_few(folder / "few" / part, documents[: THEIRS_BYTES // DOCUMENT_BYTES])
    return (
        f"{len(evaluation)} evaluation documents ({len(passages) / 1e6:.1f} MB) against {OURS_BYTES / 1e6:.0f} MB of "
        f"training text ({distinct / 1e6:.1f} MB of it distinct) in documents of {DOCUMENT_BYTES / 1e3:.0f} KB"
    )


def _unrelated(training: Sequence[str], evaluation: Sequence[str]) -> list[str]:
    """The training texts that share nothing with an evaluation document by themselves, so that clean means clean."""
    from stages.data.matching.chain import scan
    from stages.data.matching.index import build

    books = [(str(n), text.encode()) for n, text in enumerate(evaluation)]
    index = build(books, RULE.ngram, RULE.max_books_per_ngram)
    numbers = RULE.max_gap, RULE.max_drift, RULE.min_span_words
    return [text for text in training if not scan(text.encode(), index, *numbers).spans]


def _mixed(clean: bytes, passages: bytes, share: float) -> list[str]:
    """Documents that end with a passage of evaluation text, ``share`` of them, going round the evaluation documents."""
    planted = int(DOCUMENT_BYTES * share)
    own = DOCUMENT_BYTES - planted
    documents = []
    for n, at in enumerate(range(0, len(clean) - own, own)):
        begin = n * planted % max(1, len(passages) - planted)
        text = clean[at : at + own] + b"\n\n" + passages[begin : begin + planted]
        documents.append(text.decode(errors="ignore"))
    return documents


def _row(name: str, split: str, text: str) -> dict[str, Any]:
    about = {"doc_id": name, "source": "bench", "title": None, "author": None, "year": None, "split": split}
    return {**about, "text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _write_few(folder: Path, texts: Sequence[str]) -> None:
    folder.mkdir(parents=True)
    for n, text in enumerate(texts):
        (folder / f"{n:06d}.txt").write_text(text, encoding="utf-8")


def _ours(folder: Path) -> dict[str, Any]:
    """The whole chain over texts in memory: words, look-up, chains, alignment."""
    from stages.data.matching.chain import scan

    index, seconds = _index(folder)
    result: dict[str, Any] = {"index_seconds": seconds, "index_mb": index.nbytes / 1e6, "words": len(index.hashes)}
    for part in PARTS:
        texts = [bytes(one.data) for one in read_texts(folder / part)]

        def work(texts: list[bytes] = texts) -> int:
            found = [scan(t, index, RULE.max_gap, RULE.max_drift, RULE.min_span_words).spans for t in texts]
            return sum(map(bool, found))

        taken, found = _best(work, 5)
        result[part] = {"bytes": sum(map(len, texts)), "seconds": taken, "found": found}
    return {**result, "peak_mb": _peak()}


def _cores(folder: Path) -> dict[str, Any]:
    """Shards on disk to results on disk by Ray tasks, on one core and on two: wall seconds."""
    import ray

    from stages.data.matching import shards as scanning

    index, _ = _index(folder)
    scanning.WORTH_TASKS = 0
    result: dict[str, Any] = {}
    for cores in (1, 2) if (os.cpu_count() or 1) > 1 else (1,):
        os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
        ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
        for part in PARTS:
            shards = [FolderShard(str(path)) for path in sorted((folder / part).glob("*.parquet"))]
            shards = [FolderShard(shard.path, turn) for turn in range(4) for shard in shards]
            times = []
            for _ in range(3):  # the first starts the workers
                with tempfile.TemporaryDirectory() as work:
                    started = time.perf_counter()
                    scans = scanning.scan_shards(shards, index, RULE, work)
                    times.append(time.perf_counter() - started)
            result.setdefault(part, {})[cores] = sum(scan.bytes for scan in scans) / 1e6 / min(times[1:])
        ray.shutdown()
    return result


class FolderShard:
    """A Parquet file as a shard; ``turn`` tells repetitions apart."""

    def __init__(self, path: str, turn: int = 0) -> None:
        self.path, self.turn = path, turn
        self.name, self.size = f"{Path(path).stem}-{turn}", os.path.getsize(path)

    def digest(self) -> str:
        return f"{self.path} {self.turn}"

    def texts(self) -> Any:
        from stages.data.matching.shards import texts_of

        return texts_of(Path(self.path), ("train",))


def _index(folder: Path) -> tuple[Any, float]:
    from stages.data.matching.chain import scan
    from stages.data.matching.index import build

    books = [(one.doc_id, bytes(one.data)) for one in read_texts(folder / "evaluation")]
    build(books[:1], 5, 2)
    started = time.process_time()
    index = build(books, RULE.ngram, RULE.max_books_per_ngram)
    seconds = time.process_time() - started
    scan(b"compiles", index, RULE.max_gap, RULE.max_drift, RULE.min_span_words)
    return index, seconds


def _plain(folder: Path) -> dict[str, Any]:
    """Lower case, split at blanks, a set of 13-grams, any hit flags the document."""
    started = time.process_time()
    known = {
        gram
        for path in sorted((folder / "few" / "evaluation").glob("*.txt"))
        for gram in _grams(path.read_text(encoding="utf-8"))
    }
    result: dict[str, Any] = {"index_seconds": time.process_time() - started}
    for part in PARTS:
        texts = [path.read_text(encoding="utf-8") for path in sorted((folder / "few" / part).glob("*.txt"))]

        def work(texts: list[str] = texts) -> int:
            return sum(any(gram in known for gram in _grams(text)) for text in texts)

        taken, found = _best(work, 3)
        result[part] = {"bytes": sum(len(text.encode()) for text in texts), "seconds": taken, "found": found}
    return {**result, "peak_mb": _peak()}


def _grams(text: str) -> list[tuple[str, ...]]:
    parts = text.lower().split()
    return list(zip(*(parts[i:] for i in range(13)), strict=False))


def _best(work: Callable[[], int], rounds: int) -> tuple[float, int]:
    """(least CPU seconds, the answer)."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        answer = work()
        times.append(time.process_time() - started)
    return min(times), answer


def _peak() -> float:
    """Most memory this process ever had, MB (``ru_maxrss`` would count what it was forked from)."""
    for line in Path("/proc/self/status").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def _run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _better(found: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """The faster of two runs, corpus by corpus."""
    if before is None:
        return found
    return {**found, **{part: min(found[part], before[part], key=lambda run: float(run["seconds"])) for part in PARTS}}


def _print(rows: dict[str, dict[str, Any]], cores: dict[str, Any]) -> None:
    names = {"ours": "our chain", "plain": "plain Python, any shared 13-gram", "datatrove": "datatrove, 13-grams"}
    ours = rows["ours"]
    print(
        f"index: {ours['index_mb']:.1f} MB for {ours['words'] / 1e6:.2f} million words, built in "
        f"{ours['index_seconds']:.1f} s"
    )
    print(f"\n{'MB/s of one core (CPU time)':34}" + "".join(f"{part:>10}{'ratio':>8}" for part in PARTS) + "   peak MB")
    for row, found in rows.items():
        line = f"{names[row]:34}"
        for part in PARTS:
            speed = found[part]["bytes"] / 1e6 / found[part]["seconds"]
            own = ours[part]["bytes"] / 1e6 / ours[part]["seconds"]
            line += f"{speed:10.2f}{own / speed:7.0f}x" if row != "ours" else f"{speed:10.2f}{'':8}"
        print(f"{line}{found['peak_mb']:10.0f}")
    print("\nshards on disk, scanned by Ray tasks, MB/s of wall time")
    for part in PARTS:
        speeds = cores[part]
        two = speeds.get("2")
        more = f", on two {two:.1f} ({two / speeds['1']:.2f}x)" if two else ""
        print(f"{part:>10}: on one core {speeds['1']:.1f}{more}")


ROWS: dict[str, Callable[[Path], dict[str, Any]]] = {"ours": _ours, "plain": _plain, "cores": _cores}

if __name__ == "__main__":
    main(sys.argv[1:])
