"""``infini-study score``: RULER's scores of predictions in a file, and rows that cannot be scored."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stages.data.tasks.predictions import Scored, means, score_lines
from stages.data.tasks.scoring import everything, first_number, first_said, in_order, set_f1, whole_in


def row(task: str, pred: str, *outputs: str) -> str:
    return json.dumps({"task": task, "pred": pred, "outputs": outputs})


def published(rows: list[dict]) -> float:
    """RULER's evaluation as its paper and README define it: clean, then substrings, percent with two digits."""
    total = 0.0
    for one in rows:
        said = re.sub(r"[\x00-\x1f]", "\n", one["pred"].strip()).strip().lower()
        hits = [float(each.lower() in said) for each in one["outputs"]]
        total += max(hits) if one["task"].startswith("qa") else sum(hits) / len(hits)
    return round(total / len(rows) * 100, 2)


def test_scores_equal_rulers_own_on_generated_rows() -> None:
    rng = random.Random(3)
    tasks = ["niah_single_1", "niah_multikey_3", "niah_multivalue", "vt", "cwe", "fwe", "qa_1", "qa_2"]
    parts = ["Ab", "12", "345", "12,345", "a\tb", "\x00", "\n", "none", "abc-d", "XYZ", ". ", ", "]
    rows = [
        {
            "task": rng.choice(tasks),
            "pred": "".join(rng.choices(parts, k=rng.randint(0, 9))),
            "outputs": rng.sample(["ab", "12", "345", "bc", "A\tB", "xyz", "a\nb"], rng.randint(1, 4)),
        }
        for _ in range(600)
    ]
    scored, broken = score_lines(json.dumps(one) for one in rows)
    assert not broken and len(scored) == 600
    for task, mean in means(scored).items():
        of = [one for one in rows if one["task"] == task]
        assert mean.ruler == published(of) and mean.mean * 100 == pytest.approx(mean.ruler, abs=0.01)


@pytest.mark.parametrize(
    ("said", "answers", "f1"),
    [
        ("12,345", ["12"], 0),
        ("12,345", ["12345"], 1),
        ("112", ["12"], 0),
        ("12.5", ["12"], 0),
        ("12.", ["12"], 1),
        ("The numbers are 12 and 34, 56", ["12", "34"], 0.8),
        ("", ["12"], 0),
        ("1. red 2. blue", ["red", "blue"], 1),
        ("red, blue, green", ["RED", "blue"], 0.8),
        ("a-1b and c-2d", ["a-1b", "c-2d"], 1),
        ("the old mill, a gate", ["the old mill"], 2 / 3),
    ],
)
def test_the_f1_of_the_set_counts_whole_answers_and_what_is_too_much(said, answers, f1) -> None:
    assert set_f1(said, answers) == pytest.approx(f1)


def test_alternatives_count_by_the_best_of_them() -> None:
    assert set_f1("the old mill", ["mill", "the old mill"], alternatives=True) == 1


@pytest.mark.parametrize(
    ("said", "score"), [("12,345 and 34", 0.5), ("12 34", 1), ("112 341", 0), ("12.5, 34.", 0.5), ("1,234", 0)]
)
def test_an_answer_counts_by_itself_in_an_evaluation(said, score) -> None:
    assert whole_in(said, ["12", "34"]) == score


def test_numbers_with_commas_are_one_number_and_order_is_read_off() -> None:
    assert first_number(" 12,345.") == "12345" and first_number("7, 12,345") == "7"
    assert first_number("12,34") == "12" and first_number("none") == ""
    assert in_order(" 12, 34, 56", ["12", "56", "34"]) == pytest.approx(1 / 3)
    assert everything("\x01 a\x02b \n") == "a\nb"


def test_standard_errors_are_over_rows() -> None:
    rows = [Scored(n, "vt", score, 0.5) for n, score in enumerate([0.0, 1.0, 1.0, 1.0])]
    assert means(rows)["vt"].error == pytest.approx(0.25) and means(rows)["vt"].f1_error == 0
    assert means(rows[:1])["vt"].error is None


