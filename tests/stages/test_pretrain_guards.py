"""Optimisers, schedules, and what stops a training that has gone wrong; resume points in the background."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.multiprocessing as mp
from pydantic import ValidationError
from safetensors.torch import load_file

from model.config import MixerConfig, ModelConfig
from model.decoder import Decoder
from stages.stage import Execution, StageError
from stages.training.pretrain import checkpoint, optim, worker
from stages.training.pretrain.__main__ import main
from stages.training.pretrain.notice import Preempted
from stages.training.pretrain.stage import PRETRAIN
from tests.ports import free_ports
from tests.stages.pretraining import SEGMENT, TRUNK, VOCABULARY, make_inputs, pretrain_config
from tests.stages.test_pretrain import Run, stop
from tests.support import LocalArtifact, LocalContext


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalArtifact]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize(
    ("changes", "falls"),
    [({"optimizer": "adafactor", "lr": 1e-2}, 0.4), ({"optimizer": "muon"}, 0.5), ({"schedule": "wsd"}, 0.5)],
)
def test_every_optimiser_trains_and_resumes_to_the_same_bits(
    inputs: dict[str, LocalArtifact], tmp_path: Path, changes: dict[str, Any], falls: float
) -> None:
    config = pretrain_config(**changes)
    whole = Run(inputs, tmp_path / "whole", config)()
    losses = [loss for (loss,) in whole.log("loss")]
    assert losses[-1] < losses[0] - falls
    gates = [gate for (gate,) in whole.log("gate_mean") if gate is not None]
    assert abs(gates[-1] - 0.5) > 0.005, "gates move under every optimiser"
    stop(inputs, tmp_path / "again", 8, config)
    again = Run(inputs, tmp_path / "again", config)()
    assert again.log("loss", "lr") == whole.log("loss", "lr") and again.weights() == whole.weights()


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon"])
def test_every_parameter_is_stepped_once_and_gates_have_their_own_rate(kind: Any) -> None:
    mixer = MixerConfig(kind="infini", segment_length=SEGMENT)
    decoder = Decoder(ModelConfig(trunk=TRUNK, mixer=mixer, vocab_size=VOCABULARY), seed=0)
    optimizers = optim.build_all(decoder, kind, lr=1e-3, gate_lr=1e-2, weight_decay=0.1)
    groups = [
        (optimizer, group, p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]
    ]
    named = {id(p): name for name, p in decoder.named_parameters()}
    assert sorted(id(p) for *_, p in groups) == sorted(named)
    for optimizer, group, p in groups:
        name = named[id(p)]
        assert group["peak"] == (1e-2 if name.endswith("beta") else 1e-3)
        assert (group["weight_decay"] > 0) == (p.ndim >= 2)
        if kind == "muon":
            assert isinstance(optimizer, torch.optim.Muon) == (p.ndim == 2 and name.startswith("layers."))
        if name.endswith("beta"):
            assert isinstance(optimizer, torch.optim.AdamW)


def test_wsd_is_constant_and_then_falls_to_its_least() -> None:
    factors = [
        optim.schedule(s, steps=100, warmup_steps=10, kind="wsd", least=0.1, decay_share=0.3) for s in range(100)
    ]
    assert factors[10:70] == [1.0] * 60 and factors[-1] == pytest.approx(0.1)
    falls = [a - b for a, b in pairwise(factors[70:])]
    assert falls == pytest.approx([0.03] * 29)


def test_options_left_alone_move_no_key() -> None:
    added = {"optimizer", "decay_share", "z_loss", "spike_nats"}
    assert not added & set(pretrain_config().key_fields())
    used = pretrain_config(optimizer="muon", schedule="wsd", z_loss=1e-4, spike_nats=2.0)
    assert added < set(used.key_fields())
    with pytest.raises(ValidationError, match=r"decay_share = 0\.5: has no effect with schedule = 'cosine'"):
        pretrain_config(decay_share=0.5)


@pytest.mark.parametrize("arm", ["infini", "compressive"])
def test_z_loss_is_the_mean_squared_log_normaliser(arm: str) -> None:
    mixer = MixerConfig(kind=arm, segment_length=SEGMENT)
    decoder = Decoder(ModelConfig(trunk=TRUNK, mixer=mixer, vocab_size=VOCABULARY), seed=0)
    tokens = torch.randint(VOCABULARY, (2, 3 * SEGMENT), generator=torch.Generator().manual_seed(0))
    wanted = torch.zeros(tokens.shape, dtype=torch.bool)
    wanted[:, 5:20] = True
    logits, _ = decoder(tokens)
    squares = logits[:, :-1].logsumexp(-1).square()
    plain, without = decoder.training_nll(tokens)
    for mask, expected in ((None, squares.sum()), (wanted, squares[wanted[:, 1:]].sum())):
        nll, auxiliary = decoder.training_nll(tokens, mask, z_loss=0.5)
        assert auxiliary is not None
        other = 0.0 if without is None else without.item()
        assert auxiliary.item() - other == pytest.approx(0.5 * expected.item() / tokens.numel(), rel=1e-5)
        counted = torch.ones_like(nll, dtype=torch.bool) if mask is None else mask[:, 1:]
        torch.testing.assert_close(nll[counted], plain[counted])
    decoder.chunk_tokens = SEGMENT
    _, chunked = decoder.training_nll(tokens, z_loss=0.5)
    if without is None:
        assert chunked is not None and chunked.item() == pytest.approx(
            0.5 * squares.sum().item() / tokens.numel(), rel=1e-5
        )


def test_a_run_that_diverges_says_where_and_keeps_its_last_good_resume_point(
    inputs: dict[str, LocalArtifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third layer input of step 8 is poisoned: the weights before are those of step 7, and sound."""
    steps = {"n": 0}
    true = Decoder.training_nll

    def poisoned(self: Decoder, *args: Any, **options: Any) -> Any:
        steps["n"] += 1
        if steps["n"] == 8:
            with torch.no_grad():
                self.layers[1].self_attn.v_proj.weight[0, 0] = float("nan")
        return true(self, *args, **options)

    monkeypatch.setattr(Decoder, "training_nll", poisoned)
    config = pretrain_config({"rule": "delta"})
    with pytest.raises(StageError) as told:
        Run(inputs, tmp_path, config)()
    message = str(told.value)
    assert (
        "training diverged at step 8: loss nan" in message
        and "layer 1 (the first whose output is not finite)" in message
    )
    assert "lambda_max" in message and "min sigma(q) z" in message and "gradients not finite" in message
    points = sorted(path.name for path in (tmp_path / "work" / "checkpoints").iterdir())
    assert points == ["step-00000005"]
    monkeypatch.undo()
    (tmp_path / "output").rmdir()
    Run(inputs, tmp_path, config)()


