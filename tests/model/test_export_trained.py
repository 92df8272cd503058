"""PEFT and TRL train exported folders, in a process that cannot import this package; needs ``pip install peft trl``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from model.checkpoint import load
from model.export import export
from model.generate import generate
from tests.model.test_export import close, made
from tests.model.tiny import ARMS, N, tokens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
for package in ("accelerate", "peft", "trl"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'infini-study[trainers]'")

LENGTHS = (5, 2 * N, 21, 3 * N + 4)


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    return [tokens(1, length, seed)[0].tolist() for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def found(folder: Path, rows: list[list[int]]) -> dict[str, Any]:
    """What one process apart found."""
    import peft
    import tokenizers

    words = {"<eos>": 0, "<pad>": 1, "a": 2, "b": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<eos>", "<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    for arm in ARMS:
        export(made(arm), folder / arm, tokenizer=folder / "tokenizer.json", special_tokens={"eos": 0, "pad": 1})
    longest = max(LENGTHS)
    pads = [longest - len(row) for row in rows]
    asked = {"arms": list(ARMS), "tokens": tokens(), "rows": rows}
    asked["padded"] = torch.tensor([[1] * n + row for n, row in zip(pads, rows, strict=True)])
    asked["mask"] = torch.tensor([[0] * n + [1] * (longest - n) for n in pads])
    torch.save(asked, folder / "asked.pt")
    environment = os.environ | {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    script, site = Path(__file__).with_name("trained.py"), Path(str(peft.__file__)).parents[1]
    command = [sys.executable, "-I", str(script), str(folder), str(site)]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert run.returncode == 0, run.stderr[-6000:]
    result: dict[str, Any] = torch.load(folder / "found.pt")
    return result


@pytest.mark.parametrize("arm", ARMS)
def test_adapters_train_and_are_there_again_alone_and_merged(found: dict[str, Any], arm: str) -> None:
    theirs = found[arm]
    first, *_, last = theirs["adapter losses"]
    assert last < first
    assert (theirs["adapted"] - theirs["before"]).abs().max() > 1e-2
    close(theirs["adapter again"], theirs["adapted"])
    torch.testing.assert_close(theirs["merged again"], theirs["adapted"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arm", ARMS)
def test_all_weights_train_on_the_loss_of_rows_without_pads(
    found: dict[str, Any], rows: list[list[int]], folder: Path, arm: str
) -> None:
    theirs = found[arm]
    with torch.no_grad():
        nats = [
            F.cross_entropy(made(arm)(torch.tensor([row]))[0][0, :-1], torch.tensor(row[1:]), reduction="none")
            for row in rows
        ]
    for losses in (theirs["losses"], theirs["adapter losses"]):
        if arm != "landmark":  # training sees all blocks
            assert losses[0] == pytest.approx(torch.cat(nats).mean().item(), rel=1e-3)
    assert theirs["losses"][-1] < theirs["losses"][0]
    # TRL scores what stands below the head, without the auxiliary loss that alone trains the compression
    assert [name for name in theirs["unmoved"] if arm != "compressive" or "compress" not in name] == []
    close(theirs["tuned again"], theirs["tuned"])
    again = load(folder / arm / "tuned").eval() if arm != "full" else None
    if again is not None:
        close(again(tokens())[0].detach(), theirs["tuned"])
        longest = max(LENGTHS)
        expected = generate(again, rows, 6, stop_ids=[0])
        for row, mine in zip(theirs["greedy"], expected, strict=True):
            assert row[longest : longest + len(mine)] == mine
    assert all(len(row) > max(LENGTHS) for row in theirs["beams"])


def test_preferences_train(found: dict[str, Any]) -> None:
    first, *_, last = found["preferences"]
    assert first == pytest.approx(0.6931, abs=1e-3) and last < first
