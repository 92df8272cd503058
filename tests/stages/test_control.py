"""The positive control: its task, its two stages, and that the memory is what solves it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from model import checkpoint
from model.config import FeatureMap, MixerConfig
from pipeline.engine.plan import Plan
from pipeline.errors import StudyError
from pipeline.study.graph import expand
from pipeline.study.load import load
from stages.evidence.control.config import BaseRecipe, ControlConfig, ControlSettings, GraftRecipe
from stages.evidence.control.sequences import EVALUATION, HELD, TRAINING, Recall, between, draw, whole
from stages.evidence.control.stage import BASE, STAGE, control_arms, deciding
from tests.support import LocalArtifact, LocalContext
from tests.tiny import write_study

TASK = ControlSettings()
SMALL: dict[str, Any] = {  # an easier task than a study's: one pair, one layer, learnt in seconds
    "layers": 1,
    "dim": 32,
    "heads": 1,
    "ffn_dim": 32,
    "vocabulary": 16,
    "segment_length": 8,
    "segments": 3,
    "pairs": (1,),
    "trials": 200,
    "knockout_trials": 150,
    "distances": (1, 2),
    "distance_pairs": 1,
    "distance_trials": 60,
    "base": BaseRecipe(steps=150, evaluate_every=25, pairs=(1,), asked=(1,), lr=1e-2, weight_decay=0.01),
    "graft": GraftRecipe(steps=100, evaluate_every=25, lr=1e-2, gate_lr=5e-2, weight_decay=0.01),
}


def small(**changes: Any) -> ControlSettings:
    return ControlSettings(**(SMALL | changes))


def make_base(settings: ControlSettings, place: Path, seed: int = 0) -> tuple[LocalArtifact, LocalContext]:
    """What control-base leaves behind, as an arm's input."""
    place.mkdir(parents=True)
    context = LocalContext(str(place))
    summary = BASE.run(settings.of_base(seed), {}, place, context)
    return LocalArtifact(place, summary=summary.metrics), context


def run_arm(
    settings: ControlSettings, arm: str, base: LocalArtifact, place: Path, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, float], LocalContext]:
    place.mkdir(parents=True)
    context = LocalContext(str(place))
    mixer = control_arms(settings, {})[arm]
    summary = STAGE.run(settings.of_arm(mixer, seed), {"base": base}, place, context)
    return pd.read_parquet(place / "control.parquet"), summary.metrics, context


def read_slowly(tokens: list[int], n: int, keys: int) -> list[int]:
    """Every query's answer by reading from left to right: a key's value is the token after it."""
    bound = {}
    for at in range(0, len(tokens) - n - 1):
        if 1 <= tokens[at] <= keys:
            bound[tokens[at]] = tokens[at + 1]
    return [bound[key] for key in tokens[-n:]]


@pytest.mark.parametrize("kind", ["filler", "pairs"])
@pytest.mark.parametrize("segments", [2, 4, 9])
def test_a_slow_reader_answers_every_query(kind: str, segments: int) -> None:
    pairs, n = (1, 2, 4, 8), TASK.segment_length
    drawn = draw(TASK, 80, pairs, 3, EVALUATION)
    middle = between(TASK, kind, drawn, segments - 2, 3, 1)
    tokens = np.concatenate([drawn.pairs, middle, drawn.queries], axis=1)
    assert tokens.shape == (80, segments * n)
    for row, answers, k in zip(tokens.tolist(), drawn.answers.tolist(), itertools.cycle(pairs), strict=False):
        assert read_slowly(row, n, TASK.keys) == answers
        first, last = row[:n], row[-n:]
        assert sum(1 <= token <= TASK.keys for token in first) == sum(token > TASK.keys for token in first) == k
        assert all(1 <= token <= TASK.keys for token in last)  # queries show no value
        middle_keys = {token for token in row[n:-n] if 1 <= token <= TASK.keys}
        assert not middle_keys & set(last)  # what stands between never says anything of an asked key
        assert bool(middle_keys) == (kind == "pairs" and segments > 2)
    if kind == "filler":
        assert (tokens == whole(TASK, drawn, segments)).all()


def values_in_order(row: list[int]) -> list[int]:
    return [token for token in row if token > TASK.keys]