def test_a_loss_that_jumps_ends_the_run_only_where_asked_and_after_fifty_steps() -> None:
    from stages.training.pretrain.checkpoint import RunState
    from stages.training.pretrain.loop import what_ends_it
    from stages.training.pretrain.recipe import of_pretrain

    careful, careless = (of_pretrain(pretrain_config(spike_nats=limit)) for limit in (1.0, None))
    calm = RunState(rows=[{"loss": 2.0 + (step % 2) / 10} for step in range(50)])
    early = RunState(rows=calm.rows[:49])
    assert what_ends_it(careful, calm, (3.2, None), 1.0) == "the loss rose by more than spike_nats = 1"
    assert (
        what_ends_it(careful, calm, (3.0, None), 1.0) is None and what_ends_it(careful, early, (9.0, None), 1.0) is None
    )
    assert what_ends_it(careless, calm, (9.0, None), 1.0) is None
    assert what_ends_it(careless, calm, (None, 2.0), float("inf")) == "training diverged"


def test_resume_points_in_the_background_count_when_they_are_durable(
    inputs: dict[str, LocalArtifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pretrain_config()
    whole = Run(inputs, tmp_path / "whole", config)()
    stop(inputs, tmp_path / "cut", 8, config)  # written at once
    background = Run(inputs, tmp_path / "later", config, async_checkpoints=True, keep_checkpoints=1)()
    assert background.weights() == whole.weights() and background.log("loss") == whole.log("loss")
    points = sorted(path.name for path in (tmp_path / "later" / "work" / "checkpoints").iterdir())
    assert points == ["step-00000010"]  # the last one kept
    states = [
        json.loads((tmp_path / run / "work" / "checkpoints" / step / "state.json").read_text())
        for run, step in (("cut", "step-00000005"), ("later", "step-00000010"))
    ]
    assert [len(state["rows"]) for state in states] == [5, 10]
    # killed before the writing ends: what was begun does not count, the one before does
    monkeypatch.setattr(checkpoint.Checkpoints, "finish", lambda self: None)
    monkeypatch.setattr(checkpoint.Checkpoints, "advance", lambda self: None)
    (tmp_path / "later" / "work" / "export.json").unlink()
    state = tmp_path / "later" / "work" / "checkpoints" / "step-00000010" / "state.json"
    state.unlink()
    (tmp_path / "later" / "output").rename(tmp_path / "first")
    again = Run(inputs, tmp_path / "later", config)()
    assert again.weights() == whole.weights()


def test_a_resume_point_of_the_background_is_what_was_trained_until_then(
    inputs: dict[str, LocalArtifact], tmp_path: Path
) -> None:
    config = pretrain_config()
    whole = Run(inputs, tmp_path / "whole", config)()
    Run(inputs, tmp_path / "run", config, async_checkpoints=True)()
    checkpoints = tmp_path / "run" / "work" / "checkpoints"
    (checkpoints / "step-00000010" / "__0_0.distcp").unlink()  # so the one of step 5 must serve
    (tmp_path / "run" / "work" / "export.json").unlink()
    (tmp_path / "run" / "output").rename(tmp_path / "first")
    again = Run(inputs, tmp_path / "run", config)()
    assert any("step-00000010 is damaged" in line for line in again.context.warned)
    assert again.weights() == whole.weights() and again.log("loss") == whole.log("loss")


def test_where_no_resume_point_is_sound_it_says_so_and_starts_anew(
    inputs: dict[str, LocalArtifact], tmp_path: Path
) -> None:
    config = pretrain_config()
    whole = Run(inputs, tmp_path / "whole", config)()
    stop(inputs, tmp_path / "cut", 11, config)
    for point in (tmp_path / "cut" / "work" / "checkpoints").iterdir():
        (point / "state.json").write_text("{")
    again = Run(inputs, tmp_path / "cut", config)()
    assert again.context.warned[-1] == "no checkpoint is sound: training starts anew, from step 0"
    assert again.weights() == whole.weights()


def arguments(folder: Path, inputs: dict[str, LocalArtifact], out: str) -> list[str]:
    named = [part for name, artifact in inputs.items() for part in (f"--{name}", str(artifact.directory))]
    return ["--config", str(folder / "arm.json"), *named, "--out", str(folder / out)]


def test_a_module_trains_the_same_without_ray_or_study(
    inputs: dict[str, LocalArtifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = pretrain_config(steps=3)
    (tmp_path / "arm.json").write_text(config.model_dump_json())
    whole = Run(inputs, tmp_path / "whole", config)()
    assert main(arguments(tmp_path, inputs, "alone")) == 0
    assert "step 3 of 3: loss" in capsys.readouterr().err
    assert (tmp_path / "alone" / "model" / "model.safetensors").read_bytes() == whole.weights()
    assert main(arguments(tmp_path, inputs, "alone")) == 2
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "arm.json").write_text(config.model_dump_json().replace('"lr"', '"rate"'))
    assert main(arguments(tmp_path, inputs, "other")) == 2
    assert "rate" in capsys.readouterr().err and not (tmp_path / "other.work").exists()


@pytest.mark.slow
def test_compiled_layers_train_the_same(
    inputs: dict[str, LocalArtifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))  # not what a killed process left
    config = pretrain_config({"rule": "delta"}, steps=2)
    plain = Run(inputs, tmp_path / "plain", config)()
    compiled = Run(inputs, tmp_path / "compiled", config, compile=True)()
    losses = [[loss for (loss,) in run.log("loss")] for run in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert set(load_file(compiled.output / "model" / "model.safetensors")) == set(
        load_file(plain.output / "model" / "model.safetensors")
    )


@pytest.mark.slow
def test_torchrun_trains_the_same(inputs: dict[str, LocalArtifact], tmp_path: Path) -> None:
    config = pretrain_config(steps=3)
    (tmp_path / "arm.json").write_text(config.model_dump_json())
    whole = Run(inputs, tmp_path / "whole", config)()
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "stages.training.pretrain",
    ]
    done = subprocess.run(
        [sys.executable, *launcher, *arguments(tmp_path, inputs, "two")],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    log = pq.read_table(tmp_path / "two" / "train_log.parquet")["loss"].to_pylist()
    assert log == pytest.approx([loss for (loss,) in whole.log("loss")], rel=1e-4)


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_fills_up_while_a_resume_point_is_written_is_an_error_like_others(
    inputs: dict[str, LocalArtifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    """torch wraps it into one that no ``except Exception`` sees, and the driver died of it."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileSystemWriter, "write_data", full)
    with pytest.raises(OSError, match="No space left on device"):
        Run(inputs, tmp_path / "run", pretrain_config(checkpoint_every=2), async_checkpoints=background)()


def leaves(rank: int, port: str, folder: Path, stopped: bool) -> None:
    """One of two ranks; the first has something left to do when the second has ended."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "2"}
    with contextlib.suppress(Preempted), worker.process_group(Execution(device="cpu"), 2):
        if rank == 0:
            time.sleep(1)
            (folder / "done").touch()
        if stopped:
            raise Preempted(3)
    assert (folder / "done").exists()


@pytest.mark.parametrize("stopped", [False, True])
def test_no_rank_ends_before_the_others(tmp_path: Path, stopped: bool) -> None:
    mp.start_processes(leaves, (str(free_ports(1)[0]), tmp_path, stopped), nprocs=2, start_method="spawn")


def test_what_is_watched_goes_to_the_metrics(inputs: dict[str, LocalArtifact], tmp_path: Path) -> None:
    context = LocalContext(str(tmp_path / "work"))
    (tmp_path / "output").mkdir()
    PRETRAIN.run(pretrain_config({"rule": "delta"}), inputs, tmp_path / "output", context)
    named = {name for _, values in context.measured for name in values}
    assert {"loss", "tokens_per_s", "grad_norm", "gate_mean", "memory_norm", "z_min", "erase_lambda_max"} <= named
