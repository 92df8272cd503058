"""A small real study for the engine's tests: numbers are made, counted with checkpoints, and summed.

    make --> count/a/0 --> total
         \\-> count/a/1 -/

Every stage passes fault points (``start``, ``half``, ``end``), so a test can break any of them in any process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from cluster import storage
from pipeline.engine.plan import Plan, PlanBuilder
from stages.stage import Artifact, Config, Context, Resources, Stage, Summary
from tests.faults import Faults


class ToyConfig(Config):
    """``faults`` is the injector's folder; it is not part of the key, so that stores can be compared."""

    n: int = 4
    faults: str = ""
    cpus: float = 1.0

    def key_fields(self) -> dict[str, Any]:
        return {"n": self.n}

    def reach(self, stage: str, point: str) -> None:
        if self.faults:
            Faults(Path(self.faults)).reach(stage, point)


class _Toy(Stage[ToyConfig]):
    name: ClassVar[str] = "toy"
    code_version: ClassVar[int] = 1

    def resources(self, config: ToyConfig, execution: Any) -> Resources:
        return Resources(cpus=config.cpus)

    def run(self, config: ToyConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        config.reach(self.name, "start")
        (output / "first.json").write_text(json.dumps(self.name))
        config.reach(self.name, "half")
        summary = self.work(config, inputs, output, context)
        config.reach(self.name, "end")
        return summary

    def work(self, config: ToyConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        raise AssertionError("each toy has its own")


class Make(_Toy):
    """Writes ``n`` numbers, one file each, in a folder."""

    name = "make"

    def work(self, config: ToyConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        (output / "numbers").mkdir()
        for index in range(config.n):
            (output / "numbers" / f"{index}.json").write_text(json.dumps(index + 1))
            context.progress(index + 1, config.n, "numbers")
        print("printed by make: λ")
        context.warn("one number is odd")
        return Summary(f"{config.n} numbers", {"numbers": config.n})


class Count(_Toy):
    """Sums its input's numbers one by one, with a checkpoint after each in the work folder; logs a metric each."""

    name = "count"

    def work(self, config: ToyConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        import pyarrow as pa
        import pyarrow.parquet as pq

        fs, checkpoint = storage.filesystem(f"{context.work_url}/checkpoint.json")
        rows: list[int] = storage.read_json(fs, checkpoint) or []
        files = sorted(inputs["numbers"].path("numbers").iterdir())
        for step in range(len(rows), len(files)):
            config.reach(self.name, f"step {step}")
            rows.append((rows[-1] if rows else config.n) + json.loads(files[step].read_text()))
            storage.write_atomic(fs, checkpoint, storage.to_json(rows))
            context.metrics(step, total=rows[-1])
            context.progress(step + 1, len(files), "steps", sum=rows[-1])
        pq.write_table(pa.table({"step": range(len(rows)), "total": rows}), output / "totals.parquet")
        (output / "page.html").write_text(f"<p>{rows[-1]}</p>")
        return Summary(f"total {rows[-1]}", {"total": rows[-1]}, {"Totals": "totals.parquet"}, ["page.html"])


class Total(_Toy):
    """Adds up what its inputs counted."""

    name = "total"

    def work(self, config: ToyConfig, inputs: Mapping[str, Artifact], output: Path, context: Context) -> Summary:
        total = sum(artifact.summary["total"] for artifact in inputs.values())
        (output / "total.json").write_text(json.dumps(total))
        return Summary(f"total {total:g}", {"total": total})


def toy_plan(faults: Faults | None = None, n: int = 4, cpus: float = 1.0, study: str = "toy", arm: str = "a") -> Plan:
    """The study above."""
    config = ToyConfig(n=n, faults=str(faults.directory) if faults else "", cpus=cpus)
    graph = PlanBuilder()
    numbers = graph.add(Make(), config, {})
    counts = [
        graph.add(Count(), config.model_copy(update={"n": n + seed}), {"numbers": numbers}, arm=arm, seed=seed)
        for seed in (0, 1)
    ]
    graph.add(Total(), config, {name: name for name in counts})
    return graph.plan(study)
