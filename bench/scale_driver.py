"""What the drivers of audit and deduplication hold, alone: ``python -m bench.scale_driver [DOCUMENTS ...]``.

What the tasks leave of so many documents is made up (no texts, hashes of which one in a hundred repeats in the audit,
none in deduplication), so that a million documents take seconds. The audit's driver finds exact copies, writes the
tables and joins what came out with what went in; that of deduplication ranks the documents, looks for buckets in a
child process at a time, and writes the tables. Printed are the most anonymous memory beyond what it had before, and
its own seconds.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.scale import Forked, Watch, texts
from stages.data import parallel
from stages.data.audit.audit import publish
from stages.data.audit.findings import Audit, shard_states
from stages.data.audit.tables import DECISIONS, SPANS
from stages.data.decontaminate import balance as balancing
from stages.data.decontaminate import run as auditing
from stages.data.decontaminate.config import DecontaminateConfig
from stages.data.dedup import signatures as signed
from stages.data.dedup.config import DedupConfig
from stages.data.dedup.decide import decide
from stages.data.dedup.numbered import Corpus
from stages.data.dedup.tables import Table
from stages.data.matching import shards as scanning
from stages.data.matching.index import build
from stages.data.matching.shards import ShardScan
from stages.data.saved import mapped
from tests.support import LocalArtifact

PER_RUN = 50_000


def made_up(folder: Path, documents: int) -> list[signed.SignedParts]:
    """Runs of documents without text, and an audit that found nothing in them."""
    rng = np.random.default_rng(0)
    runs = []
    with pq.ParquetWriter(folder / "decisions.parquet", DECISIONS) as writer:
        for first in range(0, documents, PER_RUN):
            count = min(PER_RUN, documents - first)
            place = folder / f"{first:012x}-0"
            place.mkdir()
            ids = [f"web/train-{first // 20_000:05d}.jsonl:{first + i:07d}" for i in range(count)]
            sizes, none = rng.integers(300, 900, count), np.zeros(count, np.int64)
            columns = [ids, pa.nulls(count, pa.int32()), sizes, sizes // 6, sizes // 7, none, [""] * count]
            signed._write_ipc(pa.table(columns, schema=signed.DOCUMENTS), place / signed.DOCUMENTS_FILE)
            signed._write_ipc(signed.FILTERED.empty_table(), place / signed.FILTERED_FILE)
            rng.integers(0, 2**64, (4, count), dtype=np.uint64).tofile(place / signed.EQUAL_FILE)
            rng.integers(0, 2**64, (20, count), dtype=np.uint64).tofile(place / signed.BANDS_FILE)
            for name in (signed.PRINTS_FILE, signed.OWNERS_FILE):
                (place / name).touch()
            bins = np.zeros(signed.BINS + 1, np.int64)
            runs.append(signed.SignedParts(str(place), (f"documents/{first}",), first, (count,), 0, bins))
            said = {"doc_id": pa.array(ids), "action": pa.repeat("keep", count), "reason": pa.repeat("", count)}
            said |= {"matched_words": pa.array(none), "bytes_in": pa.array(sizes), "bytes_out": pa.array(sizes)}
            table = pa.table([said.get(name, pa.nulls(count)) for name in DECISIONS.names], names=DECISIONS.names)
            writer.write_table(table.cast(DECISIONS))
    pq.write_table(SPANS.empty_table(), folder / "spans.parquet")
    return runs


def made_up_scans(folder: Path, documents: int) -> None:
    """What scans and comparisons of documents without text leave, as ``scanned`` reads it."""
    rng = np.random.default_rng(0)
    (folder / "compared").mkdir()
    for first in range(0, documents, PER_RUN):
        count = min(PER_RUN, documents - first)
        place = folder / f"scan-{first:012}"
        place.mkdir()
        ids = [f"web/train-{first // 20_000:05d}.jsonl:{first + i:07d}" for i in range(count)]
        digests = [bytes(row).hex() for row in rng.integers(0, 256, (count, 32), dtype=np.uint8)]
        digests[1::100] = digests[::100][: len(digests[1::100])]
        sizes = rng.integers(300, 900, count)
        write_ipc(pa.table([ids, digests, sizes, sizes // 6], schema=scanning.DOCUMENTS), place / "documents.arrow")
        copies = np.zeros(count, bool)
        copies[1::100] = True
        there = pa.array(~copies)
        columns = [pa.array(ids), pa.repeat(True, count), pa.repeat("train", count)]
        columns += [pc.if_else(there, "train", None), pa.array(digests), pc.if_else(there, pa.array(digests), None)]
        columns += [pa.array(sizes), pc.if_else(there, pa.array(sizes), None)]
        table = pa.table(columns, names=balancing.COMPARED.names).cast(balancing.COMPARED)
        write_ipc(table, folder / "compared" / f"{first:012}.arrow")


def write_ipc(table: pa.Table, path: Path) -> None:
    """An Arrow file that can be mapped."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def held_by_the_audit(documents: int) -> tuple[int, float]:
    """(bytes, seconds) of the driver."""
    config = DecontaminateConfig()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made(f"made_up_scans(Path({scratch!r}), {documents})")
        output = folder / "output"
        output.mkdir()
        book = " ".join(texts(40, 1))
        index = build([("e/0", book.encode())], config.ngram, config.max_books_per_ngram)
        watch, started = Watch(), time.process_time()
        scans = [
            ShardScan(place.name, str(place), min(PER_RUN, documents - at * PER_RUN), 0, 0, 0, 0)
            for at, place in enumerate(sorted(folder.glob("scan-*")))
        ]
        audit = Audit(index, [{"doc_id": "e/0", "title": None, "split": "test"}], config, *shard_states(scans))
        audit.judge()
        audit.after = audit.before
        for state in audit.shards:
            state.sizes[state.copies] = -1
        auditing._write_totals(audit, auditing._metrics(audit), output / "audit.json")

        def check(decisions: Path) -> balancing.Balanced:
            compared = pa.concat_tables([mapped(str(path)) for path in sorted((folder / "compared").iterdir())])
            return balancing.balance(compared, decisions, folder)

        publish(audit, output, check)
        return watch.end(), time.process_time() - started


