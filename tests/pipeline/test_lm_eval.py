"""lm-evaluation-harness with our checkpoints as its model: equal to its own of transformers, and without a network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

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
