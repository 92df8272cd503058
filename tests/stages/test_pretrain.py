"""The base and pretrain stages in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from model.config import MixerConfig, TrunkConfig
from stages.stage import Execution, StageError
from stages.training.pretrain.checkpoint import RunState
from stages.training.pretrain.imported import check_folder, folder_digest
from stages.training.pretrain.stage import BASE, PRETRAIN, BaseConfig, PretrainConfig
from tests.faults.damage import DAMAGES
from tests.stages.pretraining import SEGMENT, TRUNK, VOCABULARY, make_inputs, pretrain_config
from tests.support import LocalArtifact, LocalContext, StoppedAt


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalArtifact]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


class Run:
    """One attempt at a step; ``again`` is the next attempt, with the same work folder."""

    def __init__(
        self, inputs: dict[str, LocalArtifact], folder: Path, config: PretrainConfig, **execution: Any
    ) -> None:
        self.inputs, self.folder, self.config = inputs, folder, config
        self.context = LocalContext(str(folder / "work"), Execution(**execution))
        self.output = folder / "output"

    def __call__(self) -> Run:
        self.output.mkdir(parents=True)
        PRETRAIN.run(self.config, self.inputs, self.output, self.context)
        return self

    def log(self, *columns: str) -> list[tuple[Any, ...]]:
        table = pq.read_table(self.output / "train_log.parquet", columns=list(columns)).to_pylist()
        return [tuple(row[c] for c in columns) for row in table]

    def samples(self) -> list[str]:
        return pq.read_table(self.output / "samples.parquet")["sample_ids_digest"].to_pylist()

    def weights(self) -> bytes:
        return (self.output / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(inputs: dict[str, LocalArtifact], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run."""
    return Run(inputs, tmp_path_factory.mktemp("whole"), pretrain_config())()


def stop(inputs: dict[str, LocalArtifact], folder: Path, step: int, config: PretrainConfig) -> None:
    context = StoppedAt(str(folder / "work"), step=step)
    (folder / "first").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        PRETRAIN.run(config, inputs, folder / "first", context)


def test_the_loss_falls_and_is_reported(whole: Run) -> None:
    losses = [loss for _, loss in whole.log("step", "loss")]
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.5
    assert [done for done, *_ in whole.context.progressed] == list(range(1, 13))
    assert {"loss", "tokens_per_s"} <= set(whole.context.progressed[-1][3])
    monitored = [row for row in whole.log("gate_mean", "memory_norm", "erase_lambda_max") if None not in row]
    assert len(monitored) == 2 and all(0 < gate < 1 for gate, *_ in monitored)
    cost = json.loads((whole.output / "cost.json").read_text())
    assert cost["parameters"] > 0 and cost["tokens_per_s"] > 0


def gates(run: Run) -> list[dict[str, Any]]:
    return pq.read_table(run.output / "gates.parquet").to_pylist()


def test_the_gates_of_every_head_are_kept_from_before_the_first_step_to_the_end(whole: Run) -> None:
    from model import checkpoint

    found, last = gates(whole), checkpoint.load(whole.output / "model").gates()
    assert last is not None
    monitored = [step for step, gate in whole.log("step", "gate_mean") if gate is not None]
    assert sorted({row["step"] for row in found}) == [0, *monitored]
    assert len(found) == 3 * last.numel()
    for row in found:
        if row["step"] == 12:
            assert row["gate"] == pytest.approx(last[row["layer"], row["head"]].item(), rel=1e-6)
    moved = {(row["layer"], row["head"]): row["gate"] for row in found if row["step"] == 0}
    assert any(abs(row["gate"] - moved[row["layer"], row["head"]]) > 1e-3 for row in found)


def test_resume_points_without_gates_are_whole_and_those_with_some_keep_them() -> None:
    before = {name: value for name, value in asdict(RunState(step=3)).items() if name not in ("gates", "digest")}
    assert RunState(step=3).own_digest() == RunState(**before).own_digest()
    some = RunState(step=3, gates=[{"step": 0, "gates": [[0.5]]}])
    assert some.own_digest() != RunState(step=3).own_digest()
    assert RunState(step=3, resized=None).own_digest() != RunState(step=3).own_digest()  # damaged


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_rows_read_in_pieces_train_the_same_model(inputs: dict[str, LocalArtifact], tmp_path: Path, rule: str) -> None:
    once = Run(inputs, tmp_path / "once", pretrain_config({"rule": rule}, steps=4))()
    config = pretrain_config({"rule": rule}, steps=4, chunk_tokens=2 * SEGMENT)
    pieces = Run(inputs, tmp_path / "pieces", config)()
    found, expected = (dict(load_file(run.output / "model" / "model.safetensors")) for run in (pieces, once))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-5)
    assert "chunk_tokens" not in once.config.key_fields() and pieces.config.key_fields()["chunk_tokens"] == 2 * SEGMENT
    for chunk in (SEGMENT + 1, config.sequence_length):
        with pytest.raises(ValidationError, match=f"chunk_tokens = {chunk}: allowed are multiples"):
            pretrain_config(chunk_tokens=chunk)


