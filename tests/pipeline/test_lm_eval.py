"""lm-evaluation-harness with our checkpoints as its model: equal to its own of transformers, and without a network."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model import generate
from model.arms import arm_of, variants
from model.checkpoint import load
from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.decoder import Decoder
from model.export import export
from stages.data.tokens.tokenizer import byte_level
from stages.stage import StageError
from tests.model.test_bounded import Peak
from tests.model.tiny import ARMS
from tests.pipeline import checkpoints
from tests.pipeline.called import caller

WITH = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("lm_eval") is None,
    reason="lm_eval is not installed (pip install 'infini-study[lm-eval]')",
)
QUESTIONS = [
    {"question": "the sun is", "choices": [" red", " a star", " on"], "answer": 1},
    {"question": "one and one", "choices": [" is two", " two"], "answer": 0},
    {"question": "a", "choices": ["b", "c"], "answer": 0},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("models") / "all")


@pytest.fixture(autouse=True)
def no_handler_of_another_test() -> Iterator[None]:
    """The harness logs to the stream that it found first, which is gone with the test that had it."""
    yield
    logging.getLogger("lm_eval").handlers.clear()


def bounded(fields: dict[str, Any]) -> bool:
    """Does what an arm with these fields of ``MixerConfig`` holds stop growing?"""
    return arm_of(fields["kind"]).bounded(MixerConfig(**{"segment_length": 32} | fields))


def asked(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def test_the_tasks_are_written_and_their_documents_fill_the_length(models: Path, tmp_path: Path) -> None:
    import yaml

    from infini_study import harness_documents, harness_results
    from stages.data.tasks.registry import TASKS
    from stages.evidence.standalone.harness_tasks import write_tasks
    from stages.evidence.standalone.tokenizer import read_tokenizer

    yaml.SafeLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    assert len(write_tasks(tmp_path)) == len(list(tmp_path.glob("*.yaml"))) == len(TASKS)
    said = yaml.safe_load((tmp_path / "infini_niah_multivalue.yaml").read_text())
    assert said["task"] == "infini_niah_multivalue" and "infini_ruler" in said["tag"]
    rows = harness_documents(
        **said["dataset_kwargs"],
        checkpoint=str(models / "full"),
        lengths=[500, 700],
        samples=3,
        format="compact",
        config_source="...",
        version=1.0,
    )["test"]
    assert len(rows) == 6 and [row["length"] for row in rows] == [500] * 3 + [700] * 3
    codec = read_tokenizer(models / "full", {})
    for row in rows:
        room = row["length"] - len(codec.encode(row["input"])) - 1  # of the answer, and bos
        assert 0 < room < 40 and all(one in row["input"] for one in row["outputs"])
    right = f" {', '.join(rows[0]['outputs'])}."
    assert harness_results(rows[0], [right]) == {"score": 1.0, "score_500": 1.0}
    assert harness_results(rows[0], ["none"])["score"] == 0


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"format": "terse"}, r"--metadata = 'format': format = 'terse': the task qa_1 has no such wording"),
        ({"lengths": ["x"]}, r"--metadata: lengths.0 = 'x': Input should be a valid integer"),
        ({"lengths": 5.5}, r"--metadata: lengths = 5.5: Input should be a valid tuple"),
        ({"samples": 0}, r"--metadata: samples = 0: Input should be greater than or equal to 1"),
        ({"text": 5}, r"--metadata: text = 5: allowed is a list of files"),
        ({"lengthz": [512]}, r"--metadata: lengthz = \[512\]: has no effect. Fix: write lengths"),
        ({"lengths": [20]}, r"--lengths = 20: a published prompt of the task qa_1 does not fit"),
    ],
)
def test_metadata_that_cannot_be_meant_is_one_line(models: Path, metadata: dict[str, Any], said: str) -> None:
    from infini_study import harness_documents

    with pytest.raises(StageError, match=said):
        harness_documents(infini_task="qa_1", checkpoint=str(models / "full"), **metadata)


def test_the_entry_point_is_declared_and_resolves_without_an_import_of_our_packages() -> None:
    import tomllib

    said = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert said["project"]["entry-points"]["lm_eval.models"] == {"infini_study": "infini_study:HarnessModel"}
    import infini_study

    with pytest.raises(AttributeError, match="no attribute 'Model'"):
        infini_study.Model  # noqa: B018


@WITH
def test_likelihoods_and_answers_equal_those_of_transformers(models: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from infini_study import HarnessModel

    ours = HarnessModel(checkpoint=str(models / "full"), device="cpu")
    theirs = HFLM(pretrained=str(models / "full"), device="cpu", dtype="float32", batch_size=1, add_bos_token=True)
    text = (models / "text" / "0.txt").read_text()
    pairs = [asked(one["question"], choice) for one in QUESTIONS for choice in one["choices"]]
    pairs += [asked("", " alone"), asked(text[:700], text[700:760]), asked("trailing space ", "word")]
    for mine, other in zip(ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True):
        assert mine[0] == pytest.approx(other[0], rel=1e-4) and mine[1] == other[1]
    rolled = [asked(text[:1500]), asked("short")]
    once = HFLM(pretrained=str(models / "full"), device="cpu", dtype="float32", batch_size=1, add_bos_token=False)
    # with add_bos_token theirs begins a text twice, and counts the second one's likelihood
    np.testing.assert_allclose(ours.loglikelihood_rolling(rolled), once.loglikelihood_rolling(rolled), rtol=1e-4)
    settings = [{"max_gen_toks": 12, "until": []}, {"max_gen_toks": 12, "until": ["e"]}, {"max_gen_toks": 5}]
    prompts = [asked(text[:300], dict(one)) for one in settings] + [asked("again", {"max_gen_toks": 9, "until": "q"})]
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)


@WITH
def test_an_arm_of_bounded_memory_scores_a_text_of_any_length_in_one_pass(models: Path) -> None:
    from infini_study import HarnessModel

    lm = HarnessModel(checkpoint=str(models / "infini"), device="cpu")
    text = (models / "text" / "0.txt").read_text() * 4
    ids = [lm.prefix_token_id, *lm.tok_encode(text, add_special_tokens=False)]
    with torch.no_grad():
        whole = float(lm.decoder.nll(torch.tensor([ids])).double().sum())
    assert lm.loglikelihood_rolling([asked(text)]) == [pytest.approx(-whole, rel=1e-5)]
    split = lm.loglikelihood([asked(text[:5000], text[5000:])])[0][0]
    before = lm.loglikelihood_rolling([asked(text[:5000])])[0]
    assert before + split == pytest.approx(-whole, rel=1e-5)
    choices = [asked(text[:3000], choice) for choice in (" a", " bc", " a", " de")]
    together, apart = lm.loglikelihood(choices), [lm.loglikelihood([one])[0] for one in choices]
    assert [one[0] for one in together] == pytest.approx([one[0] for one in apart])  # one reading of the context


# Every arm

BOS = 1
LOCAL_TASKS = {
    "local_choice": (
        'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\n'
        'doc_to_target: "{{answer}}"\ntarget_delimiter: ""\nmetric_list: [{metric: acc}]\n'
    ),
    "local_rolling": (
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list: [{metric: word_perplexity}]\n"
    ),
    "local_answer": (
        'output_type: generate_until\ndoc_to_text: "{{text}}"\ndoc_to_target: "x"\n'
        "generation_kwargs: {until: [e], max_gen_toks: 24}\nmetric_list: [{metric: exact_match}]\n"
    ),
}


def write_arm(folder: Path, arm: str) -> Path:
    """An export of this arm, random but for gates that are spread."""
    mixer = {"segment_length": 32} | ARMS[arm]
    trunk = TrunkConfig(dim=32, layers=2, heads=2)
    config = ModelConfig(trunk=trunk, mixer=MixerConfig(**mixer), vocab_size=258)
    decoder = Decoder(config, seed=0)
    with torch.no_grad():
        for layer, beta in enumerate(decoder.gate_parameters()):
            beta.copy_(torch.linspace(-1.5, 1.5, len(beta)).roll(layer))
    byte_level().save(str(folder / "tokenizer.json"))
    marks = {"bos": BOS, "eos": BOS, "pad": 0}
    export(decoder, folder / arm, tokenizer=folder / "tokenizer.json", special_tokens=marks)
    return folder / arm


def write_tasks(folder: Path, text: str) -> None:
    """``LOCAL_TASKS`` and their documents."""
    rows = [{**one, "text": text[90 * n : 90 * n + 200 + 31 * n]} for n, one in enumerate(QUESTIONS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, said in LOCAL_TASKS.items():
        data = (
            f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\ntest_split: test\n"
        )
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}{said}")


def ids_of(text: str) -> list[int]:
    """As the byte-level tokenizer has it."""
    return byte_level().encode(text, add_special_tokens=False).ids


@torch.no_grad()
def own_likelihood(decoder: Decoder, context: str, text: str) -> tuple[float, bool]:
    """Of ``text`` behind ``context``, in one pass over all of it."""
    read, wanted = [BOS, *ids_of(context)], ids_of(text)
    tokens = torch.tensor([[*read, *wanted]])
    nats = float(decoder.nll(tokens)[0, len(read) - 1 :].double().sum())
    logits = decoder.project(decoder.hidden(tokens)[0])[0, len(read) - 1 : -1]
    return -nats, logits.argmax(-1).tolist() == wanted


@torch.no_grad()
def own_answer(decoder: Decoder, prompt: str, until: str, most: int) -> str:
    """Token by token, all of the text read anew for each."""
    ids, said = [BOS, *ids_of(prompt)], list[int]()
    while len(said) < most and until not in byte_level().decode(said):
        token = int(decoder.project(decoder.hidden(torch.tensor([ids]))[0][:, -1:]).argmax())
        if token == BOS:
            break
        ids.append(token)
        said.append(token)
    return generate.until(byte_level().decode(said), [until])


@WITH
def test_every_arm_is_among_those_tried() -> None:
    assert set(ARMS) == set(variants())


@WITH
@pytest.mark.parametrize("arm", ARMS)
def test_the_harness_says_of_every_arm_what_its_decoder_says(models: Path, tmp_path: Path, arm: str) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from infini_study import HarnessModel

    folder, text = write_arm(tmp_path, arm), (models / "text" / "0.txt").read_text()
    write_tasks(tmp_path, text)
    decoder = load(folder).eval()
    found = simple_evaluate(
        model=HarnessModel(checkpoint=str(folder), device="cpu"),
        tasks=list(LOCAL_TASKS),
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    asked_of = {name: [(one["arguments"], one["resps"]) for one in found["samples"][name]] for name in LOCAL_TASKS}
    assert [len(rows) for rows in asked_of.values()] == [len(QUESTIONS)] * 3
    for arguments, said in asked_of["local_choice"]:
        for (context, choice), ((nats, greedy),) in zip(arguments, said, strict=True):
            own = own_likelihood(decoder, context, choice)
            assert nats == pytest.approx(own[0], rel=1e-5) and greedy == own[1]
    for ((whole,),), ((nats,),) in asked_of["local_rolling"]:
        assert nats == pytest.approx(own_likelihood(decoder, "", whole)[0], rel=1e-5)
    for ((prompt, _),), ((answer,),) in asked_of["local_answer"]:
        assert answer == own_answer(decoder, prompt, "e", 24)


@WITH
@pytest.mark.parametrize("arm", [arm for arm, fields in ARMS.items() if bounded(fields)])
def test_an_arm_of_bounded_memory_needs_no_more_for_a_longer_text(models: Path, tmp_path: Path, arm: str) -> None:
    from infini_study import HarnessModel

    lm = HarnessModel(checkpoint=str(write_arm(tmp_path, arm)), device="cpu")
    text = (models / "text" / "0.txt").read_text()
    held = []
    for length in (1500, 6000):
        with Peak() as peak:
            lm.loglikelihood_rolling([asked((text * 4)[:length])])
        held.append(peak.bytes)
    assert held[1] - held[0] < 4 * 8 * 4500  # the tokens themselves


REFUSED = {
    ("checkpoint=full", "cuda"): "--device = 'cuda': no CUDA device is visible here (allowed: cpu). Fix: leave it out",
    ("checkpoint=full", "cuda:1"): "--device = 'cuda:1': no CUDA device is visible here",
    ("checkpoint=none", "cpu"): "MODEL = 'none': none/config.json: no such file",
    ("checkpoint=gpt2", "cpu"): "checkpoint = 'gpt2': GPT2LMHeadModel",
    ("checkpoint=full,dtype=int3", "cpu"): "dtype = 'int3': cannot be computed in (allowed: auto, float32",
    ("checkpoint=full,max_length=x", "cpu"): "max_length = 'x': no number of tokens (allowed: whole numbers from 1 on)",
    ("checkpoint=full,arm=lokal", "cpu"): "--arm = 'lokal'",
}


@WITH
def test_what_our_model_cannot_do_is_one_line(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one test: the harness logs to the stream that it found first."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("pipeline.cli.harness._folder", lambda: tmp_path / "ours")
    write_tasks(tmp_path, "a text " * 100)
    command = caller(models, monkeypatch, capsys.readouterr, before="lm-eval --model infini_study")
    for (model_args, device), fault in REFUSED.items():
        asked_for = ("--model_args", model_args, "--device", device, "--tasks", "local_choice")
        said = command(*asked_for, "--include_path", tmp_path)
        faults = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert said.code == 2 and len(faults) == 1 and faults[0].startswith(f"error: {fault}"), said


@WITH
@pytest.mark.slow  # the harness reads the files of all its tasks
def test_the_command_runs_a_task_of_ours_and_a_local_one(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    Path("questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    Path("tasks").mkdir()
    Path("tasks/local.yaml").write_text(
        "task: local_choice\ndataset_path: json\ndataset_kwargs: {data_files: {test: questions.jsonl}}\n"
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\n'
        'doc_to_target: "{{answer}}"\ntarget_delimiter: ""\nmetric_list: [{metric: acc}]\n'
    )

    command = caller(Path(), monkeypatch, capsys.readouterr, before="lm-eval")

    def run(*arguments: str) -> str:
        said = command(*arguments)
        assert not said.code
        return said.out

    folder = run().strip()
    assert (Path(folder) / "infini_vt.yaml").is_file()
    common = ("--model", "infini_study", "--model_args", f"checkpoint={models / 'infini'}", "--device", "cpu")
    said = run(*common, "--tasks", "local_choice", "--include_path", "tasks")
    assert "local_choice" in said and "acc" in said
    small = json.dumps({"lengths": [400], "samples": 2, "format": "compact"})
    said = run(*common, "--tasks", "infini_passkey", "--metadata", small, "--output_path", "out", "--log_samples")
    assert "infini_passkey" in said and "score_400" in said
    (samples,) = Path("out").rglob("samples_infini_passkey*.jsonl")
    assert len(samples.read_text().splitlines()) == 2
