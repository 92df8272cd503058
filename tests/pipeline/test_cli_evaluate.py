"""``infini-study evaluate``: checkpoints of several origins, what is refused before any work, and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.evidence.evaluate.config import PerplexityConfig
from stages.evidence.evaluate.perplexity import ScoredDocument
from stages.evidence.standalone.config import CheckpointSource, Questions
from stages.evidence.standalone.opened import open_reader
from stages.evidence.standalone.prompts import Prompts
from stages.evidence.standalone.texts import read_texts
from stages.evidence.standalone.tokenizer import read_tokenizer
from stages.stage import StageError
from stages.statistics.intervals import wilson
from tests.pipeline import checkpoints
from tests.pipeline.called import Command, caller

pytest.importorskip("transformers", reason="transformers is the reference here")
FEW = ("--tasks", "passkey,niah_multivalue", "--lengths", "400", "--samples", "4", "--format", "compact")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("models") / "all")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return caller(tmp_path, monkeypatch, capsys.readouterr)


def test_our_decoder_answers_and_scores_as_transformers_does(models: Path) -> None:
    """The export of full attention is a Llama: both readers open it."""
    import torch

    from stages.evidence.standalone.causal import open_causal

    source = CheckpointSource(model=models / "full", named="full")
    ours, theirs = open_reader(source), open_causal(source, torch.device("cpu"), "")
    assert type(ours) is not type(theirs)
    tokenizer = read_tokenizer(models / "full", json.loads((models / "full" / "config.json").read_text()))
    questions = Questions(tasks=("passkey", "niah_multivalue"), lengths=(400, 700), samples=3, format="compact")
    texts = read_texts([models / "text"])
    haystack = np.concatenate([np.array(tokenizer.encode(text), np.int32) for _, text in texts])
    for block in Prompts(questions, tokenizer, haystack).blocks():
        said, expected = (reader.answers(tokenizer, block, lambda n: None) for reader in (ours, theirs))
        assert [one for one, _ in said] == [one for one, _ in expected]
        np.testing.assert_allclose([n for _, n in said], [n for _, n in expected], rtol=1e-4)
    documents = [ScoredDocument(name, "text", np.array(tokenizer.encode(text)[:500])) for name, text in texts]
    config, told = PerplexityConfig(), []
    (mine, other) = (reader.perplexity(tokenizer, documents, config, told.append) for reader in (ours, theirs))
    np.testing.assert_allclose([row["nll_sum"] for row in mine], [row["nll_sum"] for row in other], rtol=1e-4)
    assert sum(told) == 2 * sum(len(document.tokens) for document in documents)
    tokens = torch.tensor([tokenizer.encode(texts[0][1])[:300]])
    torch.testing.assert_close(ours.logits(tokens), theirs.logits(tokens), rtol=1e-3, atol=1e-4)


def test_tables_page_and_json_agree_and_nothing_is_asked_twice(models: Path, cli: Command, tmp_path: Path) -> None:
    options = (*FEW, "--text", models / "text", "--out", "out", "--json", "--quiet")
    code, out, err = cli("evaluate", models / "infini", *options)
    said = json.loads(out)
    assert (code, err) == (0, "") and said["resumed"] == 0 and said["model"]["context"] is None
    assert "infini-study checkpoint, read as infini" in said["model"]["read_as"]
    assert said["tokenizer"]["begins_with"] == ["<eos>"]  # what config.json of the export says
    rows = pd.read_parquet("out/retrieval.parquet")
    cell = next(one for one in said["cells"] if one["task"] == "passkey")
    interval = wilson(int(rows["correct"].sum()), 4)
    assert (cell["n"], cell["score"]) == (4, interval.estimate)
    assert (cell["low"], cell["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert {one["effective"] for one in said["effective"]} == {None}  # nothing was learned
    assert set(pd.read_parquet("out/tasks.parquet")["task"]) == {"niah_multivalue"}
    text = pd.read_parquet("out/perplexity.parquet")
    assert text["doc_id"].nunique() == said["text"]["documents"] == 4
    total = next(one for one in said["perplexity"] if one["label"].endswith("perplexity per token"))
    assert total["estimate"] == pytest.approx(np.exp(text["nll_sum"].sum() / text["tokens"].sum()))
    page = Path("out/report.html").read_text()
    assert "niah_multivalue" in page and "Verdicts" not in page and "positive control" not in page

    more = tuple("6" if option == "4" else option for option in options)
    again = json.loads(cli("evaluate", models / "infini", *more)[1])
    assert again["resumed"] == 0  # other blocks: six prompts are answered together
    fresh = tuple("new" if option == "out" else option for option in more)
    cli("evaluate", models / "infini", *fresh)
    for name in ("retrieval", "tasks", "perplexity"):
        assert Path(f"out/{name}.parquet").read_bytes() == Path(f"new/{name}.parquet").read_bytes()


def test_what_a_crash_cut_short_is_asked_again(models: Path, cli: Command) -> None:
    for folder in ("whole", "cut"):
        assert cli("evaluate", models / "full", *FEW, "--out", folder, "--quiet")[::2] == (0, "")
    file = Path("cut/answers.jsonl")
    file.write_bytes(file.read_bytes()[:-9])
    code, out, _ = cli("evaluate", models / "full", *FEW, "--out", "cut", "--quiet", "--json")
    assert code == 0 and json.loads(out)["resumed"] == 4
    assert Path("cut/tasks.parquet").read_bytes() == Path("whole/tasks.parquet").read_bytes()


def test_any_causal_model_by_its_chat_template(models: Path, cli: Command) -> None:
    code, out, _ = cli("evaluate", models / "gpt2", *FEW, "--chat-template", "--out", "o", "--json", "-q")
    said = json.loads(out)
    assert code == 0 and said["model"]["read_as"] == "GPT2LMHeadModel of transformers"
    assert said["tokenizer"]["chat_tokens"] == len("<|user|><|assistant|>")
    assert said["model"]["context"] == 512 and said["tokenizer"]["chat_template"].startswith("sha256:")
    rows = pd.read_parquet("o/retrieval.parquet")
    assert all(item.endswith("/chat") for item in rows["item"]) and set(rows["length"]) == {400}
    assert (rows["prompt_tokens"] == 400 - len(" 99") - 1).all()  # the template's tokens are within the length


def test_a_base_is_read_under_an_arm_and_another_evaluation_does_not_go_on_in_its_folder(
    models: Path, cli: Command
) -> None:
    arm = ("--arm", "local,segment_length=64")
    code, out, _ = cli("evaluate", models / "full", *FEW, *arm, "--out", "o", "--json", "-q")
    assert code == 0 and json.loads(out)["model"]["mixer"]["kind"] == "local"
    Path("other").mkdir()
    Path("other/file").write_text("")
    for options, said in (
        (("--out", "o"), "it holds an evaluation of another arm"),
        ((*arm, "--out", "o", "--seed", "1"), "another seed (0, now 1)"),
        ((*arm, "--out", "other"), "it holds other files"),
    ):
        code, _, err = cli("evaluate", models / "full", *FEW, *options, "-q")
        assert code == 2 and said in err


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("gpt2", ["--lengths", "1K"], "--lengths = 1024: the checkpoint's context is 512 tokens"),
        ("full", ["--tasks", "pasky"], "did you mean 'passkey'"),
        ("full", ["--lengths", "100"], "--lengths = 100: a published prompt of the task passkey does not fit"),
        ("full", ["--lengths", "4Q"], "--lengths = '4Q': allowed are numbers of tokens"),
        ("full", ["--lengths", "9" * 5000], f"--lengths = '{'9' * 80}...': allowed are numbers of tokens"),
        ("full", ["--chat-template"], "the tokenizer has no chat template"),
        ("full", ["--arm", "local"], "segment_length is missing"),
        ("full", ["--arm", "locl,segment_length=8"], "did you mean 'local'"),
        ("full", ["--arm", "local,size=8"], "--arm = 'size=8': no such option (allowed: segment_length"),
        ("gpt2", ["--arm", "local,segment_length=8"], "model_type = 'gpt2'"),
        ("full", ["--text", "none.txt"], "--text = 'none.txt': No such file"),
        ("full", ["--tasks", "none"], "nothing is left to do"),
        ("full", ["--format", "short"], "--format = 'short'"),
        ("nowhere", [], "neither a folder, nor an artifact of the store, nor a Hub id"),
        ("text", [], "config.json: no such file"),
    ],
)
def test_one_clear_error_before_any_work(
    models: Path, cli: Command, monkeypatch: pytest.MonkeyPatch, model: str, options: list[str], said: str
) -> None:
    from model import checkpoint

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(checkpoint, "load", loaded)
    for name in ("--tasks", "--lengths", "--format"):
        if name not in options:
            options = [*options, name, {"--tasks": "passkey", "--lengths": "600", "--format": "published"}[name]]
    given = model if model == "nowhere" else models / model
    code, out, err = cli("evaluate", given, *options, "--samples", "2", "--out", "never")
    assert code == 2 and out == "" and said in err and not Path("never").exists()
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1


def test_a_tokenizer_that_lacks_characters_is_named(models: Path) -> None:
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds

    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .?:,\n"
    backend = Tokenizer(kinds.BPE(vocab={one: n for n, one in enumerate(["?!", *letters])}, merges=[], unk_token="?!"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    from stages.evidence.standalone.tokenizer import CheckpointTokenizer

    tokenizer = CheckpointTokenizer(backend, len(letters) + 1, 0, 0)
    haystack = np.full(3000, 1, np.int32)
    with pytest.raises(StageError, match="it lacks"):
        Prompts(Questions(tasks=("passkey",), lengths=(600,), format="compact"), tokenizer, haystack)
