"""The judge: what it asks, how answers are read, what it is worth; a real server on loopback, and faults before it."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from stages.evidence.judge.config import JudgeConfig, pin_judge
from stages.evidence.judge.measure import comparisons, quality
from stages.evidence.judge.prompts import excerpt, read_labels, read_winner
from stages.evidence.judge.reachable import missing
from stages.evidence.judge.requests import requests
from stages.evidence.judge.run import dry
from stages.evidence.judge.stage import STAGE
from stages.evidence.summarize.written import everything
from stages.stage import StageError
from tests.chat_server import ChatServer, Proxy, serving
from tests.stages.summary_inputs import artifacts, examples
from tests.support import LocalContext

KEY = "sk-of-the-test"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return artifacts(tmp_path_factory.mktemp("judge"), examples())


def config(url: str, cache: Path, **changed: Any) -> JudgeConfig:
    endpoint = {"url": url, "model": "tiny", "timeout_s": 20, "key_env": "JUDGE_KEY"} | changed.pop("endpoint", {})
    return JudgeConfig.model_validate(
        {"endpoint": endpoint, "cache": str(cache), "source_words": 60, "reference_words": 40} | changed
    )


def run(settings: JudgeConfig, inputs: Any, folder: Path) -> tuple[dict[str, Any], pd.DataFrame, LocalContext]:
    folder.mkdir(parents=True)
    context = LocalContext(str(folder))
    STAGE.run(settings, inputs, folder, context)
    cost = json.loads((folder / "cost.json").read_text())
    return cost, pd.read_parquet(folder / "answers.parquet"), context


def test_every_comparison_is_asked_in_both_orders_and_nothing_says_whose_it_is(inputs):
    settings = config("http://nowhere", Path("x"))
    asked = requests(settings, everything(inputs))
    pairs = [one for one in asked if one.kind == "pair"]
    both = {(one.a, one.b, one.name, one.seed) for one in pairs if not one.swapped}
    assert {(one.b, one.a, one.name, one.seed) for one in pairs if one.swapped} == both
    assert {(a, b) for a, b, _, _ in both} == {
        ("infini-delta", "local"),
        ("infini-delta", "lead"),
        ("infini-delta", "shuffled"),
        ("local", "lead"),
        ("local", "shuffled"),
        ("reference", "shuffled"),
    }
    assert not any(name in one.text for one in asked for name in ("infini", "local", "shuffled"))
    truth = next(one for one in pairs if {one.a, one.b} == {"reference", "shuffled"})
    assert truth.text.count("Summary 0 of book 0") == 1, "the candidate is not shown as the person's summary too"
    assert [one.digest for one in asked] == [one.digest for one in requests(settings, everything(inputs))]


def test_faults_are_ridden_out_every_answer_is_kept_and_nothing_is_paid_twice(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = ChatServer(key=KEY)
    with serving(server.app()) as upstream:
        proxy = Proxy(upstream, deque(["429", "ok", "cut", "500", "broken", "hang", "ok", "429"]))
        with serving(proxy.app()) as url:
            settings = config(url, tmp_path / "cache", endpoint={"timeout_s": 1.5, "concurrency": 3})
            planned = dry(settings, everything(inputs))
            assert planned["cached"] == 0 and proxy.requests == 0, "a dry run sends nothing"
            cost, answers, context = run(settings, inputs, tmp_path / "one")
            assert cost["failed"] == 6 and cost["sent"] == proxy.requests == planned["requests"] + 6
            assert len(answers) == cost["requests"] and answers["answer"].notna().all()
            assert cost["tokens_lost_at_most"] > 0, "a cut answer may be charged"
            assert cost["tokens_read"] == sum(len(b["messages"][-1]["content"].encode()) for b in _once(server.seen))
            before = proxy.requests
            again, same, _ = run(settings.model_copy(update={"documents": 2}), inputs, tmp_path / "two")
            assert proxy.requests == before and again["cached"] == again["requests"] and again["sent"] == 0
            assert set(same["digest"]) < set(answers["digest"])
            assert dry(settings, everything(inputs))["to_send"] == 0
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not any(KEY.encode() in content for content in written), "the key stands nowhere"
    assert not any(KEY in line for line in [*context.logged, *context.warned])


def _once(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(body, sort_keys=True): body for body in bodies}.values())


def test_an_untrained_judge_is_shown_to_be_worth_nothing(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(ChatServer().app()) as url:
        _, answers, _ = run(config(url, tmp_path / "cache"), inputs, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "quality.json").read_text())
    pairs = pd.read_parquet(tmp_path / "out" / "comparisons.parquet")
    assert found["malformed"] == answers["read_as"].isna().sum()
    known = pairs[pairs["a"] == "reference"]["score"]
    assert found["known_truth"] == pytest.approx(known.mean())
    assert ((pairs["score"] >= 0) & (pairs["score"] <= 1)).all() and {"first", "second"} <= set(pairs)


def test_a_budget_is_never_passed_and_the_next_run_goes_on_where_it_ended(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = ChatServer()
    with serving(server.app()) as url:
        prices = {"price_input": 1.0, "price_output": 2.0, "concurrency": 4}
        poor = config(url, tmp_path / "c", endpoint=prices | {"budget": {"tokens": 20_000}})
        with pytest.raises(StageError, match=r"budget\.tokens = 20000.*answers are kept"):
            run(poor, inputs, tmp_path / "poor")
        first = len(server.seen)
        spent = sum(len(b["messages"][-1]["content"]) for b in server.seen)
        assert first > 0 and spent <= 20_000
        less = config(url, tmp_path / "c", endpoint=prices | {"budget": {"money": 1e-5}})
        with pytest.raises(StageError, match=r"budget\.money = 1e-05"):
            run(less, inputs, tmp_path / "less")
        assert len(server.seen) == first, "nothing is sent that could pass the cap"
        rich = config(url, tmp_path / "c", endpoint=prices)
        cost, _, _ = run(rich, inputs, tmp_path / "rich")
    assert cost["cached"] == first and len(_once(server.seen)) == len(server.seen) == cost["requests"]
    assert cost["money"] == pytest.approx((cost["tokens_read"] + 2 * cost["tokens_written"]) / 1e6)
    assert cost["all_answers"]["money"] > cost["money"]


def test_a_missing_key_is_one_error_before_anything_is_sent(inputs, tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    server = ChatServer()
    with serving(server.app()) as url:
        with pytest.raises(StageError, match=r"judge\.endpoint\.key_env = 'JUDGE_KEY'.*export JUDGE_KEY"):
            run(config(url, tmp_path / "c"), inputs, tmp_path / "out")
        assert not server.keys
        run(config(url, tmp_path / "c", endpoint={"key_env": None}), inputs, tmp_path / "none")
        assert set(server.keys) == {None}


def test_a_refused_key_ends_the_run_and_is_not_repeated_in_the_error(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-wrong")
    with serving(ChatServer(key=KEY).app()) as url, pytest.raises(StageError, match="status 401") as caught:
        run(config(url, tmp_path / "c"), inputs, tmp_path / "out")
    assert "sk-wrong" not in str(caught.value) and "***" in str(caught.value)


def test_a_question_that_is_refused_is_counted_and_the_others_go_on(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(ChatServer(refuse="of book 1").app()) as url:
        _, answers, context = run(config(url, tmp_path / "c"), inputs, tmp_path / "out")
    refused = answers[answers["answer"].isna()]
    assert len(refused) and refused["problem"].str.contains("context length").all()
    assert json.loads((tmp_path / "out" / "quality.json").read_text())["refused"] == len(refused)
    assert any("could not be read" in line for line in context.warned)


def test_a_server_that_is_gone_is_named_with_what_is_kept(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    gone = config("http://127.0.0.1:9/v1", tmp_path / "c", endpoint={"attempts": 2, "concurrency": 1})
    with pytest.raises(StageError, match=r"127\.0\.0\.1:9.*no answer after 2 attempts.*0 answers are kept"):
        run(gone, inputs, tmp_path / "out")


def test_a_judge_that_answers_in_prose_is_an_error_with_its_answers_kept(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(ChatServer(prose=True).app()) as url, pytest.raises(StageError, match="no comparison has a readable"):
        run(config(url, tmp_path / "c"), inputs, tmp_path / "out")
    answers = pd.read_parquet(tmp_path / "out" / "answers.parquet")
    assert answers["read_as"].isna().all() and answers["answer"].notna().all()


@pytest.mark.parametrize(
    ("answer", "winner"),
    [
        ('{"winner": "A", "reason": "more"}', "A"),
        ('Sure!\n```json\n{"winner": "b"}\n```', "B"),
        ("B", "B"),
        ('{"winner": "Summary A"}', "A"),
        ("tie.", "tie"),
        ('{"winner": "tie"}', "tie"),
        ("Summary B", "B"),
        ('{"reason": "x {y}", "winner": "A"}', "A"),
        ('{"winner": "A"} and {"winner": "A"}', "A"),
        ("", None),
        ("A is better than B", None),
        ('{"winner": "A"} no: {"winner": "B"}', None),
        ('{"winner": "C"}', None),
        ('{"winner": null}', None),
        ('{"winner": "A"', None),
        ("{" * 5000, None),
        ('{"winner": ["A"]}', None),
    ],
)
def test_winners_are_read_and_never_guessed(answer, winner):
    assert read_winner(answer) == winner


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        ('{"confusing": []}', {}),
        ('Here: {"confusing": [{"sentence": 2, "labels": ["Salience", "language"]}]}', {2: ("salience", "language")}),
        ('{"confusing": [{"sentence": 3, "labels": ["salience"]}]}', None),  # there are two
        ('{"confusing": [{"sentence": 1, "labels": ["boring"]}]}', None),
        ('{"confusing": [{"sentence": true, "labels": ["salience"]}]}', None),
        ('{"confusing": [1]}', None),
        ('{"confusing": "none"}', None),
        ("none", None),
        ('{"confusing": [', None),
    ],
)
def test_labels_are_read_and_never_guessed(answer, labels):
    assert read_labels(answer, 2) == labels


def answered(rule: Any, repeats: int = 1) -> list[dict[str, Any]]:
    """Rows of answers.parquet of a judge that follows ``rule(first, second, repeat)``."""
    rows = []
    for number in range(10):
        for a, b in (("good", "bad"), ("reference", "shuffled")):
            for swapped in (False, True):
                first, second = (b, a) if swapped else (a, b)
                for repeat in range(repeats):
                    rows.append(
                        {"kind": "pair", "a": first, "b": second, "swapped": swapped, "repeat": repeat, "seed": 0}
                        | {"doc_id": f"d{number}", "book": f"b{number}", "task": "condense", "level": "chapter"}
                        | {"read_as": rule(first, second, repeat), "answer": ""}
                    )
    return rows


@pytest.mark.parametrize(
    ("rule", "score", "first_wins", "same"),
    [
        (lambda first, second, _: "A" if first in ("good", "reference") else "B", 1.0, 0.5, 1.0),
        (lambda first, second, _: "A", 0.5, 1.0, 0.0),  # whatever stands first
        (lambda first, second, _: "B", 0.5, 0.0, 0.0),
        (lambda first, second, _: "tie", 0.5, None, 1.0),
        (lambda first, second, _: "B" if first in ("good", "reference") else "A", 0.0, 0.5, 1.0),
    ],
)
def test_position_bias_is_told_from_preference(rule, score, first_wins, same):
    rows = answered(rule)
    pairs = comparisons(rows)
    found = quality(rows, pairs)
    assert {pair["score"] for pair in pairs} == {score} and len(pairs) == 20
    assert (found["first_wins"], found["same_both_orders"], found["known_truth"]) == (first_wins, same, score)
    assert found["self_agreement"] is None, "asked once"


def test_self_agreement_counts_repeats_and_one_order_alone_is_no_comparison():
    rows = answered(lambda first, second, repeat: "A" if repeat < 2 else "B", repeats=3)
    assert quality(rows, comparisons(rows))["self_agreement"] == pytest.approx(1 / 3)
    for row in rows:
        row["read_as"] = None if row["swapped"] else row["read_as"]
    assert comparisons(rows) == [] and quality(rows, [])["malformed"] == len(rows) // 2


def test_excerpts_show_beginning_middle_and_end():
    text = " ".join(str(n) for n in range(100))
    assert excerpt(text, 9) == "0 1 2 [...] 48 49 50 [...] 97 98 99" and excerpt("a b", 9) == "a b"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "one of endpoint and local"),
        ({"endpoint": {"url": "ftp://x", "model": "m"}}, "begins with http"),
        ({"endpoint": {"url": "https://me:secret@x", "model": "m"}}, "holds a password"),
        ({"endpoint": {"url": "http://x:99999", "model": "m"}}, "no address: Port out of range"),
        ({"endpoint": {"url": "http://x:y/v1", "model": "m"}}, "no address: Port could not be cast"),
        ({"endpoint": {"url": f"http://{'x' * 70}/v1", "model": "m"}}, "no address: .*label too long"),
        ({"endpoint": {"url": "http://x/v1?key=1", "model": "m"}}, "without \\?, # and blanks"),
        ({"endpoint": {"url": "https://x", "model": "m", "budget": {"money": 1}}}, "without price_input"),
        ({"local": {"path": "x"}, "repeats": 3}, "repeats has no effect"),
        ({"endpoint": {"url": "https://x", "model": "m"}, "source_words": 0, "reference_words": 0}, "neither text nor"),
    ],
)
def test_settings_that_cannot_work_are_refused(section, message):
    with pytest.raises(ValidationError, match=message):
        JudgeConfig.model_validate(section)


def test_a_cache_that_nothing_here_can_write_is_told_before_anything_is_paid():
    asked = {"endpoint": {"url": "http://127.0.0.1:9", "model": "m", "key_env": None}, "cache": "zz://bucket"}
    assert "judge.cache = 'zz://bucket': no storage that is known" in str(
        missing(JudgeConfig.model_validate(asked), at_once=True)
    )


def test_where_a_model_is_served_and_at_what_price_does_not_move_the_key():
    one = JudgeConfig.model_validate({"endpoint": {"url": "https://a", "model": "m"}})
    two = JudgeConfig.model_validate(
        {
            "endpoint": {"url": "https://b/v1", "model": "m", "price_input": 1, "price_output": 1, "concurrency": 1},
            "cache": "x",
        }
    )
    assert one.key_fields() == two.key_fields()
    other = JudgeConfig.model_validate({"endpoint": {"url": "https://a", "model": "n"}})
    assert one.key_fields() != other.key_fields()


def test_an_unknown_arm_is_named(inputs, tmp_path):
    with pytest.raises(StageError, match=r"judge\.against = 'full'.*infini-delta, local"):
        requests(config("http://x", tmp_path, against=["full"]), everything(inputs))


def test_a_local_checkpoint_is_asked_the_same_and_kept_the_same(inputs, tmp_path):
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    folder = tmp_path / "model"
    folder.mkdir()
    letters = [chr(c) for c in range(33, 127)]
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*marks, *letters, *(f"##{x}" for x in letters)]))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    settings = transformers.LlamaConfig(
        vocab_size=len(marks) + 2 * len(letters),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1800,
    )
    transformers.LlamaForCausalLM(settings).save_pretrained(folder)
    local = JudgeConfig.model_validate(
        {"local": {"path": "model"}, "cache": "kept", "documents": 1, "baselines": [], "answer_tokens": 8}
        | {"source_words": 60, "reference_words": 40}
    )
    pinned = pin_judge(local, tmp_path)
    assert pinned.cache == str(tmp_path / "kept") and "kept" not in json.dumps(pinned.key_fields())
    for attempt in ("one", "two"):
        with pytest.raises(StageError, match="no comparison has a readable answer in both orders; the first"):
            run(pinned, inputs, tmp_path / attempt)
    one, two = (pd.read_parquet(tmp_path / name / "answers.parquet") for name in ("one", "two"))
    assert one["answer"].tolist() == two["answer"].tolist() and (one["tokens_written"] > 0).any()
    assert one["problem"].str.contains("the model reads 1800").any() or one["answer"].notna().all()
    cost = json.loads((tmp_path / "two" / "cost.json").read_text())
    assert cost["sent"] == 0 and cost["cached"] == len(one["digest"].unique())
    (folder / "config.json").write_text("{}")
    with pytest.raises(StageError, match=r"judge\.local\.pin.*changed after the plan"):
        run(pinned, inputs, tmp_path / "three")
