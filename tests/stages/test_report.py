"""The report shows what the tables hold, loads nothing, and lets no text become markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.claims.config import ClaimsConfig
from stages.report.document import shown
from stages.report.stage import STAGE, ReportConfig
from stages.report.terminal import verdict_rows
from stages.stage import Summary
from tests.stages.synthetic import ARMS, TRUNK, Synthetic
from tests.support import LocalContext

HOSTILE = '<script>alert("x")</script> $\\frac{1}{0}$ | [a](http://evil.example) & "quoted"'


def config(**fields: object) -> ReportConfig:
    values = {"study": "synthetic", "arms": ARMS, "trunk": TRUNK, "seeds": (0, 1, 2),
              "claims": ClaimsConfig()} | fields  # fmt: skip
    return ReportConfig(**values)


class Page(HTMLParser):
    """Collects tags, what they would load, and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "srcset", "data", "action", "poster", "background"}:
                self.loads.append(value or "")
            if name in {"href", "xlink:href"}:
                (self.anchors if (value or "").startswith("#") else self.loads).append(value or "")
            if name == "id":
                self.ids.append(value or "")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary, LocalContext]:
    folder = tmp_path_factory.mktemp("study")
    study = Synthetic(folder / "artifacts", title=HOSTILE).everything()
    output = folder / "output"
    output.mkdir()
    context = LocalContext(str(folder))
    summary = STAGE.run(config(title=HOSTILE, description=HOSTILE), study.inputs, output, context)
    return output, summary, context


def test_every_promised_file_is_there_and_progress_reaches_its_end(full):
    output, summary, context = full
    named = [*summary.tables.values(), *summary.figures, "report.json", "report.html", "report.md", "verdicts.parquet"]
    assert all((output / name).stat().st_size for name in named)
    assert sum(name.endswith(".png") for name in summary.figures) == 13
    done, total, _, _ = context.progressed[-1]
    assert done == total


def test_the_page_loads_nothing_and_runs_no_script(full):
    text = (full[0] / "report.html").read_text()
    page = Page(text)
    assert all(target.startswith("data:image/png;base64,") for target in page.loads)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert set(anchor[1:] for anchor in page.anchors) <= set(page.ids)


def test_hostile_titles_stay_text(full):
    output, _, _ = full
    text = (output / "report.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    markdown = (output / "report.md").read_text()
    assert "<script>" not in markdown and "[a](http" not in markdown.replace("\\[", "")


def test_every_number_carries_artifact_table_and_filter(full):
    report = json.loads((full[0] / "report.json").read_text())
    assert report["schema_version"] == 1
    numbers = [number for rows in report["numbers"].values() for number in rows]
    assert len({number["name"] for number in numbers}) == len(numbers) > 100
    for number in numbers:
        assert number["sources"], number["name"]
        for source in number["sources"]:
            assert source["table"] and (
                re.fullmatch("[0-9a-f]{64}", source["key"]) or source["step"].startswith("model.")
            )
    assert all(figure["sources"] for figure in report["figures"])


def test_the_page_gives_the_command_to_the_rows_of_a_verdict(full):
    output, _, _ = full
    report = json.loads((output / "report.json").read_text())
    key = report["verdicts"][1]["sources"][0]["key"]
    assert f"infini-study show {key}" in (output / "report.html").read_text()


def test_verdicts_agree_between_json_parquet_metrics_and_terminal(full):
    output, summary, _ = full
    report = json.loads((output / "report.json").read_text())
    table = pq.read_table(output / "verdicts.parquet").to_pylist()
    rows = verdict_rows(report)
    assert (
        [row.verdict for row in rows] == [row["verdict"] for row in table] == [v["label"] for v in report["verdicts"]]
    )
    assert summary.metrics["verdict.supported"] == report["counts"]["supported"]
    assert summary.metrics["C2.estimate"] == pytest.approx(report["verdicts"][1]["estimate"])
    assert rows[1].estimate.startswith("−10.") and "perplexity" in rows[1].estimate


def test_every_verdict_says_why_in_one_line(full):
    output, _, _ = full
    rows = verdict_rows(json.loads((output / "report.json").read_text()))
    assert all(0 < len(row.why) <= 140 and "\n" not in row.why for row in rows)
    found = next(row for row in rows if row.claim == "C5")
    assert "points of accuracy above 1/k" in found.estimate and "%" not in found.estimate


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0051, "accuracy lost", "0.5"), (-0.0051, "accuracy lost", "−0.5"), (-0.0001, "accuracy above 1/k", "0.0"),
        (0.023, "relative perplexity", "+2.3%"), (0.014, "accuracy", "1.4%"), (2.571, "associations", "2.6"),
        (115.73, "times, elements", "115.7"), (2061936, "FLOPs/token", "2,061,936"), (None, "accuracy", "–"),
    ],
)  # fmt: skip
def test_numbers_are_shown_as_people_read_them(value, unit, text):
    assert shown(value, unit) == text


def test_an_empty_study_still_gives_a_page_that_says_so(tmp_path):
    summary = STAGE.run(config(), {}, tmp_path, LocalContext(str(tmp_path)))
    assert summary.metrics["verdict.not_measured"] == 12
    assert "not measured" in (tmp_path / "report.html").read_text()
    assert not [name for name in summary.figures if name.endswith(".png")]


def test_tables_and_figures_are_the_same_bytes_when_made_again(tmp_path):
    study = Synthetic(tmp_path / "artifacts").pretrain().capacity()
    outputs = []
    for name in ("a", "b"):
        output = tmp_path / name
        output.mkdir()
        STAGE.run(config(), study.inputs, output, LocalContext(str(tmp_path)))
        outputs.append({path.relative_to(output): path.read_bytes() for path in sorted(output.rglob("*.*"))})
    assert outputs[0] == outputs[1]


def test_contaminated_documents_are_warned_about(tmp_path):
    study = Synthetic(tmp_path / "artifacts", coverage_after=0.4).decontaminate()
    output = tmp_path / "output"
    output.mkdir()
    context = LocalContext(str(tmp_path))
    STAGE.run(config(), study.inputs, output, context)
    assert any("doc-001" in line for line in context.warned)


def test_a_study_of_baselines_alone_is_reported(tmp_path):
    study = Synthetic(tmp_path / "artifacts", seeds=(0,)).pretrain().evaluate()
    output = tmp_path / "output"
    output.mkdir()
    arms = {arm: mixer for arm, mixer in ARMS.items() if mixer.kind == "window"}
    inputs = {step: artifact for step, artifact in study.inputs.items() if "window" in step}
    summary = STAGE.run(config(arms=arms, seeds=(0,)), inputs, output, LocalContext(str(tmp_path)))
    report = json.loads((output / "report.json").read_text())
    assert "no arm with a compressive memory" in report["verdicts"][1]["reason"]
    assert summary.metrics["verdict.refuted"] == 0 and "figures/retrieval-heatmap.png" in summary.figures