def test_every_arm_of_a_seed_sees_the_same_batches(
    whole: Run, inputs: dict[str, LocalArtifact], tmp_path: Path
) -> None:
    local = Run(inputs, tmp_path / "local", pretrain_config({"kind": "local"}, steps=4))()
    delta = Run(inputs, tmp_path / "delta", pretrain_config({"rule": "delta"}, steps=4))()
    other = Run(inputs, tmp_path / "other", pretrain_config(steps=4, seed=1))()
    assert local.samples() == delta.samples() == whole.samples()[:4]
    assert other.samples() != local.samples()
    assert all(gate is None for (gate,) in local.log("gate_mean"))
    # the same trunk under both gates: with nothing in memory yet the arms differ by their mixers alone
    assert local.log("loss")[0] != delta.log("loss")[0]


@pytest.mark.parametrize("step", [3, 8])
def test_a_stopped_run_goes_on_to_the_same_bits(
    whole: Run, inputs: dict[str, LocalArtifact], tmp_path: Path, step: int
) -> None:
    stop(inputs, tmp_path, step, whole.config)
    again = Run(inputs, tmp_path, whole.config)()
    columns = ("step", "tokens", "loss", "lr", "grad_norm", "gate_mean", "z_min")
    assert again.log(*columns) == whole.log(*columns)
    assert again.samples() == whole.samples()
    assert gates(again) == gates(whole)
    assert again.weights() == whole.weights()


def test_a_damaged_checkpoint_is_passed_over_loudly(
    whole: Run, inputs: dict[str, LocalArtifact], tmp_path: Path
) -> None:
    stop(inputs, tmp_path, 11, whole.config)
    newest = tmp_path / "work" / "checkpoints" / "step-00000010" / "__0_0.distcp"
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    again = Run(inputs, tmp_path, whole.config)()
    assert any("step-00000010" in line and "damaged" in line for line in again.context.warned)
    assert again.log("loss") == whole.log("loss") and again.weights() == whole.weights()


def test_another_world_size_is_refused_unless_asked_for(
    whole: Run, inputs: dict[str, LocalArtifact], tmp_path: Path
) -> None:
    stop(inputs, tmp_path, 6, whole.config)
    state = tmp_path / "work" / "checkpoints" / "step-00000005" / "state.json"
    other = RunState(**json.loads(state.read_text()) | {"world_size": 2})
    other.digest = other.own_digest()
    state.write_text(json.dumps(asdict(other)))
    with pytest.raises(StageError, match="began with 2 workers"):
        Run(inputs, tmp_path, whole.config)()
    (tmp_path / "output").rmdir()
    allowed = Run(inputs, tmp_path, whole.config, allow_world_size_change=True)()
    assert allowed.samples() == whole.samples()
    assert json.loads((allowed.output / "cost.json").read_text())["resized"] == [[5, 1, 1]]
    assert any("from step 5 on 1 workers train what 2 began" in line for line in allowed.context.warned)
    assert "resized" not in json.loads((whole.output / "cost.json").read_text())


def test_micro_batches_do_not_change_the_training(whole: Run, inputs: dict[str, LocalArtifact], tmp_path: Path) -> None:
    split = Run(inputs, tmp_path, whole.config, micro_batch=1)()
    for (_, mine), (_, theirs) in zip(split.log("step", "loss"), whole.log("step", "loss"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_divergence_names_step_loss_and_rate(inputs: dict[str, LocalArtifact], tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"diverged at step \d+: loss .*learning rate 1e\+25"):
        Run(inputs, tmp_path, pretrain_config(lr=1e25, schedule="constant"))()


def test_an_export_that_was_not_committed_is_not_trained_again(
    whole: Run, inputs: dict[str, LocalArtifact], tmp_path: Path
) -> None:
    first = Run(inputs, tmp_path, whole.config)()
    first.output.rename(tmp_path / "lost")
    again = Run(inputs, tmp_path, whole.config)()
    assert not again.context.progressed and again.weights() == whole.weights()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("file", ["export.json", "export/model/model.safetensors"])
def test_a_damaged_export_is_written_again(
    damage: Callable[[Path], None], file: str, whole: Run, inputs: dict[str, LocalArtifact], tmp_path: Path
) -> None:
    first = Run(inputs, tmp_path, whole.config)()
    first.output.rename(tmp_path / "lost")
    damage(tmp_path / "work" / file)
    assert Run(inputs, tmp_path, whole.config)().weights() == whole.weights()


def test_lengths_must_agree(inputs: dict[str, LocalArtifact], tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"pretrain\.sequence_length = 128: .*sequences of 64"):
        Run(inputs, tmp_path, pretrain_config(sequence_length=128))()
    with pytest.raises(ValidationError, match=r"sequence_length = 40: must be a multiple of mixer.segment_length = 16"):
        pretrain_config(sequence_length=40)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init": "scratch", "steps": 1, "batch_tokens": 64, "sequence_length": 16}, "lr is missing"),
        ({"steps": 1, "batch_tokens": 50, "sequence_length": 16, "lr": 1.0}, "batch_tokens = 50: must be a multiple"),
        ({"init": "hf", "path": "x"}, "revision is missing"),
        ({"init": "hf", "path": "x", "revision": "0" * 40, "steps": 3}, "steps has no effect with init = 'hf'"),
        ({"init": "hf", "path": "x", "revision": "0" * 40, "weight_decay": 0.5}, "weight_decay has no effect"),
    ],
)
def test_a_base_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BaseConfig(trunk=TRUNK, **fields)


