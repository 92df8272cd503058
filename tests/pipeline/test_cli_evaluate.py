"""``infini-study evaluate``: checkpoints of several origins, what is refused before any work, and going on."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

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


def prompt_rows(path: Path, count: int, **changed: Any) -> Path:
    rows = [
        {"input": f"The {n}-th door has a lock, {n} keys and no name. Where is key {n}?", "outputs": [f"{n}", "shed"]}
        | {"answer_prefix": " It is"}
        | changed
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_of_a_file_are_asked_as_they_stand_and_compared(models: Path, cli: Command) -> None:
    """Alone where no task is named; another file is asked anew, and its prompts are other items."""
    mine, qa = prompt_rows(Path("mine.jsonl"), 5), prompt_rows(Path("other.jsonl"), 2)
    given = ("--prompts", mine, "--prompts", f"qa_doors={qa}", "--answer-tokens", "6")
    said = cli("evaluate", models / "infini", *given, "--out", "a", "--json", "-q")
    assert said.code == 0 and {(one["task"], one["n"]) for one in said.json["cells"]} == {("mine", 5), ("qa_doors", 2)}
    rows = pd.read_parquet("a/tasks.parquet")
    assert list(rows["item"]) == [f"mine/file/{n}" for n in range(5)] + [f"qa_doors/file/{n}" for n in range(2)]
    assert set(rows["budget"]) == {6} and not Path("a/retrieval.parquet").exists()
    lower = rows["answer"].str.lower()
    found = [[one in answer for one in answers] for answer, answers in zip(lower, rows["answers"], strict=True)]
    assert list(rows["score"]) == [np.mean(one) for one in found[:5]] + [float(any(one)) for one in found[5:]]
    assert (
        "mine" in Path("a/report.html").read_text() and said.json["questions"]["files"]["qa_doors"]["match"] == "part"
    )
    more = ("--tasks", "passkey", "--lengths", "600", "--samples", "2")
    again = cli("evaluate", models / "infini", *given, *more, "--out", "a", "--json", "-q")
    assert again.json["resumed"] == 7 and {one["task"] for one in again.json["cells"]} == {
        "passkey",
        "mine",
        "qa_doors",
    }
    cli("evaluate", models / "full", *given, "--out", "b", "-q")
    compared = cli("compare", "a", "b", "--json").json
    assert {one["task"] for one in compared["scores"]} == {"mine", "qa_doors"}
    prompt_rows(mine, 5, outputs=["hall"])
    other = cli("evaluate", models / "infini", *given, "--out", "a", "--json", "-q").json
    assert other["resumed"] == 2 and {tuple(x) for x in pd.read_parquet("a/tasks.parquet")["answers"][:5]} == {
        ("hall",)
    }
    chat = cli("evaluate", models / "gpt2", *given, "--chat-template", "--out", "c", "--json", "-q").json
    assert chat["tokenizer"]["chat_tokens"] > 0
    length = {one["task"]: one["length"] for one in chat["cells"]}["mine"]
    plain = {one["task"]: one["length"] for one in said.json["cells"]}["mine"]
    assert length == plain + chat["tokenizer"]["chat_tokens"] - 1  # bos of the export
    cli("evaluate", models / "gpt2", *given, "--out", "d", "-q")  # no bos: other lengths in tokens
    mixed = cli("compare", "a", "d", "--json").json
    assert {one["task"]: (one["items"], one["length"]) for one in mixed["scores"]} == {
        "mine": (5, next(one["length"] for one in other["cells"] if one["task"] == "mine")),
        "qa_doors": (2, next(one["length"] for one in other["cells"] if one["task"] == "qa_doors")),
    }
    assert not any("text around" in note for note in mixed["notes"])
    changed = cli("compare", "b", "d", "--json").json  # b was asked the file as it was before
    assert [one["task"] for one in changed["scores"]] == ["qa_doors"] and changed["unpaired"] == 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompts", "none.jsonl"], "--prompts = 'none.jsonl': No such file"),
        (["--prompts", "."], "--prompts = '.': Is a directory"),
        (["--prompts", "mine.jsonl", "--prompts", "mine.jsonl"], "--prompts = 'mine.jsonl': this name stands twice"),
        (["--prompts", "vt=mine.jsonl"], "--prompts: vt: allowed are names"),
        (["--prompts", "My Doors=mine.jsonl"], "--prompts: My Doors: allowed are names"),
        (["--prompts", "odd.jsonl"], "line 1 is no prompt: outputs must be a list of at least one text"),
        (["--prompts", "empty.jsonl"], "--prompts = 'empty.jsonl': the file has no prompts"),
        (["--prompts", "mine.jsonl", "--answer-tokens", "500"], "--prompts = 'mine': mine/file/0 takes 5"),
        (["--prompts", "mine.jsonl", "--lengths", "4K"], "--lengths: has no effect where no task is asked"),
        (["--prompts", "mine.jsonl", "--samples", "4"], "--samples: has no effect where no task is asked"),
        (["--tasks", "none", "--text", "mine.jsonl", "--format", "compact"], "--format: has no effect where no task"),
        (["--prompts", "mine.jsonl", "--tasks", ""], "--tasks = '': nothing is left to do"),
        (["--answer-tokens", "5"], "--answer-tokens = 5: has no effect without --prompts"),
    ],
)
def test_a_file_that_cannot_be_asked_is_one_line(models: Path, cli: Command, options: list[str], said: str) -> None:
    prompt_rows(Path("mine.jsonl"), 2)
    prompt_rows(Path("odd.jsonl"), 1, outputs="one")
    Path("empty.jsonl").write_text("\n")
    found = cli("evaluate", models / "gpt2", *options, "--out", "never")
    assert found.code == 2 and len(found.faults) == 1 and said in found.faults[0] and not Path("never").exists()


def test_what_a_crash_cut_short_is_asked_again(models: Path, cli: Command) -> None:
    for folder in ("whole", "cut"):
        assert cli("evaluate", models / "full", *FEW, "--out", folder, "--quiet")[::2] == (0, "")
    file = Path("cut/answers.jsonl")
    file.write_bytes(file.read_bytes()[:-9])
    code, out, _ = cli("evaluate", models / "full", *FEW, "--out", "cut", "--quiet", "--json")
    assert code == 0 and json.loads(out)["resumed"] == 4
    assert Path("cut/tasks.parquet").read_bytes() == Path("whole/tasks.parquet").read_bytes()


def test_ctrl_c_keeps_what_is_answered_and_says_so(models: Path, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.evidence.standalone.cache import Answers

    add = Answers.add

    def interrupted(answers: Answers, rows: Any) -> None:
        add(answers, rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(Answers, "add", interrupted)
    said = cli("evaluate", models / "full", *FEW, "--out", "o", "-q")
    assert said == (130, "", "interrupted; the same command goes on from there\n")
    assert Path("o/answers.jsonl").read_text().count("\n") == 4


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
        pytest.param(
            "full",
            ["--device", "cuda"],
            "--device = 'cuda': no CUDA device is visible here (allowed: auto, cpu). Fix: use auto",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is meant"),
        ),
        ("full", ["--tasks", "pasky"], "did you mean 'passkey'"),
        ("full", ["--lengths", "100"], "--lengths = 100: a published prompt of the task passkey does not fit"),
        (
            "full",
            ["--tasks", "passkey,mqar,vt", "--lengths", "20", "--format", "compact"],
            "--lengths = 20: compact prompts of 3 tasks do not fit: passkey takes ",
        ),
        ("full", ["--lengths", "4Q"], "--lengths = '4Q': allowed are numbers of tokens"),
        ("full", ["--lengths", "9" * 5000], f"--lengths = '{'9' * 80}...': allowed are numbers of tokens"),
        ("full", ["--chat-template"], "the tokenizer has no chat template"),
        ("full", ["--arm", "local"], "segment_length is missing"),
        ("full", ["--arm", "locl,segment_length=8"], "did you mean 'local'"),
        ("full", ["--arm", "local,segment_length=[8]"], "segment_length: Input should be a valid integer"),
        ("full", ["--arm", "infini,segment_length=8,gate=5"], "gate: Input should be 'head', 'channel' or 'token'"),
        ("full", ["--arm", "local,segment_length=8,segment_length=9"], "gives segment_length twice"),
        ("full", ["--tasks", ""], "--tasks = '': nothing is left to do"),
        ("full", ["--revision", "main"], "--revision = 'main': has no effect on a folder"),
        ("full", ["--arm", "local,size=8"], "--arm = 'size=8': no such option (allowed: segment_length"),
        ("gpt2", ["--arm", "local,segment_length=8"], "model_type = 'gpt2'"),
        ("full", ["--text", "none.txt"], "--text = 'none.txt': No such file"),
        ("full", ["--tasks", "none"], "nothing is left to do"),
        ("full", ["--format", "short"], "--format = 'short'"),
        ("full", ["--format", "terse", "--tasks", "vt,qa_1"], "format = 'terse': the task qa_1 has no such wording"),
        ("full", ["--format", "terse", "--tasks", "all"], "format = 'terse': the task niah_single_3 has no such"),
        ("nowhere", [], "neither a folder, nor an artifact of the store, nor a Hub id"),
        ("text", [], "config.json: no such file"),
        ("text/0.txt", [], "0.txt': is a file. Fix: give the folder"),
        ("x" * 5000, [], f"{'x' * 300}...: File name too long"),
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
    given = models / model if (models / model.partition("/")[0][:200]).exists() else model
    code, out, err = cli("evaluate", given, *options, "--samples", "2", "--out", "never")
    assert code == 2 and out == "" and said in err and not Path("never").exists()
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1


def _config(**changed: Any) -> Callable[[Path], None]:
    return lambda folder: _rewrite(folder / "config.json", lambda fields: {**fields, **changed})


def _holds(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: _nothing((folder / name).write_text(content))


def _weights(part: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Tensors with ``part`` in their name, changed."""

    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = folder / "model.safetensors"
        tensors = {name: change(one) if part in name else one for name, one in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})

    return damage


