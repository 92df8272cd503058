"""What the report says of schedules and of what was matched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.training.pretrain.config import MixtureConfig
from stages.training.pretrain.schedule import ScheduleSettings
from stages.verdict.claims.config import ClaimsConfig
from stages.verdict.claims.table import CLAIMS, decide
from stages.verdict.report.config import ReportConfig
from stages.verdict.report.numbers import collect
from stages.verdict.report.recipe import recipe
from tests.stages.synthetic import ARMS, TRUNK, Synthetic
from tests.stages.synthetic_report import RECIPE

RULES = ClaimsConfig()
SCHEDULES = {"long": {"local": -0.04, "full": 0.0}, "low-lr": {"local": 0.03, "infini-delta": 0.02}}
SETTINGS = {
    "long": ScheduleSettings(
        arms=("local", "full"),
        horizon=4,
        rope_theta=5e5,
        mixture=MixtureConfig.model_validate({"prompts": [{"until": 1.0, "share": 0.5, "length": 64}]}),
    ),
    "low-lr": ScheduleSettings(arms=("local", "infini-delta"), lr=1e-4),
}


def rows(**settings: Any) -> dict[str, str]:
    study = Synthetic(Path("."), schedules=SCHEDULES)
    return {row["what"]: row["arms"] for row in recipe(study.evidence(RULES), RECIPE | settings)}


def test_every_schedule_stands_against_its_arms_own_with_its_passkeys():
    evidence = Synthetic(Path("."), schedules=SCHEDULES, seed_noise=0.001).evaluate().evidence(RULES)
    verdicts = [decide(claim, evidence) for claim in CLAIMS if claim.id == "C12"]
    collected = collect(evidence, verdicts)
    named = {number.name: number for number in collected.sections["schedules"]}
    gain = named["schedule.perplexity.local@long.local"]
    assert -0.05 < gain.estimate < -0.025 and gain.high < 0 and gain.unit == "relative perplexity"
    steps = {f"evaluate/{arm}/{seed}" for arm in ("local@long", "local") for seed in (0, 1, 2)}
    assert {source.step for source in gain.sources} == steps
    assert named["passkey.full@long.512"].estimate == 1.0
    assert named["passkey.infini-delta@low-lr.512"].label == "infini-delta@low-lr at 512 tokens"
    assert "schedule.spread.schedules.local" in collected.named
    every = [number.name for numbers in collected.sections.values() for number in numbers]
    assert len(every) == len(set(every))


def test_a_study_without_schedules_has_none_of_it():
    evidence = Synthetic(Path(".")).evaluate().evidence(RULES)
    assert "schedules" not in collect(evidence, []).sections


def test_the_recipe_says_what_was_matched():
    assert rows()["matched by"].startswith("tokens: the same steps and batches for every arm")
    by = {"by": "flops", "reference": "infini-linear", "steps": [["infini-linear", 300], ["local", 1330]]}
    said = rows(match=by)
    assert said["matched by"] == "flops: as many steps as the FLOPs by formula of infini-linear allow"
    assert said["steps of each"] == "infini-linear 300, local 1,330"


def test_the_recipe_says_what_each_schedule_changes():
    said = rows(schedules=SETTINGS)
    assert said["schedule low-lr"] == "local, infini-delta: peak learning rate 0.0001"
    assert said["schedule long"] == (
        "local, full: decays over 4 times the steps; RoPE base 500000; "
        "mixture of its own: 50% of the tokens of 64 tokens until 100% of the steps"
    )


def test_the_reports_key_has_schedules_only_where_there_are_some():
    plain = ReportConfig(study="s", arms=ARMS, trunk=TRUNK, seeds=(0,))
    varied = plain.model_copy(update={"schedules": SETTINGS})
    assert "schedules" not in plain.key_fields() and "schedule" not in plain.key_fields()["claims"]
    assert varied.key_fields()["schedules"]["low-lr"] == {"arms": ["local", "infini-delta"], "lr": 1e-4}
