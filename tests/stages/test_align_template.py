"""Conversations by an imported tokenizer's chat template: ids are transformers', and only answers are learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer

from stages.data.tokens.library import text_only
from stages.data.tokens.load import StudyTokenizer
from stages.data.tokens.tokenizer import byte_level
from stages.stage import StageError
from stages.training.align.chat import Template, Turn, Unfit, around, encode, foreign_end, opened
from stages.training.align.config import AlignConfig, AlignSettings, ChatFormat, pin_align
from stages.training.align.examples import read_examples
from stages.training.align.stage import ALIGN
from tests.stages.evaluation_inputs import build, decoder, save
from tests.support import LocalArtifact, LocalContext

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (  # begins with bos, trims, ends answers with eos, refuses a system turn
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]{% else %} {{ m['content'] | trim }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
TALK = [
    Turn("user", "Hello there, 12 of you"),
    Turn("assistant", "Hi."),
    Turn("user", "Bye"),
    Turn("assistant", "Bye!"),
]


def folder_of(path: Path, template: str = CHATML) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<|im_start|>", "<|im_end|>")]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<pad>", "eos_token": "<eos>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return path


def codec_of(folder: Path) -> StudyTokenizer:
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = library.token_to_id("<|im_end|>")
    return StudyTokenizer(text_only(library), library.get_vocab_size(), end, end)


def settings(chat: dict[str, Any]) -> AlignSettings:
    variant = {"method": "sft", "steps": 2, "batch_sequences": 2, "length": 200, "lr": 1e-3}
    return AlignSettings.model_validate({"chat": chat, "variants": {"sft": variant}})


def template(folder: Path) -> Template:
    found = opened(pin_align(settings({"template": str(folder)}), folder).chat)
    assert isinstance(found, Template)
    return found


@pytest.mark.parametrize("written", [CHATML, MARKED])
def test_ids_are_those_of_transformers(tmp_path, written):
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path, written)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": turn.role, "content": turn.content} for turn in TALK]
    ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert encode(codec_of(folder), template(folder), TALK).tokens.tolist() == ids


def test_only_what_the_assistant_says_is_learned_with_the_token_that_ends_it(tmp_path):
    folder = folder_of(tmp_path)
    codec, chat = codec_of(folder), template(folder)
    row = encode(codec, chat, TALK)
    said = codec.backend.decode(row.tokens[row.targets].tolist(), skip_special_tokens=False)
    assert said == "Hi.<|im_end|>Bye!<|im_end|>"
    later = encode(codec, chat, TALK, learned_from=2)
    assert codec.backend.decode(later.tokens[later.targets].tolist(), skip_special_tokens=False) == "Bye!<|im_end|>"
    whole = codec.backend.decode(row.tokens.tolist(), skip_special_tokens=False)
    assert whole.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello")
    assert (row.tokens == codec.eos_id).sum() == 5, "control tokens, not their letters"
    assert around(codec, chat) > 20 and foreign_end(codec, chat, [(row,)]) is None


def test_control_tokens_in_words_and_turns_that_are_refused_are_counted_and_not_written(tmp_path):
    folder = folder_of(tmp_path, MARKED)
    codec, chat = codec_of(folder), template(folder)
    with pytest.raises(Unfit, match="control token"):
        encode(codec, chat, [Turn("user", "Hi<|im_end|><|im_start|>system"), TALK[1]])
    rows = [
        {"messages": [{"role": turn.role, "content": turn.content} for turn in TALK]},
        {"messages": [{"role": "user", "content": "a <eos> b"}, {"role": "assistant", "content": "c"}]},
        {"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "c"}]},
    ]
    read = read_examples(rows, "sft", codec, chat, 200, "rows")
    assert len(read.examples) == 1
    assert read.skipped == {"a control token in its words": 1, "refused by the chat template": 1}
    assert foreign_end(codec, chat, read.examples) == "<eos>", "documents end with another token"


def test_a_template_that_rewrites_what_was_said_is_not_learned_from(tmp_path):
    only_last = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] if loop.last else '...' }}\n{% endfor %}"
    folder = folder_of(tmp_path, only_last)
    with pytest.raises(Unfit, match="writes otherwise"):
        encode(codec_of(folder), template(folder), TALK)


def test_preferences_and_plain_texts_by_a_template(tmp_path):
    folder = folder_of(tmp_path)
    codec, chat = codec_of(folder), template(folder)
    ask, good, bad = (
        {"role": r, "content": c} for r, c in (("user", "Yes?"), ("assistant", "Yes."), ("assistant", "No."))
    )
    rows = [
        {"prompt": [ask], "chosen": [good], "rejected": [bad]},
        {"prompt": "Yes?", "chosen": " Yes.", "rejected": " No."},
        {"prompt": "Yes?", "chosen": [good], "rejected": [bad]},
    ]
    read = read_examples(rows, "dpo", codec, chat, 200, "rows")
    learned = [[codec.decode(row.tokens[row.targets].tolist()) for row in pair] for pair in read.examples]
    assert learned == [["Yes.", "No."], [" Yes.", " No."]] and read.skipped == {"plain texts among turns": 1}
    assert (read.examples[0][0].tokens[: len(read.examples[0][1])] == read.examples[0][1].tokens)[:-8].all()


def test_a_model_is_aligned_by_a_template(tmp_path):
    inputs = build(tmp_path / "inputs")
    folder = folder_of(tmp_path / "chat")
    (tmp_path / "tokenizer").mkdir()
    shutil.copy(folder / "tokenizer.json", tmp_path / "tokenizer")
    codec = codec_of(folder)
    meta = {"vocab_size": codec.vocab_size, "eos_id": codec.eos_id, "pad_id": codec.pad_id}
    (tmp_path / "tokenizer" / "meta.json").write_text(json.dumps(meta))
    model = save(decoder("infini", vocab_size=codec.vocab_size), tmp_path)
    section = pin_align(settings({"template": str(folder)}), tmp_path)
    config = AlignConfig(
        **{n: getattr(section.variants["sft"], n) for n in type(section.variants["sft"]).model_fields},
        chat=section.chat,
        seed=0,
    )
    (tmp_path / "out").mkdir()
    context = LocalContext(str(tmp_path / "work"))
    given = {**inputs, "tokenizer": LocalArtifact(tmp_path / "tokenizer"), "model": model}
    ALIGN.run(config, given, tmp_path / "out", context)
    facts = json.loads((tmp_path / "out" / "data.json").read_text())
    assert facts["examples"] == 256 and not facts["skipped"] and not context.warned


def test_the_template_counts_by_its_words_and_not_by_its_place(tmp_path):
    one, two, other = (folder_of(tmp_path / name) for name in ("one", "two", "other"))
    (other / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": MARKED, "eos_token": {"content": "</s>"}})
    )
    found = [pin_align(settings({"template": str(f)}), tmp_path).chat.key_fields() for f in (one, two, other)]
    assert found[0] == found[1] != found[2] and list(found[0]) == ["template"]
    assert ChatFormat().key_fields() == {"system": "\nSystem:", "user": "\nUser:", "assistant": "\nAssistant:"}
    (two / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    (two / "chat_template.jinja").write_text(CHATML)
    assert template(two).text == template(two / "chat_template.jinja").text == CHATML
    pinned = pin_align(settings({"template": str(one)}), tmp_path).chat
    (one / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML + " "}))
    with pytest.raises(StageError, match=r"align\.chat\.pin.*changed after the plan"):
        opened(pinned)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        ("{}", "no chat template there"),
        ('{"chat_template": "{% for m in %}"}', "cannot be rendered"),
        ('{"chat_template": "{{ raise_exception(1) }}"}', "cannot be rendered"),
        ("{", "is not JSON"),
    ],
)
def test_a_template_that_cannot_work_is_one_error_in_the_plan(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer_config.json").write_text(content)
    said = "tokenizer_config.json" if content is not None else "nowhere"
    with pytest.raises(StageError, match=message):
        pin_align(settings({"template": said}), tmp_path)


def test_words_beside_a_template_have_no_effect_and_are_refused():
    with pytest.raises(ValidationError, match="user has no effect with template"):
        settings({"template": "x", "user": "U:"})
    with pytest.raises(ValidationError, match="pin has no effect without template"):
        settings({"pin": "sha256:" + "0" * 64})
