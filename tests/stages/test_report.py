"""The report shows what the tables hold, loads nothing, and lets no text become markup."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import shlex
import shutil
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.cli import app
from pipeline.engine.store import Store
from pipeline.tracking.publish import root_option
from stages.stage import Place, Summary
from stages.training.pretrain.schedule import ScheduleSettings
from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.claims.table import CLAIMS, decide
from stages.verdict.report.calibration import learning
from stages.verdict.report.figures import perplexity, probes
from stages.verdict.report.figures.all import FIGURES, draw
from stages.verdict.report.numbers import collect
from stages.verdict.report.shown import shown
from stages.verdict.report.stage import STAGE, ReportConfig
from stages.verdict.report.terminal import verdict_rows
from tests.stages.synthetic import ARMS, CONTROL_ARMS, TRUNK, Synthetic
from tests.stages.synthetic_report import RECIPE, calibrate, committed, with_pages
from tests.support import LocalContext

HOSTILE = '<script>alert("x")</script> $\\frac{1}{0}$ | [a](http://evil.example) & "quoted"'


ELSEWHERE = {perplexity.by_corpus, probes.gates_over_training, probes.recall, probes.spectrum, probes.windows}
"""Figures of tables that this study does not have: test_report_corpora.py, test_report_probes.py."""
SCHEDULES = {"long": {"local": -0.02, "infini-delta": 0.01}}


def config(**fields: object) -> ReportConfig:
    values = {
        "study": "synthetic",
        "arms": ARMS,
        "trunk": TRUNK,
        "seeds": (0, 1, 2),
        "claims": ClaimsConfig(),
        "control_arms": CONTROL_ARMS,
    } | fields
    return ReportConfig(**values)


class Page(HTMLParser):
    """Collects tags, what they would load, and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.commands: list[str] = []
        self._command = False
        self.feed(text)

    def handle_data(self, data: str) -> None:
        if self._command:
            self.commands.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._command = tag == "code" and ("class", "command") in attrs
        for name, value in attrs:
            if name in {"src", "srcset", "data", "action", "poster", "background"}:
                self.loads.append(value or "")
            if name in {"href", "xlink:href"}:
                (self.anchors if (value or "").startswith("#") else self.loads).append(value or "")
            if name == "id":
                self.ids.append(value or "")


@dataclass(frozen=True)
class Full:
    """A report of a study with everything in it, made from artifacts of a store, and published for that store."""

    root: Path
    output: Path
    summary: Summary
    context: LocalContext

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.output / "report.json").read_text())

    @property
    def html(self) -> str:
        return (self.output / "report.html").read_text()

    def numbers(self) -> list[dict[str, Any]]:
        return [number for rows in self.report["numbers"].values() for number in rows]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Full:
    folder = tmp_path_factory.mktemp("study")
    study = calibrate(Synthetic(folder / "artifacts", title=HOSTILE, schedules=SCHEDULES).everything())
    inputs = committed(folder / "store", with_pages(study.inputs))
    output = folder / "output"
    output.mkdir()
    context = LocalContext(str(folder))
    varied = {name: ScheduleSettings(arms=tuple(of), horizon=2) for name, of in SCHEDULES.items()}
    said = config(title=HOSTILE, description=HOSTILE, recipe=RECIPE, schedules=varied)
    summary = STAGE.run(said, inputs, output, context)
    place = Place(root_option(str(folder / "store")), {KEY: "http://127.0.0.1:5000/#/runs/1"}, (("commit", "abc"),))
    STAGE.publish(output, place)
    return Full(folder / "store", output, summary, context)


KEY = hashlib.sha256(b"evaluate/local/0").hexdigest()


def test_the_figure_of_schedules_has_the_memory_arms_against_every_schedule_of_the_baseline(full):
    plotted = pd.read_csv(full.output / "figures" / "schedules.csv")
    pairs = set(zip(plotted["arm"], plotted["against"], strict=True))
    arms = ("infini-linear", "infini-delta", "infini-delta@long")
    assert pairs == {(arm, other) for arm in arms for other in ("local", "local@long")}


def test_every_promised_file_is_there_and_progress_reaches_its_end(full):
    named = [*full.summary.tables.values(), *full.summary.figures, "report.json", "report.html", "report.md"]
    assert all((full.output / name).stat().st_size for name in named)
    assert sum(name.endswith(".png") for name in full.summary.figures) == len({draw for _, draw in FIGURES} - ELSEWHERE)
    done, total, _, _ = full.context.progressed[-1]
    assert done == total


def test_every_figure_has_svg_and_data_beside_it_and_none_is_a_heat_map(full):
    for figure in full.report["figures"]:
        rows = pd.read_csv(full.output / figure["data"])
        assert len(rows) and not rows.isna().all(axis=None), figure["name"]
        for form in ("svg", "narrow"):
            drawn = ElementTree.parse(full.output / figure[form]).getroot()
            assert not list(drawn.iter("{http://www.w3.org/2000/svg}image")), f"{figure['name']} is an image of cells"
    positions = pd.read_csv(full.output / "figures" / "retrieval-positions.csv")
    assert positions.groupby(["length", "arm"]).size().min() > 20 and {"depth", "low", "high"} <= set(positions)


