"""Makes the study's tokenizer.json: trained byte-level BPE, plain bytes, or a given one."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.data.pinned import digest_of, unchanged
from stages.data.tokens.chat import TEMPLATE
from stages.data.tokens.config import TokenizerConfig
from stages.data.tokens.library import control_strings, looks_like_control, put_before, read_library, rows, text_only
from stages.data.tokens.pin import chat_template, read_tokenizer
from stages.stage import Artifact, Context, StageError, Summary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

PAD, EOS = "<pad>", "<eos>"
_CHUNK = 1 << 16  # bytes handed to the trainer at once, so that progress moves inside long books


def make_tokenizer(config: TokenizerConfig, documents: Artifact, output: Path, context: Context) -> Summary:
    """Write tokenizer.json and meta.json {kind, vocab_size, eos_id, pad_id, bos_id}.

    Raises StageError for a file without the named tokens or that does not round-trip text.
    """
    if config.kind in ("file", "hub"):
        assert config.path is not None and config.eos_token is not None
        content = read_tokenizer(config)
        assert content is not None
        if config.kind == "file":
            unchanged(digest_of(content), config.pin, field="tokenizer.pin", what="the tokenizer")
        tokenizer = read_library(config.path, content)
        eos = token_id(tokenizer, "eos_token", config.eos_token)
        pad = eos if config.pad_token is None else token_id(tokenizer, "pad_token", config.pad_token)
        bos = begin_id(tokenizer, config)
        tokenizer = _with_control(tokenizer, [i for i in (eos, pad, bos) if i is not None], context)
        chat = _chat(config, tokenizer, output) if config.chat_template else {}
    else:
        bos, chat = None, {}
        tokenizer = byte_level()
        if config.kind == "bpe":
            tokenizer = _with_numbers(_train(tokenizer, config, documents, context), config.number_digits)
        eos, pad = token_id(tokenizer, "eos_token", EOS), token_id(tokenizer, "pad_token", PAD)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(output / "tokenizer.json"))
    meta = {"kind": config.kind, "vocab_size": rows(tokenizer), "eos_id": eos, "pad_id": pad, "bos_id": bos} | chat
    (output / "meta.json").write_text(json.dumps(meta, indent=1))
    size = rows(tokenizer)
    begins = f", documents begin with {tokenizer.id_to_token(bos)}" if bos is not None else ""
    within = ", prompts within its chat template" if chat else ""
    return Summary(f"{config.kind} tokenizer, {size} tokens{begins}{within}", {"vocab_size": float(size)})


def _chat(config: TokenizerConfig, tokenizer: Library, output: Path) -> dict[str, Any]:
    """What meta.json says of the chat template, which is kept beside it. Raises StageError where it is not the pinned
    one."""
    template = chat_template(config)
    unchanged(template.digest, config.chat_pin, field="tokenizer.chat_pin", what="the chat template")
    before, behind = template.around(tokenizer, field="tokenizer.chat_template")
    (output / TEMPLATE).write_text(template.text, encoding="utf-8")
    return {"chat": {"before": list(before), "behind": list(behind), "template": template.digest}}


def begin_id(tokenizer: Library, config: TokenizerConfig) -> int | None:
    """The token that begins a document: the one that is named, else the one that the tokenizer puts before any text by
    itself, as Llama's do. Raises StageError for a name that it does not have."""
    if config.bos_token is not None:
        return token_id(tokenizer, "bos_token", config.bos_token) if config.bos_token else None
    return put_before(tokenizer)