def _rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def _nothing(_: object) -> None:
    return None


@pytest.mark.parametrize(
    ("model", "damage", "said"),
    [
        ("full", _config(infini_study=None, eos_token_id="</s>"), "eos_token_id of config.json = '</s>': no token's"),
        ("full", _holds("generation_config.json", '{"eos_token_id": [[1]]}'), "generation_config.json = [[1]]"),
        ("full", _config(bos_token_id=9999), "bos_token_id of config.json = 9999: no token's number (allowed: a whole"),
        ("full", _config(bos_token_id="<s>"), "bos_token_id of config.json = '<s>'"),
        ("full", _config(infini_study={"mixer": 5}), "its 'infini_study' block is not one that was saved"),
        ("full", _config(infini_study={}), "its 'infini_study' block is not one that was saved"),
        ("gpt2", _config(eos_token_id=-1), "eos_token_id of config.json = -1"),
        (
            "full",
            _holds("tokenizer_config.json", '{"eos_token": 5}'),
            "bos_token or eos_token of tokenizer_config.json = 5",
        ),
        ("full", _holds("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}'), "chat_template of"),
        ("full", _holds("model.safetensors.index.json", '{"weight_map": {"a": 5}}'), "not an index of safetensors"),
        ("llama", _config(num_hidden_layers=3), "missing ['layers.2.input_layernorm.weight'"),
        ("llama", _config(num_hidden_layers=1), "not known here ['layers.1.input_layernorm.weight'"),
        ("llama", _config(tie_word_embeddings=False), "missing ['lm_head.weight']"),
        (
            "gpt2",
            _config(n_layer=3),
            "12 of the weights are not in its files, such as transformer.h.2.attn.c_attn.bias",
        ),
        ("gpt2", _config(n_layer=1), "are in its files and not in config.json's model, such as transformer.h.1."),
        ("gpt2", _config(vocab_size=300), "1 of the weights have another shape in its files than config.json says"),
        ("llama", _weights("up_proj", lambda one: one * float("nan")), "up_proj.weight holds NaN or infinite numbers"),
        ("llama", _weights("up_proj", lambda one: one.int()), "up_proj.weight is int32 (allowed: floating-point"),
        (
            "llama",
            _weights("mlp", lambda one: one.new_full(one.shape, 1e30)),
            "the model computes nan for passkey/compact",
        ),
        ("gpt2", _weights("c_fc", lambda one: one * float("nan")), "the model computes nan for passkey/compact/400"),
    ],
)
def test_a_checkpoint_whose_files_do_not_fit_each_other_is_refused_and_nothing_is_made_up(
    models: Path, cli: Command, model: str, damage: Callable[[Path], None], said: str
) -> None:
    """transformers fills what is missing with random numbers, and right or wrong is read in NaN too."""
    shutil.copytree(models / ("full" if model == "llama" else model), "damaged")
    if model == "llama":  # as others write it, without a block of ours
        _rewrite(Path("damaged/config.json"), lambda fields: {k: v for k, v in fields.items() if k != "infini_study"})
    damage(Path("damaged"))
    code, out, err = cli("evaluate", "damaged", "--tasks", "passkey", *FEW[2:], "--out", "o", "-q")
    assert (code, out) == (2, "") and said in err and err.count("error: ") == len(err.splitlines()) == 1
    assert not Path("o/retrieval.parquet").exists()


@pytest.mark.parametrize(
    "line", [b"\xff", b"5", b"[1, 2]", b'["text/x", [1]]', b'["a/b", "x"]', b'["a/b", ["x", "y"]]', b"{}"]
)
def test_a_line_that_is_no_answer_is_named_and_the_others_are_kept(models: Path, cli: Command, line: bytes) -> None:
    from stages.evidence.standalone.cache import Answers

    answers = Answers(Path("o"), {"seed": 0})
    answers.add([("a/b/c", ("said", 0.5))])
    with answers.file.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(StageError, match=r"line 2 is damaged. Fix: delete the line: what it answers is asked again"):
        Answers(Path("o"), {"seed": 0})
    assert answers.file.read_bytes().count(b"\n") == 2


def test_one_text_has_no_interval_and_a_perplexity_beyond_all_numbers_is_said(models: Path, cli: Command) -> None:
    shutil.copytree(models / "gpt2", "loud")
    _weights("wte", lambda one: one * 1e6)(Path("loud"))
    code, out, err = cli("evaluate", "loud", "--tasks", "none", "--text", models / "text/0.txt", "--out", "o", "-q")
    assert (code, err) == (0, "") and "perplexity per token: 1.014e+304 no interval, n = 1" in out
    Path("a.txt").write_text("a")
    code, _, err = cli("evaluate", models / "gpt2", "--tasks", "none", "--text", "a.txt", "--out", "p", "-q")
    assert code == 2 and "--text = 'a.txt': it has 1 token with this tokenizer (allowed: >= 2)" in err


def test_what_takes_long_and_tells_nothing_is_said_to_go_on(
    models: Path, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are read, for one."""
    from pipeline.engine import progress
    from stages.evidence.standalone import run

    said = threading.Event()
    line = progress.Display._line

    def written(display: progress.Display, text: str, *others: Any, **named: Any) -> None:
        line(display, text, *others, **named)
        if "still at" in text:
            said.set()

    def opened(source: CheckpointSource) -> Any:
        assert said.wait(30)
        return open_reader(source)

    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress.Display, "_line", written)
    monkeypatch.setattr(run, "open_reader", opened)
    code, _, err = cli("evaluate", models / "full", *FEW, "--out", "o")
    assert code == 0 and f"still at {models / 'full'}" in err


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