@pytest.mark.parametrize(
    "reader",
    [
        lambda row, rng: values_in_order(row)[0],
        lambda row, rng: values_in_order(row)[-1],
        lambda row, rng: rng.choice(values_in_order(row)),
        lambda row, rng: Counter(values_in_order(row)).most_common(1)[0][0],
        lambda row, rng: min(values_in_order(row)),
    ],
    ids=["first", "last", "any of the set", "most frequent", "smallest"],
)
@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_a_reader_that_does_not_bind_scores_one_in_k(reader: Callable[..., int], k: int) -> None:
    drawn, rng = draw(TASK, 4000, (k,), 5, EVALUATION, k), np.random.default_rng(0)
    hits = [reader(row, rng) == a for row, a in zip(drawn.pairs.tolist(), drawn.answers[:, -1].tolist(), strict=True)]
    assert abs(np.mean(hits) - 1 / k) < 4 * (1 / k * (1 - 1 / k) / 4000) ** 0.5 + 1e-9


def test_a_guess_without_reading_scores_one_in_the_number_of_values() -> None:
    drawn = draw(TASK, 8000, (4,), 6, EVALUATION)
    shares = np.bincount(drawn.answers[:, -1])[1 + TASK.keys :] / 8000
    assert len(shares) == TASK.values and abs(shares - 1 / TASK.values).max() < 0.015
    by_key = pd.crosstab(drawn.queries[:, -1], drawn.answers[:, -1])  # no key has a value of its own
    assert by_key.shape == (TASK.keys, TASK.values) and by_key.to_numpy().max() < 80  # 33 expected


def test_streams_are_functions_of_seed_and_purpose() -> None:
    def same(a: Recall, b: Recall) -> bool:
        return bool((a.pairs == b.pairs).all())

    assert same(draw(TASK, 8, (4,), 0, TRAINING, 1), draw(TASK, 8, (4,), 0, TRAINING, 1))
    streams = [(0, TRAINING, 1), (0, TRAINING, 2), (0, HELD, 1), (0, EVALUATION, 1), (1, TRAINING, 1)]
    for one, other in itertools.combinations(streams, 2):
        assert not same(draw(TASK, 8, (4,), *one), draw(TASK, 8, (4,), *other))


