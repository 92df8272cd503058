"""Checkpoints of other formats (GGUF, pickled ``.bin``) made into a folder that ``base: {init: hf}`` reads, by
transformers, which must be installed; no part of a study."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from model.config import MixerConfig, ModelConfig, TrunkConfig
from stages.stage import StageError

EXTRA = "pip install 'infini-study[import]'"


@dataclass(frozen=True)
class Converted:
    """What a study file says of the folder. stops: texts of the tokens at which the model stops, the first one's the
    ``eos_token``; none where there is no tokenizer."""

    trunk: TrunkConfig
    vocab_size: int
    revision: str
    stops: tuple[str, ...]


def convert(source: Path, output: Path) -> Converted:
    """Write config.json, model.safetensors and, where there is one, the tokenizer of ``source`` into ``output``, a new
    or empty folder. Weights keep their dtype; quantised ones become float32. The bytes of both files do not depend on
    the version of transformers that read ``source``.

    source: a .gguf file, or a folder that holds one, or any other checkpoint that transformers loads. Raises StageError
    for one of another architecture before its weights are read, and where transformers or what it needs is missing.
    """
    file = _gguf(source)
    folder = source.parent if source.is_file() else source
    _check_installed(file)
    from transformers import AutoConfig

    from model.checkpoint import filled, save
    from model.llama import shape
    from stages.training.pretrain.imported import folder_digest
    from stages.training.whole import load_whole

    where: dict[str, Any] = {"gguf_file": file} if file else {}
    try:
        known = AutoConfig.from_pretrained(folder, local_files_only=True, **where)
    except Exception as error:  # of a dozen kinds, and none of them says what the user gave
        raise _unreadable(source, error) from error
    try:
        trunk, vocab_size = shape(known.to_dict() | {"quantization_config": None}, folder)
    except ValueError as error:
        raise StageError(str(error), field="SOURCE", value=str(source)) from error
    if file:  # its numbers are float32: 1e-5 arrives as 9.999999747378752e-06
        trunk = dataclasses.replace(trunk, norm_eps=float(f"{trunk.norm_eps:.7g}"))
    try:
        loaded = load_whole("AutoModelForCausalLM", folder, dtype="auto", **where)
    except ValueError as error:
        raise _unreadable(source, error) from error
    kept = {"eos_token_id": _stops(loaded)}
    kept |= {name: getattr(known, name, None) for name in ("bos_token_id", "pad_token_id", "max_position_embeddings")}
    config = ModelConfig(trunk=trunk, mixer=MixerConfig(kind="full", segment_length=1), vocab_size=vocab_size)
    output.mkdir(parents=True, exist_ok=True)
    try:
        save(filled(config, loaded.state_dict(), source), output, like=kept)
        stops = _tokenizer(folder, where, output, kept["eos_token_id"])
    except BaseException:
        shutil.rmtree(output)
        raise
    return Converted(trunk, vocab_size, folder_digest(output), stops)


def _gguf(source: Path) -> str | None:
    """Name of the GGUF file that ``source`` is or holds; None for another folder."""
    if source.is_file() and source.suffix == ".gguf":
        return source.name
    if not source.is_dir():
        raise StageError(
            "no such checkpoint",
            field="SOURCE",
            value=str(source),
            allowed="a .gguf file or a folder",
            fix="correct it",
        )
    found = sorted(file.name for file in source.glob("*.gguf"))
    if (source / "config.json").is_file() or not found:
        return None
    if len(found) > 1:
        raise StageError(
            "holds several", field="SOURCE", value=str(source), allowed=", ".join(found), fix="name one of the files"
        )
    return found[0]


def _check_installed(gguf: str | None) -> None:
    for module in ("transformers", *(("gguf", "accelerate", "sentencepiece") if gguf else ())):
        if importlib.util.find_spec(module) is None:
            raise StageError(f"{module} is not installed, which reads this checkpoint", fix=EXTRA)


def _unreadable(source: Path, error: Exception) -> StageError:
    said = " ".join(str(error).split())[:300]
    return StageError(f"transformers cannot read it: {said}", field="SOURCE", value=str(source))


def _stops(model: Any) -> int | list[int] | None:
    """The tokens at which the model stops, those that only its generation_config names among them."""
    named: dict[int, None] = {}
    for of in (model.config.eos_token_id, getattr(model.generation_config, "eos_token_id", None)):
        named |= dict.fromkeys(of if isinstance(of, list) else [] if of is None else [of])
    stops = list(named)
    return stops if len(stops) > 1 else stops[0] if stops else None


def _tokenizer(folder: Path, where: dict[str, Any], output: Path, stops: int | list[int] | None) -> tuple[str, ...]:
    """Write the tokenizer; the texts of ``stops``."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **where)
    except Exception:  # there is none, or none that this transformers reads: the study then names another
        return ()
    tokenizer.save_pretrained(output)
    if not (output / "tokenizer.json").is_file():
        return ()
    ids = stops if isinstance(stops, list) else [] if stops is None else [stops]
    texts = [text for text in cast("list[str]", tokenizer.convert_ids_to_tokens(ids)) if text]
    return tuple(texts or ([str(tokenizer.eos_token)] if tokenizer.eos_token else []))


def study_sections(converted: Converted, folder: Path) -> dict[str, Any]:
    """The sections trunk, base and tokenizer of a study that starts from it."""
    sections: dict[str, Any] = {
        "trunk": json.loads(json.dumps({k: v for k, v in converted.trunk.key_fields().items() if v is not None})),
        "base": {"init": "hf", "path": str(folder), "revision": converted.revision},
    }
    if converted.stops:
        tokenizer = {"kind": "file", "path": str(folder / "tokenizer.json"), "eos_token": converted.stops[0]}
        sections["tokenizer"] = tokenizer
    return sections