def test_the_page_loads_nothing_runs_no_script_and_its_links_lead_somewhere(full):
    page = Page(full.html)
    links = [target for target in page.loads if not target.startswith("data:image/png;base64,")]
    assert {"audit/audit.html", "figures/control.svg", "figures/control.csv", "report.json"} <= set(links)
    outside = {target for target in links if not (full.output / target).is_file()}
    assert outside == {"http://127.0.0.1:5000/#/runs/1"}, "the run that made an artifact"
    assert (full.output / "audit" / "evidence" / "001.html").is_file()
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", full.html)
    assert len(page.ids) == len(set(page.ids))
    assert set(anchor[1:] for anchor in page.anchors) <= set(page.ids)


def commands(value: Any) -> set[str]:
    """Every command in plain data."""
    if isinstance(value, list):
        return set().union(*map(commands, value))
    if not isinstance(value, dict):
        return set()
    own = {value["command"]} if value.get("command") else set()
    return own.union(*(commands(item) for item in value.values()))


def test_every_command_of_the_report_prints_rows(full, capsys, monkeypatch):
    said = commands(full.report)
    assert len(said) > 300 and all(f" --root {full.root} --table " in command for command in said)
    monkeypatch.setattr(Store, "commits", functools.cache(lambda store, before=Store.commits: list(before(store))))
    empty = []
    for command in sorted(said):
        name, *arguments = shlex.split(command)
        assert name == "infini-study"
        app.app([*arguments, "--json", "--limit", "1"], standalone_mode=False)
        if not json.loads(capsys.readouterr().out)["total_rows"]:
            empty.append(command)
    assert not empty


def test_every_number_and_figure_of_the_page_has_its_command_and_a_link(full):
    page = Page(full.html)
    shown = set(page.commands)
    for carrier in [*full.numbers(), *full.report["figures"]]:
        own = {source["command"] for source in carrier["sources"] if source["key"]}
        assert own <= shown
        assert own or all(source["step"].startswith("model.") for source in carrier["sources"]), carrier["name"]
    keys = {source["key"] for number in full.numbers() for source in number["sources"] if source["key"]}
    assert {f"a-{key[:12]}" for key in keys} <= set(page.ids)
    assert {f"#a-{key[:12]}" for key in keys} <= set(page.anchors)
    markdown = (full.output / "report.md").read_text()
    assert f"infini-study show {KEY[:12]} --root {full.root} --table perplexity" in markdown


def test_one_quantity_has_one_interval(full):
    seen: dict[Any, dict[str, Any]] = {}
    for number in full.numbers():
        rows = frozenset((source["key"], source["table"], source["filter"]) for source in number["sources"])
        if number["estimate"] is None:
            continue
        quantity = (rows, number["unit"], round(number["estimate"], 9))
        if any(key for key, _, _ in rows):
            assert quantity not in seen, f"{number['name']} and {seen[quantity]['name']} are the same quantity"
        seen[quantity] = number
    drawn = {}
    for figure in full.report["figures"]:
        table = pd.read_csv(full.output / figure["data"])
        for row in table.to_dict("records") if {"name", "low", "high"} <= set(table) else ():
            if isinstance(row["name"], str):
                drawn.setdefault(row["name"], []).append((row["estimate"], row["low"], row["high"]))
    by_name = {number["name"]: number for number in full.numbers()}
    assert len(drawn) > 50
    for name, points in drawn.items():
        number = by_name[name]
        for point in points:
            told = [number["estimate"], number["low"], number["high"]]
            for value, expected in zip(point, told, strict=True):
                assert expected is None or value == pytest.approx(expected, rel=1e-4, abs=1e-6), name


def test_the_page_opens_with_what_is_known_then_verdicts_then_the_recipe(full):
    at = [full.html.index(f'<section id="{name}">') for name in ("calibration", "verdicts", "recipe", "retrieval")]
    assert at == sorted(at)
    said = " ".join(full.report["calibration"])
    assert "full attention, which can do the task, recalls 100.0%" in said and "local attention, which cannot" in said
    assert "elu1 holds 40 associations, not 60 (published: holds 40, fails 60)" in said
    told = {row["what"]: (row["base"], row["arms"]) for row in full.report["recipe"]}
    assert told["seeds"] == ("one base per seed", "0, 1, 2") and told["optimiser steps"] == ("450", "300")
    assert told["tokens in a batch"] == ("2,048", "2,048") and "infini-delta 612,345" in told["parameters"][1]
    assert told["prompts"][1].startswith("100% of the tokens of 64 tokens until 33% of the steps; 50%")
    assert ["commit", "abc"] in full.report["place"]["facts"] and "<td>abc</td>" in full.html


