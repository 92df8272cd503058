"""The cost formulas against real parameters, real states and torch's own FLOP counter; the paper's memory table."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.arms import KINDS, variants
from model.config import MixerConfig, ModelConfig, TrunkConfig, feature_dim
from model.cost import cost, paper_table
from model.decoder import Decoder
from model.formulas import parts as parts_of
from model.memory import empty, read, write
from model.mixers import memorizing
from tests.model.tiny import ARMS, N, attended_pairs, config, tokens

SHAPES = [{}, {"kv_heads": 4, "tie_embeddings": False}, {"head_dim": 6, "ffn_dim": 20, "layers": 1}]


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_and_state_sizes_are_the_real_ones(arm: str, shape: dict[str, int]) -> None:
    model = Decoder(config(arm, trunk=shape, feature_map="dpfp2"), seed=0)
    length = 3 * N + N - 1
    expected = cost(model.config, length)
    assert expected.parameters == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        _, state = model(tokens(1, length))
    assert (state.elements(), state.bytes()) == (expected.state_elements, expected.state_bytes)
    # the formula's live segment is at its peak, here its last token is missing; landmark's blocks are at theirs
    trunk = model.config.trunk
    missing = (
        2 * trunk.layers * trunk.n_kv_heads * trunk.d_head if expected.live_kv_elements and arm != "landmark" else 0
    )
    assert state.live_kv_elements() == expected.live_kv_elements - missing
    assert state.live_kv_bytes() == expected.live_kv_bytes - 4 * missing
    assert cost(model.config, length, kv_bytes=2).live_kv_bytes == expected.live_kv_bytes // 2


@pytest.mark.parametrize("kind", ["local", "window", "xl", "full"])
@pytest.mark.parametrize("length", [1, 5, N, N + 1, 3 * N + 2])
def test_attended_pairs_are_those_the_masks_allow(kind: str, length: int) -> None:
    allowed = 0
    for i in range(length):
        for j in range(i + 1):
            segments = i // N - j // N
            allowed += {"local": segments == 0, "window": i - j < N, "xl": segments <= 1, "full": True}[kind]
    assert attended_pairs(config(kind), length) == allowed


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("length", [1, 5, N, 2 * N + 3, 5 * N + 2])
def test_pairs_and_landmarks_are_those_of_the_blocks_in_sight(length: int, training: bool) -> None:
    """The stream's query at i, in block i // 5, whose last vector is a landmark, which no one attends to as a token."""
    model_config = config("landmark")
    vectors = length + length // 4  # block_tokens = 4, segment_length = 4: one near block; top_blocks = 2
    pairs = landmarks = 0
    for i in range(vectors):
        block = i // 5
        pairs += sum(j % 5 != 4 for j in range(5 * block, i + 1))
        pairs += 4 * (block if training else min(block, 1 + 2))
        landmarks += block
    parts, trunk = parts_of(model_config, length), model_config.trunk
    found = parts.training_pairs if training else parts.pairs
    assert found == pairs * trunk.layers and parts.vectors == vectors
    assert parts.flops == 2 * trunk.layers * trunk.heads * trunk.d_head * landmarks


@pytest.mark.parametrize("length", [1, 5, N, N + 1, 4 * N, 4 * N + 3])
def test_pairs_of_framed_segments_are_causal_within_the_frame(length: int) -> None:
    """[memory; text] in the last segment, the memory tokens again behind each that another one follows."""
    frames, rest = [], length
    while rest:
        text = min(N, rest)
        rest -= text
        frames.append(3 + text + (3 if rest else 0))
    parts = parts_of(config("rmt"), length)
    assert parts.pairs == 2 * sum(i + 1 for frame in frames for i in range(frame))
    assert parts.vectors == sum(frames)


