"""The audit of any files from the command line."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipeline.called import Command, caller
from tests.stages.test_decontaminate import LETTER, NOVEL, text_of
from tests.stages.test_decontaminate_match import prose


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in a folder with a corpus of text files (train/) and evaluation documents (eval/)."""
    files = {
        "eval/novel.txt": text_of(NOVEL),
        "eval/letter.txt": text_of(LETTER),
        "train/clean.txt": text_of(prose(12, 5000)),
        "train/deep/er/anthology.txt": text_of(prose(10, 4000) + NOVEL + prose(11, 4000)),
        "train/note.txt": text_of(prose(15, 5000) + NOVEL[200:240]),
        "train/passage.txt": text_of(prose(16, 9000) + NOVEL[100:180] + prose(17, 9000)),
        "clean/one.txt": text_of(prose(18, 3000)),
        "clean/quoting.txt": text_of(prose(19, 3000) + LETTER[:20]),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return caller(tmp_path, monkeypatch, capsys.readouterr)


SCAN = ("audit", "scan", "train", "--against", "eval", "--canaries", "2")


def test_a_contaminated_corpus_is_told_shown_and_exit_code_1(cli: Command) -> None:
    said = cli(*SCAN, "--out", "found")
    assert said.code == 1
    assert "1 of 2 evaluation documents share text with training documents, 1 of them above the limit" in said.out
    assert "4 documents" in said.out and "1 clean, 1 noted, 1 to cut, 1 to drop" in said.out
    assert re.search(r"deep/er/anthology\.txt +novel\.txt +anthology +drop", said.out)
    assert re.search(r"passage\.txt +novel\.txt +excerpt +cut", said.out)
    assert "canaries: " in said.out and "95% interval" in said.out
    assert {"audit.html", "audit.json", "pairs.parquet", "spans.parquet", "evidence"} <= set(os.listdir("found"))
    assert ".work" not in os.listdir("found")
    own = Path("train/passage.txt").read_bytes()
    span = pd.read_parquet("found/spans.parquet").set_index("doc_id").loc["passage.txt"]
    assert own[span["doc_start"] : span["doc_end"]].decode().split() == NOVEL[100:180]
    again = cli(*SCAN, "--out", "found")
    assert (again.code, again.out) == (said.code, said.out)


def test_a_clean_corpus_is_exit_code_0(cli: Command) -> None:
    said = cli("audit", "scan", "clean", "--against", "eval", "--canaries", "2")
    assert said.code == 0 and "None of the 2 evaluation documents shares a verified span" in said.out
    assert cli(*SCAN, "--exit-zero").code == 0


def test_thresholds_decide(cli: Command) -> None:
    strict = cli(*SCAN, "--act-words", "40", "--json").json
    assert {pair["doc_id"]: pair["action"] for pair in strict["pairs"]}["note.txt"] == "cut"
    assert strict["totals"]["parameters"]["act_words"] == 40
    short = cli("audit", "scan", "clean", "--against", "eval", "--min-span-words", "15", "--act-words", "15", "--json")
    assert short.code == 1 and short.json["pairs"][0]["doc_id"] == "quoting.txt"


def test_json_is_one_document_with_numbers_that_add_up(cli: Command) -> None:
    said = cli(*SCAN, "--json")
    body = said.json
    assert (said.code, body["schema_version"], body["command"], body["contaminated"]) == (1, 1, "audit scan", True)
    metrics = body["totals"]["metrics"]
    parts = [metrics[f"documents_{action}"] for action in ("keep", "note", "cut", "drop")]
    assert sum(parts) == metrics["documents_in"] == 4
    assert metrics["bytes_in"] == sum(p.stat().st_size for p in Path("train").rglob("*.txt"))
    (book,) = [book for book in body["books"] if book["coverage"] > 0]
    assert (book["book_id"], book["coverage"], book["uncovered_words"]) == ("novel.txt", 1.0, 0)
    assert {span["doc_id"] for span in body["spans"]} == {pair["doc_id"] for pair in body["pairs"]}


def as_parquet(folder: Path, rows: list[dict[str, str]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return "rows.parquet"


def as_jsonl(folder: Path, rows: list[dict[str, str]]) -> str:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "rows.jsonl"


def as_packed_jsonl(folder: Path, rows: list[dict[str, str]]) -> str:
    with gzip.open(folder / "rows.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    return "rows.jsonl.gz"


def as_url(folder: Path, rows: list[dict[str, str]]) -> str:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe(f"/{folder.name}/rows.jsonl", "\n".join(map(json.dumps, rows)).encode())  # shared by all tests
    return f"memory://{folder.name}"


@pytest.mark.parametrize("write", [as_parquet, as_jsonl, as_packed_jsonl, as_url])
@pytest.mark.parametrize("ids", [True, False])
def test_any_format_is_read(cli: Command, tmp_path: Path, write: Callable[..., str], ids: bool) -> None:
    rows = [
        {"name": path.stem, "body": path.read_text()} for path in sorted(Path("train").rglob("*.txt"))
    ]  # anthology, clean, note, passage come in this order of their paths
    place = write(tmp_path, [*rows, {**rows[-1], "body": text_of(prose(77, 500))}])
    options = ("--text-column", "body", *(("--id-column", "name") if ids else ()))
    Path("eval.jsonl").write_text(json.dumps({"name": "novel", "body": text_of(NOVEL)}))
    said = cli("audit", "scan", place, "--against", "eval.jsonl", *options, "--canaries", "0", "--json")
    found = {pair["doc_id"]: pair["action"] for pair in said.json["pairs"]}
    names = [row["name"] for row in rows]
    expected = {"anthology": "drop", "passage": "cut", "note": "note"}
    file = Path(place).name if "://" not in place else "rows.jsonl"
    if not ids:
        expected = {f"{file}:{names.index(name):07d}": action for name, action in expected.items()}
    assert found == expected
    assert said.json["totals"]["metrics"]["documents_in"] == len(rows) + 1
    assert said.json["books"][0]["book_id"] == ("novel" if ids else "eval.jsonl:0000000")


def test_globs_several_places_and_repeated_ids(cli: Command, tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [{"id": "1", "text": text_of(NOVEL[:300])}, {"id": "1", "text": text_of(prose(5, 300))}]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = cli(
        "audit",
        "scan",
        "*.jsonl",
        "train/note.txt",
        "--against",
        "eval/novel.txt",
        "--against",
        "eval/l*.txt",
        "--id-column",
        "id",
        "--json",
    )
    assert {pair["doc_id"] for pair in said.json["pairs"]} == {"a.jsonl:1", "b.jsonl:1", "train/note.txt"}
    assert said.json["totals"]["metrics"]["documents_in"] == 5
    assert {book["book_id"] for book in said.json["books"]} == {"novel.txt", "letter.txt"}


BOTH = ("train", "--against", "eval")
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "no evaluation documents named": (("train",), r"[Mm]issing option '--against'"),
    "no corpus named": (("--against", "eval"), r"[Mm]issing argument 'CORPUS"),
    "no such corpus": (("nowhere", "--against", "eval"), r"CORPUS = 'nowhere': nothing to read there .*Fix: correct"),
    "no such evaluation": (("train", "--against", "nowhere"), r"--against = 'nowhere': nothing to read there"),
    "a glob that matches nothing": (("train/*.parquet", "--against", "eval"), r"CORPUS = 'train/\*\.parquet'"),
    "files of other kinds": (("other", "--against", "eval"), r"it holds 1 file\(s\) of other kinds, such as .*x\.csv"),
    "an unknown protocol": (("abc://x", "--against", "eval"), r"CORPUS = 'abc://x': cannot be read: ValueError"),
    "an unknown format": ((*BOTH, "--format", "pdf"), r"--format = 'pdf': unknown \(allowed"),
    "thresholds out of order": (
        (*BOTH, "--act-words", "10"),
        r"--ngram = 5, --min-span-words = 30, --act-words = 10.*Fix",
    ),
    "a threshold out of range": ((*BOTH, "--drop-book-share", "7"), r"--drop-book-share = 7\.0: "),
    "no such column": (
        ("rows.parquet", "--against", "eval", "--text-column", "body"),
        r"--text-column = 'body'.*allowed: text",
    ),
    "no such id": (("rows.parquet", "--against", "eval", "--id-column", "key"), r"--id-column = 'key'"),
    "no field of the name": (
        ("rows.jsonl", "--against", "eval"),
        r"no document could be read \(1 skipped.*no field 'text'",
    ),
    "nothing but empty documents": (
        ("empty.txt", "--against", "eval"),
        r"CORPUS = 'empty.txt': no document could be read",
    ),
    "an output folder with other files": ((*BOTH, "--out", "eval"), r"--out = 'eval': the folder holds"),
    "an output that is a file": ((*BOTH, "--out", "empty.txt"), r"--out = 'empty.txt': is a file"),
    "a corpus of no name": (("", "--against", "eval"), r"CORPUS = '': no name"),
    "evaluations of no name": (("train", "--against", ""), r"--against = '': no name"),
    "an exclusion of no name": ((*BOTH, "--exclude", ""), r"--exclude = '': no name"),
    "a column of text": ((*BOTH, "--text-column", "body"), r"--text-column = 'body': has no effect on files of text"),
    "an id of text": ((*BOTH, "--id-column", "key"), r"--id-column = 'key': has no effect on files of text"),
    "an exclusion that is not there": ((*BOTH, "--exclude", "nowhere.txt"), r"--exclude = .*nowhere"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(cli: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.csv").write_text("a,b\n")
    (tmp_path / "empty.txt").touch()
    pq.write_table(pa.table({"text": ["a text"]}), "rows.parquet")
    (tmp_path / "rows.jsonl").write_text('{"content": "a text"}\n')
    arguments, expected = MISTAKES[name]
    said = cli("audit", "scan", *arguments)
    assert said.code == 2 and not said.out
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert re.search(expected, line) and "Fix: " in line
    as_json = cli("audit", "scan", *arguments, "--json")
    assert (as_json.code, as_json.json["command"], as_json.json["exit_code"]) == (2, "error", 2)


def test_what_cannot_be_read_is_counted_and_what_stands_on_both_sides_is_told(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "train" / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 90)
    (tmp_path / "train" / "empty.txt").touch()
    (tmp_path / "train" / "notes.csv").write_text("a,b\n")
    said = cli("audit", "scan", "train", "eval", "--against", "eval", "--canaries", "0", "--json")
    problems = {problem["name"]: problem["problem"] for problem in said.json["problems"]}
    assert problems == {"train/latin.txt": "undecodable", "train/empty.txt": "empty"}
    assert said.json["totals"]["metrics"]["documents_in"] == 6 and said.json["totals"]["metrics"]["problems"] == 2
    assert any("2 file(s) stand on both sides" in text for text in said.json["warnings"])
    assert any("1 file(s) of other kinds were left out" in text for text in said.json["warnings"])
    assert "2 document(s) could not be read" in said.err


def test_a_scan_that_could_not_read_all_says_so_first_and_does_not_exit_with_0(cli: Command, tmp_path: Path) -> None:
    clean = ("audit", "scan", "clean", "--against", "eval", "--canaries", "0")
    (tmp_path / "clean" / "broken.jsonl.gz").write_bytes(gzip.compress(b"x" * 4000)[:25])
    said = cli(*clean)
    assert said.code == 4
    assert said.out.startswith("Incomplete: 1 document(s) or file(s) could not be read (broken.jsonl.gz). None of the")
    assert said.err.startswith("warning: 1 document(s) could not be read")
    assert "broken.jsonl.gz: undecodable: damaged after 0" in said.err
    body = cli(*clean, "--json", "--out", "found").json
    assert next(key for key in body if key not in ("schema_version", "command")) == "complete" and not body["complete"]
    assert "Incomplete: 1 document" in Path("found/audit.html").read_text()
    (tmp_path / "clean" / "broken.jsonl.gz").unlink()
    pq.write_table(pa.table({"body": ["a text"]}), "clean/other.parquet")
    (tmp_path / "clean" / "gone.txt").symlink_to("nowhere")
    said = cli(*clean)
    assert said.code == 4 and "other.parquet: unreadable: no such column: text" in said.err
    assert "gone.txt: unreadable" in said.err and "2 clean" in said.out
    assert cli(*SCAN).code == 1, "what is found is said by the exit code first"


def test_a_folder_behind_a_link_is_scanned_once(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "clean" / "more").symlink_to("../train")
    (tmp_path / "clean" / "loop").symlink_to(".")
    said = cli("audit", "scan", "clean", "--against", "eval", "--canaries", "0", "--json")
    assert {pair["doc_id"] for pair in said.json["pairs"]} == {
        "more/deep/er/anthology.txt",
        "more/note.txt",
        "more/passage.txt",
    }
    assert said.json["totals"]["metrics"]["documents_in"] == 2 + 4


def test_a_link_to_a_folder_around_is_said_to_be_left_out(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "clean" / "up").symlink_to("..")
    (tmp_path / "clean" / "loop").symlink_to(".")
    said = cli("audit", "scan", "clean", "--against", "eval", "--canaries", "0")
    assert said.code == 0 and "1 link(s) to folders around the one that is read were left out: " in said.err
    assert f"{tmp_path}/clean/up" in said.err and "loop" not in said.err


@pytest.mark.parametrize("name", ["more.jsonl.lz4", "more.zip", "more.tar.gz", "more.jsonl.zstd"])
def test_what_is_packed_in_another_way_is_said_to_be_unread(cli: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "clean" / name).write_bytes(b"packed")
    (tmp_path / "clean" / "table.csv").touch()
    said = cli("audit", "scan", "clean", "--against", "eval", "--canaries", "0")
    assert said.code == 4 and said.out.startswith("Incomplete: 1 document(s) or file(s) could not be read")
    assert re.search(rf"{name}: unreadable: packed in a way that is not read; unpack it", said.err)


def test_a_file_is_part_of_a_folder_by_any_name_but_a_hidden_one(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "clean" / "_part-0.jsonl").write_text(json.dumps({"text": text_of(NOVEL)}))
    (tmp_path / "clean" / ".part-0.jsonl").write_text(json.dumps({"text": text_of(LETTER)}))
    pq.write_table(pa.table({"text": [text_of(prose(5, 90))]}), tmp_path / "clean" / "rows.parquet")
    (tmp_path / "clean" / "rows.parquet.gz").write_bytes(gzip.compress((tmp_path / "clean/rows.parquet").read_bytes()))
    said = cli("audit", "scan", "clean", "--against", "eval", "--canaries", "0", "--json")
    assert [pair["doc_id"] for pair in said.json["pairs"]] == ["_part-0.jsonl:0000000"]
    assert said.json["complete"] and said.json["totals"]["metrics"]["documents_in"] == 2 + 3
    (warned,) = said.json["warnings"]
    assert warned.startswith("1 hidden file(s) and folder(s) were left out: ") and warned.endswith(".part-0.jsonl")


def test_an_encoding_that_is_named_is_read(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "clean" / "latin.txt").write_bytes(("caf\xe9 " + text_of(NOVEL)).encode("latin-1"))
    (tmp_path / "clean" / "wide.txt").write_bytes(text_of(LETTER).encode("utf-16"))
    scan = ("audit", "scan", "clean", "--against", "eval", "--canaries", "0")
    assert cli(*scan).code == 4
    said = cli(*scan, "--encoding", "utf-8", "--encoding", "latin-1", "--json")
    assert said.json["complete"] and {p["doc_id"] for p in said.json["pairs"]} == {"latin.txt", "wide.txt"}
    wrong = cli(*scan, "--encoding", "klingon")
    assert wrong.code == 2 and "--encoding = 'klingon': no encoding of text" in wrong.err


def test_items_shorter_than_a_span_are_found_whole_or_said_to_be_out_of_reach(cli: Command, tmp_path: Path) -> None:
    items = [" ".join(prose(900 + n, n, 50_000)) for n in (5, 12, 25, 29, 45)]
    texts = [*items, "\U0001f600 \U0001f680"]
    lines = (json.dumps({"id": f"e{i}", "text": text}) for i, text in enumerate(texts))
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    middle = " ".join(items)
    (tmp_path / "page.txt").write_text(text_of(prose(16, 900)) + middle + "\n" + text_of(prose(17, 900)))
    scan = ("--against", "items.jsonl", "--id-column", "id", "--canaries", "0")
    said = cli("audit", "scan", "page.txt", *scan, "--json")
    assert said.code == 1
    assert {(p["book_id"], p["action"]) for p in said.json["pairs"]} == {(f"e{i}", "cut") for i in range(1, 5)}
    hidden = {row["book_id"]: row["reason"] for row in said.json["totals"]["cannot_be_found"]}
    assert hidden == {"e0": "5 words, too few", "e5": "no words"}
    clean = cli("audit", "scan", "clean", *scan)
    assert clean.code == 0 and "None of the 4 evaluation documents that can be found shares" in clean.out
    assert "2 evaluation document(s) cannot be found" in clean.out and "e5: no words" in clean.out


def test_many_quotations_are_cut_and_another_translation_is_noted(cli: Command, tmp_path: Path) -> None:
    chance = random.Random(5)
    quoting = [word for i in range(11) for word in [*prose(300 + i, 4000), *NOVEL[700 * i : 700 * i + 52]]]
    other = prose(77, len(NOVEL))
    close = [0.68 if i % 400 < 80 else 0.2 for i in range(len(NOVEL))]
    translation = [w if chance.random() < share else o for w, o, share in zip(NOVEL, other, close, strict=True)]
    for name, words in (("quoting", quoting), ("translation", translation)):
        (tmp_path / "clean" / f"{name}.txt").write_text(text_of(words))
    said = cli("audit", "scan", "clean", "--against", "eval/novel.txt", "--canaries", "0", "--json")
    found = {pair["doc_id"]: (pair["action"], pair["class"]) for pair in said.json["pairs"]}
    assert found == {"quoting.txt": ("cut", "excerpt"), "translation.txt": ("note", "translation")}
    (quotations,) = (pair for pair in said.json["pairs"] if pair["doc_id"] == "quoting.txt")
    assert quotations["matched_words"] >= 572 and quotations["dense_words"] < 60


def test_a_terminal_shows_control_characters_of_documents_as_text(cli: Command, tmp_path: Path) -> None:
    evil = "\x1b]0;title\x07\x1b[31mred\x9b2J\u202egnp\nfake: line"
    rows = [{"id": evil, "text": text_of(NOVEL)}, {"id": f"{evil}2", "text": ""}, {"id": "x", "text": "\x00"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for options in ((), ("--json",)):
        said = cli("audit", "scan", "rows.jsonl", "--against", "eval", "--id-column", "id", *options)
        assert said.code == 1 and not set("\x1b\x07\x9b\u202e\x00") & set(said.out + said.err)
        assert not any(line.startswith("fake") for line in (said.out + said.err).splitlines())
    assert (
        "\\x1b]0;title\\x07\\x1b[31mred"
        in cli("audit", "scan", "rows.jsonl", "--against", "eval", "--id-column", "id").out
    )


def test_any_number_of_threads_gives_the_same_bytes(cli: Command) -> None:
    for jobs in ("1", "3"):
        cli(*SCAN, "--out", f"out{jobs}", "--jobs", jobs)
    for path in sorted(p for p in Path("out1").rglob("*") if p.is_file()):
        assert path.read_bytes() == ("out3" / path.relative_to("out1")).read_bytes(), path


def test_ctrl_c_ends_a_scan_with_130_and_the_next_goes_on(cli: Command, tmp_path: Path) -> None:
    for n in range(40):
        (tmp_path / "train" / f"more-{n:02d}.txt").write_text(text_of(prose(100 + n % 5, 4000)) * 40)
    command = [sys.executable, "-m", "pipeline.cli", *SCAN, "--out", "found", "--jobs", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("found/.work/scan/*.json")) and time.monotonic() < deadline:
            if running.poll() is not None:
                break
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert err == "interrupted; the same command goes on from there\n"
    done = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("found/.work/scan/*.json")}
    assert 0 < len(done) < 44
    said = cli(*SCAN, "--out", "found")
    assert said.code == 1 and "44 documents" in said.out and ".work" not in os.listdir("found")


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("audit",), 2, r"audit scan CORPUS|scan\b"),
        (("audit", "--help"), 0, r"STUDY(.|\n)*scan CORPUS(.|\n)*study (.|\n)*scan "),
        (("audit", "scan", "--help"), 0, r"Exit codes(.|\n)*--against"),
        (("audit", "study", "--help"), 0, r"--book(.|\n)*--document"),
    ],
)
def test_help_names_both_forms(cli: Command, arguments: tuple[str, ...], code: int, expected: str) -> None:
    said = cli(*arguments)
    assert said.code == code
    assert re.search(expected, said.out + said.err)
