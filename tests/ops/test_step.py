"""The plain operations of a step against the network's modules, and the noise against published numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from training.benchmarks.step_cases import Draw, adaln_case, attention_case, clone, scan_case
from wm_gym.nn.block_scan import BlockScan
from wm_gym.nn.config import ScanConfig, WorldModelConfig
from wm_gym.nn.layers import modulate
from wm_gym.nn.local_attention import LocalAttention, Rotary
from wm_gym.nn.state import LayerState
from wm_gym.ops import step, step_reference

WINDOW = 3


def config(**overrides: Any) -> WorldModelConfig:
    values: dict[str, Any] = {
        "frame_height": 32,
        "frame_width": 64,
        "width": 32,
        "scan": ScanConfig(head_dim=16, state_dim=8, num_groups=1),
        "window": WINDOW,
        "block_sizes": (1, 2, 4),
        "num_attention_heads": 2,
        **overrides,
    }
    return WorldModelConfig.plain(**values)


def random_state(c: WorldModelConfig, block_size: int, batch: int) -> LayerState:
    blocks = c.num_tokens // block_size**2
    return LayerState(
        torch.randn(batch, blocks, c.num_scan_heads, c.scan.head_dim, c.scan.state_dim),
        torch.randn(batch, blocks, 3, c.num_scan_channels),
        torch.randn(batch, c.window, c.num_tokens, 2, c.num_attention_heads, c.width // c.num_attention_heads),
    )


@pytest.mark.parametrize(("block_size", "groups"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize(("frames", "num_committed"), [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_scan_step_equals_the_block_scan_module(block_size: int, groups: int, frames: int, num_committed: int) -> None:
    torch.manual_seed(0)
    c = config(scan=ScanConfig(head_dim=16, state_dim=8, num_groups=groups))
    module, state = BlockScan(c, block_size).requires_grad_(False), random_state(c, block_size, batch=3)
    module.skip.data.normal_()
    tokens = torch.randn(3, frames, c.token_rows, c.token_columns, c.width)
    expected, (ssm_state, conv_state) = module(tokens, state, num_committed)
    y = step.scan_step(
        module.in_proj(tokens),
        module.conv_weight,
        module.conv_bias,
        module.dt_bias,
        -torch.exp(module.log_decay),
        module.skip,
        state.ssm_state,
        state.conv_state,
        block_size,
        num_committed,
    )
    out = module.out_proj(step.gated_norm(y, module.norm_weight))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.ssm_state, ssm_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.conv_state, conv_state)


@pytest.mark.parametrize("num_cached", [0, 1, WINDOW, 10])
@pytest.mark.parametrize(("frames", "num_committed"), [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_ring_attention_equals_the_local_attention_module(num_cached: int, frames: int, num_committed: int) -> None:
    torch.manual_seed(0)
    c = config()
    module, state = LocalAttention(c).requires_grad_(False), random_state(c, block_size=1, batch=2)
    module.query_norm.data.normal_()
    module.key_norm.data.normal_()
    tokens = torch.randn(2, frames, c.token_rows, c.token_columns, c.width)
    rotary = Rotary.create(WINDOW + frames, c.token_rows, c.token_columns, module.head_dim, tokens.device)
    counts = torch.full((2,), num_cached)
    expected, cache = module(tokens, rotary, state, counts, num_committed, None)
    # The module keeps the newest frame last; the ring keeps frame n in slot n % window.
    frame_numbers = torch.arange(num_cached - WINDOW, num_cached)
    ring = torch.empty_like(state.kv_cache)
    ring[:, frame_numbers % WINDOW] = state.kv_cache
    qkv = module.qkv(tokens).reshape(2, frames, c.num_tokens, 3, module.num_heads, module.head_dim)
    y = step.ring_attention(
        qkv, module.query_norm, module.key_norm, rotary.cos, rotary.sin, ring, counts, num_committed
    )
    torch.testing.assert_close(module.out_proj(y.reshape(tokens.shape)), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ring[:, (frame_numbers + num_committed) % WINDOW], cache, rtol=1e-5, atol=1e-5)


def test_residual_adaln_equals_the_layers_formula_and_keeps_the_stream() -> None:
    case = adaln_case(Draw())
    stream = case["tokens"] + (1 + case["gate"][:, None]) * case["branch"]
    expected = modulate(stream, case["shift"][:, None], case["scale"][:, None])
    torch.testing.assert_close(step.residual_adaln(**case), expected)
    torch.testing.assert_close(case["tokens"], stream)
    without = adaln_case(Draw(), with_branch=False)
    before = without["tokens"].clone()
    expected = modulate(before, without["shift"][:, None], without["scale"][:, None])
    torch.testing.assert_close(step.residual_adaln(**without), expected)
    assert torch.equal(without["tokens"], before)


# Random123's published known answers for philox4x32 with 10 rounds: counter, key, output.
PHILOX_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), PHILOX_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, answer: str) -> None:
    low, high = words(key)
    signed = (high << 32 | low) - (1 << 64 if high >> 31 else 0)
    c0, c1, c2, c3 = (torch.tensor([word]) for word in words(counter))
    output = step_reference.philox(torch.tensor([signed]), (c0, c1, c2, c3))
    assert [int(word) for word in output] == words(answer)


def test_noise_is_standard_normal() -> None:
    keys = torch.arange(16)
    noise = step.frame_noise(keys, torch.zeros_like(keys), (3, 64, 64)).double()
    count = noise.numel()
    # Five standard errors of each estimate.
    assert noise.mean().abs() < 5 / math.sqrt(count)
    assert (noise.var() - 1).abs() < 5 * math.sqrt(2 / count)
    assert noise.pow(3).mean().abs() < 5 * math.sqrt(15 / count)
    assert (noise.pow(4).mean() - 3).abs() < 5 * math.sqrt(96 / count)
    ordered = noise.flatten().sort().values
    ideal = torch.special.ndtr(ordered)
    distance = (ideal - torch.arange(count, dtype=torch.float64) / count).abs().max()
    assert distance < 1.95 / math.sqrt(count), "Kolmogorov-Smirnov, 0.1%"
    rows = noise.flatten(1)
    correlation = torch.corrcoef(rows) - torch.eye(16)
    assert correlation.abs().max() < 5 / math.sqrt(rows.shape[1])
    neighbours = (rows[:, 1:] * rows[:, :-1]).mean()
    assert neighbours.abs() < 5 / math.sqrt(count)


def test_noise_depends_on_all_bits_of_key_and_counter_and_on_nothing_else() -> None:
    shape = (3, 5, 7)
    base = step.frame_noise(torch.tensor([7]), torch.tensor([9]), shape)
    for key, counter in [(8, 9), (7 | 1 << 32, 9), (7 - 2**63, 9), (7, 10), (7, 9 | 1 << 32)]:
        other = step.frame_noise(torch.tensor([key]), torch.tensor([counter]), shape)
        assert not (other == base).any(), (key, counter)
    among_others = step.frame_noise(torch.tensor([1, 7, 3]), torch.tensor([9, 9, 2**40]), shape)
    assert torch.equal(among_others[1:2], base)
    # A frame of another size shares the stream: the noise does not depend on how it is cut.
    longer = step.frame_noise(torch.tensor([7]), torch.tensor([9]), (3, 5, 9))
    assert torch.equal(longer.flatten()[:105], base.flatten())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"block_size": 3}, "does not divide the token grid"),
        ({"num_committed": 2}, "commits 0 or 1"),
        ({"projected": torch.zeros(3, 2, 4, 4, 99)}, "projected has 99 channels"),
        ({"conv_weight": torch.zeros(4, 32)}, "conv_weight has 32 channels"),
        ({"conv_weight": torch.zeros(4, 65)}, "conv_weight has 65 channels"),
        ({"conv_weight": torch.zeros(4, 128)}, "conv_weight has 128 channels"),  # 3 groups of 2 heads
        ({"conv_state": torch.zeros(3, 4, 2, 64)}, "do not fit"),
    ],
)
def test_scan_step_refuses_what_does_not_fit(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        step.scan_step(**{**scan_case(Draw()), **change})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_cached": torch.zeros(3, dtype=torch.int32)}, "expected int64"),
        ({"kv_ring": torch.zeros(3, 3, 6, 2, 2, 8)}, "kv_ring .* does not fit"),
        ({"cos": torch.zeros(4, 6, 1, 8), "sin": torch.zeros(4, 6, 1, 8)}, "expected at least"),
    ],
)
def test_ring_attention_refuses_what_does_not_fit(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        step.ring_attention(**{**attention_case(Draw()), **change})


def test_a_branch_without_a_gate_is_refused() -> None:
    with pytest.raises(ValueError, match="without the other"):
        step.residual_adaln(**{**adaln_case(Draw()), "gate": None})


def test_triton_on_the_cpu_is_refused_outside_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(step, "_triton_is_installed", lambda: True)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        step.residual_adaln(**adaln_case(Draw()), backend="triton")


def test_missing_triton_is_one_sentence_when_asked_for_and_no_matter_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_triton_is_installed", lambda: False)
    assert not step.uses_triton(torch.device("cuda"))
    with pytest.raises(ImportError, match="pip install triton"):
        step.uses_triton(torch.device("cuda"), "triton")


def test_without_a_commit_memory_stays_as_it_is() -> None:
    case = scan_case(Draw(), num_committed=0)
    before = clone(case)
    step.scan_step(**case)
    assert torch.equal(case["ssm_state"], before["ssm_state"])
    assert torch.equal(case["conv_state"], before["conv_state"])
