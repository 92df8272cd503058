"""Perplexity and retrieval against slow references, and the stage as the pipeline runs it."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from model import checkpoint
from model.config import MixerConfig
from model.generate import generate, prefill
from stages.data.tasks.config import RetrievalConfig, TaskSettings
from stages.data.tasks.prompts import evaluation_items, haystack_of
from stages.data.tasks.scoring import first_number
from stages.data.tokens.load import document_tokens, load_tokenizer
from stages.evidence.evaluate import forward, parts, perplexity, retrieval, spreading, tables
from stages.evidence.evaluate.stage import STAGE, EvaluateConfig, PerplexityConfig
from stages.stage import Execution, StageError
from tests.stages.evaluation_inputs import SEGMENT, build, decoder, save
from tests.support import LocalContext

RETRIEVAL = RetrievalConfig(
    format="compact", lengths=(96, 160), trials=8, rivals=(1, 2), binding_trials=3, control_trials=2
)
CONFIG = EvaluateConfig(perplexity=PerplexityConfig(buckets=(0, 16, 100)), retrieval=RETRIEVAL, seed=7)

MEMORY = [("infini", {"rule": "linear"}), ("infini", {"rule": "delta"})]
ARMS = [*MEMORY, ("local", {}), ("window", {}), ("xl", {}), ("full", {})]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return build(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def tokenizer(inputs):
    return load_tokenizer(inputs["tokenizer"])


@pytest.fixture(scope="module")
def items(inputs, tokenizer):
    haystack = haystack_of(document_tokens(inputs["tokens"], "test"), tokenizer.eos_id)
    return list(evaluation_items(RETRIEVAL, tokenizer, haystack, seed=7))


def chosen(inputs, tokenizer, config):
    return perplexity.choose(document_tokens(inputs["tokens"], "test"), "test", config, tokenizer.eos_id)


def nothing(_: int) -> None:
    pass


@pytest.mark.parametrize("kind, options", ARMS)
def test_document_nll_is_that_of_reading_the_document_alone_token_by_token(inputs, tokenizer, kind, options):
    model = decoder(kind, vocab_size=tokenizer.vocab_size, **options)
    documents, _ = chosen(inputs, tokenizer, CONFIG.perplexity)
    rows = perplexity.score(model, tokenizer, documents, CONFIG.perplexity, nothing)
    for document in documents:
        tokens = torch.from_numpy(document.tokens.astype(np.int64))[None]
        with torch.no_grad():
            logits, _ = model(tokens)
        each = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="none").double()
        mine = [r for r in rows if r["doc_id"] == document.doc_id]
        assert sum(r["nll_sum"] for r in mine) == pytest.approx(each.sum().item(), rel=1e-5)
        assert sum(r["tokens"] for r in mine) == len(document.tokens) - 1
        for r in mine:
            of_bucket = each[max(r["bucket_start"], 1) - 1 : r["bucket_end"] - 1]
            assert r["nll_sum"] == pytest.approx(of_bucket.sum().item(), rel=1e-5)
        text = tokenizer.decode(document.tokens[1:].tolist())
        assert {(r["words"], r["bytes"]) for r in mine} == {(len(text.split()), len(text))}


@pytest.mark.parametrize("kind, options", ARMS)
def test_result_does_not_depend_on_how_documents_are_batched_and_cut(
    inputs, tokenizer, items, kind, options, monkeypatch
):
    model = decoder(kind, vocab_size=tokenizer.vocab_size, **options)
    documents, _ = chosen(inputs, tokenizer, CONFIG.perplexity)

    def everything():
        text = perplexity.score(model, tokenizer, documents, CONFIG.perplexity, nothing)
        asked = retrieval.score(model, tokenizer, items, nothing)
        return [r["nll_sum"] for r in text], [r["answer_nll"] for r in asked]

    whole = everything()
    monkeypatch.setitem(forward.PASS_TOKENS, "cpu", 3 * SEGMENT)  # every document and prompt is read in chunks
    for a, b in zip(whole, everything(), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_documents_are_cut_and_sampled_stably(inputs, tokenizer):
    documents, short = chosen(
        inputs, tokenizer, PerplexityConfig(min_tokens_per_document=50, max_tokens_per_document=200)
    )
    assert not any((d.tokens == tokenizer.eos_id).any() for d in chosen(inputs, tokenizer, PerplexityConfig())[0])
    assert short == 1 and [d.doc_id for d in documents] == ["test0", "test1", "test2"]
    assert {len(d.tokens) for d in documents} == {200}
    two, _ = chosen(inputs, tokenizer, PerplexityConfig(max_documents=2))
    three, _ = chosen(inputs, tokenizer, PerplexityConfig(max_documents=3))
    assert {d.doc_id for d in two} < {d.doc_id for d in three}


@pytest.mark.parametrize("kind, options", ARMS[:3])
def test_retrieval_equals_generation_and_full_forward(tokenizer, items, kind, options):
    model = decoder(kind, vocab_size=tokenizer.vocab_size, **options)
    rows = retrieval.score(model, tokenizer, items, nothing)
    said = generate(model, [list(i.prompt) for i in items], items[0].length - len(items[0].prompt))
    assert [r["answer"] for r in rows] == [first_number(tokenizer.decode(ids)) for ids in said]
    for item, row in zip(items, rows, strict=True):
        tokens = torch.tensor([[*item.prompt, *item.answer_ids]])
        with torch.no_grad():
            nll = model.nll(tokens)[0, len(item.prompt) - 1 :]
        digits = nll[torch.tensor(item.counted)]
        assert row["answer_nll"] == pytest.approx(digits.mean().item(), rel=1e-4)
        assert tokenizer.decode([t for t, d in zip(item.answer_ids, item.counted, strict=True) if d]) == item.expected


def test_a_model_that_knows_some_answers_is_right_on_exactly_those(tokenizer, items):
    known = [i for i in items if i.task == "passkey" and i.length == 96][:4]
    other = [i for i in items if i.task == "passkey" and i.length == 96][4:]
    model = decoder("full", vocab_size=tokenizer.vocab_size)
    tokens = torch.tensor([[*i.prompt, *i.answer_ids, *tokenizer.encode(".")] for i in known])
    mask = torch.zeros_like(tokens)
    mask[:, len(known[0].prompt) :] = 1
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(50):
        optimiser.zero_grad()
        model.loss(tokens, mask).backward()
        optimiser.step()
    right = retrieval.score(model, tokenizer, known, nothing)
    assert all(r["correct"] and r["in_set"] and r["answer_nll"] < 0.2 for r in right)
    wrong = retrieval.score(model, tokenizer, other, nothing)
    assert np.mean([r["answer_nll"] for r in wrong]) > 1
    numbers = retrieval.summarise(right)
    assert numbers["passkey.accuracy"] == 1 and numbers["passkey.shuffled_accuracy"] == 0


def test_stage_writes_both_tables_the_same_bytes_twice_and_the_same_items_for_every_arm(inputs, tokenizer, tmp_path):
    digests, asked = [], []
    for run, (kind, seed) in enumerate([("infini", 0), ("infini", 0), ("xl", 3)]):
        folder = tmp_path / str(run)
        model = save(decoder(kind, vocab_size=tokenizer.vocab_size, seed=seed), folder)
        output = folder / "out"
        output.mkdir()
        context = LocalContext(str(folder / "work"))
        summary = STAGE.run(CONFIG, {**inputs, "model": model}, output, context)
        files = sorted(p.name for p in output.iterdir())
        assert files == ["perplexity.parquet", "retrieval.parquet"] == sorted(summary.tables.values())
        digests.append([hashlib.sha256((output / f).read_bytes()).hexdigest() for f in files])
        table = pq.read_table(output / "retrieval.parquet").to_pydict()
        asked.append([table[c] for c in ("item", "expected", "prompt_tokens", "depth", "distance")])
        text = pq.read_table(output / "perplexity.parquet").to_pandas()
        ppl = np.exp(text.nll_sum.sum() / text.tokens.sum())
        assert summary.metrics["perplexity"] == pytest.approx(ppl)
        assert f"{ppl:.2f}" in summary.headline and "beyond the local segment" in summary.headline
        assert context.progressed[-1][0] == context.progressed[-1][1]
    assert digests[0] == digests[1] != digests[2]
    assert asked[0] == asked[2]


SHARED = RetrievalConfig(
    format="compact",
    lengths=(224,),
    depths=(0.25, 0.5, 0.75, 1.0),
    trials=2,
    rivals=(4,),
    binding_trials=8,
    control_trials=0,
    haystacks="shared",
)
FURTHER = {"vt": TaskSettings(k=(1,), lengths=(200,), trials=3)}
EVERYTHING = CONFIG.model_copy(update={"retrieval": RETRIEVAL.model_copy(update={"tasks": FURTHER})})


def evaluated(inputs, folder, config=EVERYTHING, execution=None, work=None):
    """Digests of the tables, and the context."""
    folder.mkdir(parents=True)
    context = LocalContext(str(work or folder / "work"), execution or Execution(device="cpu"))
    summary = STAGE.run(config, inputs, folder, context)
    return {t: hashlib.sha256((folder / t).read_bytes()).hexdigest() for t in summary.tables.values()}, context


def test_any_workers_and_any_cut_give_the_same_bytes(inputs, tokenizer, tmp_path, ray_session, monkeypatch):
    given = {**inputs, "model": save(decoder(vocab_size=tokenizer.vocab_size), tmp_path / "model")}
    alone, context = evaluated(given, tmp_path / "alone")
    shown = [done for done, *_ in context.progressed]
    assert shown == sorted(shown) and shown[-1] == context.progressed[-1][1]
    monkeypatch.setattr(parts, "PART_FLOPS", {"cpu": 1e6})
    one_by_one, _ = evaluated(given, tmp_path / "many")
    monkeypatch.setattr(parts, "WORTH_FLOPS", 0)
    spread, context = evaluated(given, tmp_path / "spread")
    assert alone == one_by_one == spread
    assert context.progressed[-1][0] == context.progressed[-1][1]
    made = list((tmp_path / "spread" / "work" / "parts").glob("*.json"))
    assert len(made) == 4  # the documents, prompts of each length
    monkeypatch.setattr(spreading, "LARGE", 0)
    staying, _ = evaluated(given, tmp_path / "staying")
    assert staying == alone


def test_an_evaluation_that_was_stopped_goes_on_with_the_parts_it_has(inputs, tokenizer, tmp_path, monkeypatch):
    given = {**inputs, "model": save(decoder(vocab_size=tokenizer.vocab_size), tmp_path / "model")}
    whole, _ = evaluated(given, tmp_path / "whole")
    monkeypatch.setattr(parts, "PART_FLOPS", {"cpu": 1e6})
    make, left = parts.make, [3]

    def stopped(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return make(*args)

    monkeypatch.setattr(parts, "make", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluated(given, tmp_path / "first", work=tmp_path / "work")
    left[0] = 100
    again, context = evaluated(given, tmp_path / "second", work=tmp_path / "work")
    assert again == whole and 100 - left[0] == len(list((tmp_path / "work" / "parts").glob("*.json"))) - 3
    assert context.progressed[0][0] > 0


def test_prompts_of_one_haystack_give_the_rows_of_prompts_read_alone(inputs, tokenizer):
    haystack = haystack_of(document_tokens(inputs["tokens"], "test"), tokenizer.eos_id)
    shared = list(evaluation_items(SHARED, tokenizer, haystack, seed=7))
    for kind, options in ARMS:
        model = decoder(kind, vocab_size=tokenizer.vocab_size, **options)
        assert any(group.tree for group in retrieval.together(shared, model.config, "cpu"))
        read = []
        for share in (True, False):
            told = []
            read.append(retrieval.answers(model, tokenizer, shared, told.append, share=share))
            assert sum(told) == pytest.approx(sum(len(item.prompt) for item in shared), abs=len(told))
        for (said, nats), (alone, alone_nats) in zip(*read, strict=True):
            assert said == alone and nats == pytest.approx(alone_nats, rel=1e-4)


def test_bfloat16_changes_little_and_the_memory_stays_float32(inputs, tokenizer, items, tmp_path):
    model = save(decoder(vocab_size=tokenizer.vocab_size), tmp_path / "model")
    given = {**inputs, "model": model}
    exact, _ = evaluated(given, tmp_path / "exact", CONFIG)
    rounded, _ = evaluated(given, tmp_path / "rounded", CONFIG.model_copy(update={"dtype": "bf16"}))
    assert set(exact.values()).isdisjoint(rounded.values())
    nats = [
        pq.read_table(tmp_path / name / "perplexity.parquet")["nll_sum"].to_numpy() for name in ("exact", "rounded")
    ]
    assert nats[1] == pytest.approx(nats[0], rel=0.02)
    loaded = checkpoint.load(model.path("model")).eval()
    with torch.no_grad(), forward.precision(torch.device("cpu"), "bf16"):
        _, state = prefill(loaded, torch.tensor([items[-1].prompt]))
    assert {t.dtype for t in (state.layers[0].memory.M, state.layers[0].memory.z)} == {torch.float32}
    assert state.layers[0].live.k.dtype == torch.bfloat16


def test_reading_in_chunks_tells_of_every_chunk(inputs, tokenizer):
    model = decoder(vocab_size=tokenizer.vocab_size)
    documents, _ = chosen(inputs, tokenizer, CONFIG.perplexity)
    told = []
    tokens = torch.from_numpy(documents[0].tokens.astype(np.int64))[None]
    nll = forward.document_nll(model, tokens, budget=3 * SEGMENT, progress=told.append)
    with torch.no_grad():
        assert torch.equal(nll, model.nll(tokens, chunk_tokens=3 * SEGMENT))
    assert len(told) > 3 and sum(told) == tokens.shape[1] - 1


def test_a_row_can_be_made_of_an_answer_alone(items):
    """As a test does that asks something else than a model."""
    for item in items:
        right = retrieval.row(item, item.expected, 0.5, SEGMENT)
        assert list(right) == tables.RETRIEVAL.names and right["correct"] == 1 and right["answer_nll"] == 0.5
        assert right["in_set"] == (item.task != "passkey_absent")
        assert retrieval.row(item, "", 0.5, SEGMENT)["correct"] == 0
        assert right["beyond_local"] == item.beyond_local(SEGMENT)
        assert not retrieval.row(item, "", 0.5, 1000)["beyond_local"] or not item.needle_end


def test_a_base_is_read_as_the_local_arm_that_starts_from_it(inputs, tokenizer, tmp_path):
    base = save(decoder("full", vocab_size=tokenizer.vocab_size, seed=5), tmp_path / "base")
    local = MixerConfig(kind="local", segment_length=SEGMENT)
    arm = save(checkpoint.graft(tmp_path / "base" / "model", local, seed=1).eval(), tmp_path / "arm")
    read = []
    for name, model, mixer in (("of-base", base, local), ("of-arm", arm, None)):
        (tmp_path / name).mkdir()
        config = CONFIG.model_copy(update={"mixer": mixer})
        STAGE.run(config, {**inputs, "model": model}, tmp_path / name, LocalContext(str(tmp_path / f"{name}-work")))
        read.append([pq.read_table(tmp_path / name / table).to_pylist() for table in TABLES])
    assert read[0] == read[1]


TABLES = ("perplexity.parquet", "retrieval.parquet")


def test_mistakes_are_named(inputs, tokenizer, tmp_path, monkeypatch):
    context = LocalContext(str(tmp_path))
    small = save(decoder(vocab_size=100), tmp_path / "small")
    with pytest.raises(StageError, match="vocab_size = 100"):
        STAGE.run(CONFIG, {**inputs, "model": small}, tmp_path, context)
    model = save(decoder(vocab_size=tokenizer.vocab_size), tmp_path / "model")
    long = CONFIG.model_copy(update={"perplexity": PerplexityConfig(min_tokens_per_document=10**6)})
    with pytest.raises(StageError, match="min_tokens_per_document = 1000000"):
        STAGE.run(long, {**inputs, "model": model}, tmp_path, context)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StageError, match="no CUDA device"):
        forward.torch_device(Execution(device="cuda"))
    with pytest.raises(ValidationError, match="buckets"):
        PerplexityConfig(buckets=(16, 32))


@given(st.lists(st.integers(1, 300), min_size=2, max_size=40), st.integers(1, 600), st.booleans())
@settings(max_examples=100, deadline=None)
def test_batches_hold_every_sequence_once_within_the_budget(lengths, budget, pairs):
    made = forward.batches(lengths, budget, pairs=pairs)
    assert sorted(itertools.chain(*made)) == list(range(len(lengths)))
    for batch in made:
        padded = max(lengths[i] for i in batch) * len(batch)
        if pairs:
            assert len(batch) > 1
        else:
            assert padded <= budget or len(batch) == 1
