"""A local checkpoint as judge, by the Hugging Face library: the same questions, the same reading of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stages.data.pinned import folder_digest, unchanged
from stages.evidence.judge.cache import Cache
from stages.evidence.judge.client import Reply
from stages.evidence.judge.ledger import Ledger, Usage
from stages.evidence.judge.requests import Request
from stages.evidence.rate.config import LocalModel
from stages.evidence.rate.encoder import open_model


def ask_all(
    asked: Sequence[Request],
    local: LocalModel,
    device: str,
    cache: Cache,
    ledger: Ledger,
    progress: Callable[[int], None],
) -> dict[str, Reply]:
    """digest -> reply. A question longer than the model reads is refused, not cut."""
    import torch

    unchanged(folder_digest(Path(local.path)), local.pin, field="judge.local.pin", what="the folder")
    found: dict[str, Reply] = {}
    tokenizer, model = open_model(local.path, "AutoModelForCausalLM", device, "judge.local")
    room = getattr(model.config, "max_position_embeddings", None)
    for one in asked:
        if one.digest in found:
            continue
        known = cache.get(one.digest)
        if known is not None:
            found[one.digest] = Reply.of(known)
            ledger.cached += 1
            continue
        messages = one.body["messages"]
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = "\n\n".join(message["content"] for message in messages) + "\n"
        ids = tokenizer(text, add_special_tokens=not tokenizer.chat_template, return_tensors="pt")["input_ids"]
        length = int(ids.shape[1])
        if room is not None and length + one.body["max_tokens"] > room:
            reply = Reply(None, Usage(0, 0), reason=f"{length} tokens: the model reads {room}")
        else:
            torch.manual_seed(one.body.get("seed", 0))
            warm = one.body["temperature"] > 0
            with torch.inference_mode():
                said = model.generate(
                    ids.to(model.device),
                    attention_mask=torch.ones_like(ids, device=model.device),
                    max_new_tokens=one.body["max_tokens"],
                    do_sample=warm,
                    temperature=one.body["temperature"] if warm else None,
                    top_p=None,
                    top_k=None,
                    pad_token_id=tokenizer.pad_token_id
                    if tokenizer.pad_token_id is not None
                    else tokenizer.eos_token_id,
                )[0, length:]
            reply = Reply(tokenizer.decode(said, skip_special_tokens=True), Usage(length, len(said)), one.body["model"])
        ledger.sent += 1
        ledger.settle(Usage(0, 0), reply.usage)
        cache.put(one.digest, {"body": one.body, "reply": reply.to_dict()})
        found[one.digest] = reply
        progress(len(found))
    return found