@pytest.mark.parametrize("length", [1, N, 2 * N + 1, 3 * N, 5 * N + 3])
def test_compressed_slots_are_seen_besides_segment_and_cache(length: int) -> None:
    """Of the query at i: the newest 5 slots of 2 tokens each that end where its cache begins."""
    slots = sum(min(max(0, i // N - 1) * N // 2, 5) for i in range(length))
    pairs = parts_of(config("compressive"), length).pairs
    assert pairs == parts_of(config("xl"), length).pairs + config("compressive").trunk.layers * slots


@pytest.mark.parametrize("length", [1, N, 2 * N + 1, 3 * N, 5 * N + 3])
def test_retrieval_scores_what_has_left_the_local_context(length: int) -> None:
    """Of the query at i: tokens up to the segment before last, the latest 12 of them; it attends to 3, in one layer."""
    scored = chosen = 0
    for i in range(length):
        visible = min(12, max(0, i // N - 1) * N)
        scored, chosen = scored + visible, chosen + min(visible, 3)
    parts, trunk = parts_of(config("memorizing"), length), config("memorizing").trunk
    assert parts.flops == 2 * trunk.heads * trunk.d_head * (scored + chosen)
    assert parts.pairs == parts_of(config("xl"), length).pairs


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_projection_flops_equal_the_counted_ones(arm: str, shape: dict[str, int]) -> None:
    """Every product of a matrix of weights with the vectors that pass through, memory and landmark tokens too. What
    the mixers multiply among themselves is a batch of products, another operation for torch."""
    model, length = Decoder(config(arm, trunk=shape), seed=0).eval(), 3 * N + 5
    trunk = model.config.trunk
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(tokens(1, length))
    parts = parts_of(model.config, length)
    strengths = 2 * trunk.layers * length * trunk.dim * trunk.n_kv_heads
    weighed = {"deltanet": strengths, "compressive": parts.flops}.get(arm, 0)  # the mixer's own weights
    mixing = 4 * trunk.heads * trunk.d_head * parts.pairs + parts.flops - weighed
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    assert round(cost(model.config, length).flops_per_token_forward * length) - mixing == counted


@pytest.mark.parametrize("arm", ["local", "full"])
@pytest.mark.parametrize("shape", SHAPES)
def test_flops_equal_the_counted_ones(arm: str, shape: dict[str, int]) -> None:
    """Outside attention to the last FLOP. Inside, the plain kernel (the counter does not know the fused CPU one)
    computes full squares; the formula counts the pairs a query sees."""
    model, length = Decoder(config(arm, trunk=shape), seed=0), 3 * N
    trunk = model.config.trunk
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(tokens(1, length))
    square = length * (length if arm == "full" else N)
    unseen = 4 * trunk.layers * trunk.heads * trunk.d_head * (square - attended_pairs(model.config, length))
    assert cost(model.config, length).flops_per_token_forward * length == counter.get_total_flops() - unseen
    assert cost(model.config, length).flops_per_token_training * length == 3 * (counter.get_total_flops() - unseen)


@pytest.mark.parametrize("shape", [{}, {"kv_heads": 4}, {"kv_heads": 1, "head_dim": 6}])
@pytest.mark.parametrize("feature_map", ["elu1", "dpfp2"])
@pytest.mark.parametrize("arm", ["linear", "deltanet"])
def test_flops_of_token_recurrences_equal_those_of_the_equations(
    arm: str, feature_map: str, shape: dict[str, int]
) -> None:
    """Counted on a loop over tokens; the normaliser of linear attention is one more column of its values."""
    model_config, length = config(arm, trunk=shape, feature_map=feature_map), 5
    trunk = model_config.trunk
    d, features = trunk.d_head, feature_dim(model_config.mixer.feature_map, trunk.d_head)
    strength = torch.rand(trunk.dim, trunk.n_kv_heads)
    with FlopCounterMode(display=False) as counter:
        for _ in range(length):
            S = torch.rand(trunk.n_kv_heads, features, d)
            phi_k, v = torch.rand(trunk.n_kv_heads, 1, features), torch.rand(trunk.n_kv_heads, 1, d)
            phi_q = torch.rand(trunk.n_kv_heads, trunk.heads // trunk.n_kv_heads, features)
            if arm == "deltanet":
                beta = torch.sigmoid(torch.rand(1, trunk.dim) @ strength).view(-1, 1, 1)
                S = S + phi_k.mT @ (beta * (v - phi_k @ S))
            else:
                S = torch.cat([S + phi_k.mT @ v, torch.rand(trunk.n_kv_heads, features, 1)], dim=-1)
            phi_q @ S
    parts = parts_of(model_config, length)
    assert parts.flops == counter.get_total_flops() * trunk.layers and parts.pairs == 0


@pytest.mark.parametrize("arm", ["infini-linear", "infini-delta"])
def test_infinis_options_cost_what_they_add(arm: str) -> None:
    plain, length = parts_of(config(arm), 3 * N), 3 * N
    trunk = config(arm).trunk
    memory = 2 * (4 * 4 + 4)  # key/value heads; M and z of heads of 4
    for gate, more in (("channel", 4 * 4 - 4), ("token", 4 * trunk.dim)):
        parts = parts_of(config(arm, gate=gate), length)
        assert parts.parameters - plain.parameters == trunk.layers * more
        assert parts.flops - plain.flops == (2 * trunk.layers * length * 4 * trunk.dim if gate == "token" else 0)
    learned = parts_of(config(arm, initial_memory="learned"), length)
    assert learned.parameters - plain.parameters == trunk.layers * memory
    readers = 4 if arm == "infini-linear" else 4 + 2  # queries of the first segment, and its keys
    assert learned.flops - plain.flops == 2 * trunk.layers * N * readers * 4 * 5
    for dtype, size in (("float32", 4), ("bfloat16", 2), ("float64", 8)):
        sized = cost(config(arm, state_dtype=dtype), length)
        assert sized.state_bytes == size * sized.state_elements == size * trunk.layers * memory
    assert cost(config(arm), N - 1).state_elements == 0


@pytest.mark.parametrize("arm", ["xl", "compressive", "memorizing"])
@pytest.mark.parametrize("shape", SHAPES)
def test_flops_behind_a_cache_equal_the_counted_ones(
    arm: str, shape: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and training step, to the last FLOP: cached inputs, slots, reconstruction and search have backward passes
    of their own. Whole blocks are computed where a query sees a part; chosen rows are summed by a kernel that the
    counter does not know."""
    monkeypatch.setattr(memorizing, "SCORES_AT_ONCE", 1)  # no block of queries: each scores what it sees
    model, segments = Decoder(config(arm, trunk=shape), seed=0), 5
    length, trunk, options = segments * N, model.config.trunk, model.config.mixer
    ids, score = tokens(1, length), 2 * trunk.heads * trunk.d_head
    slots = [min((s - 1) * N // options.compression, 5) if arm == "compressive" and s else 0 for s in range(segments)]
    computed = sum(N * (count + min(s + 1, 2) * N) for s, count in enumerate(slots))
    chosen = 3 * N * options.top_k if arm == "memorizing" else 0
    for trained in (False, True):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(trained):
            loss = model.loss(ids)
            if trained:
                loss.backward()
        expected = cost(model.config, length)
        per_token = expected.flops_per_token_training if trained else expected.flops_per_token_forward
        unseen = 2 * score * (trunk.layers * computed - parts_of(model.config, length).pairs)
        head = 2 * trunk.dim * model.config.vocab_size  # of the last token, which predicts nothing
        difference = (3 if trained else 1) * (unseen - score * chosen - head)
        assert round(per_token * length) + difference == counter.get_total_flops()


@pytest.mark.parametrize("rule", ["linear", "delta"])
@pytest.mark.parametrize("feature_map", ["elu1", "dpfp1"])
def test_memory_flops_equal_those_of_the_equations(rule: str, feature_map: str) -> None:
    """Counted on the sequential reference: every later segment is read by every query head, every segment written."""
    model_config, segments = config(f"infini-{rule}", feature_map=feature_map), 4
    d, features = model_config.trunk.d_head, feature_dim(model_config.mixer.feature_map, model_config.trunk.d_head)
    with FlopCounterMode(display=False) as counter:
        for s in range(segments):
            state = empty(1, 2, features, d)
            if s:
                read(state, torch.rand(1, 2, 2 * N, features), 1e-6)
            write(state, torch.rand(1, 2, N, features), torch.rand(1, 2, N, d), rule if s else "linear", 1e-6)
    counted = counter.get_total_flops() * model_config.trunk.layers
    length = segments * N
    ours = cost(model_config, length).flops_per_token_forward - cost(config("local"), length).flops_per_token_forward
    assert ours * length == counted


def test_the_papers_114_and_what_it_leaves_out() -> None:
    rows = {(row.method, row.counts): row for row in paper_table()}
    infini, memorizing = rows["infini", "state"], rows["memorizing", "state"]
    assert infini.elements == 128 * 129 * 8 * 12 == 1_585_152
    assert rows["transformer-xl", "state"].elements == 50_331_648
    assert memorizing.elements == 183_451_648
    for name, printed in (("infini", 114), ("transformer-xl", 3.7), ("rmt", 73), ("memorizing", 1)):
        assert rows[name, "state"].paper_compression == printed
        assert rows[name, "state"].compression == pytest.approx(printed, rel=0.03)
    assert infini.compression == pytest.approx(115.7, abs=0.05)
    with_live = rows["infini", "state + live segment"]
    assert with_live.compression == pytest.approx(4.5, abs=0.05)
    assert rows["rmt", "state"].elements == 24 * rows["rmt vectors", "state"].elements == 24 * 100 * 1024
    assert rows["rmt", "state + live segment"].compression == pytest.approx(4.4, abs=0.05)
    assert rows["linear attention", "state + live segment"].compression == pytest.approx(147.5, abs=0.05)
    assert rows["full attention, 65,536 tokens", "state"].elements / infini.elements == pytest.approx(1016, abs=1)
    assert infini.bytes == 4 * infini.elements and memorizing.bytes == 2 * memorizing.elements


def test_the_papers_infini_configuration_costs_what_its_table_says() -> None:
    paper = ModelConfig(
        trunk=TrunkConfig(dim=1024, layers=12, heads=8, ffn_dim=4096),
        mixer=MixerConfig(kind="infini", segment_length=2048),
        vocab_size=32_000,
    )
    assert cost(paper, 32_768).state_elements == 1_585_152
    assert cost(paper, 32_768).live_kv_elements == 50_331_648
    # extra over local attention: linear 2 d / N, less the unread first segment
    local = ModelConfig(trunk=paper.trunk, mixer=MixerConfig(kind="local", segment_length=2048), vocab_size=32_000)
    attention = 4 * 12 * 1024 * attended_pairs(local, 32_768) / 32_768
    extra = cost(paper, 32_768).flops_per_token_forward - cost(local, 32_768).flops_per_token_forward
    assert extra / attention == pytest.approx(2 * 128 / 2048, rel=0.05)


def test_command_prints_all_arms_and_the_papers_table_without_torch() -> None:
    code = "import sys, runpy; runpy.run_module('model.cost', run_name='__main__'); assert 'torch' not in sys.modules"
    arguments = ["--dim", "64", "--layers", "2", "--heads", "4", "--kv-heads", "2", "--vocab", "100", "--segment", "8"]
    command = [sys.executable, "-c", code, *arguments, "--length", "60", "--kv-bytes", "4"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    printed = {line.split()[0]: [number.replace(",", "") for number in line.split()[1:]] for line in lines[4:16]}
    trunk = TrunkConfig(dim=64, layers=2, heads=4, kv_heads=2)
    for arm, fields in variants().items():
        model_config = ModelConfig(trunk=trunk, mixer=MixerConfig(segment_length=8, **fields), vocab_size=100)
        expected = cost(model_config, 60)
        assert int(printed[arm][0]) == expected.parameters
        assert [int(n) for n in printed[arm][3:]] == [
            expected.state_elements,
            expected.state_bytes,
            expected.live_kv_elements,
            expected.live_kv_bytes,
        ]
    assert any("115.7x" in line and line.endswith("1.6M, 114x") for line in lines)


def test_every_kind_of_mixer_is_an_arm_with_a_formula() -> None:
    assert len(variants()) == 12
    assert {fields["kind"] for fields in variants().values()} == set(KINDS)
