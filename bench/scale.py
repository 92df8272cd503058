"""Driver memory and seconds of every corpus stage against documents: ``python -m bench.scale [DOCUMENTS ...]``.

The corpus is made up with a seed: short documents (about 90 words), of which 2 in 100 are copies, 2 editions and 1 the
same words in other typography, and one long document in a thousand, half of them with a part of theirs beside. Each
stage runs in a process of its own, its tasks in Ray workers (however few they are); what is printed is of that process,
the driver: the most memory of its own (anonymous: neither files it maps nor what it shares with the object store)
beyond what it had before the stage, and the bytes it wrote itself (files and sockets). ``--stages`` names some of them
(without ``decontaminate`` the others read what ingest wrote, as if nothing had been found in it), ``--workers 0`` does
without Ray, one task at a time in a child process, ``--folder`` keeps the files and goes on with what is not there,
``--address`` takes the cluster at that address, whose nodes reach the folder and have PYTHONPATH set, of ``--workers``
cores: its tasks' processes are started before the clock is. ``--per-file`` writes files of so many documents and reads
each as a task by itself, so that a small corpus has many.

From the two largest corpora follows a model of a terabyte: seconds and driver memory a document, times the documents;
the tasks' work goes by bytes and is divided by the cores of the nodes, what the driver does itself is not.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

SIZES = (10_000, 100_000, 1_000_000)
STAGES = ("ingest", "decontaminate", "dedup", "tokenizer", "tokenize", "certify")
INPUTS = {
    "decontaminate": {"documents": "ingest"},
    "dedup": {"documents": "decontaminate"},
    "tokenizer": {"documents": "dedup"},
    "tokenize": {"documents": "dedup", "tokenizer": "tokenizer"},
    "certify": {"documents": "dedup"},
}
PER_FILE = 20_000  # documents
SMALL = 2**20  # bytes of a file below which each is a task by itself
HELD_OUT = 100
TERABYTE, BYTES, NODE_CORES, NODES = 200_000_000, 5_000, 16, (1, 10, 100)  # documents, bytes of one


def texts(documents: int, seed: int) -> Iterator[str]:
    """The made-up training documents in order."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = np.array(
        ["".join(letters[(26 * rng.random(n) ** 2).astype(int)]) for n in rng.integers(2, 11, 40_000)], object
    )
    done = 0
    while done < documents:
        count = min(10_000, documents - done)
        lengths = rng.integers(40, 140, count)
        drawn = words[(len(words) * rng.random(int(lengths.sum())) ** 2).astype(int)]
        ends = np.cumsum(lengths)
        block: list[list[str]] = [list(drawn[end - n : end]) for end, n in zip(ends, lengths, strict=True)]
        kinds, others = rng.random(count), rng.integers(0, count, count)
        for i in range(count):
            document, kind, other = block[i], kinds[i], block[others[i]]
            if kind < 0.02:
                document = other
            elif kind < 0.04:
                document = [*other[: len(other) // 2], "erratum", *other[len(other) // 2 + 1 :]]
            elif kind < 0.05:
                document = [word.upper() for word in other]
            elif kind < 0.051:
                document = [word for k in range(40) for word in block[(i + 37 * k) % count]]
                if kind < 0.0505:
                    yield " ".join(document[1000:2100])
                    done += 1
            block[i] = document if len(document) < 200 else block[i]
            if done < documents:
                yield " ".join(document)
                done += 1


def write_corpus(folder: Path, documents: int, seed: int = 0, per_file: int = PER_FILE) -> None:
    """``train-*.jsonl`` and ``test.jsonl`` below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "test.jsonl").open("w") as file:
        for text in texts(HELD_OUT, seed + 1):
            file.write(json.dumps({"text": text}) + "\n")
    made = texts(documents, seed)
    for number in range(-(-documents // per_file)):
        with (folder / f"train-{number:05d}.jsonl").open("w") as file:
            for _, text in zip(range(min(per_file, documents - number * per_file)), made, strict=False):
                file.write(json.dumps({"text": text}) + "\n")


def config_of(stage: str, corpus: Path) -> Any:
    """The stage's own defaults."""
    from stages.data.certify.config import CertifyConfig
    from stages.data.corpus.config import IngestConfig
    from stages.data.corpus.pin import pin
    from stages.data.decontaminate.config import DecontaminateConfig
    from stages.data.dedup.config import DedupConfig
    from stages.data.tokens.config import TokenizeConfig, TokenizerConfig

    if stage == "ingest":
        sources = [
            {"kind": "jsonl", "name": "web", "url": str(corpus / "train-*.jsonl"), "split": "train"},
            {"kind": "jsonl", "name": "held", "url": str(corpus / "test.jsonl"), "split": "test"},
        ]
        return pin(IngestConfig.model_validate({"sources": sources}), corpus)
    return {
        "decontaminate": DecontaminateConfig(),
        "dedup": DedupConfig(),
        "certify": CertifyConfig(),
        "tokenizer": TokenizerConfig(kind="bytes"),
        "tokenize": TokenizeConfig(sequence_length=128, segment_length=64, min_tail_share=0),
    }[stage]


def unaudited(ingested: Path, folder: Path) -> None:
    """The artifact of an audit that found nothing."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from stages.data.audit.tables import DECISIONS, SPANS

    folder.mkdir()
    (folder / "documents").symlink_to(ingested / "documents")
    with pq.ParquetWriter(folder / "decisions.parquet", DECISIONS) as writer:
        for path in sorted((ingested / "documents").glob("*.parquet")):
            table = pq.read_table(path, columns=["doc_id", "split", "text"])
            table = table.filter(pc.equal(table["split"], "train"))
            sizes = pc.binary_length(table["text"])
            said = {"doc_id": table["doc_id"], "action": pa.repeat("keep", len(table)), "bytes_in": sizes}
            said |= {"reason": pa.repeat("", len(table)), "matched_words": pa.repeat(0, len(table)), "bytes_out": sizes}
            columns = [said.get(name, pa.nulls(len(table))) for name in DECISIONS.names]
            writer.write_table(pa.table(columns, names=DECISIONS.names).cast(DECISIONS))
    pq.write_table(SPANS.empty_table(), folder / "spans.parquet")


class Watch:
    """The most anonymous memory that this process has, looked at fifty times a second."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self.before = self.most = anonymous()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            self.most = max(self.most, anonymous())

    def end(self) -> int:
        """Bytes above those at the beginning."""
        self._ended.set()
        self._thread.join()
        return self.most - self.before


def anonymous() -> int:
    """Bytes of memory of this process that no file lies behind."""
    lines = Path("/proc/self/status").read_text().split("\n")
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


class Forked:
    """What ``parallel.spread`` asks of Ray, without it: one task at a time, in a child process, so that the driver's
    memory is its own."""

    class exceptions:
        RayTaskError = ChildProcessError

    def remote(self, **_: Any) -> Any:
        """A decorator as Ray's: the function with a method ``remote``, which does not start it yet."""
        return lambda function: SimpleNamespace(remote=lambda *given: (function, given))

    def put(self, value: Any) -> Any:
        return value

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def get(self, task: Any) -> Any:
        function, given = task
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            with os.fdopen(write, "wb") as pipe:
                try:
                    pickle.dump((True, function(*given)), pipe)
                except BaseException as error:
                    pickle.dump((False, repr(error)), pipe)
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            done, result = pickle.load(pipe)
        os.waitpid(child, 0)
        if not done:
            raise ChildProcessError(result)
        return result


def ready(module: str) -> None:
    """A task that imports what is needed and keeps its core for a while, so that each core starts a process."""
    importlib.import_module(module)
    time.sleep(3)


def run_stage(stage: str, folder: Path, workers: int, address: str | None = None) -> dict[str, Any]:
    """One stage in this process: seconds, driver's memory and bytes written, of the largest worker, digest."""
    from tests.support import LocalArtifact, LocalContext

    room = {"ingest": "corpus", "tokenizer": "tokens", "tokenize": "tokens"}.get(stage, stage)
    module = importlib.import_module(f"stages.data.{room}.stage")
    record = getattr(module, {"tokenizer": "TOKENIZER", "tokenize": "TOKENIZE"}.get(stage, "STAGE"))
    output = folder / f"{stage}.begun"
    shutil.rmtree(output, ignore_errors=True)  # of a run that was ended; what its tasks left is taken over
    output.mkdir()
    if "decontaminate" in INPUTS.get(stage, {}).values() and not (folder / "decontaminate").exists():
        unaudited(folder / "ingest", folder / "decontaminate")
    for name in ("corpus.ingest", "dedup.run", "tokens.tokenize", "matching.shards", "certify.count"):
        importlib.import_module(f"stages.data.{name}").WORTH_TASKS = 0  # type: ignore[attr-defined]
    files = list((folder / "corpus").glob("train-*.jsonl"))
    if min(path.stat().st_size for path in files) < SMALL:
        importlib.import_module("stages.data.corpus.ingest").GROUP_BYTES = 1  # type: ignore[attr-defined]
    if workers:
        import ray

        if address:
            ray.init(address=address, log_to_driver=False)
            ray.get([ray.remote(num_cpus=1)(ready).remote(module.__name__) for _ in range(workers)])
        else:
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=400 * 2**20,
            )
    else:
        from stages.data import parallel

        parallel.running_ray = Forked
    config = config_of(stage, folder / "corpus")
    inputs = {name: LocalArtifact(folder / made) for name, made in INPUTS.get(stage, {}).items()}
    written = _written()
    watch, started, before = Watch(), time.monotonic(), time.process_time()
    summary = record.run(config, inputs, output, LocalContext(str(folder / f"work-{stage}")))
    seconds, memory, wrote = time.monotonic() - started, watch.end(), _written() - written
    own = time.process_time() - before
    if workers:
        ray.shutdown()
    digest = hashlib.sha256()
    for path in sorted(output.rglob("*")):
        if path.is_file() and path.suffix != ".png":
            digest.update(path.relative_to(output).as_posix().encode() + path.read_bytes())
    output.rename(folder / stage)
    return {
        "stage": stage,
        "seconds": seconds,
        "driver_seconds": own,
        "driver_bytes": memory,
        "driver_wrote": wrote,
        "digest": digest.hexdigest()[:16],
        "headline": summary.headline,
    }


def _written() -> int:
    lines = Path("/proc/self/io").read_text().split("\n")
    return int(next(line.split(": ")[1] for line in lines if line.startswith("wchar")))


def measured(
    documents: int,
    folder: Path,
    stages: list[str],
    workers: int,
    address: str | None = None,
    per_file: int = PER_FILE,
) -> list[dict[str, Any]]:
    """The rows of one corpus, made in ``folder``; a process a stage."""
    corpus = folder / "corpus"
    if not corpus.exists():
        write_corpus(corpus, documents, per_file=per_file)
    rows = []
    for stage in stages:
        if (folder / stage).exists():
            continue
        command = [sys.executable, "-m", "bench.scale", "--run", stage, "--folder", str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        command += ["--workers", str(workers), *(["--address", address] if address else [])]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{stage} failed:\n{done.stderr[-4000:]}")
        row = json.loads(done.stdout.strip().split("\n")[-1])
        size = sum(path.stat().st_size for path in corpus.iterdir())
        rows.append({"documents": documents, "bytes": size / documents, **row})
        print(
            f"{documents:>9,} {stage:14} {row['seconds']:7.1f} s, driver: {row['driver_seconds']:6.1f} s of a core, "
            f"{row['driver_bytes'] / 2**20:7.1f} MiB, wrote {row['driver_wrote'] / 2**20:7.1f} MiB  {row['digest']}  "
            f"{row['headline']}",
            flush=True,
        )
    return rows


def model(rows: list[dict[str, Any]], workers: int) -> list[str]:
    """Lines on ``TERABYTE`` documents, from the growth between the two largest corpora of each stage."""
    said = [f"{TERABYTE:,} documents, by what grew from the smaller of the two largest corpora to the larger:"]
    said.append(
        f"{'':14} {'driver':>10} {'of that GiB':>12} {'driver hours':>13}  hours on nodes of {NODE_CORES} cores"
    )
    said.append(f"{'':14} {'B/doc':>10} {'in all':>12} {'':>13}  " + " ".join(f"{n:>7}" for n in NODES))
    for stage in dict.fromkeys(row["stage"] for row in rows):
        mine = sorted((row for row in rows if row["stage"] == stage), key=lambda row: float(row["documents"]))
        if len(mine) < 2:
            continue
        small, large = mine[-2:]
        more = large["documents"] - small["documents"]
        memory = max(0.0, (large["driver_bytes"] - small["driver_bytes"]) / more)
        driver = max(0.0, (large["driver_seconds"] - small["driver_seconds"]) / more)
        wall = max(0.0, (large["seconds"] - small["seconds"]) / more)
        work = max(0.0, wall - driver) * max(1, workers) * BYTES / large["bytes"]
        hours = [TERABYTE * (driver + work / (nodes * NODE_CORES)) / 3600 for nodes in NODES]
        said.append(
            f"{stage:14} {memory:10.0f} {memory * TERABYTE / 2**30:12.1f} {TERABYTE * driver / 3600:13.1f}  "
            + " ".join(f"{hour:7.1f}" for hour in hours)
        )
    return said


def main() -> None:
    """Print the table, or run one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=STAGES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--per-file", type=int, default=PER_FILE)
    parser.add_argument("--address", help="HOST:PORT of a Ray cluster")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--run", choices=STAGES, help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.run:
        print(json.dumps(run_stage(said.run, said.folder, said.workers, said.address)))
        return
    rows: list[dict[str, Any]] = []
    for documents in said.documents:
        with tempfile.TemporaryDirectory() as scratch:
            folder = (said.folder or Path(scratch)) / str(documents)
            rows += measured(documents, folder, said.stages, said.workers, said.address, said.per_file)
    print("\n".join(model(rows, said.workers)))


if __name__ == "__main__":
    main()
