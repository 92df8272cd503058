"""What the driver of deduplication holds, alone: ``python -m bench.scale_driver [DOCUMENTS ...]``.

The signatures of so many documents are made up (hashes that never repeat, no texts), so that a
million documents take seconds: the driver ranks them, looks for buckets in a child process at a time, and writes the
tables. Printed are the most anonymous memory beyond what it had for no documents, and its own seconds.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.scale import Forked, Watch
from stages.data import parallel
from stages.data.audit.tables import DECISIONS, SPANS
from stages.data.dedup import signatures as signed
from stages.data.dedup.config import DedupConfig
from stages.data.dedup.decide import decide
from stages.data.dedup.numbered import Corpus
from stages.data.dedup.tables import Table
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


def held(documents: int) -> tuple[int, float]:
    """(bytes, seconds) of the driver."""
    parallel.running_ray = Forked
    config = DedupConfig()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = f"from bench.scale_driver import *; import pickle; r = made_up(Path({scratch!r}), {documents}); "
        command += f"Path({scratch!r}, 'runs').write_bytes(pickle.dumps(r))"
        subprocess.run([sys.executable, "-c", command], check=True)
        import pickle

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
        Table(corpus, decided, LocalArtifact(folder), config).write(output)
        return watch.end(), time.process_time() - started


def main() -> None:
    """Print a row a size, each measured in a process of its own."""
    if sys.argv[1:2] == ["--one"]:
        print(*held(int(sys.argv[2])))
        return
    before: tuple[int, int] | None = None
    for documents in map(int, sys.argv[1:] or (10_000, 100_000, 1_000_000)):
        done = subprocess.run(
            [sys.executable, "-m", "bench.scale_driver", "--one", str(documents)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        memory, seconds = done.stdout.split()
        line = f"{documents:>11,} documents: {int(memory) / 2**20:8.1f} MiB, {float(seconds):6.1f} s of a core"
        if before is not None:
            line += f", {(int(memory) - before[1]) / (documents - before[0]):6.0f} B for each document more"
        print(line, flush=True)
        before = documents, int(memory)


if __name__ == "__main__":
    main()
