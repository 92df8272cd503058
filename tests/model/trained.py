"""Run as a script, apart from this repository: trains exported folders with PEFT and TRL, as their users would.

python -I trained.py FOLDER SITE    FOLDER/<arm>/ are exports, FOLDER/asked.pt says what to do; SITE holds PEFT
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

# neither the folder of the repository nor an editable installation of it
sys.path[:] = [entry for entry in sys.path if not (Path(entry) / "model" / "decoder.py").is_file()]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(folder: Path, site: str) -> None:
    sys.path.append(site)
    assert importlib.util.find_spec("model") is None, "this package must not be importable here"
    import torch

    asked = torch.load(folder / "asked.pt")
    found = {arm: look(folder / arm, asked) for arm in asked["arms"]}
    found["preferences"] = preferences(folder / "infini-delta", asked)
    torch.save(found, folder / "found.pt")


def opened(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def words(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def settings(kind: Any, folder: Path, **more: Any) -> Any:
    return kind(
        output_dir=str(folder / "out"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_steps=3,
        logging_steps=1,
        save_strategy="no",
        per_device_train_batch_size=4,
        learning_rate=5e-2,
        max_length=None,
        disable_tqdm=True,
        **more,
    )


def tuned(folder: Path, asked: dict[str, Any], **more: Any) -> tuple[Any, list[float]]:
    """The model after three steps on rows of unequal lengths, padded at the right by TRL; and its losses."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list([{"input_ids": row} for row in asked["rows"]])
    adapter = more.pop("peft_config", None)
    arguments = settings(SFTConfig, folder, packing=False, **more)
    trainer = SFTTrainer(
        opened(folder), arguments, train_dataset=rows, processing_class=words(folder), peft_config=adapter
    )
    trainer.train()
    return trainer.model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def look(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    import torch
    from peft import LoraConfig, PeftModel

    found: dict[str, Any] = {}
    ids = asked["tokens"]

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model.eval()(ids).logits

    plain = opened(folder)
    found["before"] = logits(plain)
    # low-rank adapters, activations recomputed
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM")
    model, found["adapter losses"] = tuned(folder, asked, gradient_checkpointing=True, peft_config=adapter)
    found["adapted"] = logits(model)
    model.save_pretrained(folder / "adapter")
    again = PeftModel.from_pretrained(opened(folder), folder / "adapter")
    found["adapter again"] = logits(again)
    merged = again.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    found["merged again"] = logits(opened(folder / "merged"))
    # all weights, gates too
    model, found["losses"] = tuned(folder, asked, gradient_checkpointing=False)
    found["tuned"] = logits(model)
    start = dict(plain.named_parameters())
    found["unmoved"] = [name for name, p in model.named_parameters() if torch.equal(p, start[name])]
    model.save_pretrained(folder / "tuned")
    tuned_again = opened(folder / "tuned").eval()
    found["tuned again"] = logits(tuned_again)
    options = {"attention_mask": asked["mask"], "max_new_tokens": 6, "pad_token_id": 1, "do_sample": False}
    found["greedy"] = tuned_again.generate(asked["padded"], **options).tolist()
    found["beams"] = tuned_again.generate(asked["padded"], num_beams=3, **options).tolist()
    return found


def preferences(folder: Path, asked: dict[str, Any]) -> list[float]:
    """Losses of three steps of DPO with adapters."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    pairs = [{"prompt": "a b a b a", "chosen": " b b b a b", "rejected": " a"}] * 4
    adapter = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    trainer = DPOTrainer(
        opened(folder),
        args=settings(DPOConfig, folder, gradient_checkpointing=True),
        train_dataset=Dataset.from_list(pairs),
        processing_class=words(folder),
        peft_config=adapter,
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