def test_every_arm_starts_from_the_base_of_its_seed(tmp_path: Path) -> None:
    settings = small(base=BaseRecipe(steps=2, evaluate_every=1, pairs=(1,), asked=(1,)))
    base, _ = make_base(settings, tmp_path / "0")
    other, _ = make_base(settings, tmp_path / "1", seed=1)
    saved = checkpoint.load(base.path("model")).state_dict()
    assert any(not torch.equal(t, checkpoint.load(other.path("model")).state_dict()[n]) for n, t in saved.items())
    for mixer in control_arms(settings, {}).values():
        grafted = checkpoint.graft(base.path("model"), mixer, seed=0).state_dict()
        assert all(torch.equal(tensor, grafted[name]) for name, tensor in saved.items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The easy control: base, one memory arm, the ceiling and the floor."""
    place = tmp_path_factory.mktemp("control")
    base, context = make_base(small(), place / "base")
    arms = {arm: run_arm(small(), arm, base, place / arm) for arm in ("infini-delta", "full", "local")}
    return {"base": pd.read_parquet(base.path("control.parquet")), "base_context": context, "arms": arms}


def cells(table: pd.DataFrame, knockout: str = "none", segments: int = 3) -> pd.DataFrame:
    ends = table[table["step"] == table["step"].max()]
    return ends[(ends["knockout"] == knockout) & (ends["segments"] == segments) & (ends["between"] == "filler")]


def test_memory_and_ceiling_learn_what_the_floor_cannot(trained: dict[str, Any]) -> None:
    accuracy = {arm: cells(table)["accuracy"].item() for arm, (table, _, _) in trained["arms"].items()}
    assert accuracy["infini-delta"] > 0.95 and accuracy["full"] > 0.95
    assert accuracy["local"] < 0.25  # 1/8 by guessing
    assert trained["base"]["accuracy"].iloc[-1] > 0.95 and not trained["base_context"].warned


def test_without_its_memory_the_arm_guesses(trained: dict[str, Any]) -> None:
    table = trained["arms"]["infini-delta"][0]
    for knockout in ("gate_closed", "reset", "swap", "zero_read"):
        assert cells(table, knockout)["accuracy"].item() < 0.3, knockout
    assert set(trained["arms"]["full"][0]["knockout"]) == {"none"}  # no memory to knock out


def test_the_table_says_what_was_asked(trained: dict[str, Any]) -> None:
    table, metrics, context = trained["arms"]["infini-delta"]
    assert (table["accuracy"] == table["hits"] / table["trials"]).all()
    assert (table["chance"] == 1 / table["k"]).all() and set(table["guess"]) == {1 / 8}
    assert set(table["base_accuracy"]) == {trained["base"]["accuracy"].iloc[-1]}
    before = table[table["step"] < table["step"].max()]
    assert set(zip(before["segments"], before["between"], before["knockout"], strict=True)) <= {(3, "filler", "none")}
    ends = table[table["step"] == table["step"].max()]
    far = ends[(ends["segments"] > 3) | (ends["between"] == "pairs")]
    assert sorted(zip(far["segments"], far["between"], strict=True)) == [
        (3, "pairs"),
        (4, "filler"),
        (4, "pairs"),
        (5, "filler"),
        (5, "pairs"),
    ]
    assert set(far["trials"]) == {60}
    assert set(cells(table)["trials"]) == {200} and set(cells(table, "swap")["trials"]) == {150}
    assert metrics["steps"] == table["step"].max() == context.measured[-1][0]
    assert context.progressed[-1][0] == context.progressed[-1][1]


def test_training_ends_early_by_one_rule_for_every_arm(trained: dict[str, Any]) -> None:
    for arm, (table, metrics, context) in trained["arms"].items():
        held = {step: values["accuracy_k1"] for step, values in context.measured[:-1]}
        steps = int(metrics["steps"])
        good = [accuracy >= 0.99 for accuracy in held.values()]
        assert list(held)[-1] == steps
        assert good[-2:] == [True, True] or steps == 100, arm
        assert not any(one and other for one, other in itertools.pairwise(good[:-1])), arm  # and not before
        assert len(table[table["step"] == steps]["trials"]) > 0


def test_a_base_that_has_not_learned_is_said_by_itself_and_by_every_arm(tmp_path: Path) -> None:
    settings = small(base=BaseRecipe(steps=2, evaluate_every=1, pairs=(1,), asked=(1,)))
    base, context = make_base(settings, tmp_path / "base")
    assert "has not learned to recall" in context.warned[0] and "raise control.base.steps" in context.warned[0]
    hurried = settings.model_copy(update={"graft": GraftRecipe(steps=2, evaluate_every=1)})
    table, metrics, context = run_arm(hurried, "local", base, tmp_path / "local")
    assert "base that has not learned" in context.warned[0]
    assert metrics["base_accuracy"] == table["base_accuracy"].iloc[0] < 0.9


@pytest.mark.slow
def test_a_studys_control_binds_with_its_memory_and_guesses_without(tmp_path: Path) -> None:
    """The defaults: a minute of a core."""
    base, context = make_base(TASK, tmp_path / "base", seed=7)
    assert not context.warned
    table, _, _ = run_arm(TASK, "infini-delta", base, tmp_path / "delta", seed=7)
    ends = table[(table["step"] == table["step"].max()) & (table["segments"] == 4) & (table["between"] == "filler")]
    assert list(ends[ends["knockout"] == "none"]["k"]) == [1, 2, 4, 8]
    assert ends[ends["knockout"] == "none"]["accuracy"].min() >= 0.97
    assert ends[ends["knockout"] != "none"]["accuracy"].max() < 0.15  # 1/16 by guessing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segments": 2}, r"segments = 2: allowed are at least layers \+ 2 = 3"),
        ({"layers": 2}, r"segments = 3: allowed are at least layers \+ 2 = 4"),
        ({"pairs": (8,)}, "16 tokens do not fit into segment_length = 8"),
        ({"pairs": (0,)}, "distinct whole numbers"),
        ({"pairs": (2, 2)}, "distinct whole numbers"),
        ({"pairs": (8,), "segment_length": 16}, "vocabulary = 16 has only 7 keys"),
        ({"base": BaseRecipe(pairs=(5,), asked=(1,))}, "base.pairs has k = 5"),
        ({"knockout_trials": 300}, "knockout_trials = 300: allowed are at most trials = 200"),
        ({"distances": (0, 2)}, r"distances = \[0, 2\]"),
        ({"distance_pairs": 7, "segment_length": 16}, "none is left for the other pairs"),
        ({"dim": 30, "heads": 4}, "multiple of heads"),
        ({"competitors": ("window", "window")}, r"competitors = \['window', 'window'\]: allowed are distinct names"),
    ],
)
def test_a_control_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        small(**changes)
    assert caught.value.error_count() == 1


def test_a_look_after_the_end_is_refused() -> None:
    with pytest.raises(ValidationError, match="evaluate_every = 200: allowed are at most steps = 100"):
        GraftRecipe(steps=100, evaluate_every=200)


def test_an_arm_with_segments_of_another_length_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"mixer.segment_length = 16: must be segment_length = 8"):
        ControlConfig(
            **small().of_arm(MixerConfig(kind="local", segment_length=8), 0).model_dump()
            | {"mixer": MixerConfig(kind="local", segment_length=16)}
        )


def test_competitors_can_be_left_out_ceiling_and_floor_cannot() -> None:
    every = {"full", "local", "window", "deltanet", "infini-linear", "infini-delta"}
    assert {*control_arms(TASK, {})} == every
    assert {*control_arms(small(competitors=()), {})} == every - {"window", "deltanet"}
    assert {*control_arms(small(competitors=("window",)), {})} == every - {"deltanet"}


def test_a_study_adds_its_own_memory_arms_with_their_options() -> None:
    own = {
        "infini-delta": MixerConfig(kind="infini", rule="delta", segment_length=64, feature_map="dpfp1"),
        "sharp": MixerConfig(kind="infini", segment_length=64, gate="token"),
        "wide": MixerConfig(kind="window", segment_length=64),
    }
    arms = control_arms(TASK, own)
    assert set(arms) == {"full", "local", "window", "deltanet", "infini-linear", "infini-delta", "sharp"}
    assert arms["infini-delta"].feature_map == "dpfp1" and arms["sharp"].gate == "token"
    assert {mixer.segment_length for mixer in arms.values()} == {16}


def test_feature_maps_are_further_rows_that_no_claim_hangs_on() -> None:
    mapped = control_arms(small(feature_maps=("relu", "dpfp1")), {})
    rows = {"infini-linear-relu": "relu", "infini-linear-dpfp1": "dpfp1"}
    assert {name: mixer.feature_map for name, mixer in mapped.items() if name not in control_arms(TASK, {})} == rows
    assert mapped["infini-linear-relu"].rule == "linear" and deciding(mapped, {}) == ["infini-linear", "infini-delta"]
    own = {"infini-linear-relu": MixerConfig(kind="infini", segment_length=64, feature_map="relu", gate="token")}
    mixed = control_arms(small(feature_maps=("relu",)), own)
    assert mixed["infini-linear-relu"].gate == "token"  # the study's own takes its place, and decides
    assert deciding(mixed, own) == ["infini-linear", "infini-delta", "infini-linear-relu"]


@pytest.mark.parametrize(
    ("maps", "said"), [(("elu1",), "which infini-linear has without it"), (("relu", "relu"), "distinct names")]
)
def test_a_feature_map_that_adds_nothing_is_refused(maps: tuple[FeatureMap, ...], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        small(feature_maps=maps)


def planned(tmp_path: Path, *overrides: str) -> Plan:
    return expand(load(write_study(tmp_path), ["control={}", "seeds=[0, 3]", *overrides], environment={}), None)


def test_a_study_plans_a_base_per_seed_and_the_arms_of_that_seed_from_it(tmp_path: Path) -> None:
    plan = planned(tmp_path, "arms={infini-delta: {kind: infini, rule: delta}, sharp: {kind: infini, gate: token}}")
    names = {step.id for step in plan.steps if step.stage.name.startswith("control")}
    arms = ("full", "local", "window", "deltanet", "infini-linear", "infini-delta", "sharp")
    assert names == {f"control-base/{s}" for s in (0, 3)} | {f"control/{arm}/{s}" for arm in arms for s in (0, 3)}
    for arm, seed in itertools.product(arms, (0, 3)):
        assert dict(plan[f"control/{arm}/{seed}"].inputs) == {"base": f"control-base/{seed}"}
    changed = planned(tmp_path / "other", "control.graft.steps=99")
    assert changed["control-base/0"].key == plan["control-base/0"].key  # the base knows nothing of the arms
    assert changed["control/full/0"].key != plan["control/full/0"].key


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("control.segments=3", r"control\.segments = 3: allowed are at least layers \+ 2 = 4"),
        ("arms.local.kind=infini", r"arms\.local\.kind = 'infini': in the positive control 'local' is the arm of kind"),
        ("control.base.step=9", r"control\.base\.step: unknown key; did you mean 'steps'"),
        ("control.trials=1", r"control\.trials = 1: .*at least 2"),
    ],
)
def test_what_is_wrong_with_a_studys_control_is_one_error(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        planned(tmp_path, override)
    assert len(str(caught.value).splitlines()) == 1
