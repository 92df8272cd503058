"""The stage ``prompts``: what every model is asked, drawn once, by any number of workers."""

from __future__ import annotations

import hashlib
import json

import pytest

from model.config import MixerConfig, ModelConfig
from stages.data.tasks import make
from stages.data.tasks.config import PromptFile, PromptsConfig, RetrievalConfig, TaskSettings
from stages.data.tasks.prompts import Item
from stages.data.tasks.stage import STAGE
from stages.data.tasks.table import read_items
from stages.data.tokens.load import load_tokenizer
from stages.evidence.evaluate.retrieval import together
from stages.evidence.evaluate.stage import EvaluateConfig
from stages.stage import StageError
from tests.stages.evaluation_inputs import SEGMENT, TRUNK, build
from tests.support import LocalContext

TASKS = {"niah_multikey_1": {"k": (2,), "lengths": (160, 320)}, "vt": {"k": (1,), "lengths": (200,)}}
RETRIEVAL = RetrievalConfig(
    format="compact", lengths=(96, 160), trials=6, rivals=(1, 2), binding_trials=3, control_trials=2, tasks=TASKS
)
SHARED = RetrievalConfig(
    format="compact",
    lengths=(320,),
    depths=(0.25, 0.5, 0.75, 1.0),
    trials=2,
    rivals=(1, 4),
    binding_trials=6,
    control_trials=2,
    haystacks="shared",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return build(tmp_path_factory.mktemp("inputs"))


def run(inputs, folder, retrieval):
    (folder / "out").mkdir(parents=True)
    context = LocalContext(str(folder / "work"))
    summary = STAGE.run(PromptsConfig(retrieval=retrieval, seed=7), inputs, folder / "out", context)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "out").iterdir()}
    return summary, digests, context


def drawn(inputs, retrieval) -> tuple[list[Item], list[Item]]:
    """One after another, without a table: the reference."""
    both = make.all_prompts(
        PromptsConfig(retrieval=retrieval, seed=7), inputs["tokens"], load_tokenizer(inputs["tokenizer"])
    )
    return tuple(map(list, both))


def test_the_table_holds_the_prompts_as_they_are_drawn_one_by_one(inputs, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"input": "One number is 71.", "outputs": ["71"], "answer_prefix": " It is"}) + "\n")
    asked = RETRIEVAL.model_copy(update={"files": {"mine": PromptFile(path=str(file), budget=8)}})
    summary, digests, _ = run(inputs, tmp_path / "a", asked)
    needles, further = drawn(inputs, asked)
    read = [list(read_items(tmp_path / "a" / "out" / name, asked.files)) for name in (make.NEEDLES, make.FURTHER)]
    assert read[0] == needles and read[1][:-1] == further[:-1] and len(further) == 12 + 6 + 1
    assert read[1][-1].record.score("71", ("71",)) == 1 and read[1][-1].prompt == further[-1].prompt
    assert summary.metrics["prompts"] == len(needles) + len(further)
    assert sorted(digests) == [make.FURTHER, make.NEEDLES] and not summary.tables


def test_the_bytes_do_not_depend_on_workers(inputs, tmp_path, ray_session, monkeypatch):
    _, alone, context = run(inputs, tmp_path / "alone", RETRIEVAL)
    assert context.progressed[-1][0] <= context.progressed[-1][1]
    monkeypatch.setattr(make, "WORTH_TOKENS", 0)
    _, spread, _ = run(inputs, tmp_path / "spread", RETRIEVAL)
    assert spread == alone


def test_what_was_drawn_before_a_stop_is_not_drawn_again(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(make, "PART_TOKENS", 400)
    _, whole, _ = run(inputs, tmp_path / "whole", RETRIEVAL)
    draw, left = make.draw, [5]

    def stopped(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr(make, "draw", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "cut", RETRIEVAL)
    (tmp_path / "cut" / "out").rename(tmp_path / "gone")
    left[0] = 100
    assert run(inputs, tmp_path / "cut", RETRIEVAL)[1] == whole
    assert 100 - left[0] == len(list((tmp_path / "cut" / "work" / "prompts").glob("*.json"))) - 5 > 3


def test_prompts_of_one_haystack_differ_in_what_is_said_of_them_alone(inputs):
    items, _ = drawn(inputs, SHARED)
    passkeys = [item for item in items if item.task == "passkey"]
    assert len(passkeys) == 8 and len({item.item for item in items}) == len(items)
    for trial in (0, 1):
        of = passkeys[4 * trial : 4 * trial + 4]
        assert [item.depth for item in of] == [0.25, 0.5, 0.75, 1.0] and len({item.answers for item in of}) == 1
        without = {(*item.prompt[: item.offsets[0]], *item.prompt[item.needle_end :]) for item in of}
        assert len(without) == 1 and len({item.prompt for item in of}) == 4
    assert passkeys[0].answers != passkeys[4].answers
    four = [item for item in items if item.task == "bindings" and item.k == 4]
    assert [item.asked_rank for item in four] == [0, 1, 2, 3, 0, 1]
    assert len({item.values for item in four[:4]}) == 1 and len({item.answers for item in four[:4]}) == 4
    begins = {item.prompt[: max(item.offsets) + 10] for item in four[:4]}
    assert len(begins) == 1 and four[4].values != four[0].values
    controls = [item for item in items if item.task.endswith("absent")]
    assert len({item.prompt for item in controls}) == len(controls)  # a haystack each


def test_what_begins_alike_is_read_as_one_and_the_rest_as_ever(inputs):
    config = ModelConfig(trunk=TRUNK, mixer=MixerConfig(kind="infini", segment_length=SEGMENT), vocab_size=258)
    items, _ = drawn(inputs, SHARED)
    groups = together(items, config, "cpu")
    read = sorted(index for group in groups for index in group.members)
    assert read == list(range(len(items)))
    trees = [{items[i].task for i in group.members} for group in groups if group.tree]
    assert trees.count({"passkey"}) == 2 and {"bindings"} in trees
    assert not any(group.tree for group in together(items, config, "cpu", knockout="swap"))
    own, _ = drawn(inputs, RETRIEVAL)
    assert not any(group.tree for group in together(own, config, "cpu"))


def test_settings_at_their_defaults_move_no_keys(inputs):
    fields = EvaluateConfig(retrieval=RETRIEVAL).key_fields()
    assert "dtype" not in fields and "haystacks" not in fields["retrieval"]
    fields = EvaluateConfig(retrieval=SHARED, dtype="bf16").key_fields()
    assert fields["dtype"] == "bf16" and fields["retrieval"]["haystacks"] == "shared"


def test_a_length_that_no_prompt_fits_is_one_error_before_any_work(inputs, tmp_path):
    with pytest.raises(StageError, match=r"evaluate\.retrieval\.tasks\.vt\.lengths = 40: "):
        run(inputs, tmp_path, RETRIEVAL.model_copy(update={"tasks": {"vt": TaskSettings(lengths=(40,))}}))