class TestImportedBase:
    """``init: hf``."""

    trunk = TrunkConfig(dim=32, layers=2, heads=4, kv_heads=2, ffn_dim=48, tie_embeddings=False)

    @pytest.fixture(scope="class")
    def llama(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        transformers = pytest.importorskip("transformers")
        folder = tmp_path_factory.mktemp("llama")
        config = transformers.LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        )
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        return folder

    def config(self, llama: Path, **changes: Any) -> BaseConfig:
        fields = {"path": str(llama), "revision": folder_digest(llama), "trunk": self.trunk}
        return BaseConfig(init="hf", **{**fields, **changes})

    def imported(self, config: BaseConfig, inputs: dict[str, LocalArtifact], folder: Path) -> LocalArtifact:
        (folder / "base").mkdir()
        BASE.run(config, inputs, folder / "base", LocalContext(str(folder / "base-work")))
        return LocalArtifact(folder / "base")

    def test_trains_on(self, llama: Path, inputs: dict[str, LocalArtifact], tmp_path: Path) -> None:
        base = self.imported(self.config(llama), inputs, tmp_path)
        run = Run({**inputs, "base": base}, tmp_path, pretrain_config(steps=4))()
        assert run.log("loss")[-1] < run.log("loss")[0]

    def test_a_vocabulary_padded_beyond_the_tokenizer_is_kept_and_a_smaller_one_refused(
        self, llama: Path, inputs: dict[str, LocalArtifact], tmp_path: Path
    ) -> None:
        other = {**inputs, "tokenizer": LocalArtifact(tmp_path)}
        (tmp_path / "meta.json").write_text(f'{{"vocab_size": {VOCABULARY - 7}}}')
        base = self.imported(self.config(llama), other, tmp_path)
        assert json.loads(base.path("model/config.json").read_text())["vocab_size"] == VOCABULARY
        (tmp_path / "meta.json").write_text(f'{{"vocab_size": {VOCABULARY + 1}}}')
        message = f"has {VOCABULARY} tokens, the study's tokenizer {VOCABULARY + 1}.*Fix"
        with pytest.raises(StageError, match=message):
            check_folder(self.config(llama), VOCABULARY + 1)
        (tmp_path / "again").mkdir()
        with pytest.raises(StageError, match=message):
            self.imported(self.config(llama), other, tmp_path / "again")

    def test_other_content_than_pinned_is_refused(
        self, llama: Path, inputs: dict[str, LocalArtifact], tmp_path: Path
    ) -> None:
        with pytest.raises(StageError, match=folder_digest(llama)):
            self.imported(self.config(llama, revision="sha256:" + "0" * 64), inputs, tmp_path)

    def test_other_shape_than_stated_is_refused(
        self, llama: Path, inputs: dict[str, LocalArtifact], tmp_path: Path
    ) -> None:
        with pytest.raises(StageError, match=r"trunk\.kv_heads = 4: the checkpoint's is 2"):
            self.imported(
                self.config(llama, trunk=TrunkConfig(dim=32, layers=2, heads=4, ffn_dim=48)), inputs, tmp_path
            )

    def test_where_the_checkpoint_lies_is_no_part_of_the_key(self, llama: Path) -> None:
        moved = self.config(llama, path="/elsewhere")
        assert self.config(llama).key_fields() == moved.key_fields()


def test_gates_have_their_own_rate_and_no_decay() -> None:
    from model.config import ModelConfig
    from model.decoder import Decoder
    from stages.training.pretrain import optim

    mixer = MixerConfig(kind="infini", segment_length=SEGMENT)
    decoder = Decoder(ModelConfig(trunk=TRUNK, mixer=mixer, vocab_size=VOCABULARY), seed=0)
    optimizer = optim.build(decoder, lr=1e-3, gate_lr=1e-2, weight_decay=0.1)
    optim.set_lr(optimizer, 0.5)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    named = dict(decoder.named_parameters())
    assert len(of) == len(named)
    for name, parameter in named.items():
        group = of[id(parameter)]
        assert group["lr"] == (5e-3 if name.endswith("beta") else 5e-4)
        assert (group["weight_decay"] > 0) == (parameter.ndim >= 2)


def test_schedule_warms_up_and_ends_at_its_least() -> None:
    from stages.training.pretrain.optim import schedule

    factors = [schedule(s, steps=100, warmup_steps=10, kind="cosine", least=0.1) for s in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == 1.0 and factors[-1] == pytest.approx(0.1)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert schedule(99, steps=100, warmup_steps=10, kind="constant", least=0.1) == 1.0
