"""A folder that transformers opens on a machine that does not have this package.

Full attention is a Llama, or of its base's family, and is exported as one: no code, any program for the family runs it.
Every other arm takes its code along: the files of ``model/`` that its decoder is made of, flattened into the folder
(``model/mixers/base.py`` becomes ``mixers_base.py``, its imports relative ones), behind the interface of
``huggingface/modeling_infini_study.py``, which config.json names. transformers runs that code only if it is called with
``trust_remote_code=True``; without, it says what it misses.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import gates_of, save
from model.decoder import Decoder
from model.llama import family_of

ROOT = Path(__file__).parent
NAMED = r'"(\.mixers\.\w+):\w+"'
"""Mixers as the records of ``model.kinds`` name them."""
PACKAGE = ROOT.name
ENTRY = ROOT / "huggingface" / "modeling_infini_study.py"
ANY_LENGTH = 2**20
"""Longest position an arm is said to have that reads text of any length: programs cut prompts there, so it must not be
the base's, and some make tensors of that size, so it must not be without bound."""
AUTO_MAP = {
    "AutoConfig": "modeling_infini_study.InfiniStudyConfig",
    "AutoModelForCausalLM": "modeling_infini_study.InfiniStudyForCausalLM",
}


def export(
    decoder: Decoder,
    directory: str | Path,
    *,
    like: str | Path | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int | None = 5 * 10**9,
    tokenizer: str | Path | None = None,
    special_tokens: Mapping[str, int] | None = None,
) -> None:
    """Write ``decoder`` so that ``AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)`` opens it.

    like, dtype, shard_bytes: as ``checkpoint.save`` takes them. tokenizer: a tokenizer.json, which ``AutoTokenizer``
    then opens. special_tokens: ids of bos, eos, pad; needs the tokenizer, which knows their texts. Other tokens that
    ``like`` stops at (an instruct model's end of turn) stay stop tokens, behind the eos named here.
    Raises ValueError for a tokenizer that has no such token or more tokens than the decoder.
    """
    directory = Path(directory)
    unknown = set(special_tokens or ()) - {"bos", "eos", "pad"}
    if unknown:
        raise ValueError(f"special_tokens: {sorted(unknown)[0]!r} is not known (allowed: bos, eos, pad)")
    if special_tokens and tokenizer is None:
        raise ValueError(f"special_tokens = {dict(special_tokens)}: need the tokenizer they belong to")
    texts = {} if tokenizer is None else _texts(Path(tokenizer), decoder.config.vocab_size, special_tokens or {})
    save(decoder, directory, like=like, dtype=dtype, shard_bytes=shard_bytes)
    fields: dict[str, Any] = json.loads((directory / "config.json").read_text())
    stops = fields.get("eos_token_id")
    fields |= {f"{name}_token_id": number for name, number in (special_tokens or {}).items()}
    if stops is not None and "eos" in (special_tokens or {}):
        stops = dict.fromkeys([fields["eos_token_id"], *(stops if isinstance(stops, list) else [stops])])
        fields["eos_token_id"] = list(stops) if len(stops) > 1 else fields["eos_token_id"]
    if decoder.config.mixer.kind != "full":
        fields["max_position_embeddings"] = ANY_LENGTH
    if family_of(decoder.config) is None:
        gates = sorted({name.rpartition(".")[2] for name in gates_of(decoder)})
        fields |= {"auto_map": AUTO_MAP, "keep_in_float32": gates}
        for name, text in sources().items():
            (directory / name).write_text(text, encoding="utf-8")
    _write_json(directory / "config.json", fields)
    if tokenizer is not None:
        shutil.copyfile(tokenizer, directory / "tokenizer.json")
        tokens = {f"{name}_token": text for name, text in texts.items()}
        _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | tokens)


def sources() -> dict[str, str]:
    """File name -> text of all that the exported model runs: the entry and every file of the package it imports,
    directly or through others."""
    found: dict[str, str] = {}
    waiting = [ENTRY]
    while waiting:
        file = waiting.pop()
        name = f"{_flat(file)}.py"
        if name not in found:
            found[name], imported = _rewrite(file)
            waiting += imported
    # transformers 4 brings to its cache only the files that the entry itself names
    others = [f"    from .{Path(name).stem} import *\n" for name in sorted(found) if name != ENTRY.name]
    found[ENTRY.name] += "\n\nif False:  # never run: for programs that look for the files this one needs\n" + "".join(
        others
    )
    return dict(sorted(found.items()))


def _rewrite(file: Path) -> tuple[str, list[Path]]:
    """The text of a file with imports of this package made relative to one flat folder, and the files they name."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    imported = []
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == PACKAGE for alias in node.names):
            raise ValueError(f"{file}:{node.lineno}: exported files import with 'from {PACKAGE}.x import y' only")
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != PACKAGE:
            continue
        assert node.module is not None
        target = _file(node.module)
        if any((target.parent / f"{alias.name}.py").is_file() for alias in node.names if target.stem == "__init__"):
            raise ValueError(f"{file}:{node.lineno}: exported files import names from modules, not modules")
        old = lines[node.lineno - 1]
        lines[node.lineno - 1] = re.sub(rf"from {re.escape(node.module)} import", f"from .{_flat(target)} import", old)
        imported.append(target)
    text = "".join(lines)
    for place in dict.fromkeys(re.findall(NAMED, text)):  # imported when they are needed
        target = _file(PACKAGE + place)
        text = text.replace(f'"{place}:', f'".{_flat(target)}:')
        imported.append(target)
    return text, imported


def _file(module: str) -> Path:
    """model.x.y -> .../x/y.py, or .../x/y/__init__.py."""
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _flat(file: Path) -> str:
    """.../mixers/base.py -> mixers_base; .../mixers/__init__.py -> mixers; the entry keeps its own name."""
    if file == ENTRY:
        return file.stem
    parts = file.relative_to(ROOT).with_suffix("").parts
    return "_".join(part for part in parts if part != "__init__")


def _texts(tokenizer: Path, vocab_size: int, special: Mapping[str, int]) -> dict[str, str]:
    """The texts of the special tokens, out of a tokenizer.json."""
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    added = {entry["id"]: entry["content"] for entry in content.get("added_tokens", [])}
    vocabulary = content.get("model", {}).get("vocab", {})
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((e[0], i) for i, e in enumerate(vocabulary))
    known = {number: text for text, number in pairs} | added
    if known and max(known) >= vocab_size:
        raise ValueError(f"{tokenizer}: token {max(known)} is not in the model (allowed: 0 to {vocab_size - 1})")
    for name, number in special.items():
        if number not in known:
            raise ValueError(f"special_tokens: {name} = {number}: {tokenizer} has no such token")
    return {name: known[number] for name, number in special.items()}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
