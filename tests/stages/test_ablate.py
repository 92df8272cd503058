"""Knock-outs of a trained memory: what must change does, what must not does not."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from model import checkpoint
from model.config import MixerConfig
from stages.data.tasks.config import RetrievalConfig
from stages.data.tokens.load import load_tokenizer
from stages.evidence.ablate.config import (
    HeadsConfig,
    ProbesConfig,
    RecallConfig,
    SaturationConfig,
    TrainedKeysConfig,
)
from stages.evidence.ablate.stage import STAGE, AblateConfig
from stages.evidence.evaluate.config import PerplexityConfig
from stages.evidence.evaluate.stage import STAGE as EVALUATE
from stages.evidence.evaluate.stage import EvaluateConfig
from stages.stage import StageError
from tests.stages.evaluation_inputs import SEGMENT, build, decoder, save
from tests.support import LocalContext

TEXT = PerplexityConfig(max_tokens_per_document=200, buckets=(0, SEGMENT, 2 * SEGMENT))
RETRIEVAL = RetrievalConfig(format="compact", lengths=(128,), trials=3, rivals=(2,), binding_trials=4, control_trials=2)
CONFIG = AblateConfig(
    perplexity=TEXT,
    retrieval=RETRIEVAL,
    heads=HeadsConfig(knockouts=("swap", "gate_closed", "zero_read"), max_items=None),
    saturation=SaturationConfig(documents=2, max_tokens=700, points=5),
    trained_keys=TrainedKeysConfig(associations=(2, 8, 16, 400), tokens=1500, draws=4),
    seed=7,
)
NO_EXTRAS = CONFIG.model_copy(update={"heads": None, "saturation": None, "trained_keys": None})


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
        name: pq.read_table(output / f"{name}.parquet").to_pandas()
        for name in ("perplexity", "retrieval", "gates", "heads", "saturation", "capacity")
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


def one_carrier(inputs, root):
    """A model whose heads are shut but for layer 1, head 0: all that comes of the memory comes through that one."""
    made = decoder("infini", vocab_size=load_tokenizer(inputs["tokenizer"]).vocab_size)
    with torch.no_grad():
        first, second = made.gate_parameters()
        first.fill_(-60.0)
        second.copy_(torch.tensor([1.0, -60.0]))
    return save(made, root)


def test_a_decorative_head_costs_nothing_and_one_that_carries_all_costs_all(inputs, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    config = CONFIG.model_copy(update={"saturation": None, "trained_keys": None})
    STAGE.run(config, {**inputs, "model": one_carrier(inputs, tmp_path)}, output, LocalContext(str(output)))
    heads, asked = (pq.read_table(output / f"{name}.parquet").to_pandas() for name in ("heads", "retrieval"))
    whole = asked.pivot(index="item", columns="knockout", values="answer_nll")
    for (layer, head, knockout), rows in heads.groupby(["layer", "head", "knockout"]):
        assert set(rows["item"]) == set(whole.index)
        assert rows.intact_nll.tolist() == whole.loc[rows["item"], "none"].tolist()
        costs_all = (layer, head) == (1, 0)
        same_as = whole.loc[rows["item"], knockout if costs_all else "none"]
        assert rows.answer_nll.tolist() == pytest.approx(same_as.tolist(), rel=1e-4)
        if costs_all:
            assert (rows.answer_nll - rows.intact_nll).abs().max() > 1e-3
        else:
            assert (rows.correct == rows.intact).all()
    assert len(heads.groupby(["layer", "head", "knockout"])) == 4 * 3
    assert not (output / "saturation.parquet").exists() and not (output / "capacity.parquet").exists()


def test_fewer_prompts_per_head_are_spread_over_lengths_and_tasks(inputs, model, tmp_path):
    retrieval = RETRIEVAL.model_copy(update={"lengths": (128, 160), "trials": 6, "binding_trials": 6})
    config = NO_EXTRAS.model_copy(update={"retrieval": retrieval, "heads": HeadsConfig(max_items=8)})
    context = LocalContext(str(tmp_path))
    STAGE.run(config, {**inputs, "model": model}, tmp_path, context)
    heads, asked = (pq.read_table(tmp_path / f"{name}.parquet").to_pandas() for name in ("heads", "retrieval"))
    of_one = heads[(heads.layer == 0) & (heads["head"] == 1) & (heads.knockout == "swap")]
    lengths = asked.drop_duplicates("item").set_index("item").length[of_one["item"]]
    assert of_one["item"].is_unique and set(lengths) == {128, 160}
    assert len(of_one) <= 8 and set(of_one.task) == {"passkey", "bindings"}
    assert context.progressed[-1][0] == context.progressed[-1][1]


def test_the_memory_is_followed_beyond_the_scored_length(ablated):
    rows = ablated[0]["saturation"]
    assert rows.doc_id.nunique() == 2 and rows.tokens.max() > 2 * TEXT.max_tokens_per_document
    one = rows[rows.doc_id == rows.doc_id.iloc[0]]
    assert list(one.tokens.drop_duplicates()) == [(s + 1) * SEGMENT for s in one.segment.drop_duplicates()]
    assert one.segment.min() == 0 and one.segment.nunique() == 5
    assert set(zip(rows.layer, rows["head"], strict=True)) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    first = rows.segment == 0
    assert rows[first][["z_min", "erase_lambda_max"]].isna().all().all(), "nothing is read before anything is written"
    assert not rows[~first].isna().any().any()
    for _, curve in rows[~first].groupby(["doc_id", "layer", "head"]):
        assert curve.z_min.iloc[-1] > curve.z_min.iloc[0], "z only grows"
    assert rows.effective_rank.between(1, 16).all()
    assert ablated[1].metrics["saturation.tokens"] == rows.tokens.max()


def test_trained_keys_are_held_against_random_ones_of_the_same_size(ablated):
    rows = ablated[0]["capacity"]
    assert set(rows["keys"]) == {"trained", "random"} and set(rows.rule) == {"delta"}
    assert set(rows.associations) == {2, 8, 16}, "400 distinct tokens there are not"
    assert len(rows) == 2 * 3 * 2 * 2 and set(rows.feature_dim) == {16}
    mean = rows.groupby(["keys", "associations"]).accuracy.mean()
    assert mean["random", 2] > mean["random", 16] and mean["trained", 2] > mean["trained", 16]


def test_keys_that_tell_nothing_apart_hold_one_association(inputs, tmp_path):
    """k_proj = 0: every token has the same key, and what is read is the mean of all values."""
    made = decoder("infini", vocab_size=load_tokenizer(inputs["tokenizer"]).vocab_size)
    with torch.no_grad():
        for mixer in made.mixers():
            mixer.k_proj.weight.zero_()
    output = tmp_path / "out"
    output.mkdir()
    config = CONFIG.model_copy(update={"heads": None, "saturation": None})
    STAGE.run(config, {**inputs, "model": save(made, tmp_path)}, output, LocalContext(str(output)))
    rows = pq.read_table(output / "capacity.parquet").to_pandas().query("keys == 'trained'")
    for count, of_count in rows.groupby("associations"):
        assert of_count.accuracy.tolist() == pytest.approx([1 / count] * len(of_count), abs=0.01)
        assert of_count.error.mean() == pytest.approx(1 - 1 / count, abs=0.1) and (of_count.exact == 0).all()


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
    with pytest.raises(ValidationError, match="associations"):
        TrainedKeysConfig(associations=(8, 4))
    with pytest.raises(ValidationError, match="reset"):
        HeadsConfig(knockouts=("reset",))
    with pytest.raises(ValidationError, match="'none' among them"):
        AblateConfig(perplexity=TEXT, retrieval=RETRIEVAL, knockouts=("swap",))


# --- probes: the model read as it was not trained -------------------------------------------------------------------
@pytest.fixture(scope="module")
def probed_tables(inputs, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("probed")
    config = NO_EXTRAS.model_copy(update={"probes": ProbesConfig(window=2 * SEGMENT, documents=2, max_tokens=500)})
    context = LocalContext(str(output))
    STAGE.run(config, {**inputs, "model": model}, output, context)
    assert context.progressed[-1][0] == context.progressed[-1][1]
    names = ("perplexity", "retrieval", "probe_perplexity", "probe_retrieval", "windows")
    return {name: pq.read_table(output / f"{name}.parquet").to_pandas() for name in names}


def test_a_gate_forced_to_nought_is_the_closed_one_and_others_are_others(probed_tables):
    probed = probed_tables["probe_perplexity"].pivot(
        index=["doc_id", "bucket_start"], columns="knockout", values="nll_sum"
    )
    assert list(probed.columns) == ["gate_0", "gate_0.5", "gate_1", "rule_linear"]  # trained by the delta rule
    knocked = probed_tables["perplexity"]
    closed = knocked[knocked.knockout == "gate_closed"].set_index(["doc_id", "bucket_start"]).nll_sum
    assert probed["gate_0"].tolist() == pytest.approx(closed.loc[probed.index].tolist(), rel=1e-6)
    rest = probed.xs(2 * SEGMENT, level="bucket_start").round(3)
    assert (rest.nunique(axis=1) == 4).all()
    first = probed.xs(0, level="bucket_start")
    assert first["gate_1"].tolist() == pytest.approx(first["gate_0"].tolist(), rel=1e-6), "nothing to read yet"
    assert set(probed_tables["probe_retrieval"].knockout) == set(probed.columns)


def test_the_other_rule_is_the_same_weights_under_it(inputs, model, probed_tables, tmp_path):
    other = checkpoint.graft(model.path("model"), MixerConfig(kind="infini", segment_length=SEGMENT), seed=0)
    with torch.no_grad():  # a graft takes the trunk alone
        for to, of in zip(other.gate_parameters(), checkpoint.load(model.path("model")).gate_parameters(), strict=True):
            to.copy_(of)
    text, _ = evaluated(inputs, save(other, tmp_path / "linear"), tmp_path / "out")
    linear = probed_tables["probe_perplexity"].query("knockout == 'rule_linear'")
    assert linear.nll_sum.tolist() == pytest.approx(text.nll_sum.tolist(), rel=1e-5)


def test_a_memory_emptied_at_every_window_differs_from_the_second_window_on(inputs, model, probed_tables):
    table = probed_tables["windows"]
    table = table.pivot(index=["doc_id", "bucket_start"], columns="memory", values=["nll_sum", "tokens"])
    assert (table["tokens", "carried"] == table["tokens", "emptied"]).all()
    assert set(table["tokens", "carried"].xs(0, level="bucket_start")) == {2 * SEGMENT - 1}
    first = table["nll_sum"].xs(0, level="bucket_start")
    assert first["carried"].tolist() == pytest.approx(first["emptied"].tolist(), rel=1e-6)
    later = table["nll_sum"].drop(index=0, level="bucket_start")
    assert len(later) and ((later["carried"] - later["emptied"]).abs() > 1e-3).all()


def test_probes_that_cannot_be_are_refused_and_those_that_are_not_asked_move_no_key(inputs, model, tmp_path):
    assert "probes" not in NO_EXTRAS.key_fields()
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        ProbesConfig(gates=(2.0,))
    odd = NO_EXTRAS.model_copy(update={"probes": ProbesConfig(window=SEGMENT + 1)})
    with pytest.raises(StageError, match=r"ablate\.probes\.window = 33"):
        STAGE.run(odd, {**inputs, "model": model}, tmp_path, LocalContext(str(tmp_path)))


# --- inside: layers, recall, spectrum -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def inside(inputs, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("inside")
    recall = RecallConfig(items=(1, 2), segments=(4, 8), trials=2)
    config = NO_EXTRAS.model_copy(
        update={
            "heads": HeadsConfig(knockouts=("swap",), max_items=None, layers=True),
            "saturation": SaturationConfig(documents=1, max_tokens=None, points=4, spectrum=True),
            "probes": ProbesConfig(window=2 * SEGMENT, documents=1, max_tokens=None, recall=recall),
        }
    )
    context = LocalContext(str(output))
    STAGE.run(config, {**inputs, "model": model}, output, context)
    assert context.progressed[-1][0] == context.progressed[-1][1]
    names = ("retrieval", "heads", "layers", "saturation", "spectrum", "windows", "recall")
    return {name: pq.read_table(output / f"{name}.parquet").to_pandas() for name in names}


def test_layers_are_knocked_out_alone_on_the_prompts_of_the_heads(inside):
    layers, heads = inside["layers"], inside["heads"]
    assert set(layers.layer) == {0, 1} and "head" not in layers and not heads["head"].isna().any()
    assert set(layers["item"]) == set(heads["item"])
    assert (layers.answer_nll - layers.intact_nll).abs().max() > 1e-3


def test_the_spectrum_of_a_whole_book_is_that_of_its_norm_and_rank(inside):
    rows = inside["spectrum"].merge(inside["saturation"], on=["doc_id", "segment", "tokens", "layer", "head"])
    assert len(rows) == len(inside["saturation"]) == len(inside["spectrum"]) > 0
    for one in rows.itertuples():
        values = torch.tensor(one.singular_values.tolist(), dtype=torch.float64)
        assert values.square().sum().sqrt().item() == pytest.approx(one.memory_norm, rel=1e-4)
        shares = (values / values.sum()).clamp(min=1e-30)
        assert (-(shares * shares.log()).sum()).exp().item() == pytest.approx(one.effective_rank, rel=1e-3)
    for _, along in rows.groupby(["layer", "head"]):
        assert along.sort_values("tokens").z_norm.is_monotonic_increasing
    assert rows.tokens.max() >= 500 and inside["windows"].bucket_end.max() >= 500  # the whole of the longest document


def test_items_are_asked_after_as_many_segments_as_it_says(inside):
    rows = inside["recall"]
    one, two = rows[rows["items"] == 1], rows[rows["items"] == 2]
    assert set(one.segments) == {4, 8} and set(one.asked) == {0} and set(two.asked) == {0, 1}
    assert set(two[two.asked == 0].segments) == {4, 8} and set(two.segments) <= {3, 4, 7, 8}  # two fill a segment
    assert len(rows) == 2 * 2 * (1 + 2) and rows["item"].is_unique
    near, far = (rows[rows["item"].str.endswith(f"/{count}")].distance for count in (4, 8))
    assert far.min() - near.max() > SEGMENT


def test_what_is_not_asked_moves_no_key():
    plain = AblateConfig(perplexity=TEXT, retrieval=RETRIEVAL, probes=ProbesConfig()).key_fields()
    assert "layers" not in plain["heads"] and "spectrum" not in plain["saturation"] and "recall" not in plain["probes"]
    assert "max_documents_per_source" not in plain["perplexity"]
