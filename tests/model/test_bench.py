"""The bench measures what it says: every kind of mixer, and loops that compute what one pass computes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from bench.evaluate import main as evaluations
from bench.gpu import goals
from bench.gpu import main as gpu
from bench.speed.__main__ import main
from bench.speed.rows import LLAMA, LOOP, PEER, arms, build, names
from bench.speed.scans import associative, loop
from model.arms import KINDS
from model.config import TrunkConfig
from tests.model.tiny import tokens

TRUNK = TrunkConfig(dim=16, layers=2, heads=2)


def test_every_kind_has_a_row_and_infini_its_segment_loops() -> None:
    assert {fields["kind"] for fields in arms().values()} == set(KINDS)
    assert len(names()) == len(KINDS) + 1 + 2 + 2 + 1  # both update rules, two loops, two of the peer, Llama
    assert names()[-1] == LLAMA


@pytest.mark.parametrize("arm", ["infini-linear", "infini-delta"])
def test_the_segment_loop_computes_the_same_loss_and_gradients(arm: str) -> None:
    rows = build([arm, arm + LOOP], TRUNK, 8, 31, "cpu")
    module = rows[arm].module.double()
    assert rows[arm + LOOP].module is module
    found = []
    for row in rows.values():
        loss = row.loss(tokens(2, 29))
        found.append((loss, torch.autograd.grad(loss, list(module.parameters()))))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-10)


def test_the_numbers_of_a_gpu_are_goals_reached_missed_or_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        ("window", 32): {"training_tokens_per_s": 100.0, "mfu": 0.6},
        ("infini-delta", 32): {"training_tokens_per_s": 92.0, "mfu": 0.4},
    }
    assert [value for _, value, _ in goals(found, 32, 64)] == [0.92, 0.4, None]
    options = ["--device", "cpu", "--size", "small", "--lengths", "32,64", "--segment", "16", "--eager"]
    gpu([*options, "--minutes", "0"])
    assert capsys.readouterr().out.count("not measured") == 3


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_the_peer_is_as_large_as_ours_and_its_memory_learns(rule: str) -> None:
    pytest.importorskip("infini_transformer_pytorch")
    rows = build([f"infini-{rule}", PEER + rule], TRUNK, 8, 31, "cpu")
    sizes = [sum(p.numel() for p in row.module.parameters() if p.ndim > 1) for row in rows.values()]
    assert sizes[1] == sizes[0] + 31 * 16  # its embeddings and head are two matrices
    loss = rows[PEER + rule].loss(tokens(2, 29))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(31), abs=1.5)


@pytest.mark.parametrize("segments", [1, 2, 3, 8, 13])
def test_the_scans_compared_compute_the_same(segments: int) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (0.3 * torch.randn(2, segments, 3, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(associative(a, b), loop(a, b), rtol=0, atol=1e-10)


def test_a_run_prints_and_writes_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "numbers.json"
    options = ["--rows", "local,infini-linear", "--lengths", "64", "--segments", "16", "--repeats", "1"]
    main(["arms", *options, "--json", str(target)])
    records = json.loads(target.read_text())["arms"]
    assert [r["row"] for r in records] == ["local", "infini-linear"]
    assert all(r["training_tokens_per_s"] > 0 and r["T"] == 64 and r["N"] == 16 for r in records)
    assert "T = 64, N = 16" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["arms", "--rows", "infini"])
    assert "allowed are local" in capsys.readouterr().err


def test_the_bench_of_evaluations_compares_prompts_of_one_haystack(tmp_path: Path) -> None:
    target = tmp_path / "numbers.json"
    options = ["--lengths", "1024", "--depths", "3", "--arms", "infini-linear", "--segment", "64", "--repeats", "1"]
    evaluations(["share", *options, "--json", str(target)])
    records = json.loads(target.read_text())["share"]
    assert [record["prompts"] for record in records] == ["a passkey at 3 depths", "3 needles, each asked"]
    assert all(record["x_each"] > 0 and record["row"] == "infini-linear" for record in records)
