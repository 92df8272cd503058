"""Exported folders, opened with transformers by a process that cannot import this package."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.checkpoint import load, save
from model.config import RopeScaling
from model.decoder import Decoder
from model.export import export, sources
from model.generate import generate
from tests.model.tiny import ARMS, VOCAB, N, config, tokens

LENGTHS, NEW = (5, 2 * N, 21, 5), 14
SCALING = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
TRUNK: dict[str, Any] = {"dim": 32, "tie_embeddings": False}  # a tied head of random weights repeats one token
TIED = "tied"  # one more model: tied, RoPE scaled, with the memory's options


def made(arm: str) -> Decoder:
    if arm == TIED:
        options = {"gate": "token", "initial_memory": "learned", "feature_map": "dpfp2"}
        whole = config("infini-delta", trunk={"dim": 32, "rope_scaling": RopeScaling(**SCALING)}, **options)
    else:
        whole = config(arm, trunk=TRUNK)
    model = Decoder(whole, seed=1).eval()
    with torch.no_grad():
        for layer, beta in enumerate(model.gate_parameters()):
            beta.copy_(torch.linspace(-1.3, 1.7, beta.numel()).roll(layer).view_as(beta))
    return model


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return [tokens(1, length, seed)[0].tolist() for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<eos>": 0, "<pad>": 1, "a": 2, "b": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<eos>", "<pad>"])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, prompts: list[list[int]], vocabulary: Path) -> dict[str, Any]:
    """What one process apart found in the exports of all arms."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("exports")
    arms = [*ARMS, TIED]
    for arm in arms:
        export(made(arm), folder / arm, tokenizer=vocabulary, special_tokens={"pad": 1})
    longest = max(LENGTHS)
    pads = [longest - length for length in LENGTHS]
    padded = torch.tensor([[7] * n + prompt for n, prompt in zip(pads, prompts, strict=True)])
    behind = torch.tensor([prompt + [7] * n for n, prompt in zip(pads, prompts, strict=True)])
    mask = torch.tensor([[0] * n + [1] * (longest - n) for n in pads])
    asked = {"arms": arms, "tokens": tokens(), "padded": padded, "mask": mask, "new": NEW, "padded right": behind}
    asked["labels"] = behind.masked_fill(mask.flip(1) == 0, -100)
    torch.save(asked, folder / "asked.pt")
    script = Path(__file__).with_name("exported.py")
    environment = os.environ | {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    run = subprocess.run(
        [sys.executable, "-I", str(script), str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    result: dict[str, Any] = torch.load(folder / "found.pt")
    return result


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arm", [*ARMS, TIED])
def test_the_auto_classes_open_an_export_and_compute_the_same(
    found: dict[str, Any], prompts: list[list[int]], arm: str
) -> None:
    mine, theirs = made(arm), found[arm]
    llama = arm == "full"
    assert theirs["model"] == ("LlamaForCausalLM" if llama else "InfiniStudyForCausalLM")
    assert theirs["config"] == ("LlamaConfig" if llama else "InfiniStudyConfig")
    with torch.no_grad():
        expected, _ = mine(tokens())
        first, state = mine(tokens()[:, :11])
        in_two = torch.cat([first, mine(tokens()[:, 11:], state)[0]], dim=1)
        for found_, expected_ in (
            (theirs["logits"], expected),
            (theirs["again"], expected),  # after transformers' own save_pretrained
            (theirs["in two"], in_two),
            (theirs["embedded"], expected),
            (theirs["resized"][..., :VOCAB], expected),
        ):
            close(found_, expected_)
            assert llama or torch.equal(found_, expected_)  # it is our own code that ran
        close(theirs["last"], expected[:, -3:])
        longest, losses = max(LENGTHS), []
        for row, prompt in enumerate(prompts):
            alone = mine(torch.tensor([prompt]))[0][0]
            close(theirs["padded left"][row, longest - len(prompt) :], alone)
            close(theirs["below"][row, longest - len(prompt) :], alone)  # as TRL asks, with the head by itself
            losses.append(F.cross_entropy(alone[:-1], torch.tensor(prompt[1:]), reduction="none"))
        close(theirs["loss"], torch.cat(losses).mean())
        assert (theirs["rounded"].float() - expected).abs().max() < 0.5


@pytest.mark.parametrize("arm", [*ARMS, TIED])
def test_transformers_generates_what_we_generate_from_unequal_prompts(
    found: dict[str, Any], prompts: list[list[int]], arm: str
) -> None:
    expected = generate(made(arm), prompts, NEW)
    assert found[arm]["greedy"] == expected
    if arm != TIED:
        assert len({token for row in expected for token in row}) > 5
    assert found[arm]["greedy embedded"] == [row[:6] for row in expected]
    first, same, other = found[arm]["samples"]
    assert first == same != other
    cached, anew = found[arm]["beams"]
    assert cached == anew


@pytest.mark.parametrize("arm", [*(arm for arm in ARMS if arm != "full"), TIED])
def test_trainers_get_gradients_of_rows_padded_at_the_right_checkpointed_or_not(
    found: dict[str, Any], arm: str
) -> None:
    theirs, model = found[arm]["training"], made(arm).train()
    losses, gradients = (theirs["loss False"], theirs["loss True"]), theirs["gradients False"]
    assert torch.equal(*losses)
    for name, gradient in theirs["gradients True"].items():
        assert (gradient is None) == (gradients[name] is None), name
        if gradient is not None:
            close(gradient, gradients[name])
    rows = [tokens(1, length, seed) for seed, length in enumerate(LENGTHS)]
    longest, targets = max(LENGTHS), sum(LENGTHS) - len(LENGTHS)
    if arm != "compressive":  # its auxiliary loss is a mean over the padded batch
        (sum(model.nll(row).sum() for row in rows) / (2 * targets)).backward()
        for name, parameter in model.named_parameters():
            mine = parameter.grad
            theirs_ = gradients[name if name == "lm_head.weight" else f"model.{name}"]
            assert (mine is None or not mine.any()) == (theirs_ is None or not theirs_.any()), name
            if mine is not None and theirs_ is not None:
                torch.testing.assert_close(theirs_, mine, rtol=1e-4, atol=1e-5)
    if "layers" in theirs:
        assert theirs["layers"] == 3 and not theirs["first"].any()
        pads = [longest - length for length in LENGTHS]
        for row, n in enumerate(pads):
            close(theirs["states as logits"][row, n:], found[arm]["padded left"][row, n:])
    assert ("layers" in theirs) == (arm not in ("rmt", "landmark"))


@pytest.mark.parametrize("arm", ["infini-delta", TIED])
def test_gates_are_not_rounded_with_the_rest(found: dict[str, Any], arm: str) -> None:
    dtypes = found[arm]["dtypes"]
    gates = {name for name in dtypes if name.endswith(".beta")}
    assert len(gates) == 2 and {dtypes[name] for name in gates} == {"float32"}
    assert {dtypes[name] for name in set(dtypes) - gates} == {"bfloat16"}


def test_the_tokenizer_comes_along(found: dict[str, Any]) -> None:
    for arm in ("full", "infini-linear"):
        assert found[arm]["ids"] == [2, 3, 2]
        assert found[arm]["eos"] == (None, None)  # none was named


def test_what_a_memory_cannot_do_is_refused(found: dict[str, Any]) -> None:
    said = found["infini-linear"]["refusals"]
    expected = {
        "static": "cache_implementation = 'static'",
        "cache": "past_key_values = DynamicCache",
        "packed": "several documents in one row",
        "weights": "the weights are never made",
        "right": "pads at the right cannot be continued",
        "holes": "pads within the text",
        "nothing": "a row of pads alone",
        "embeddings": "needs exactly one of them",
        "labels": "labels need all logits",
        "assistant": "assisted generation is not supported with stateful models",
        "untrusted": "trust_remote_code=True",
    }
    assert said.keys() == expected.keys()
    for name, text in expected.items():
        assert text in said[name], said[name]


def test_an_arm_that_reads_any_length_does_not_have_its_bases_longest_position(tmp_path: Path) -> None:
    """lm-eval cut prompts there."""
    save(made("full"), tmp_path / "base")
    fields = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(fields | {"max_position_embeddings": 64}))
    for arm, longest in (("full", 64), ("infini-delta", 2**20), ("window", 2**20)):
        export(made(arm), tmp_path / arm, like=tmp_path / "base")
        assert json.loads((tmp_path / arm / "config.json").read_text())["max_position_embeddings"] == longest


def test_an_export_opens_as_a_checkpoint_of_ours_too(tmp_path: Path) -> None:
    export(made("infini-linear"), tmp_path, dtype=torch.bfloat16, shard_bytes=20_000)
    again = load(tmp_path)
    assert again.config == made("infini-linear").config
    assert again.embed_tokens.weight.dtype == torch.bfloat16


def test_special_tokens_are_named_in_config_and_tokenizer(tmp_path: Path, vocabulary: Path) -> None:
    export(made("local"), tmp_path, tokenizer=vocabulary, special_tokens={"eos": 0, "pad": 1})
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 0
    names = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (names["eos_token"], names["pad_token"]) == ("<eos>", "<pad>")


def test_an_instruct_bases_other_stop_tokens_stay(tmp_path: Path, vocabulary: Path) -> None:
    save(made("full"), tmp_path / "base")
    fields = json.loads((tmp_path / "base" / "config.json").read_text())
    for stops, kept in (([3, 0], [0, 3]), (3, [0, 3]), ([0], 0), (None, 0)):
        (tmp_path / "base" / "config.json").write_text(json.dumps(fields | {"eos_token_id": stops}))
        export(made("local"), tmp_path, like=tmp_path / "base", tokenizer=vocabulary, special_tokens={"eos": 0})
        assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == kept
        assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<eos>"


def test_the_code_that_comes_along_needs_torch_and_transformers_only() -> None:
    files = sources()
    allowed = {*sys.stdlib_module_names, "torch", "transformers"}
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, name
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert str(node.module).split(".")[0] in allowed, name
            elif isinstance(node, ast.ImportFrom):
                assert f"{node.module}.py" in files, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"special_tokens": {"eos": 0}}, "need the tokenizer"),
        ({"special_tokens": {"unk": 0}}, r"'unk' is not known \(allowed: bos, eos, pad\)"),
        ({"special_tokens": {"eos": 9}, "tokenizer": True}, "eos = 9: .* has no such token"),
    ],
)
def test_tokens_that_are_not_there_are_refused_before_anything_is_written(
    tmp_path: Path, vocabulary: Path, options: dict[str, Any], message: str
) -> None:
    if options.pop("tokenizer", False):
        options["tokenizer"] = vocabulary
    with pytest.raises(ValueError, match=message):
        export(made("local"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    words = {f"w{i}": i for i in range(VOCAB + 1)}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}}))
    with pytest.raises(ValueError, match=rf"token {VOCAB} is not in the model \(allowed: 0 to {VOCAB - 1}\)"):
        export(made("local"), tmp_path / "out", tokenizer=tmp_path / "tokenizer.json")
