"""Fine-tuning on prompts of tasks and on summaries: which prompts, which targets, what is left out, a trained model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from model import checkpoint
from model.config import MixerConfig
from stages.data.pinned import digest_of
from stages.data.tasks.config import RetrievalConfig
from stages.data.tasks.prompts import evaluation_items
from stages.data.tasks.training import training_rows
from stages.data.tokens.load import load_tokenizer
from stages.stage import Execution, StageError
from stages.training.finetune.config import FinetuneConfig, SummaryPairs
from stages.training.finetune.pairs import read_pairs
from stages.training.finetune.stage import FINETUNE, FINETUNE_ON_PAIRS
from stages.training.finetune.tasks import TaskData
from stages.training.pretrain.worker import TrainingJob
from stages.training.tuning.rows import ExampleBatches, read_examples, write_examples
from stages.training.tuning.run import recipe_of
from stages.training.tuningaudit.config import TuningAuditConfig
from stages.training.tuningaudit.stage import STAGE as TUNING_AUDIT
from tests.stages.evaluation_inputs import SEGMENT, build, decoder, save
from tests.support import LocalArtifact, LocalContext

TASKS = {
    "format": "compact",
    "tasks": {"passkey": 2, "bindings": 1},
    "phases": [
        {"until": 0.5, "length": 128, "k": {"bindings": [1]}},
        {"until": 1.0, "length": 256, "k": {"bindings": [3]}},
    ],
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return build(tmp_path_factory.mktemp("inputs"))


def config(**changes):
    fields = {"steps": 2, "batch_sequences": 2, "lr": 1e-3, "seed": 0, "monitor_every": 2, "checkpoint_every": 1}
    return FinetuneConfig.model_validate_json(json.dumps({**fields, **changes}))


def batches_of(settings, inputs):
    recipe = recipe_of(settings, seed=0, length=settings.length, mixture=settings.tasks.mixture)
    job = TrainingJob(
        recipe=recipe, work_url="", execution=Execution(), **{k: inputs[k] for k in ("tokens", "tokenizer")}
    )
    return TaskData(settings.tasks).open(job, None, torch.device("cpu"))[0]


def audit(pairs, inputs, folder):
    (folder / "audit").mkdir()
    settings = TuningAuditConfig(
        layout="pairs", path=pairs.path, splits=pairs.splits, pin=digest_of(Path(pairs.path).read_bytes())
    )
    TUNING_AUDIT.run(settings, inputs, folder / "audit", LocalContext(str(folder / "work")))
    return LocalArtifact(folder / "audit")


def run(settings, inputs, folder, kind="infini"):
    vocabulary = load_tokenizer(inputs["tokenizer"]).vocab_size
    model = save(decoder(kind, vocab_size=vocabulary), folder)
    (folder / "out").mkdir()
    context = LocalContext(str(folder / "work"))
    stage, given = FINETUNE, {**inputs, "model": model}
    if settings.pairs is not None:
        stage, given = FINETUNE_ON_PAIRS, given | {"audit": audit(settings.pairs, inputs, folder)}
    stage.run(settings, given, folder / "out", context)
    return LocalArtifact(folder / "out"), model, context


def test_the_curriculum_grows_in_length_and_k_and_tasks_come_in_turn(inputs):
    batches, codec = batches_of(config(tasks=TASKS), inputs), load_tokenizer(inputs["tokenizer"])
    asked = {}
    for step, length in ((0, 128), (1, 256)):
        batch = batches[step]
        assert batch.tokens.shape == (2, 256) and batch.answers.all()
        assert len(set(batch.ids.tolist())) == 2 and (batch.ids < 0).all()
        prompts = batch.tokens.reshape(-1, length), batch.mask.reshape(-1, length)
        for tokens, mask in zip(*prompts, strict=True):
            text = codec.decode(tokens.tolist())
            assert codec.decode(tokens[mask].tolist()).strip(" .").isdigit()
            asked.setdefault(step, []).append(text.count("key of"))
    # passkey, passkey, bindings in turn; a needle for every k and the question
    assert asked == {0: [0, 0, 2, 0], 1: [4, 0]}


def test_prompts_are_not_those_of_the_evaluation_nor_of_pretraining(inputs):
    """The same seed, wording, length and number: yet no prompt of one stands in the other."""
    codec = load_tokenizer(inputs["tokenizer"])
    one = {"format": "compact", "phases": [{"until": 1.0, "length": 128}]}
    settings = config(tasks=one, steps=20)
    batches = batches_of(settings, inputs)
    tuned = {tuple(row) for step in range(20) for row in batches[step].tokens.tolist()}
    assert len(tuned) == 40
    haystack = np.concatenate([np.array(codec.encode("the old wall by the river ran on. " * 200), np.int32)])
    asked = RetrievalConfig(format="compact", lengths=(128,), trials=40, binding_trials=0, control_trials=0)
    items = evaluation_items(asked, codec, haystack, 0)
    assert not tuned & {item.prompt for item in items}
    before, after = (
        training_rows(codec, haystack, 128, 40, 0, format="compact", tasks=("passkey",), namespace=namespace)[0]
        for namespace in ("training", "finetuning")
    )
    assert not {tuple(row) for row in before.tolist()} & {tuple(row) for row in after.tolist()}


def test_text_stays_in_the_batches_where_it_is_asked_for(inputs):
    mixed = {"format": "compact", "phases": [{"until": 1.0, "length": 64}], "text_share": 0.5}
    batch = batches_of(config(tasks=mixed), inputs)[0]
    assert batch.answers.sum() == 1 and (batch.ids >= 0).sum() == 1


def test_an_arm_goes_on_as_it_is_and_a_base_under_the_mixer_it_is_evaluated_with(inputs, tmp_path):
    tuned, model, _ = run(config(tasks=TASKS), inputs, tmp_path)
    log = pq.read_table(tuned.path("train_log.parquet")).to_pylist()
    assert [row["loss"] for row in log] == [None, None] and all(row["answer_loss"] > 0 for row in log)
    assert [row["tokens"] for row in log] == [512, 1024]
    assert tuned.json("data.json") == {"kind": "tasks", "prompts": 6}
    before, after = (checkpoint.load(one.path("model")) for one in (model, tuned))
    assert before.config == after.config
    assert not torch.equal(before.gates(), after.gates())  # the gates go on from where they were, and move
    assert (before.gates() - after.gates()).abs().max() < 0.05

    (tmp_path / "base").mkdir()
    local = config(tasks=TASKS, mixer={"kind": "local", "segment_length": SEGMENT})
    tuned, _, _ = run(local, inputs, tmp_path / "base", kind="full")
    assert checkpoint.load(tuned.path("model")).config.mixer == MixerConfig(kind="local", segment_length=SEGMENT)


ROWS = [
    {"text": "The wall ran along the river. " * 30, "summary": "A wall by a river.", "id": "a"},
    {"text": "Nobody went to the bridge.", "summary": ["Nobody", "went."]},  # in paragraphs
    {"text": "Nobody went to the bridge.", "summary": "An empty bridge."},
    {"text": "Held out.", "summary": "Held out.", "split": "test"},
    {"text": " ", "summary": "Of nothing."},
    {"text": "Without one.", "summary": ""},
    {"text": "Without any."},
    {"text": "A long one.", "summary": "words " * 40},
]


def pairs_file(folder, rows=ROWS):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_loss_of_pairs_is_that_of_the_summary_and_its_end(inputs, tmp_path):
    codec = load_tokenizer(inputs["tokenizer"])
    pairs = SummaryPairs(path=pairs_file(tmp_path), max_tokens=120, summary_tokens=40)
    read = read_pairs(pairs, codec)
    said = [(codec.decode(row.tokens[~row.targets]), codec.decode(row.tokens[row.targets])) for (row,) in read.examples]
    assert [answer for _, answer in said] == [" A wall by a river.", " Nobody\nwent.", " An empty bridge."]
    assert all(row.tokens[row.targets][-1] == codec.eos_id for (row,) in read.examples)
    assert said[0][0].endswith("\n\nSummary:") and len(read.examples[0][0]) == 120  # cut to fit
    assert said[1][0] == "Nobody went to the bridge.\n\nSummary:"
    assert read.cut == 1
    assert read.skipped == {
        "of the split test": 1,
        "no text": 1,
        "no summary": 2,
        "summary longer than summary_tokens": 1,
    }


def test_whole_texts_are_read_in_pieces_and_change_nothing(inputs, tmp_path):
    """The same losses in one piece and segment by segment; what was left out is said and counted."""
    pairs = {"path": pairs_file(tmp_path), "max_tokens": 960, "summary_tokens": 40}
    losses = []
    for name, more in (("whole", {}), ("pieces", {"chunk_tokens": 4 * SEGMENT})):
        (tmp_path / name).mkdir()
        tuned, _, context = run(config(pairs=pairs, **more), inputs, tmp_path / name)
        losses.append([row["answer_loss"] for row in pq.read_table(tuned.path("train_log.parquet")).to_pylist()])
        data = tuned.json("data.json")
        assert data["examples"] == 3 and sum(data["skipped"].values()) == 5
        assert any("5 rows left out" in line and "no summary: 2" in line for line in context.warned)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_real_chapters_with_their_synopses(inputs, shared_data):
    """Chapters of the train split with the synopses printed in the books; the test split stays out."""
    path = shared_data / "summaries" / "chapter_level.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    read = read_pairs(
        SummaryPairs(path=str(path), max_tokens=8192, summary_tokens=1024), load_tokenizer(inputs["tokenizer"])
    )
    train = [row for row in rows if row["split"] == "train"]
    held = {f"of the split {row['split']}" for row in rows} - {"of the split train"}
    assert held and all(read.skipped[reason] for reason in held)
    assert len(read.examples) == len(train) - read.skipped["summary longer than summary_tokens"] > 20
    assert all(len(row) <= 8192 for (row,) in read.examples)


def test_no_usable_pair_is_one_error(inputs, tmp_path):
    codec = load_tokenizer(inputs["tokenizer"])
    pairs = SummaryPairs(path=pairs_file(tmp_path, ROWS[4:6]), max_tokens=120, summary_tokens=40)
    with pytest.raises(StageError, match=r"no summary: 1 \(first in row 2\), no text: 1 \(first in row 1\)"):
        read_pairs(pairs, codec)
    (tmp_path / "pairs.jsonl").write_text('{"text": "a", "summary": "b"}\n[1]\n')
    with pytest.raises(StageError, match=r"line 2: no object"):
        read_pairs(pairs, codec)


def test_examples_survive_the_disk_and_every_epoch_has_each_once(inputs, tmp_path):
    pairs = SummaryPairs(path=pairs_file(tmp_path), max_tokens=120, summary_tokens=40)
    examples = read_pairs(pairs, load_tokenizer(inputs["tokenizer"])).examples
    write_examples(url := str(tmp_path / "examples.parquet"), examples)
    again = read_examples(url)
    assert all(
        (a[0].tokens == b[0].tokens).all() and (a[0].targets == b[0].targets).all()
        for a, b in zip(examples, again, strict=True)
    )
    batches = ExampleBatches(again, 1, seed=1)
    order = [batches.chosen(step)[0] for step in range(9)]
    assert all(sorted(order[i : i + 3]) == [0, 1, 2] for i in (0, 3, 6)) and order[:3] * 3 != order
    assert [ExampleBatches(again, 1, seed=1).chosen(step)[0] for step in (7, 2)] == [order[7], order[2]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "neither given, exactly one"),
        ({"tasks": TASKS, "pairs": {"path": "x", "max_tokens": 64, "summary_tokens": 8}}, "both given"),
        ({"tasks": {"tasks": {"paskey": 1}, "phases": [{"until": 1, "length": 64}]}}, "did you mean 'passkey'"),
        ({"tasks": {"phases": [{"until": 0.5, "length": 64}]}}, r"until = \[0.5\]: allowed are ascending"),
        ({"tasks": {"phases": [{"until": 0.5, "length": 48}, {"until": 1, "length": 64}]}}, r"48: must divide .* 64"),
        (
            {"tasks": {"phases": [{"until": 1, "length": 64, "k": {"bindings": [1]}}]}},
            r"k.bindings: allowed are the names of tasks, passkey",
        ),
        (
            {"tasks": {"tasks": {"bindings": 1}, "phases": [{"until": 1, "length": 64, "k": {"bindings": [65]}}]}},
            r"k.bindings = \[65\]: allowed are distinct numbers 1 to 64",
        ),
        ({"pairs": {"path": "x", "max_tokens": 64, "summary_tokens": 33}}, "33: allowed is at most half of"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)