def made(call: str) -> None:
    """Something made up in a process of its own, whose memory is then gone."""
    subprocess.run([sys.executable, "-c", f"from bench.scale_driver import *; {call}"], check=True)


def held(documents: int) -> tuple[int, float]:
    """(bytes, seconds) of the driver of deduplication."""
    parallel.running_ray = Forked
    config = DedupConfig()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made(f"Path({scratch!r}, 'runs').write_bytes(pickle.dumps(made_up(Path({scratch!r}), {documents})))")
        runs: list[signed.SignedParts] = pickle.loads((folder / "runs").read_bytes())
        output, spill = folder / "output", folder / "spill"
        output.mkdir()
        spill.mkdir()
        watch, started = Watch(), time.process_time()

        def compare(jobs: Any, work: Any) -> list[str]:
            assert not jobs
            return []

        corpus = Corpus(runs, spill)
        decided = decide(corpus, config, compare, True)
        for _ in Table(corpus, decided, LocalArtifact(folder), config).write(output):
            pass
        return watch.end(), time.process_time() - started


DRIVERS: dict[str, Callable[[int], tuple[int, float]]] = {"decontaminate": held_by_the_audit, "dedup": held}


def main() -> None:
    """Print a row a size, each measured in a process of its own."""
    if sys.argv[1:2] == ["--one"]:
        print(*DRIVERS[sys.argv[2]](int(sys.argv[3])))
        return
    for stage in DRIVERS:
        before: tuple[int, int] | None = None
        for documents in map(int, sys.argv[1:] or (10_000, 100_000, 1_000_000)):
            done = subprocess.run(
                [sys.executable, "-m", "bench.scale_driver", "--one", stage, str(documents)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            memory, seconds = done.stdout.split()
            line = f"{stage:13} {documents:>11,} documents: {int(memory) / 2**20:8.1f} MiB, {float(seconds):6.1f} s"
            if before is not None:
                line += f", {(int(memory) - before[1]) / (documents - before[0]):6.0f} B for each document more"
            print(line, flush=True)
            before = documents, int(memory)


if __name__ == "__main__":
    main()