def run(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "predictions.jsonl").write_text(text)
    command = [sys.executable, "-m", "pipeline.cli", "score", str(folder / "predictions.jsonl"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_prints_rows_and_means(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "\n".join([row("vt", "A, B", "A", "B", "C"), row("vt", "none", "Z"), row("qa_1", "x", "x", "y"), ""]),
        "--json",
    )
    said = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr == ""
    assert [one["score"] for one in said["rows"]] == [pytest.approx(2 / 3), 0, 1]
    assert said["tasks"]["vt"]["mean"] == pytest.approx(1 / 3) and said["tasks"]["vt"]["ruler"] == 33.33
    assert said["tasks"]["qa_1"] == {
        "n": 1,
        "mean": 1,
        "error": None,
        "ruler": 100,
        "f1": 1,
        "f1_error": None,
        "broken": 0,
    }


def test_a_row_nested_too_deep_is_broken_and_the_next_is_scored() -> None:
    deep = '{"task": "vt", "pred": "a", "outputs": ' + "[" * 50_000 + "]" * 50_000 + "}"
    scored, broken = score_lines([deep, json.dumps({"task": "vt", "pred": "a", "outputs": ["a"]})])
    assert [one.line for one in broken] == [1] and len(scored) == 1


@pytest.mark.parametrize(
    ("task", "score"),
    [
        ("variable_tracking", 0.5),
        ("niah", 0.5),
        ("ruler_vt", 0.5),
        ("common_words_extraction", 0.5),
        ("freq_words_extraction", 0.5),
        ("qa", 1),
        ("ruler_qa_hotpot", 1),
        ("niah_multikey_2", 0.5),
    ],
)
def test_tasks_go_by_the_names_that_ruler_and_others_give_them(task, score) -> None:
    scored, broken = score_lines([row(task, "it is A", "a", "zz")])
    assert not broken and scored[0].score == score


def test_odd_predictions_are_scored_as_ruler_does() -> None:
    odd = [
        "",
        " ",
        "\u2028",
        "\x1f12\x00345",
        "١٢",
        "ﬁne",
        "İstanbul",
        "STRASSE ß",
        "\ud83d",
        "1,234,567",
        "12\r\n345",
        "e\u0301",
    ]
    outs = [["12", "345"], ["İSTANBUL"], ["ss"], ["1,234"], ["é"], ["fine"], ["12\n345"]]
    rows = [{"task": "niah_multivalue", "pred": pred, "outputs": out} for pred in odd for out in outs]
    scored, broken = score_lines(json.dumps(one) for one in rows)
    assert not broken and means(scored)["niah_multivalue"].ruler == published(rows)


def test_a_line_that_is_no_utf8_is_one_broken_row(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(row("vt", "A", "A").encode() + b'\n{"task": "vt", "pred": "\xff", "outputs": ["A"]}\n')
    command = [sys.executable, "-m", "pipeline.cli", "score", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = json.loads(done.stdout)
    assert done.returncode == 1 and said["tasks"]["vt"]["n"] == 1 and [one["line"] for one in said["broken"]] == [2]
    assert "line 2 is not scored: not UTF-8 text" in done.stderr


def test_a_broken_row_is_named_and_counted(tmp_path: Path) -> None:
    lines = [
        row("vt", "A", "A"),
        '{"task": "vt", "pred": "A"}',
        "{",
        row("vt", "A"),
        row("vtt", "A", "A"),
        json.dumps({"task": "vt", "pred": None, "outputs": ["A"]}),
    ]
    done = run(tmp_path, "\n".join(lines), "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 1 and said["tasks"]["vt"]["n"] == 1 and said["tasks"]["vt"]["broken"] == 3
    assert [one["line"] for one in said["broken"]] == [2, 3, 4, 5, 6]
    for expected in (
        "line 2 is not scored: no field 'outputs'",
        "line 4 .*outputs = ",
        "did you mean 'vt'",
        "pred = None",
    ):
        assert re.search(expected, done.stderr)


def test_what_is_wrong_in_a_row_is_not_told_at_full_length(tmp_path: Path) -> None:
    long = "A" * 100_000
    rows: list[dict[str, object]] = [
        {"task": long},
        {"task": [long]},
        {"task": "vt", "pred": [long]},
        {"task": "vt", "pred": "", "outputs": long},
    ]
    broken = "\n".join(json.dumps({"pred": "", "outputs": ["A"], **one}) for one in rows)
    done = run(tmp_path, f"{row('vt', 'A', 'A')}\n{broken}")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 4 and len(done.stderr) < 2000


@pytest.mark.parametrize(("text", "reason"), [("", "it is empty"), ('{"pred": ""}', "line 1: no field 'task'")])
def test_a_file_without_a_row_to_score_is_one_error(tmp_path: Path, text: str, reason: str) -> None:
    done = run(tmp_path, text)
    assert done.returncode == 2 and reason in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_file_that_there_is_not_is_one_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "score", str(tmp_path / "none.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "No such file" in done.stderr


@pytest.mark.parametrize(
    ("said", "answers", "score"),
    [
        ("12, 34. Then 56", ["34", "12"], 1),
        ("56, 12, 34", ["34", "12"], 0.5),
        ("1. red 2. blue", ["blue", "red"], 1),
        ("12,345", ["12"], 0),
        ("", ["12"], 0),
    ],
)
def test_of_what_is_said_first_all_must_be_answers(said, answers, score) -> None:
    assert first_said(said, answers) == score
