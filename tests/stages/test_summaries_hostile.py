"""Files and answers that no honest program writes: one error each, or a counted skip; nothing is lost or paid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from stages.data import summaries
from stages.evidence.human.export import choose, write
from stages.evidence.human.merge import merged
from stages.evidence.human.results import read_results
from stages.evidence.judge.cache import Cache
from stages.evidence.judge.client import ask_all
from stages.evidence.judge.config import Endpoint
from stages.evidence.judge.ledger import Ledger
from stages.evidence.judge.requests import requests
from stages.evidence.summarize.written import everything
from stages.stage import StageError
from tests.chat_server import ChatServer, serving
from tests.stages.summary_inputs import artifacts, examples
from tests.stages.test_judge import config


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return artifacts(tmp_path_factory.mktemp("hostile"), examples(books=2))


# --- pairs ----------------------------------------------------------------------------------------------------------
def test_a_line_separator_within_a_text_ends_no_row(tmp_path: Path) -> None:
    rows = [{"text": f"one{mark}two {n}", "summary": "short"} for n, mark in enumerate("\u2028\u2029\x85\x0b\x0c\x1c")]
    (tmp_path / "pairs.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
    )
    assert [pair.text for pair in summaries.read(tmp_path / "pairs.jsonl", tmp_path, "x")] == [
        row["text"] for row in rows
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a", "summary": "  "}', "line 1 lacks text or summary"),
        (b'{"text": "a", "summary": []}', "line 1 lacks text or summary"),
        (b'{"text": "", "summary": "b"}', "line 1 lacks text or summary"),
        (b'{"text": "a", "summary": "b"}\n{"summary": "b"}', "line 2 lacks text or summary"),
        (b'{"summary": "b", "book_file": "nowhere.txt"}', "no such text"),
        (b'{"summary": "b", "book_file": "a\\u0000b"}', "no such text"),
        (b'{"summary": "b", "book_file": "."}', "no such text"),
        (b'["text"]', "line 1: no object"),
        (b"prose", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"", "has no pair"),
    ],
)
def test_pairs_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(content)
    with pytest.raises(StageError, match=message):
        summaries.read(tmp_path / "pairs.jsonl", tmp_path, "summarize.pairs")


# --- people ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def kit(inputs: Any, tmp_path: Path) -> Path:
    write(choose(everything(inputs), items=6, against=["local"], baselines=[]), "a-study", tmp_path / "kit", {})
    return tmp_path / "kit"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": None}, "items: Input should be a valid list"),
        ({"items": [{}]}, r"items\.0\.id: Field required"),
        ({"version": 2}, "not a key of this version"),
    ],
)
def test_a_key_that_was_edited(kit: Path, change: dict[str, Any], message: str) -> None:
    key = json.loads((kit / "key.json").read_text())
    (kit / "key.json").write_text(json.dumps(key | change))
    with pytest.raises(StageError, match=message):
        merged(kit / "key.json", [kit / "key.json"])


def test_a_side_without_its_system_or_with_a_seed_that_is_a_word(kit: Path) -> None:
    key = json.loads((kit / "key.json").read_text())
    for field, value in (("seed", "0"), ("system", None), ("measured", {"rouge": "much"})):
        broken = json.loads(json.dumps(key))
        broken["items"][2]["left"][field] = value
        (kit / "key.json").write_text(json.dumps(broken))
        with pytest.raises(StageError, match=rf"items\.2\.left\.{field}"):
            merged(kit / "key.json", [kit / "key.json"])


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (3, "lists of objects"),
        ([1], "lists of objects"),
        ([{"completed_by": 1, "result": {"a": 1}}], "lists of objects"),
        ([{"result": [{"from_name": "choice", "value": {"choices": ["left"]}}]}], "names no rater"),
        ([{"completed_by": {"id": None}, "result": []}], "names no rater"),
        ([{"completed_by": 1, "result": [{"from_name": "choice", "value": ["left"]}]}], "'' is no choice"),
        ([{"completed_by": 1, "result": [{"from_name": "choice", "value": {"choices": [["left"]]}}]}], "is no choice"),
        ([{"completed_by": 1, "was_cancelled": True}], "nobody chose anything"),
        (None, "nobody chose anything"),
    ],
)
def test_label_studio_files_of_another_form(kit: Path, annotations: Any, message: str) -> None:
    task = json.loads((kit / "label-studio.json").read_text())[0] | {"annotations": annotations}
    (kit / "ls.json").write_text(json.dumps([task]))
    with pytest.raises(StageError, match=message):
        merged(kit / "key.json", [kit / "ls.json"])


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"{}", b'{"format": "infini-study human results"}', b"[" * 99_999]
)
def test_results_that_are_none(content: bytes) -> None:
    with pytest.raises(StageError, match="not results of human import"):
        read_results(content, "results.json")


def test_results_with_a_choice_there_is_not(kit: Path) -> None:
    key = json.loads((kit / "key.json").read_text())
    key["items"][0]["answers"] = {"ann": "both"}
    with pytest.raises(StageError, match=r"items\.0\.answers\.ann"):
        read_results(
            json.dumps(key | {"format": "infini-study human results", "raters": {"ann": 1}}).encode(), "r.json"
        )


# --- judge ----------------------------------------------------------------------------------------------------------
def asked_of(app: web.Application, inputs: Any, cache: Path, **endpoint: Any) -> tuple[dict[str, Any], Ledger]:
    with serving(app) as url:
        settings = config(url, cache, endpoint={"key_env": None, "attempts": 2, **endpoint}, documents=1)
        asked = requests(settings, everything(inputs))[:4]
        assert isinstance(settings.endpoint, Endpoint)
        ledger = Ledger(settings.endpoint)
        return ask_all(asked, settings.endpoint, Cache(str(cache)), ledger, lambda done: None), ledger


def server(reply: Any, status: int = 200, **headers: str) -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        if status != 200:
            return web.Response(status=status, headers=headers, text="elsewhere")
        return web.Response(body=json.dumps(reply).encode(), content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    return app


@pytest.mark.parametrize("said", [-5_000_000, True, "3", 1.5, None])
def test_a_server_that_says_it_used_less_than_nothing_frees_no_budget(inputs: Any, tmp_path: Path, said: Any) -> None:
    reply = {"choices": [{"message": {"content": "A"}}], "usage": {"prompt_tokens": said, "completion_tokens": said}}
    found, ledger = asked_of(server(reply), inputs, tmp_path)
    assert len(found) == 4 and all(one.usage.estimated and one.usage.read > 0 for one in found.values())
    assert ledger.read > 0 and ledger.written > 0


@pytest.mark.parametrize(
    "reply", [[], {}, {"choices": []}, {"choices": [{"message": None}]}, {"choices": 1}, {"error": "x"}, None, "A"]
)
def test_answers_that_are_not_of_the_protocol_end_the_run_and_are_not_kept(
    inputs: Any, tmp_path: Path, reply: Any
) -> None:
    with pytest.raises(StageError, match=r"not JSON of the protocol.*0 answers are kept"):
        asked_of(server(reply), inputs, tmp_path / "cache", concurrency=1)
    assert not list(tmp_path.rglob("*.json"))


def test_a_redirect_is_not_followed_so_the_key_goes_nowhere_else(inputs: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-of-the-test")
    elsewhere = ChatServer()
    with serving(elsewhere.app()) as other:
        moved = server(None, 307, Location=f"{other}/chat/completions")
        with pytest.raises(StageError, match="status 307"):
            asked_of(moved, inputs, tmp_path, key_env="JUDGE_KEY")
    assert elsewhere.keys == []


def test_a_kept_answer_that_was_damaged_is_asked_again(inputs: Any, tmp_path: Path) -> None:
    reply = {"choices": [{"message": {"content": "A"}}], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}
    _, first = asked_of(server(reply), inputs, tmp_path)
    files = sorted(tmp_path.rglob("*.json"))
    for file, text in zip(
        files, ("", "[]", '{"reply": {"text": "A"}}', '{"reply": {"text": 1, "read": "x"}}'), strict=True
    ):
        file.write_text(text)
    found, again = asked_of(server(reply), inputs, tmp_path)
    assert first.sent == 4 and again.sent == 4 and again.cached == 0 and len(found) == 4
    _, last = asked_of(server(reply), inputs, tmp_path)
    assert last.sent == 0 and last.cached == 4
