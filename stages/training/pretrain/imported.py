"""``base: {init: hf}``: a checkpoint of Llama or a family next to it as the shared starting point."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from model.config import MixerConfig, RopeScaling, TrunkConfig
from model.llama import read_config, shape, weight_files
from stages.data.pinned import agreed
from stages.stage import Context, StageError, Summary
from stages.training.pretrain.config import BaseConfig


def file_digest(file: Path) -> str:
    """sha256 of the content, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_digest(folder: Path, digest: Callable[[Path], str] = file_digest) -> str:
    """``sha256:...`` over names, and sha256 of the content, of config.json and the safetensors files."""
    whole = hashlib.sha256()
    for file in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors*")]):
        whole.update(f"{file.name} {digest(file)}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def check_folder(config: BaseConfig, vocabulary: int | None, digest: Callable[[Path], str] = file_digest) -> None:
    """Everything about a local checkpoint that its files tell without loading it; nothing for a Hub id.

    ``vocabulary``: size of the study's tokenizer, None where it is not known yet. Raises StageError for a folder that
    is missing, not the pinned one, of another architecture or shape, or with fewer tokens than the tokenizer.
    """
    assert config.path is not None and config.revision is not None  # checked by the config
    folder = Path(os.path.expanduser(config.path))
    if not folder.is_dir():
        if not config.revision.startswith("sha256:") and not config.path.startswith((".", "/", "~")):
            return  # a Hub id
        raise StageError(
            "no such folder",
            field="base.path",
            value=config.path,
            allowed="a folder with config.json and *.safetensors",
            fix="correct the path (relative ones start at the study file), or give a Hub id and its commit",
        )
    try:
        trunk, size = shape(read_config(folder), folder)
        weight_files(folder)
    except ValueError as error:
        raise StageError(str(error), field="base.path", value=config.path) from error
    _check_shape(config, trunk, size, vocabulary)
    what = f"the checkpoint in {folder}"
    agreed(folder_digest(folder, digest), config.revision, field="base.revision", what=what, required=True)


def _check_shape(config: BaseConfig, trunk: TrunkConfig, size: int, vocabulary: int | None) -> None:
    if vocabulary is not None and size < vocabulary:  # more rows than tokens is padding: Qwen, OLMo
        raise StageError(
            f"the checkpoint has {size} tokens, the study's tokenizer {vocabulary}",
            field="base.path",
            value=config.path,
            allowed=f"checkpoints of {vocabulary} tokens or more",
            fix="use the checkpoint's own tokenizer: tokenizer: {kind: file, path: .../tokenizer.json}",
        )
    derived = {"kv_heads": "n_kv_heads", "head_dim": "d_head", "ffn_dim": "d_ffn"}  # where None stands for a default
    for field in dataclasses.fields(config.trunk):
        name = field.name
        found, stated = (getattr(shape_, derived.get(name, name)) for shape_ in (trunk, config.trunk))
        if found != stated:
            found, stated = (_as_written(value) for value in (found, stated))
            raise StageError(
                f"the checkpoint's is {found}",
                field=f"trunk.{name}",
                value=stated,
                allowed=str(found),
                fix=f"write {name}: {found} into the trunk section" if found is not None else f"leave {name} out",
            )


def _as_written(value: object) -> object:
    """A field of the trunk as it stands in a study file."""
    if isinstance(value, RopeScaling):
        return "{" + ", ".join(f"{name}: {_as_written(part)}" for name, part in value.given().items()) + "}"
    return list(value) if isinstance(value, tuple) else value


def find(config: BaseConfig, context: Context) -> Path:
    """The checkpoint's local folder, downloaded if ``path`` is a Hub id.

    Raises StageError if a local folder's content is not what ``revision`` pins.
    """
    assert config.path is not None and config.revision is not None  # checked by the config
    check_folder(config, None)
    folder = Path(os.path.expanduser(config.path))
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
    return folder


def import_base(config: BaseConfig, vocabulary: int, output: Path, context: Context) -> Summary:
    """Write the imported model below ``output``, with an empty training log.

    Raises StageError if the checkpoint is of another architecture or shape than the study's, or has fewer tokens than
    its tokenizer.
    """
    from model.checkpoint import graft, save
    from stages.training.pretrain.checkpoint import RunState
    from stages.training.pretrain.run import summary
    from stages.training.pretrain.worker import write_tables

    folder = find(config, context)
    context.progress(0, 1, "checkpoints")
    try:
        decoder = graft(folder, MixerConfig(kind="full", segment_length=1), seed=0)
    except ValueError as error:
        raise StageError(str(error), field="base.path", value=config.path) from error
    _check_shape(config, decoder.config.trunk, decoder.config.vocab_size, vocabulary)
    save(decoder, output / "model", like=folder)
    write_tables(output, decoder.config, 1, RunState())
    context.progress(1, 1, "checkpoints")
    return summary(output)
