"""A process that serves many steps draws each as if it were the first."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.audit.figures import draw
from stages.data.decontaminate.config import DecontaminateConfig
from stages.verdict.report.figures.style import settings


def audited(folder: Path) -> bytes:
    folder.mkdir()
    book = {"book_id": "1", "title": "A book", "coverage": 0.5, "coverage_after": 0.1}
    pq.write_table(pa.Table.from_pylist([book]), folder / "books.parquet")
    pq.write_table(pa.table({"doc_id": pa.array([], pa.string())}), folder / "pairs.parquet")
    draw(folder, DecontaminateConfig())
    return (folder / "figures" / "coverage.png").read_bytes()


def test_figures_do_not_depend_on_what_the_process_drew_before(tmp_path: Path) -> None:
    matplotlib.use("Agg")
    before, first = dict(matplotlib.rcParams), audited(tmp_path / "first")
    with settings():
        report = dict(matplotlib.rcParams)
        assert audited(tmp_path / "within") == first
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "xtick.labelsize": 3}):
        assert audited(tmp_path / "second") == first
        with settings():
            assert dict(matplotlib.rcParams) == report
