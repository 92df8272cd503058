"""Knock-outs of a trained memory: what must change does, what must not does not."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from model import checkpoint
from model.config import MixerConfig
from stages.ablate.stage import STAGE, AblateConfig
from stages.evaluate.config import PerplexityConfig
from stages.evaluate.stage import STAGE as EVALUATE
from stages.evaluate.stage import EvaluateConfig
from stages.stage import StageError
from stages.tasks.config import RetrievalConfig
from stages.tokens.load import load_tokenizer
from model.decoder import HeadKnockout, Knockout
from tests.stages.evaluation_inputs import SEGMENT, build, decoder, save
from tests.support import LocalContext

TEXT = PerplexityConfig(max_tokens_per_document=200, buckets=(0, SEGMENT, 2 * SEGMENT))
RETRIEVAL = RetrievalConfig(format="compact", lengths=(128,), trials=3, rivals=(2,), binding_trials=4, control_trials=2)
CONFIG = AblateConfig(perplexity=TEXT, retrieval=RETRIEVAL, seed=7)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return build(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def model(inputs, tmp_path_factory):
    """A memory whose gates differ by head, so that layer and head cannot be confused."""
    made = decoder("infini", vocab_size=load_tokenizer(inputs["tokenizer"]).vocab_size, rule="delta")
    with torch.no_grad():
        for i, beta in enumerate(made.gate_parameters()):
            beta.copy_(torch.tensor([i - 1.0, i + 1.0]))
    return save(made, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def ablated(inputs, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("ablated")
    context = LocalContext(str(output))
    summary = STAGE.run(CONFIG, {**inputs, "model": model}, output, context)
    assert context.progressed[-1][0] == context.progressed[-1][1]
    read = {
        name: pq.read_table(output / f"{name}.parquet").to_pandas() for name in ("perplexity", "retrieval", "gates")
    }
    return read, summary


def evaluated(inputs, model, output):
    output.mkdir()
    config = EvaluateConfig(
        perplexity=TEXT.model_copy(update={"min_tokens_per_document": 200}), retrieval=RETRIEVAL, seed=7
    )
    EVALUATE.run(config, {**inputs, "model": model}, output, LocalContext(str(output)))
    return [pq.read_table(output / f"{name}.parquet").to_pandas() for name in ("perplexity", "retrieval")]


def test_without_knockout_it_is_the_evaluation_of_the_same_items(ablated, inputs, model, tmp_path):
    text, asked = evaluated(inputs, model, tmp_path / "out")
    mine = ablated[0]["perplexity"].query("knockout == 'none'")
    assert mine.nll_sum.tolist() == pytest.approx(text.nll_sum.tolist(), rel=1e-5)
    rows = ablated[0]["retrieval"].query("knockout == 'none'")
    assert rows.beyond_local.all() and set(rows.task) == {"passkey", "bindings"}
    wanted = asked[asked.task.isin(["passkey", "bindings"])]
    assert set(rows.item) == set(wanted[wanted.beyond_local].item) < set(wanted.item)
    both = rows.merge(asked, on="item")
    assert len(both) == len(rows) and both.answer_nll_x.tolist() == pytest.approx(both.answer_nll_y.tolist(), rel=1e-4)


def test_closed_gate_is_the_local_model_with_the_same_weights(ablated, inputs, model, tmp_path):
    local = checkpoint.graft(model.path("model"), MixerConfig(kind="local", segment_length=SEGMENT), seed=0)
    text, asked = evaluated(inputs, save(local, tmp_path / "local"), tmp_path / "out")
    closed = ablated[0]["perplexity"].query("knockout == 'gate_closed'")
    assert closed.nll_sum.tolist() == pytest.approx(text.nll_sum.tolist(), rel=1e-5)
    rows = ablated[0]["retrieval"].query("knockout == 'gate_closed'").merge(asked, on="item")
    assert len(rows) and rows.answer_nll_x.tolist() == pytest.approx(rows.answer_nll_y.tolist(), rel=1e-4)


def test_each_knockout_changes_what_the_memory_could_reach_and_nothing_else(ablated):
    table = ablated[0]["perplexity"].pivot(index=["doc_id", "bucket_start"], columns="knockout", values="nll_sum")
    first, second, rest = (table.xs(start, level="bucket_start") for start in (0, SEGMENT, 2 * SEGMENT))
    for knockout in ("gate_closed", "reset", "swap", "zero_read"):
        assert first[knockout].tolist() == pytest.approx(first["none"].tolist(), rel=1e-6), "nothing to read yet"
        assert (rest[knockout] - rest["none"]).abs().min() > 1e-3
    assert second["reset"].tolist() == pytest.approx(second["none"].tolist(), rel=1e-6), "one segment back is kept"
    assert (second["swap"] - second["none"]).abs().min() > 1e-3
    columns = [rest[k].round(3).tolist() for k in rest.columns]
    assert len({tuple(c) for c in columns}) == 5
    asked = ablated[0]["retrieval"].pivot(index="item", columns="knockout", values="answer_nll")
    assert not asked.isna().any().any() and (asked.nunique(axis=1) == 5).all()


def test_gates_are_the_sigmoid_of_beta_by_layer_and_head(ablated):
    gates = ablated[0]["gates"]
    expected = torch.sigmoid(torch.tensor([[-1.0, 1.0], [0.0, 2.0]]))
    for row in gates.itertuples():
        assert row.gate == pytest.approx(expected[row.layer, row.head].item())
    assert len(gates) == 4 and ablated[1].metrics["gate_max"] == pytest.approx(expected.max().item())
    assert "gate_closed" in ablated[1].headline


def test_only_documents_of_the_full_length_are_scored(ablated):
    assert set(ablated[0]["perplexity"].doc_id) == {"test0", "test1", "test2"}
    per_document = ablated[0]["perplexity"].groupby(["doc_id", "knockout"]).tokens.sum()
    assert (per_document == 199).all()


def test_mistakes_are_named(inputs, model, tmp_path):
    context = LocalContext(str(tmp_path))
    vocab_size = load_tokenizer(inputs["tokenizer"]).vocab_size
    local = save(decoder("local", vocab_size=vocab_size), tmp_path)
    with pytest.raises(StageError, match=r"mixer.kind = 'local'.*infini"):
        STAGE.run(CONFIG, {**inputs, "model": local}, tmp_path, context)
    long = CONFIG.model_copy(update={"perplexity": PerplexityConfig(max_tokens_per_document=10**6)})
    with pytest.raises(StageError, match="max_tokens_per_document = 1000000"):
        STAGE.run(long, {**inputs, "model": model}, tmp_path, context)
    near = RETRIEVAL.model_copy(update={"depths": (0.0,), "trials": 1, "binding_trials": 0, "control_trials": 0})
    with pytest.raises(StageError, match="outside the last segment"):
        STAGE.run(CONFIG.model_copy(update={"retrieval": near}), {**inputs, "model": model}, tmp_path, context)
    with pytest.raises(ValidationError, match="max_tokens_per_document is not set"):
        AblateConfig(perplexity=PerplexityConfig(), retrieval=RETRIEVAL)
    with pytest.raises(ValidationError, match="'none' among them"):
        AblateConfig(perplexity=TEXT, retrieval=RETRIEVAL, knockouts=("swap",))
