"""Study files: what is wrong is named with field, value, what is allowed; every value knows where it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from model.config import MixerConfig
from pipeline.errors import StudyError
from pipeline.study.graph import expand
from pipeline.study.load import load
from tests.tiny import write_study

RUNS = Path(__file__).parents[2] / "runs"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path)


@pytest.mark.parametrize("name", sorted(path.name for path in RUNS.glob("*.yaml")))
def test_the_shipped_studies_are_valid(name):
    assert load(RUNS / name, environment={}).study.name + ".yaml" == name


def test_a_source_without_a_place_is_left_out_until_it_has_one(study, tmp_path):
    more = "{kind: text, name: math, url: null, papers: true, encoding: [utf-8, latin-1], split: {test: 0.2}}"
    alone = load(study, environment={}).study
    text = study.read_text()
    sources = yaml.safe_load(text)["corpus"]["sources"] + [yaml.safe_load(more)]
    ready = load(study, [f"corpus.sources={json.dumps(sources)}"], environment={}).study
    assert ready == alone
    with_it = load(
        study, [f"corpus.sources={json.dumps(sources)}", "corpus.sources.1.url=latex"], environment={}
    ).study.corpus.sources[1]
    assert with_it.papers and with_it.encoding == ("utf-8", "latin-1") and with_it.url.endswith("latex")
    with pytest.raises(StudyError, match=r"corpus\.sources"):
        load(study, ["corpus.sources.0.url=null"], environment={})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trunk.dim=1000000000000", r"trunk\.dim = 1e\+12: cannot be meant \(allowed: at most 1,000,000\)\. Fix:"),
        ("pretrain.steps=1000000000000", r"pretrain\.steps = 1e\+12: cannot be meant"),
        ("evaluate.retrieval.lengths=[1000000000000]", r"evaluate\.retrieval\.lengths\.0 = 1e\+12: cannot be meant"),
        ("pretrain.lr=11", r"pretrain\.lr = 11: cannot be meant \(allowed: at most 10\)"),
        ("pretrain.clip=1e18", r"pretrain\.clip = 1e\+18: cannot be meant"),
        ("arms.infini-delta.gate_init=-1e30", r"arms\.infini-delta\.gate_init = -1e\+30: cannot be meant"),
        ("pretrain.warmup_steps=5", r"pretrain\.warmup_steps = 5: training ends before, at pretrain\.steps = 4"),
        ("base.warmup_steps=5", r"base\.warmup_steps = 5: training ends before"),
        (f"name={'t' * 5000}", r"name = 't{79}\.\.\.: characters allowed: at most 100$"),
        (f"arms={{{'l' * 500}: {{kind: local}}}}", r"arm name 'l{40}'\.\.\.: characters allowed: at most 100"),
        (f"corpus.sources.0.url={'b' * 5000}", r"corpus\.sources\.0\.url = 'b{40}'\.\.\.: 5000 characters"),
        (f"seeds={list(range(1001))}", r"seeds = a list: entries allowed: at most 1000"),
        ("pretrain.step=1", r"pretrain\.step: unknown key; did you mean 'steps'"),
        ("pretrain.steps=ten", r"pretrain\.steps = 'ten': a whole number"),
        ("pretrain.steps=0", r"pretrain\.steps = 0: .*at least 1"),
        (
            "tokenize.sequence_length=100",
            r"sequence_length = 100: must be a multiple of segment_length = 32 \(nearest: 96 or 128\)",
        ),
        ("arms.local.segment_length=48", r"arms\.local\.segment_length = 48: tokenize\.sequence_length = 128"),
        ("arms.local.kind=infinite", r"arms\.local\.kind = 'infinite'"),
        ("arms.local.rle=delta", r"arms\.local\.rle: unknown key; did you mean 'rule'"),
        ("arms.Local={kind: local}", r"arm name 'Local'"),
        ("trunk.heads=3", r"dim = 32: must be a multiple of heads = 3"),
        ("seeds=[0, 0]", r"seeds \[0, 0\] repeat"),
        ("seeds=[]", r"seeds = \[\]: .*at least 1"),
        ("corpus.sources.3.url=x", r"'3' is not an index of a list of 1"),
        (f"corpus.sources.{'3' * 5000}.url=x", r"'3+' is not an index of a list of 1"),
        ("corpus.sources.0.kind=pg20", r"corpus\.sources\.0.*pg20.*'pg19'"),
        ("nonsense", r"--set 'nonsense': allowed is a\.b=value"),
        ("execution.jobs=null", r"execution\.jobs"),
        ("execution.jobs=100000", r"execution\.jobs = 100000: must be at most 1000; fix: lower it"),
        ("execution.jobs=0", r"execution\.jobs = 0: must be at least 1; fix: raise it"),
        ("execution.train_workers=1000000", r"execution\.train_workers = 1000000: must be at most 10000; fix"),
        ("execution.cpus_per_worker=1e9", r"execution\.cpus_per_worker = 1000000000\.0: must be at most 10000; fix"),
        ("execution.gpus_per_worker=1e9", r"execution\.gpus_per_worker = 1000000000\.0: must be at most 1000; fix"),
        ("execution.task_cpus=1e9", r"execution\.task_cpus = 1000000000\.0: must be at most 10000; fix"),
        ("execution.max_failures=10000000000", r"execution\.max_failures = 10000000000: must be at most 10000; fix"),
        ("execution.micro_batch=10000000000", r"execution\.micro_batch = 10000000000: must be at most 1000000; fix"),
        ("execution.keep_checkpoints=10000000000", r"execution\.keep_checkpoints = 10000000000: must be at most 10000"),
        ("decontaminate.canaries.count=1000000", r"decontaminate\.canaries\.count = 1000000: must be at most 10000"),
        ("pretrain=null", r"pretrain"),
        ("pretrain.sequence_length=64", r"pretrain\.sequence_length = 64: must be tokenize\.sequence_length = 128"),
    ],
)
def test_what_is_wrong_is_named(study, override, message):
    with pytest.raises(StudyError, match=message):
        load(study, [override], environment={})


def test_several_faults_are_told_together(study):
    with pytest.raises(StudyError) as caught:
        load(study, ["pretrain.steps=0", "base.lr=0"], environment={})
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_study_names_its_neighbours():
    with pytest.raises(StudyError, match=r"did you mean 'quickstart\.yaml'"):
        load(RUNS / "quickstrat.yaml")


def test_of_many_faults_the_first_are_told_and_the_rest_are_counted(study):
    with pytest.raises(StudyError) as told:
        load(study, [f"seeds=[{', '.join(['[x]'] * 900)}]"], environment={})
    lines = str(told.value).splitlines()
    assert len(lines) == 21 and "seeds.0 = a list: a whole number is needed" in lines[0]
    assert lines[-1].endswith(" more. Fix: mend these first") and "and 88" in lines[-1]


def test_command_line_beats_environment_beats_file(study):
    environment = {"INFINI_STUDY__PRETRAIN__STEPS": "7", "INFINI_STUDY__PRETRAIN__LR": "5e-4"}
    loaded = load(study, ["pretrain.steps=9"], environment)
    assert (loaded.study.pretrain.steps, loaded.study.pretrain.lr, loaded.study.pretrain.batch_sequences) == (
        9,
        5e-4,
        4,
    )
    origins = [loaded.origins.get(f"pretrain.{name}") for name in ("steps", "lr", "batch_sequences", "clip")]
    assert origins == ["command line", "environment", "file", None]


def test_arms_share_the_tokens_segment_and_may_have_their_own(study):
    arms = load(study, ["arms.wide={kind: window, segment_length: 64}"], environment={}).study.arms
    assert (arms["local"].segment_length, arms["wide"].segment_length) == (32, 64)


def test_steps_are_arms_times_seeds_and_only_memory_arms_are_ablated(study):
    plan = expand(load(study, ["seeds=[0, 1]"], environment={}), None)
    ids = [step.id for step in plan.steps]
    assert sum(i.startswith("pretrain/") for i in ids) == 10
    assert sum(i.startswith("evaluate/") for i in ids) == 10 + 2  # the bases too
    assert {i for i in ids if i.startswith("ablate/")} == {
        f"ablate/infini-{r}/{s}" for r in ("linear", "delta") for s in (0, 1)
    }
    assert ids[-1] == "report" and not any(i.startswith(("control", "capacity")) for i in ids)
    assert set(plan["report"].inputs) == set(ids) - {"report"}


def test_every_seed_has_its_base_and_the_arms_start_from_it(study):
    plan = expand(load(study, ["seeds=[0, 3]"], environment={}), None)
    assert [i.id for i in plan.steps if i.stage.name == "base"] == ["base/0", "base/3"]
    assert plan["base/3"].config.seed == 3 and plan["base/0"].key != plan["base/3"].key
    for seed in (0, 3):
        assert {plan[f"pretrain/{arm}/{seed}"].inputs["base"] for arm in ("local", "xl")} == {f"base/{seed}"}
        scored = plan[f"evaluate/base/{seed}"]
        assert scored.inputs["model"] == f"base/{seed}"
        assert scored.config.mixer == MixerConfig(kind="local", segment_length=32)
        items = scored.config.model_dump(exclude={"mixer"})
        assert items == plan[f"evaluate/local/{seed}"].config.model_dump(exclude={"mixer"})


def test_one_base_for_all_seeds_is_the_same_artifact_as_that_seeds_own(study):
    own = expand(load(study, ["seeds=[0, 3]"], environment={}), None)
    one = expand(load(study, ["seeds=[0, 3]", "base.per_seed=false", "base.seed=3"], environment={}), None)
    assert [step.id for step in one.steps if step.stage.name == "base"] == ["base"]
    assert one["base"].key == own["base/3"].key and one["pretrain/local/3"].key == own["pretrain/local/3"].key
    assert {one[f"pretrain/local/{seed}"].inputs["base"] for seed in (0, 3)} == {"base"}
    assert [i.id for i in one.steps if i.id.startswith("evaluate/base")] == ["evaluate/base/3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("arms.base={kind: window}", r"arm name 'base': kept for what the arms start from"),
        ("base.seed=4", r"seed = 4: has no effect with per_seed = True"),
        (
            "base={init: hf, path: x, revision: '0000000000000000000000000000000000000000', per_seed: true}",
            r"per_seed = True: with init = 'hf' there is one checkpoint",
        ),
        ("pretrain.mixture.prompts=[{until: 1, share: 2, length: 64}]", r"pretrain\.mixture\.prompts\.0\.share = 2"),
        (
            "pretrain.mixture.prompts=[{until: 0.5, share: 1, length: 64}, {until: 0.4, share: 1, length: 64}]",
            r"until = \[0\.5, 0\.4\]: allowed are ascending",
        ),
        ("base.mixture.prompts=[{until: 1, share: 1, length: 24}]", r"length = 24: must divide sequence_length = 32"),
        ("base.mixture.sources={novels: 1}", r"base\.mixture\.sources\.novels: the corpus has no such source"),
    ],
)
def test_bases_and_phases_that_cannot_be_are_one_error(study, change, message):
    with pytest.raises(StudyError, match=message) as caught:
        load(study, [change], environment={})
    assert len(str(caught.value).splitlines()) == 1


def test_keys_do_not_depend_on_where_things_lie_or_how_they_are_run(study, tmp_path):
    elsewhere = write_study(tmp_path / "elsewhere" / "deep")
    here = expand(load(study, environment={}), None)
    there = expand(load(elsewhere, ["execution.jobs=1", "execution.micro_batch=2"], environment={}), None)
    assert [s.key for s in here.steps] == [s.key for s in there.steps]


def test_a_changed_book_changes_every_key_that_depends_on_it(study, tmp_path):
    before = expand(load(study, environment={}), None)
    book = tmp_path / "books" / "train" / "100.txt"
    book.write_text(book.read_text() + "one more word\n")
    after = expand(load(study, environment={}), None)
    assert not {s.key for s in before.steps} & {s.key for s in after.steps}


def test_missing_books_are_told_before_any_work(study):
    with pytest.raises(StudyError, match=r"url = .*nowhere"):
        expand(load(study, ["corpus.sources.0.url=nowhere"], environment={}), None)


def test_weights_of_the_sources_reach_training(study, tmp_path):
    text = "{kind: text, name: notes, weight: 1, url: books/train/*.txt, split: train}"
    both = load(study, [f"corpus.sources=[{{kind: pg19, name: books, url: books, weight: 3}}, {text}]"], {})
    config = expand(both, None)["pretrain/local/0"].config
    assert config.mixture.sources == {"books": 3.0, "notes": 1.0}
    one = load(study, [f"corpus.sources=[{{kind: pg19, name: books, url: books}}, {text}]"], {})
    with pytest.raises(StudyError, match=r"weight .*source 'books' has none"):
        expand(one, None)


@pytest.mark.parametrize("name", ["schedules", "tuning"])
def test_studies_that_rest_on_the_quickstart_train_its_models(name):
    """Where that has been run before, they reuse its corpus, bases and arms."""
    quickstart, other = (expand(load(RUNS / f"{one}.yaml", environment={}), None) for one in ("quickstart", name))
    shared = [
        "tokenize",
        *(f"{step}/{seed}" for seed in range(3) for step in ("base", "pretrain/infini-delta", "pretrain/local")),
    ]
    assert {step: other[step].key for step in shared} == {step: quickstart[step].key for step in shared}


def test_golden_keys_of_steps_without_inputs():
    """These change only when a stage's config or code_version does: then every user's artifacts of it are stale."""
    plan = expand(load(RUNS / "quickstart.yaml", ["control={}", "capacity={}"], environment={}), None)
    keys = {step: plan[step].key[:16] for step in ("calibrate", "capacity", "control-base/0", "control/infini-delta/0")}
    assert keys == {
        "calibrate": "00beb455ce0d629d",
        "capacity": "0716dad475d285df",
        "control-base/0": "b250184f25b5dcfa",
        "control/infini-delta/0": "b20c1103f5875373",
    }
