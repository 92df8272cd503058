"""What is done on a GPU alone, done on a CPU: the model's way on it, where torch knows the sizes without one, and the
bench's rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from bench.gpu import main as bench
from model.config import MixerConfig, ModelConfig, TrunkConfig
from model.decoder import Decoder
from stages.training.pretrain import monitor, optim
from stages.training.pretrain.loop import shard
from tests.model.tiny import N, decoder, tokens

REPOSITORY = Path(__file__).parents[2]
ARMS = ("infini-linear", "infini-delta", "local", "window", "linear", "deltanet")


def test_the_places_where_code_looks_for_a_gpu_are_those_that_are_named() -> None:
    page = (REPOSITORY / "docs" / "performance.md").read_text()
    named = set(re.findall(r"^\| `([\w/.]+\.py)` \|", page, re.M))
    asked = re.compile(r"\bis_cuda\b|\btorch\.cuda\.")
    rooms = ("model", "stages", "cluster", "pipeline")
    found = {
        str(path.relative_to(REPOSITORY))
        for room in rooms
        for path in (REPOSITORY / room).rglob("*.py")
        if asked.search(path.read_text())
    }
    assert found == named


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model takes the way that it takes on a GPU."""
    for place in ("model.scan", "model.fused"):
        monkeypatch.setattr(f"{place}.on_gpu", lambda x: True)


def found(arm: str, **options: Any) -> list[Tensor]:
    """Loss, gradients, and what is read without gradients."""
    model = decoder(arm, **options)
    loss = model.training_nll(tokens(2, 5 * N))[0].mean()
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    with torch.no_grad():
        read = model.training_nll(tokens(2, 5 * N))[0]
    return [loss.detach(), read, *(g for g in grads if g is not None)]


@pytest.mark.parametrize("arm", ARMS)
def test_on_a_gpu_the_model_computes_what_it_does_on_a_cpu(
    arm: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.fused.BLOCK", 64)  # so that a CPU's blocks are several
    options: list[dict[str, Any]] = [{}, {"gate": "token", "initial_memory": "learned"}, {"empty_memory": "literal"}]
    on_cpu = [found(arm, **option) for option in options]
    request.getfixturevalue("as_on_a_gpu")
    for option, expected in zip(options, on_cpu, strict=True):
        torch.testing.assert_close(found(arm, **option), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("arm", ["infini-linear", "infini-delta", "window"])
def test_in_bfloat16_gradients_are_near_those_in_float32_and_memory_is_in_float32(arm: str) -> None:
    grads = []
    for bf16 in (True, False):
        model = decoder(arm).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            nll, _ = model.training_nll(tokens(2, 5 * N))
            _, state = model(tokens(2, 2 * N))
        for memory in (layer.memory for layer in state.layers if layer is not None and layer.memory is not None):
            assert all(
                t.dtype == torch.float32
                for t in (getattr(memory, "M", None), getattr(memory, "z", None))
                if t is not None
            )
        grads.append(
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(nll.mean(), list(model.parameters()), allow_unused=True)
                    if g is not None
                ]
            )
        )
    assert (grads[0] - grads[1]).norm() < 0.05 * grads[1].norm()


@pytest.fixture
def ranks(request: pytest.FixtureRequest) -> Iterator[int]:
    """The first of so many ranks of a group that does nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [8, 64], indirect=True)
def test_what_each_of_many_workers_holds_of_a_1b_model_is_what_a_plan_says(ranks: int) -> None:
    trunk = TrunkConfig(dim=2048, layers=16, heads=32, kv_heads=8, ffn_dim=8192)
    config = ModelConfig(trunk=trunk, mixer=MixerConfig(kind="infini", segment_length=2048), vocab_size=32768)
    with torch.device("meta"):  # sizes, and no numbers
        model = Decoder(config, seed=0)
    parameters = sum(p.numel() for p in model.parameters())
    shard(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizers = optim.build_all(model, "adamw", lr=1e-3, gate_lr=1e-2, weight_decay=0.1)
    for optimizer in optimizers:
        optimizer.step()
    states = [v for o in optimizers for state in o.state.values() for v in state.values() if torch.is_tensor(v)]
    held = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None), *states]
    local = sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in held)
    assert parameters > 1e9 and local == pytest.approx(16 * parameters / ranks, rel=1e-3)


def test_the_share_of_the_peak_follows_from_tokens_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder("infini-delta")
    monkeypatch.setattr(monitor, "peak_flops", lambda device: 1e9)
    speed = monitor.Speed(model, 4 * N, torch.device("cpu"), 2)
    assert speed(1000.0) == {"mfu": pytest.approx(speed.flops * 1000 / 2e9)}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.undo()
    assert monitor.Speed(model, 4 * N, torch.device("cpu"), 2)(1000.0) == {}, "of a CPU no peak is known"


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("X", None)]
)
def test_a_gpus_peak_is_found_by_its_name(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert monitor.peak_flops(torch.device("cuda", 0)) == peak


def test_the_gpu_bench_runs_its_rows_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--device", "cpu", "--size", "small", "--lengths", "64,128", "--segment", "16", "--eager"]
    bench([*options, "--minutes", "2"])
    said = capsys.readouterr().out
    for goal in ("infini-delta / window, tokens/s of training at 64", "tokens/s at 128 / at 64"):
        line = next(line for line in said.splitlines() if line.startswith(goal))
        assert line.endswith(("reached)", "missed)")), line
    assert "MFU of infini-delta at 64, >= 0.5" in said and said.count("not measured") == 1