def test_how_soon_an_arm_learns_the_control_is_a_number_of_steps(tmp_path):
    seen = Synthetic(tmp_path, control_rows={"infini-linear-relu": 1.0}).positive_control().evidence(ClaimsConfig())
    learned = {n.name.removeprefix("control_learning."): n for n in learning(seen)}
    assert learned["full"].estimate == 200 and learned["infini-linear-relu"].n == 3
    assert math.isinf(learned["local"].estimate) and learned["local"].note == ", ".join(
        f"seed {seed}: not in 200" for seed in (0, 1, 2)
    )


def test_a_study_without_calibration_says_what_its_nulls_are_worth(tmp_path):
    STAGE.run(config(control_arms={}), {}, tmp_path, LocalContext(str(tmp_path)))
    assert "a missing effect means nothing here" in (tmp_path / "report.html").read_text()


def test_the_page_for_a_frame_links_to_its_own_places_only(full, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(full.output, copy)
    STAGE.publish(copy, Place(" --root x", {KEY: "http://elsewhere"}, file=""))
    page = Page((copy / "report.html").read_text())
    assert {target for target in page.loads if not target.startswith("data:")} == {"http://elsewhere"}
    assert page.tags.count("script") == 1 and set(anchor[1:] for anchor in page.anchors) <= set(page.ids)
    assert "script" not in Page(full.html).tags


def test_hostile_titles_stay_text(full):
    output, text = full.output, full.html
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    markdown = (output / "report.md").read_text()
    assert "<script>" not in markdown and "[a](http" not in markdown.replace("\\[", "")


def test_every_number_carries_artifact_table_and_filter(full):
    report = full.report
    assert report["schema_version"] == 2
    numbers = full.numbers()
    assert len({number["name"] for number in numbers}) == len(numbers) > 100
    for number in numbers:
        assert number["sources"], number["name"]
        for source in number["sources"]:
            assert source["table"] and (
                re.fullmatch("[0-9a-f]{64}", source["key"]) or source["step"].startswith("model.")
            )
    assert all(figure["sources"] for figure in report["figures"])


def test_verdicts_agree_between_json_parquet_metrics_and_terminal(full):
    output, summary, report = full.output, full.summary, full.report
    table = pq.read_table(output / "verdicts.parquet").to_pylist()
    rows = verdict_rows(report)
    assert (
        [row.verdict for row in rows] == [row["verdict"] for row in table] == [v["label"] for v in report["verdicts"]]
    )
    assert summary.metrics["verdict.supported"] == report["counts"]["supported"]
    assert summary.metrics["C2.estimate"] == pytest.approx(report["verdicts"][1]["estimate"])
    assert rows[1].estimate.startswith("−") and "% [" in rows[1].estimate and "perplexity" in rows[1].estimate


def test_every_verdict_says_why_in_one_line(full):
    rows = verdict_rows(full.report)
    assert all(0 < len(row.why) <= 240 and "\n" not in row.why for row in rows)
    found = next(row for row in rows if row.claim == "C5b")
    assert "points of accuracy above the best reader" in found.estimate and "%" not in found.estimate


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0051, "accuracy lost", "0.5"),
        (-0.0051, "accuracy lost", "−0.5"),
        (-0.0001, "accuracy above 1/k", "0.0"),
        (0.023, "relative perplexity", "+2.3%"),
        (0.014, "accuracy", "1.4%"),
        (2.571, "associations", "2.6"),
        (115.73, "times, elements", "115.7"),
        (2061936, "FLOPs/token", "2,061,936"),
        (None, "accuracy", "–"),
        (1.5e300, "perplexity/token", "1.5e+300"),
    ],
)
def test_numbers_are_shown_as_people_read_them(value, unit, text):
    assert shown(value, unit) == text


def test_an_empty_study_still_gives_a_page_that_says_so(tmp_path):
    summary = STAGE.run(config(), {}, tmp_path, LocalContext(str(tmp_path)))
    report = json.loads((tmp_path / "report.json").read_text())
    measured = [verdict["claim"] for verdict in report["verdicts"] if verdict["decision"] != "not measured"]
    assert all(claim.startswith("C9") for claim in measured), "the paper's own ratio needs no run"
    assert "Nothing in this study measures this." in (tmp_path / "report.html").read_text()
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


def test_figures_drawn_by_several_workers_are_those_drawn_by_one(ray_session, tmp_path, monkeypatch):
    seen = calibrate(Synthetic(tmp_path / "artifacts").positive_control()).evidence(ClaimsConfig())
    named = collect(seen, [decide(claim, seen) for claim in CLAIMS]).named
    several = list(draw(seen, named, tmp_path / "several", {"calibration"}))
    monkeypatch.setattr("stages.data.parallel.running_ray", lambda: None)
    one = list(draw(seen, named, tmp_path / "one", {"calibration"}))
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")]
    assert one == several and len(files) == 4 * len([figure for _, figure in one if figure is not None]) > 0
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "several" / name).read_bytes() for name in files)


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
    assert {v["claim"][:2] for v in report["verdicts"] if v["decision"] == "refuted"} <= {"C9"}
    assert "figures/retrieval-positions.png" in summary.figures
