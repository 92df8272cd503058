"""Run as a script, apart from this repository: opens exported folders with transformers and notes what it finds.

python -I exported.py FOLDER     FOLDER/<arm>/ are exports, FOLDER/asked.pt says what to do with them
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

# neither the folder of the repository nor an editable installation of it
sys.path[:] = [entry for entry in sys.path if not (Path(entry) / "model" / "decoder.py").is_file()]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]


def main(folder: Path) -> None:
    assert importlib.util.find_spec("model") is None, "this package must not be importable here"
    import torch

    asked = torch.load(folder / "asked.pt")
    found = {arm: look(folder / arm, asked) for arm in asked["arms"]}
    ours = [name for name in sys.modules if name.split(".")[0] in ("model", "stages", "pipeline")]
    assert not ours, ours
    torch.save(found, folder / "found.pt")


def look(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    found: dict[str, Any] = {"config": type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__}
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    found["model"] = type(model).__name__
    with torch.no_grad():
        found["logits"] = model(asked["tokens"]).logits
        found["last"] = model(asked["tokens"], logits_to_keep=3).logits
        first = model(asked["tokens"][:, :11], use_cache=True)
        rest = model(asked["tokens"][:, 11:], past_key_values=first.past_key_values, use_cache=True)
        found["in two"] = torch.cat([first.logits, rest.logits], dim=1)
        found["padded left"] = model(asked["padded"], attention_mask=asked["mask"]).logits
        below = model.base_model(input_ids=asked["padded"], attention_mask=asked["mask"], use_cache=False)
        found["below"] = below.last_hidden_state @ model.get_output_embeddings().weight.T
        right = {"attention_mask": asked["mask"].flip(1), "labels": asked["labels"]}
        found["loss"] = model(asked["padded right"], **right).loss
        embedded = model.get_input_embeddings()(asked["tokens"])
        found["embedded"] = model(inputs_embeds=embedded).logits
    settings = {"attention_mask": asked["mask"], "max_new_tokens": asked["new"], "pad_token_id": 0}
    said = model.generate(asked["padded"], do_sample=False, **settings)
    found["greedy"] = said[:, asked["padded"].shape[1] :].tolist()
    settings["max_new_tokens"] = 6
    beams = {"num_beams": 3, "do_sample": False, **settings}
    found["beams"] = [model.generate(asked["padded"], use_cache=use, **beams).tolist() for use in (True, False)]
    said = model.generate(inputs_embeds=model.get_input_embeddings()(asked["padded"]), do_sample=False, **settings)
    found["greedy embedded"] = said.tolist()
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        said = model.generate(asked["padded"], do_sample=True, top_p=0.9, temperature=1.5, **settings)
        samples.append(said.tolist())
    found["samples"] = samples
    if found["model"] == "InfiniStudyForCausalLM":
        found["refusals"] = refusals(model, folder, asked)
        found["training"] = training(model, asked)
    model.save_pretrained(folder / "again")
    again = AutoModelForCausalLM.from_pretrained(folder / "again", trust_remote_code=True).eval()
    rounded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
    with torch.no_grad():
        found["again"] = again(asked["tokens"]).logits
        found["rounded"] = rounded.eval()(asked["tokens"]).logits
    found["dtypes"] = {name: str(p.dtype).removeprefix("torch.") for name, p in rounded.named_parameters()}
    again.resize_token_embeddings(model.config.vocab_size + 5)
    again.save_pretrained(folder / "resized")
    resized = AutoModelForCausalLM.from_pretrained(folder / "resized", trust_remote_code=True).eval()
    with torch.no_grad():
        found["resized"] = resized(asked["tokens"]).logits
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found["ids"], found["eos"] = tokenizer("a b a").input_ids, (tokenizer.eos_token, model.config.eos_token_id)
    return found


def training(model: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Hidden states, and loss and gradients of rows padded at the right, as trainers ask for them."""
    import torch

    found: dict[str, Any] = {}
    plain = type(model.model.stream).__name__ == "Stream"
    if plain:
        with torch.no_grad():
            states = model(asked["padded"], attention_mask=asked["mask"], output_hidden_states=True).hidden_states
            embeddings = model.get_input_embeddings()
            weight = embeddings.weight if model.lm_head is None else model.lm_head.weight
            found["first"] = states[0] - embeddings(asked["padded"]) * asked["mask"].unsqueeze(-1)
            found["layers"], found["states as logits"] = len(states), states[-1] @ weight.T
    inputs = {"input_ids": asked["padded right"], "attention_mask": asked["mask"].flip(1), "labels": asked["labels"]}
    count = int((asked["labels"][:, 1:] != -100).sum())
    model.train()
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        output = model(**inputs, num_items_in_batch=2 * count)
        assert output.past_key_values is None
        output.loss.backward()
        found[f"loss {checkpointing}"] = output.loss.detach()
        found[f"gradients {checkpointing}"] = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)
    model.gradient_checkpointing_disable()
    model.eval()
    return found


def refusals(model: Any, folder: Path, asked: dict[str, Any]) -> dict[str, str]:
    """What it says of requests it cannot serve."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    ids, right = asked["padded"], asked["mask"].flip(1)
    holes = asked["mask"].clone()
    holes[:, -2] = 0
    requests: dict[str, Any] = {
        "static": lambda: model.generate(ids, cache_implementation="static", max_new_tokens=2, pad_token_id=0),
        "cache": lambda: model(ids, past_key_values=DynamicCache()),
        "packed": lambda: model(ids, position_ids=torch.arange(ids.shape[1])[None] % 5),
        "weights": lambda: model(ids, output_attentions=True),
        "right": lambda: model(ids, attention_mask=right, use_cache=True),
        "holes": lambda: model(ids, attention_mask=holes),
        "nothing": lambda: model(ids, attention_mask=holes * 0),
        "embeddings": lambda: model(ids, inputs_embeds=ids),
        "labels": lambda: model(ids, labels=ids, logits_to_keep=2),
        "assistant": lambda: model.generate(ids[:1], assistant_model=model, max_new_tokens=2, pad_token_id=0),
        "untrusted": lambda: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False),
    }
    said = {}
    for name, request in requests.items():
        try:
            request()
        except (ValueError, NotImplementedError) as error:
            said[name] = str(error)
    return said


if __name__ == "__main__":
    main(Path(sys.argv[1]))
