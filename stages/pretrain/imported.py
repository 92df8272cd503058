"""``base: {init: hf}``: a Llama-family checkpoint as the shared starting point."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from model.config import MixerConfig
from stages.pretrain.config import BaseConfig
from stages.stage import Context, StageError, Summary


def folder_digest(folder: Path) -> str:
    """``sha256:...`` over names, and sha256 of the content, of config.json and the safetensors files."""
    whole = hashlib.sha256()
    for file in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors*")]):
        with file.open("rb") as stream:
            whole.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def find(config: BaseConfig, context: Context) -> Path:
    """The checkpoint's local folder, downloaded if ``path`` is a Hub id.

    Raises StageError if a local folder's content is not what ``revision`` pins.
    """
    assert config.path is not None and config.revision is not None  # checked by the config
    folder = Path(config.path).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        context.log(f"fetching {config.path} at {config.revision}")
        try:
            return Path(
                snapshot_download(
                    config.path, revision=config.revision, allow_patterns=["config.json", "*.safetensors*"]
                )
            )
        except Exception as error:  # the Hub's client has a dozen kinds: none can be told from the others by a user
            raise StageError(
                f"neither a folder nor a model that can be fetched: {error}",
                field="base.path",
                value=config.path,
                fix="check the id, the revision and the network",
            ) from error
    digest = folder_digest(folder)
    if digest != config.revision:
        raise StageError(
            f"the checkpoint in {folder} is {digest}",
            field="base.revision",
            value=config.revision,
            allowed=digest,
            fix="set base.revision to it, if this is the checkpoint you mean",
        )
    return folder


def import_base(config: BaseConfig, vocabulary: int, output: Path, context: Context) -> Summary:
    """Write the imported model below ``output``, with an empty training log.

    Raises StageError if the checkpoint is of another architecture, vocabulary size or shape than the study's.
    """
    from model.checkpoint import graft, save
    from stages.pretrain.checkpoint import RunState
    from stages.pretrain.run import summary
    from stages.pretrain.worker import write_tables

    folder = find(config, context)
    context.progress(0, 1, "checkpoints")
    try:
        decoder = graft(folder, MixerConfig(kind="full", segment_length=1), seed=0)
    except ValueError as error:
        raise StageError(str(error), field="base.path", value=config.path) from error
    if decoder.config.vocab_size != vocabulary:
        raise StageError(
            f"the checkpoint has {decoder.config.vocab_size} tokens, the study's tokenizer {vocabulary}",
            field="base.path",
            value=config.path,
            fix="use the checkpoint's own tokenizer: tokenizer: {kind: file, path: .../tokenizer.json}",
        )
    derived = {"kv_heads": "n_kv_heads", "head_dim": "d_head", "ffn_dim": "d_ffn"}  # where None stands for a default
    for field in dataclasses.fields(config.trunk):
        name = field.name
        found, stated = (getattr(trunk, derived.get(name, name)) for trunk in (decoder.config.trunk, config.trunk))
        if found != stated:
            raise StageError(f"the checkpoint's is {found!r}", field=f"trunk.{name}", value=stated, allowed=repr(found))
    save(decoder, output / "model")
    write_tables(output, decoder.config, 1, RunState())
    context.progress(1, 1, "checkpoints")
    return summary(output)
