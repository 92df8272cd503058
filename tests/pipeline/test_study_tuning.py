"""Fine-tuning and alignment in a study: their steps, who reads which model, keys that stay, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.config import MixerConfig
from pipeline.engine.plan import Selection
from pipeline.errors import StudyError
from pipeline.study.graph import expand
from pipeline.study.load import load
from tests.tiny import write_study

FINETUNE = (
    "finetune={steps: 2, batch_sequences: 2, lr: 1e-3, tasks: {format: compact, phases: [{until: 1, length: 128}]}}"
)
PAIRS = "{steps: 2, batch_sequences: 1, lr: 1e-3, pairs: {path: pairs.jsonl, max_tokens: 64, summary_tokens: 16}}"
SFT = "{method: sft, steps: 2, batch_sequences: 2, lr: 1e-3, length: 64}"
DPO = "{method: dpo, after: sft, steps: 1, batch_sequences: 1, lr: 1e-4, length: 64}"
ALIGN = f"align={{variants: {{sft: {SFT}, dpo: {DPO}}}}}"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"text": "A text.", "summary": "Short."}) + "\n")
    return write_study(tmp_path)


def plan(study, *changes):
    return expand(load(study, list(changes), environment={}), None)


def test_without_the_sections_nothing_is_added_and_with_them_what_is_before_keeps_its_keys(study):
    without, tuned = plan(study), plan(study, FINETUNE, ALIGN)
    ids = {step.id for step in without.steps}
    assert not any(i.startswith(("finetune", "align")) or "@" in i for i in ids)
    same = {i for i in ids if i.split("/")[0] not in ("evaluate", "ablate", "summarize", "report")}
    assert all(without[i].key == tuned[i].key for i in same)
    aligned = plan(study, ALIGN)  # what was evaluated before is not evaluated again
    assert all(without[i].key == aligned[i].key for i in ids if i != "report")


def test_files_that_models_are_tuned_on_are_audited_once_each(study):
    rows = study.parent / "rows.jsonl"
    rows.write_text(json.dumps({"messages": [{"role": "user", "content": "Why?"}]}) + "\n")
    given = SFT.replace("length: 64", f"length: 64, data: {{path: {rows.name}}}")
    variants = f"align={{variants: {{sft: {given}, again: {given}, made: {SFT}}}}}"
    tuned = plan(study, f"finetune={PAIRS}", f"finetune_summaries={PAIRS}", variants)
    audits = {step.id: step for step in tuned.steps if step.stage.name == "tuningaudit"}
    assert set(audits) == {"tuningaudit/finetune", "tuningaudit/sft"}, "one a file"
    assert all(dict(step.inputs) == {"documents": "decontaminate"} for step in audits.values())
    assert all(step.arm is None and step.seed is None for step in audits.values())
    for model, audit in (
        ("finetune/base/0", "tuningaudit/finetune"),
        ("finetune/local@summaries/0", "tuningaudit/finetune"),
        ("align/local@sft/0", "tuningaudit/sft"),
        ("align/local@again/0", "tuningaudit/sft"),
    ):
        assert tuned[model].inputs["audit"] == audit
    assert "audit" not in tuned["align/local@made/0"].inputs, "made from the training text, which is audited"
    assert set(audits) <= set(tuned["report"].inputs)
    (study.parent / "asked.jsonl").write_text(json.dumps({"text": "Asked.", "summary": "So."}) + "\n")
    asked = plan(study, f"finetune={PAIRS}", "summarize.pairs.path=asked.jsonl", "summarize.tasks=[condense]")
    assert [task.name for task in asked["tuningaudit/finetune"].config.tasks] == ["summarize"]
    assert asked["tuningaudit/finetune"].key != tuned["tuningaudit/finetune"].key
    (study.parent / "mine.jsonl").write_text(json.dumps({"input": "Which number? 12", "outputs": ["12"]}) + "\n")
    files = plan(study, f"finetune={PAIRS}", "evaluate.retrieval.files={mine: {path: mine.jsonl}}")
    (pin,) = (file.pin for file in files["tuningaudit/finetune"].config.prompts.values())
    assert pin is not None and files["tuningaudit/finetune"].key != tuned["tuningaudit/finetune"].key


def test_what_is_evaluated_is_fine_tuned_arms_and_base_alike(study):
    tuned = plan(study, FINETUNE)
    for arm in ("infini-delta", "local", "xl"):
        assert tuned[f"finetune/{arm}/0"].inputs["model"] == f"pretrain/{arm}/0"
        assert tuned[f"evaluate/{arm}/0"].inputs["model"] == f"finetune/{arm}/0"
    assert tuned["ablate/infini-delta/0"].inputs["model"] == tuned["summarize/infini-delta/0"].inputs["model"]
    base = tuned["finetune/base/0"]
    assert base.inputs["model"] == "base/0" and base.config.mixer == MixerConfig(kind="local", segment_length=32)
    assert tuned["evaluate/base/0"].inputs["model"] == "finetune/base/0"
    before = tuned["evaluate/local@pretrained/0"]
    assert before.inputs["model"] == "pretrain/local/0"
    assert before.config.perplexity == tuned["evaluate/local/0"].config.perplexity
    assert before.config.retrieval.trials_per_length == 1 and before.config.retrieval.binding_trials == 0
    assert tuned["evaluate/base@pretrained/0"].config.mixer == base.config.mixer
    assert "evaluate/base@pretrained/0" in tuned["report"].inputs


def test_aligned_models_are_asked_what_they_were_asked_before(study):
    aligned = plan(study, FINETUNE, ALIGN)
    assert aligned["align/local@sft/0"].inputs["model"] == "finetune/local/0"
    assert aligned["align/local@dpo/0"].inputs["model"] == "align/local@sft/0"
    for stage in ("evaluate", "ablate"):
        after, before = aligned[f"{stage}/infini-delta@dpo/0"], aligned[f"{stage}/infini-delta/0"]
        assert after.inputs["model"] == "align/infini-delta@dpo/0"
        assert after.config == before.config and after.key != before.key
    ids = {step.id for step in aligned.steps}
    assert "ablate/local@sft/0" not in ids and "summarize/local@sft/0" not in ids  # only arms with a memory
    chosen = Selection(arms=("local",)).targets(aligned)
    assert {"align/local@sft/0", "evaluate/local@dpo/0"} <= chosen and "align/xl@sft/0" not in chosen


def test_an_arm_on_another_schedule_is_fine_tuned_as_the_arm_is_and_no_more(study):
    tuned = plan(study, FINETUNE, ALIGN, f"finetune_summaries={PAIRS}", "schedules={low: {lr: 1e-4, arms: [local]}}")
    assert tuned["finetune/local@low/0"].inputs["model"] == "pretrain/local@low/0"
    assert tuned["evaluate/local@low/0"].inputs["model"] == "finetune/local@low/0"
    ids = {step.id for step in tuned.steps}
    assert not [i for i in ids if "@low@" in i or i in ("ablate/local@low/0", "summarize/local@low/0")]


def test_summaries_are_of_models_that_were_trained_on_them(study):
    tuned = plan(study, FINETUNE, f"finetune_summaries={PAIRS}")
    assert tuned["finetune/local@summaries/0"].inputs["model"] == "pretrain/local/0"
    assert tuned["summarize/local/0"].inputs["model"] == "finetune/local@summaries/0"
    assert tuned["evaluate/local/0"].inputs["model"] == "finetune/local/0"
    pairs = tuned["finetune/local@summaries/0"].config.pairs
    assert pairs.pin.startswith("sha256:") and "path" not in pairs.key_fields()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((FINETUNE, "finetune.warmup_steps=3"), r"finetune\.warmup_steps = 3: training ends before"),
        ((FINETUNE, "finetune.chunk_tokens=48"), r"finetune\.chunk_tokens = 48: allowed are multiples of arms\.\S+"),
        ((FINETUNE, "finetune.tasks.text_share=0.5", "finetune.tasks.phases.0.length=96"), r"96 does not divide"),
        ((FINETUNE, "finetune.tasks.phases.0.length=24"), r"finetune\.tasks\.phases\.0\.length = 24:.*allowed: >= "),
        ((f"finetune_summaries={PAIRS}", "summarize=null"), r"finetune_summaries: has no effect without summarize"),
        ((FINETUNE.replace("finetune=", "finetune_summaries="),), r"it trains on summaries\. Fix: give pairs"),
        ((f"finetune={PAIRS}", "finetune.pairs.path=none.jsonl"), r"finetune\.pairs\.path = 'none\.jsonl': no such"),
        ((ALIGN, "align.variants.sft.data.path=no.jsonl"), r"variants\.sft\.data\.path = 'no\.jsonl': no such file"),
        ((ALIGN, "align.variants.dpo.after=sftt"), r"dpo\.after = 'sftt': allowed are variants that stand before"),
        ((ALIGN, "align.variants.sft.chunk_tokens=64"), r"align\.variants\.sft\.chunk_tokens = 64: .*below 64 tokens"),
        ((ALIGN, "claims.alignment.variants=[rlhf]"), r"claims\.alignment\.variants = 'rlhf': not measured"),
        ((ALIGN, "schedules={sft: {lr: 1e-4, arms: [local]}}"), r"schedules\.sft: an alignment has this name too"),
        (("schedules={pretrained: {lr: 1e-4, arms: [local]}}",), r"schedules\.pretrained: models before and after"),
        ((ALIGN, "execution.train_workers=2", "align.variants.sft.batch_sequences=3"), r"divisors of .*= 3"),
    ],
)
def test_sections_that_cannot_be_are_one_error(study, changes, message):
    with pytest.raises(StudyError, match=message) as caught:
        plan(study, *changes)
    assert len(str(caught.value).splitlines()) == 1
