"""Frame-local attention against one dense mask."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from wm_gym.ops import banded_local_attention, flex_local_attention, frame_block_mask, reference


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("cached", [0, 3])
def test_banded_attention_equals_dense_mask_in_outputs_and_gradients(frames: int, cached: int) -> None:
    window = 3
    torch.manual_seed(0)
    fast = [torch.randn(2, n, 4, 2, 8, requires_grad=True) for n in (frames, cached + frames, cached + frames)]
    slow = [z.detach().clone().requires_grad_() for z in fast]
    valid = torch.tensor([1, 3]) if cached else None
    y = banded_local_attention(fast[0], fast[1], fast[2], window, valid)
    expected = reference.local_attention(slow[0], slow[1], slow[2], window, valid)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "tokens", "window"),
    [(1, 4, 3), (6, 64, 2), (9, 64, 8), (7, 30, 3), (5, 200, 1), (40, 16, 40), (3, 128, 1)],
)
def test_the_block_mask_is_that_of_every_pair_of_tokens(frames: int, tokens: int, window: int) -> None:
    def visible(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        distance = query // tokens - key // tokens
        return (distance >= 0) & (distance <= window)

    length = frames * tokens
    expected = create_block_mask(visible, None, None, length, length, device="cpu")  # pyright: ignore[reportArgumentType]
    mask = frame_block_mask(frames, tokens, window, torch.device("cpu"))
    assert torch.equal(mask.to_dense(), expected.to_dense())
    assert mask.full_kv_num_blocks is not None and expected.full_kv_num_blocks is not None
    assert torch.equal(mask.kv_num_blocks, expected.kv_num_blocks)
    assert torch.equal(mask.full_kv_num_blocks, expected.full_kv_num_blocks)
    assert torch.equal(mask.kv_indices, expected.kv_indices)
    assert mask.seq_lengths == expected.seq_lengths == (length, length)


@pytest.mark.gpu
def test_flex_attention_equals_dense_mask() -> None:
    q, k, v = (torch.randn(2, 12, 16, 2, 64, device="cuda") for _ in range(3))
    mask = frame_block_mask(12, 16, 3, q.device)
    y = torch.compile(flex_local_attention)(q, k, v, mask)
    torch.testing.assert_close(y, reference.local_attention(q, k, v, 3), rtol=1e-2, atol=1e-2)
