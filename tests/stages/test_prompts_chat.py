"""Prompts of a study whose imported tokenizer has a chat template: within it, to the token, and recorded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from stages.data.tasks.config import PromptsConfig, RetrievalConfig
from stages.data.tasks.stage import STAGE
from stages.data.tasks.table import read_items
from stages.data.tokens.config import TokenizeConfig, TokenizerConfig
from stages.data.tokens.load import load_tokenizer
from stages.data.tokens.pin import pin_tokenizer
from stages.data.tokens.preview import preview
from stages.data.tokens.stage import TOKENIZE, TOKENIZER
from stages.data.tokens.tokenizer import byte_level
from stages.stage import StageError
from tests.stages.evaluation_inputs import SEGMENT, write_documents
from tests.support import LocalArtifact, LocalContext

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]\n{{ message.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
BEFORE, BEHIND = "<eos>[user]\n", "<eos>[assistant]"
RETRIEVAL = RetrievalConfig(
    format="compact",
    lengths=(160,),
    trials=4,
    rivals=(2,),
    binding_trials=2,
    control_trials=1,
    tasks={"vt": {"k": (1,)}},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An imported tokenizer with a template that begins with its own bos token."""
    made = tmp_path / "imported"
    made.mkdir()
    byte_level().save(str(made / "tokenizer.json"))
    settings = {"bos_token": {"content": "<eos>"}, "eos_token": "<eos>", "chat_template": TEMPLATE}
    (made / "tokenizer_config.json").write_text(json.dumps(settings))
    return made


def config(folder: Path, **fields: object) -> TokenizerConfig:
    given = {"kind": "file", "path": str(folder), "eos_token": "<eos>", "bos_token": "<eos>", "chat_template": True}
    return pin_tokenizer(TokenizerConfig(**given | fields), folder)


def inputs(tmp_path: Path, tokenizer: TokenizerConfig) -> dict[str, LocalArtifact]:
    made = {"documents": write_documents(tmp_path / "documents")}
    tokenize = TokenizeConfig(sequence_length=64, segment_length=SEGMENT)
    for name, stage, settings in (("tokenizer", TOKENIZER, tokenizer), ("tokens", TOKENIZE, tokenize)):
        (tmp_path / name).mkdir()
        stage.run(settings, made, tmp_path / name, LocalContext(str(tmp_path / "work")))
        made[name] = LocalArtifact(tmp_path / name)
    return made


def test_every_prompt_is_a_users_message_and_as_long_as_asked(folder: Path, tmp_path: Path) -> None:
    made = inputs(tmp_path, config(folder))
    (tmp_path / "out").mkdir()
    STAGE.run(PromptsConfig(retrieval=RETRIEVAL, seed=3), made, tmp_path / "out", LocalContext(str(tmp_path / "work")))
    codec = load_tokenizer(made["tokenizer"])
    assert codec.chat is not None
    before, behind = codec.chat
    assert before[0] == behind[0] == codec.eos_id  # control tokens, not their letters
    found = [item for name in ("needles", "further") for item in read_items(tmp_path / "out" / f"{name}.parquet", {})]
    assert len(found) == 4 + 1 + 2 + 1 + 4
    for item in found:
        assert item.prompt[: len(before)] == before and item.prompt[-len(behind) :] == behind
        assert len(item.prompt) + item.budget == 160 and item.item.endswith("/chat")
        inside = item.prompt[len(before) : -len(behind)]
        assert codec.eos_id not in inside  # the template's own token begins it, and none beside
        if item.task == "passkey":
            needle = codec.decode(item.prompt[item.offsets[0] : item.needle_end])
            assert needle.strip() == f"The pass key is {item.expected}."
    meta = json.loads((tmp_path / "tokenizer" / "meta.json").read_text())
    assert meta["chat"]["template"].startswith("sha256:")
    assert (tmp_path / "tokenizer" / "chat_template.jinja").read_text() == TEMPLATE


def test_documents_begin_with_the_bos_token_alone(folder: Path, tmp_path: Path) -> None:
    codec = load_tokenizer(inputs(tmp_path, config(folder))["tokenizer"])
    assert codec.begin == [codec.eos_id] and codec.in_chat().begin == []


def test_a_template_in_a_file_of_its_own_counts_and_is_pinned(folder: Path) -> None:
    first = config(folder)
    assert first.chat_pin is not None and preview(first).chat is not None
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(StageError, match=r"tokenizer\.chat_template = True.*no chat template"):
        config(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert config(folder).chat_pin != first.chat_pin
    with pytest.raises(StageError, match=r"tokenizer\.chat_pin.*not the pinned one"):
        config(folder, chat_pin=first.chat_pin)
    (folder / "chat_template.jinja").write_text("always the same")
    with pytest.raises(StageError, match="does not repeat the message"):
        config(folder)


def test_without_it_nothing_changes(folder: Path) -> None:
    plain = config(folder, chat_template=False)
    assert not {"chat_template", "chat_pin"} & set(plain.key_fields()) and preview(plain).chat is None
    with pytest.raises(ValueError, match="chat_template"):
        TokenizerConfig(kind="bytes", chat_template=True)
    with pytest.raises(ValueError, match="chat_pin"):
        config(folder, chat_template=False, chat_pin="sha256:" + hashlib.sha256(b"").hexdigest())


def test_a_length_that_the_template_leaves_no_room_in_is_refused(folder: Path, tmp_path: Path) -> None:
    made = inputs(tmp_path, config(folder))
    short = RETRIEVAL.model_copy(update={"lengths": (70,), "tasks": {}})
    plain = inputs(tmp_path / "plain", config(folder, chat_template=False))
    for name, source in (("plain", plain), ("chat", made)):
        (tmp_path / f"out-{name}").mkdir()
        context = LocalContext(str(tmp_path / f"work-{name}"))
        if name == "plain":
            STAGE.run(
                PromptsConfig(retrieval=short.model_copy(update={"binding_trials": 0, "control_trials": 0}), seed=3),
                source,
                tmp_path / f"out-{name}",
                context,
            )
        else:
            with pytest.raises(StageError, match=r"evaluate\.retrieval\.lengths = 70: .*does not fit"):
                STAGE.run(PromptsConfig(retrieval=short, seed=3), source, tmp_path / f"out-{name}", context)