def _with_control(tokenizer: Library, ids: list[int], context: Context) -> Library:
    """With the tokens ``ids``, and added ones that look like it, as control tokens, whose strings in a text do not
    become them."""
    from tokenizers import AddedToken, Tokenizer

    marks = [token.content for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
    names = [*(tokenizer.id_to_token(i) for i in ids), *filter(looks_like_control, marks)]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    if json.loads(tokenizer.to_str())["model"]["type"] == "Unigram":
        # Its search may choose any piece; SentencePiece, where these come from, leaves the control pieces out.
        described = json.loads(tokenizer.to_str())
        control = set(control_strings(tokenizer))
        pieces = described["model"]["vocab"]
        least = min(score for _, score in pieces)
        described["model"]["vocab"] = [[piece, least - 1000 if piece in control else score] for piece, score in pieces]
        tokenizer = Tokenizer.from_str(json.dumps(described))
    text_only(tokenizer)
    taken = [
        text
        for text in control_strings(tokenizer)
        if tokenizer.token_to_id(text) in tokenizer.encode(f"a {text} b", add_special_tokens=False).ids
    ]
    if taken:
        context.warn(f"tokenizer: it has whole words for tokens; {', '.join(taken[:3])} in a text is a control token")
    return tokenizer


def byte_level(number_digits: int = 1) -> Library:
    """A tokenizer whose only tokens are the specials (ids 0, 1) and the 256 bytes. Digits come in pieces of
    ``number_digits``, never with letters; from two on with the space in front of them, as words do."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    # Pieces of a fixed size, as Llama's: a passkey is then as many tokens whatever the training text.
    digits = (
        pre_tokenizers.Digits(individual_digits=True)
        if number_digits == 1
        else pre_tokenizers.Split(Regex(f" ?[0-9]{{1,{number_digits}}}"), "isolated")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, EOS])
    return tokenizer


def _train(tokenizer: Library, config: TokenizerConfig, documents: Artifact, context: Context) -> Library:
    """Digits are single here, so that the tokens for numbers stay free for ``_with_numbers``."""
    from tokenizers import pre_tokenizers, trainers

    assert config.vocab_size is not None
    wanted = config.vocab_size - (config.smallest - 258)
    trainer = trainers.BpeTrainer(
        vocab_size=wanted,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(config, documents, context), trainer)
    if (found := tokenizer.get_vocab_size()) != wanted:
        total = found + config.vocab_size - wanted
        context.warn(f"tokenizer: the training text gives {total} tokens only, not vocab_size = {config.vocab_size}")
    return tokenizer


def _with_numbers(trained: Library, number_digits: int) -> Library:
    """``trained`` with a token for every number of up to ``number_digits`` digits, leading zeros and all, with and
    without a space in front, and with its runs of digits cut into such pieces. It was trained with digits apart from
    everything, so none of its merges can meet them."""
    from tokenizers import Tokenizer, pre_tokenizers

    if number_digits == 1:
        return trained
    described = json.loads(trained.to_str())
    model = described["model"]
    space = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(" ")[0][0]
    numbers = [f"{n:0{digits}}" for digits in range(1, number_digits + 1) for n in range(10**digits)]
    for token in numbers[10:]:
        model["vocab"][token] = len(model["vocab"])
        # whichever part of it was merged before: merges are done in this order, the shortest and smallest first
        model["merges"] += [[token[:cut], token[cut:]] for cut in range(1, len(token))]
    for token in numbers:  # last, when the number is whole
        model["vocab"][space + token] = len(model["vocab"])
        model["merges"].append([space, token])
    described["pre_tokenizer"] = json.loads(byte_level(number_digits).to_str())["pre_tokenizer"]
    return Tokenizer.from_str(json.dumps(described))


def _training_text(config: TokenizerConfig, documents: Artifact, context: Context) -> Iterator[str]:
    """The beginning of every training document, as much of each as brings all to ``train_bytes`` together."""
    from stages.data.corpus.documents import read_texts  # not above: a plan is made without pyarrow

    total = sum(len(text.data) for text in read_texts(documents.path("documents"), ["train"]))
    share = min(1.0, config.train_bytes / max(1, total))
    done = 0
    for text in read_texts(documents.path("documents"), ["train"]):
        end = max(1, int(len(text.data) * share))
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, end, _CHUNK):
            yield decoder.decode(text.data[start : min(end, start + _CHUNK)])
        done += end
        context.progress(done, total * share, "bytes")


def token_id(tokenizer: Library, field: str, token: str) -> int:
    """The id of the token that ``tokenizer.<field>`` names. Raises StageError where there is none."""
    found = tokenizer.token_to_id(token)
    if found is None:
        special = [t.content for t in tokenizer.get_added_tokens_decoder().values()][:20]
        raise StageError("no such token", field=f"tokenizer.{field}", value=token, allowed=", ".join(special))
    return int(found)
