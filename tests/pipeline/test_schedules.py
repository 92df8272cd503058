"""Other schedules, and what is matched: which steps there are, what they train, and which keys stay as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.config import ModelConfig, RopeScaling
from model.cost import cost
from pipeline.engine.plan import Selection
from pipeline.errors import StudyError
from pipeline.study.graph import expand
from pipeline.study.load import load
from pipeline.study.schedules import trained_arms
from tests.tiny import write_study

VARIED = [
    "schedules.low={lr: 1e-4, arms: [local, infini-delta]}",
    "schedules.long={horizon: 4, arms: [local]}",
    "schedules.rope={rope_theta: 500000, rope_scaling: {type: linear, factor: 2}, arms: [local]}",
]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path)


def plan(study: Path, *changes: str):
    return expand(load(study, list(changes), environment={}), None)


def test_each_schedule_is_trained_and_evaluated_per_seed_and_nothing_else_of_it(study):
    before, after = plan(study, "seeds=[0, 1]"), plan(study, "seeds=[0, 1]", *VARIED)
    old, new = ({step.id for step in one.steps} for one in (before, after))
    names = ("infini-delta@low", "local@low", "local@long", "local@rope")
    stages = ("pretrain", "evaluate")
    assert new - old == {f"{stage}/{name}/{seed}" for stage in stages for name in names for seed in (0, 1)}
    assert next(step.id for step in after.steps if step.id not in old) == "pretrain/infini-delta@low/0"
    assert {step: after[step].key for step in old if step != "report"} == {
        step: before[step].key for step in old if step != "report"
    }
    assert set(after["report"].inputs) == new - {"report"}
    scored, own = after["evaluate/local@long/1"], after["evaluate/local/1"]
    assert scored.inputs["model"] == "pretrain/local@long/1" and scored.config == own.config
    assert after["pretrain/local@long/1"].inputs == after["pretrain/local/1"].inputs  # the same base and tokens


def test_an_arm_on_a_schedule_can_be_selected_by_its_name(study):
    after = plan(study, *VARIED)
    assert "local@low" in trained_arms(load(study, VARIED, environment={}).study)
    chosen = {step for step in Selection(arms=("local@low",)).targets(after) if "@" in step or "local" in step}
    assert chosen == {"pretrain/local@low/0", "evaluate/local@low/0"}


def test_a_schedule_changes_what_it_names(study):
    after = plan(study, *VARIED)
    own = after["pretrain/local/0"].config
    changed = {name: after[f"pretrain/local@{name}/0"].config for name in ("low", "long", "rope")}
    assert changed["low"] == own.model_copy(update={"lr": 1e-4})
    assert changed["long"] == own.model_copy(update={"horizon": 4.0})
    scaling = RopeScaling(type="linear", factor=2.0)
    assert changed["rope"] == own.model_copy(update={"rope_theta": 5e5, "rope_scaling": scaling})
    assert after["pretrain/infini-delta@low/0"].config.mixer.kind == "infini"


def test_a_mixture_keeps_what_the_schedule_does_not_name(study):
    sources = "pretrain.mixture={order: documents, retrieval_format: compact}"
    text = "schedules.whole={mixture: {prompts: [{until: 1, share: 0, length: 64}]}, arms: [local]}"
    mixture = plan(study, sources, text)["pretrain/local@whole/0"].config.mixture
    assert (mixture.order, mixture.retrieval_format, len(mixture.prompts)) == ("documents", "compact", 1)


def test_without_a_list_baselines_and_memory_arms_are_varied(study):
    ids = {step.id for step in plan(study, "schedules.low={lr: 1e-4}").steps}
    varied = {step.split("/")[1] for step in ids if "@" in step}
    assert varied == {f"{arm}@low" for arm in ("infini-linear", "infini-delta", "local", "window")}  # and not xl


def test_what_is_at_its_default_moves_no_key(study):
    said = plan(study, "match=tokens", "schedules={}", "pretrain.horizon=1")
    assert said.study_key == plan(study).study_key
    assert plan(study, "pretrain.horizon=2")["pretrain/local/0"].key != said["pretrain/local/0"].key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("schedules.low.arms=[locl]", r"schedules\.low\.arms: 'locl' is no arm .*did you mean 'local'"),
        ("schedules.low.lr=1e-3", r"schedules\.low: changes nothing for arms\.infini-delta \(infini\)"),
        ("schedules.low.lr=0", r"schedules\.low\.lr = 0: must be greater than 0"),
        ("schedules.low.steps=9", r"schedules\.low\.steps: unknown key"),
        ("schedules.same={lr: 1e-4, arms: [local]}", r"schedules\.same: for arms\.local the same as schedules\.low"),
        ("schedules.gates={gate_lr: 0.1, arms: [local]}", r"schedules\.gates: changes nothing for arms\.local"),
        ("schedules.Low={lr: 1}", r"schedule name 'Low': allowed are at most 50 lower-case letters"),
        ("schedules.long.schedule=constant", r"schedules\.long: horizon = 4: has no effect with schedule = 'constant'"),
        ("schedules.long={warmup_steps: 9}", r"schedules\.long\.warmup_steps = 9: training ends before"),
        ("schedules.y={mixture: {sources: {novels: 1}}}", r"schedules\.y\.mixture\.sources\.novels: the corpus has no"),
        (
            "schedules.y={mixture: {prompts: [{until: 1, share: 1, length: 24}]}}",
            r"schedules\.y: mixture\.prompts\.0\.length = 24: must divide sequence_length = 128",
        ),
        (
            "schedules.rope.rope_scaling={type: dynamic, factor: 2, original_max_position_embeddings: 64}",
            r"schedules\.rope\.rope_scaling\.type = 'dynamic': .*allowed: linear, llama3, yarn",
        ),
        ("schedules.rope.rope_scaling={type: yarn, factor: 2}", r"original_max_position_embeddings is missing"),
        ("match=flopz", r"match = 'flopz': allowed are 'tokens', 'flops' or 'wall'"),
        ("match={by: tokens, reference: local}", r"match\.reference = 'local': has no effect with by = 'tokens'"),
        ("match={by: flops, reference: loca}", r"match\.reference = 'loca': no such arm"),
        ("match={by: flops, tokens_per_s: {local: 1}}", r"match\.tokens_per_s = .*: has no effect with by = 'flops'"),
        ("match={by: wall, tokens_per_s: {local: 1}}", r"match\.tokens_per_s\.window is missing: by = 'wall' needs"),
        ("match={by: wall, tokens_per_s: {local: 0}}", r"match\.tokens_per_s\.local = 0: must be greater than 0"),
        ("claims.schedule.baselines=[full]", r"claims\.schedule\.baselines = 'full': no arm has this kind"),
        ("claims.schedule.measures=[retrieval, retrieval]", r"claims\.schedule\.measures = .*: an entry stands twice"),
        ("claims.schedule.minimum=0", r"claims\.schedule\.minimum = 0: must be at least 1"),
    ],
)
def test_what_cannot_be_is_named(study, change, message):
    with pytest.raises(StudyError, match=message):
        load(study, [*VARIED, change], environment={})


def test_a_rule_without_schedules_has_no_effect(study):
    with pytest.raises(StudyError, match=r"claims\.schedule: has no effect without schedules"):
        load(study, ["claims.schedule.margin=0.02"], environment={})


def test_prompts_of_a_schedule_must_fit(study):
    short = "schedules.y={mixture: {retrieval_format: published, prompts: [{until: 1, share: 0.5, length: 32}]}}"
    with pytest.raises(StudyError, match=r"schedules\.y\.mixture\.prompts\.0\.length = 32"):
        plan(study, short)


def test_by_flops_every_arm_does_the_work_of_the_memory_arm(study):
    """Within half a step of it, at the lengths that batches are read in; the reference is as it is by tokens."""
    changes = ["pretrain.steps=400", "arms.full={kind: full}", "schedules.low={lr: 1e-4}", "tokenizer={kind: bytes}"]
    own, matched = plan(study, *changes), plan(study, *changes, "match=flops")
    assert own["pretrain/infini-linear/0"].key == matched["pretrain/infini-linear/0"].key
    trunk = load(study, changes, environment={}).study.trunk

    def work(name: str) -> tuple[int, float]:
        config = matched[f"pretrain/{name}/0"].config
        model = ModelConfig(trunk=trunk, mixer=config.mixer, vocab_size=258)
        return config.steps, config.steps * config.batch_sequences * 128 * cost(model, 128).flops_per_token_training

    budget = work("infini-linear")[1]
    for name in ("local", "full", "window", "infini-delta", "local@low", "full@low"):
        steps, done = work(name)
        assert done == pytest.approx(budget, rel=0.6 / steps)
    assert work("full")[0] < work("local")[0]
    assert dict(matched["report"].config.recipe["match"]["steps"])["local@low"] == work("local@low")[0]
    assert own["report"].config.recipe.keys() == {"base", "pretrain"}


def test_by_flops_a_mixture_of_shorter_texts_buys_full_attention_more_steps(study):
    short = "schedules.short={mixture: {prompts: [{until: 1, share: 0, length: 32, text_length: 32}]}, arms: [full]}"
    matched = plan(study, "pretrain.steps=400", "arms.full={kind: full}", short, "match=flops")
    assert matched["pretrain/full@short/0"].config.steps > matched["pretrain/full/0"].config.steps


def test_by_time_every_arm_takes_as_long_at_its_stated_speed(study):
    rates = "{infini-linear: 1000, infini-delta: 500, local: 1500, window: 1000, xl: 250}"
    matched = plan(study, "pretrain.steps=100", f"match={{by: wall, reference: local, tokens_per_s: {rates}}}")
    steps = {arm: matched[f"pretrain/{arm}/0"].config.steps for arm in ("infini-linear", "infini-delta", "local", "xl")}
    assert steps == {"infini-linear": 67, "infini-delta": 33, "local": 100, "xl": 17}


def test_an_arm_that_is_left_fewer_steps_than_its_warm_up_is_named(study):
    rates = "{infini-linear: 1000, infini-delta: 10, local: 1500, window: 1000, xl: 250}"
    changes = ["pretrain.steps=100", "pretrain.warmup_steps=4", f"match={{by: wall, tokens_per_s: {rates}}}"]
    with pytest.raises(StudyError, match=r"match\.by = 'wall': infini-delta may take 1 steps .*warm-up has 4"):
        plan(study, *changes)
