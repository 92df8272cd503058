"""Alignment: what of a conversation is learned, which rows are left out, the losses against TRL's, a trained model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from model import checkpoint
from stages.data.pinned import digest_of
from stages.data.tokens.load import load_tokenizer
from stages.stage import Execution, StageError
from stages.training.align.chat import Turn, encode
from stages.training.align.config import AlignConfig, AlignSettings, ChatFormat
from stages.training.align.examples import read_examples
from stages.training.align.preference import Preference, preference_loss, reference
from stages.training.align.stage import ALIGN, ALIGN_ON_FILE
from stages.training.align.templates import UNASKED, made
from stages.training.pretrain.loop import Runtime, train
from stages.training.pretrain.run import summary
from stages.training.tuning.data import rows_of
from stages.training.tuning.rows import ExampleBatches
from stages.training.tuning.run import recipe_of
from stages.training.tuningaudit.config import TuningAuditConfig
from stages.training.tuningaudit.stage import STAGE as TUNING_AUDIT
from tests.stages.evaluation_inputs import build, decoder, prose, save
from tests.support import LocalArtifact, StoppedAt

CHAT = ChatFormat()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return build(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def codec(inputs):
    return load_tokenizer(inputs["tokenizer"])


def config(method="sft", **changes):
    fields = {"steps": 3, "batch_sequences": 2, "lr": 1e-3, "seed": 0, "length": 200, "examples": 6, "chat": {}}
    return AlignConfig.model_validate_json(json.dumps({**fields, "method": method, **changes}))


def audit(file, inputs, folder):
    """Of rows for conversations and preferences."""
    (folder / "audit").mkdir()
    rows = TuningAuditConfig(layout="turns", path=file.path, pin=digest_of(Path(file.path).read_bytes()))
    TUNING_AUDIT.run(rows, inputs, folder / "audit", StoppedAt(str(folder / "work"), Execution(), step=0))
    return LocalArtifact(folder / "audit")


def run(settings, inputs, folder, execution=None, stop=0):
    folder.mkdir(exist_ok=True)
    vocabulary = load_tokenizer(inputs["tokenizer"]).vocab_size
    model = save(decoder("infini", vocab_size=vocabulary), folder)
    (folder / "out").mkdir()
    context = StoppedAt(str(folder / "work"), execution or Execution(), step=stop)
    stage, given = ALIGN, {**inputs, "model": model}
    if settings.data is not None:
        stage, given = ALIGN_ON_FILE, given | {"audit": audit(settings.data, inputs, folder)}
    stage.run(settings, given, folder / "out", context)
    out = LocalArtifact(folder / "out")
    return pq.read_table(out.path("train_log.parquet")).to_pylist(), out, context


def said(role, content):
    return {"role": role, "content": content}


def test_only_the_answers_are_learned(codec):
    turns = [
        Turn("system", "Be brief."),
        Turn("user", "Hello"),
        Turn("assistant", "Hi."),
        Turn("user", "Bye"),
        Turn("assistant", "Bye."),
    ]
    row = encode(codec, CHAT, turns)
    whole = codec.decode([t for t in row.tokens.tolist() if t != codec.eos_id])
    assert whole == "\nSystem: Be brief.\nUser: Hello\nAssistant: Hi.\nUser: Bye\nAssistant: Bye."
    assert codec.decode(row.tokens[row.targets].tolist()) == " Hi. Bye."
    assert (row.tokens[row.targets] == codec.eos_id).sum() == 2
    later = encode(codec, CHAT, turns, learned_from=3)
    assert codec.decode(later.tokens[later.targets].tolist()) == " Bye."


def test_conversations_that_cannot_be_used_are_counted_by_reason(codec):
    rows = [
        {"messages": [said("user", "Hello"), said("assistant", "Hi.")]},
        {"messages": [said("user", "Hello")]},
        {"messages": []},
        {"messages": [said("user", "Hello"), said("assistant", " ")]},
        {"messages": [said("robot", "Hello")]},
        {"messages": "Hello"},
        {},
        {"messages": [said("user", "word " * 100), said("assistant", "Hi.")]},
        {"messages": [said("user", "Hello"), said("assistant", "Hi.") | {"tool_calls": [{"id": "a"}]}]},
        {"messages": [said("user", "Hello"), said("assistant", "Hi.") | {"weight": 0}]},
        {"messages": [said("user", [{"type": "text", "text": "Hello"}]), said("assistant", "Hi.")]},
        {"messages": [{"content": "Hello"}]},
    ]
    read = read_examples(rows, "sft", codec, CHAT, 100, "rows")
    assert len(read.examples) == 1
    assert read.skipped == {
        "no answer of the assistant": 1,
        "a turn without words, or none at all": 2,
        "no messages of role and content": 3,
        "longer than length": 1,
        "a role other than system, user, assistant": 1,
        "a turn with tool_calls": 1,
        "a turn with weight": 1,
        "a turn whose content is no text": 1,
    }
    assert "a turn without words, or none at all: 2 (first in row 3), " in read.why()


def test_preferences_in_all_their_forms(codec):
    prompt, good, bad = said("user", "Yes?"), said("assistant", "Yes."), said("assistant", "No.")
    rows = [
        {"prompt": [prompt], "chosen": [good], "rejected": [bad]},
        {"chosen": [prompt, good], "rejected": [prompt, bad]},
        {"prompt": "Yes?", "chosen": " Yes.", "rejected": " No."},
        {"prompt": [prompt], "chosen": [good]},
        {"prompt": [prompt], "chosen": [good], "rejected": ""},
        {"prompt": [prompt], "chosen": [], "rejected": [bad]},
        {"prompt": [prompt], "chosen": [good], "rejected": [good]},
        {"chosen": [good], "rejected": [bad]},
        {"prompt": 3, "chosen": [good], "rejected": [bad]},
    ]
    read = read_examples(rows, "dpo", codec, CHAT, 100, "rows")
    learned = [[codec.decode(row.tokens[row.targets].tolist()) for row in pair] for pair in read.examples]
    assert learned == [[" Yes.", " No."]] * 3
    contexts = [codec.decode(pair[0].tokens[~pair[0].targets].tolist()) for pair in read.examples]
    assert contexts == ["\nUser: Yes?\nAssistant:"] * 2 + ["Yes?"]
    assert read.skipped == {
        "no rejected answer": 2,
        "no chosen answer": 1,
        "chosen and rejected are the same": 1,
        "no prompt": 1,
        "a prompt that is neither text nor messages": 1,
    }
    with pytest.raises(
        StageError, match=r"no row can be trained on \(no rejected answer: 1 \(first in row 1\)\).*prompt"
    ):
        read_examples(rows[3:4], "dpo", codec, CHAT, 100, "rows.jsonl")


def test_files_of_both_kinds_and_a_broken_one(tmp_path):
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        assert list(rows_of(str(tmp_path / name), None, "align.data")) == [row]
    whole = (tmp_path / "rows.parquet").read_bytes()
    for name, content, message in (
        ("bad.jsonl", b"[1]\n", "line 1 is no JSON object: no object"),
        ("bad.jsonl", b'{"prompt": "\\ud83d"}\n', "line 1 is no JSON object: half of a character"),
        ("bad.parquet", b"[1]\n", "not a Parquet file"),
        ("bad.parquet", whole[:4] + b"\xff" * 20 + whole[24:], "a damaged one"),
        ("bad.parquet", whole.replace(b"\1\0\0\0a", b"\1\0\0\0\xff", 1), "a damaged one"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StageError, match=message):
            list(rows_of(str(tmp_path / name), None, "align.data"))


def test_what_is_made_from_text_is_right_by_the_text(codec):
    texts = [prose(600, 1), prose(600, 2)]
    rows = list(made(texts, codec, 400, 30, seed=3))
    assert len(rows) == 30 and rows == list(made(texts, codec, 400, 30, seed=3)) != list(made(texts, codec, 400, 30, 4))
    read = read_examples(rows, "dpo", codec, CHAT, 400, "made")
    assert len(read.examples) == 30 and not read.skipped
    assert max(len(row) for pair in read.examples for row in pair) > 300
    styled = 0
    for row in rows:
        passage, question = row["prompt"][0]["content"].rsplit("\n", 1)
        chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))
        if rejected.endswith(f" {chosen}") and rejected[: -len(chosen) - 1] in UNASKED:
            styled += 1
            rejected = {"Yes.": "No.", "No.": "Yes."}.get(chosen, "")  # right, as the chosen one is
        if question.startswith("With which"):
            assert passage.startswith(chosen) and not (rejected and passage.startswith(rejected))
        elif question.startswith("Repeat"):
            assert chosen in passage[-len(chosen) - 90 :]
        else:
            asked = question.split('"')[1]
            assert (asked in passage) == (chosen == "Yes.") and {chosen, rejected} == {"Yes.", "No."}
    assert styled == 15  # every question both ways


def test_the_loss_of_a_preference_by_hand():
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    found = preference_loss(chosen, rejected, beta=0.5, label_smoothing=0.1)
    margins = [0.25, -1.5]
    byhand = [0.9 * math.log1p(math.exp(-m)) + 0.1 * math.log1p(math.exp(m)) for m in margins]
    assert found.tolist() == pytest.approx(byhand)


def test_the_first_loss_is_log_two_whatever_the_micro_batches_and_pairs_stay_together(inputs, codec):
    rows = list(made([prose(600, 1), prose(600, 2)], codec, 200, 8, seed=0))
    examples = read_examples(rows, "dpo", codec, CHAT, 200, "made").examples
    settings = config("dpo", batch_sequences=4, steps=2)
    recipe = recipe_of(settings, seed=0, length=200, rows=2)
    seen = []
    for micro in (None, 3, 1):
        model = decoder("infini", vocab_size=codec.vocab_size)
        flat = [row for example in examples for row in example]
        nats = reference(model, flat, 3, torch.device("cpu"), False, None)
        objective = Preference(dict(enumerate(nats)), 4, 0.1)
        runtime = Runtime(torch.device("cpu"), micro_batch=micro)
        state = train(recipe, model, ExampleBatches(examples, 4, 0), runtime, objective)
        seen.append([row["loss"] for row in state.rows])
        gradient = state.rows[0]["grad_norm"]
        assert seen[-1][0] == pytest.approx(math.log(2), abs=1e-4) and gradient > 0
    assert seen[0] == pytest.approx(seen[1], abs=1e-5) and seen[0] == pytest.approx(seen[2], abs=1e-5)


def test_alignment_learns_what_it_is_given_and_says_what_it_was(inputs, tmp_path):
    log, out, _ = run(config(steps=30, lr=3e-3), inputs, tmp_path / "sft")
    assert log[-1]["answer_loss"] < 0.7 * log[0]["answer_loss"] and log[0]["loss"] is None
    said = summary(out.path("model").parent)
    assert said.headline.startswith(f"loss of answers {log[0]['answer_loss']:.3f} -> ")
    facts = out.json("data.json")
    assert facts["kind"] == "sft" and facts["made"] and facts["examples"] == 6
    assert len(out.path("examples.jsonl").read_text().splitlines()) == 6
    assert checkpoint.load(out.path("model")).config.mixer.kind == "infini"
    log, _, _ = run(config("dpo", steps=20, lr=1e-3), inputs, tmp_path / "dpo")
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and log[-1]["loss"] < 0.5


def test_a_run_goes_on_from_its_resume_point_with_the_same_losses(inputs, tmp_path):
    """DPO's reference is the model before training, also for a run that was cut off."""
    settings = config("dpo", steps=6, checkpoint_every=2)
    whole, _, _ = run(settings, inputs, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(settings, inputs, tmp_path / "cut", stop=4)
    (tmp_path / "cut" / "out").rmdir()
    again, _, _ = run(settings, inputs, tmp_path / "cut")
    assert [row["loss"] for row in again] == [row["loss"] for row in whole]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "rlhf"}, "sft"),
        ({"beta": 0.5}, r"beta = 0.5: has no effect with method = 'sft'"),
        ({"data": {"path": "x"}, "examples": 3}, r"examples = 3: has no effect with data"),
    ],
)
def test_settings_without_effect_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**{"examples": 256, **changes})


def test_a_variant_goes_on_from_one_before_it():
    fields = {"steps": 1, "batch_sequences": 1, "lr": 1e-3, "length": 64, "method": "sft"}
    with pytest.raises(ValidationError, match=r"b.after = 'c': allowed are variants that stand before it, a"):
        AlignSettings.model_validate({"variants": {"a": fields, "b": {**fields, "after": "c"}}})
    for name in ("A", "pretrained"):
        with pytest.raises(ValidationError, match=f"variant '{name}'"):
            AlignSettings.model_validate({"variants": {name: fields}})


def test_the_key_of_a_variant_has_what_makes_the_model():
    one, other = config(), config(after="x")
    assert one.key_fields() == other.key_fields()
    assert "beta" not in one.key_fields() and config("dpo").key_fields()["beta"] == 0.1
