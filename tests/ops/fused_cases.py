"""Compares the fused training pass with the plain layers, in Triton's interpreter; prints relative errors as JSON.

``python -m tests.ops.fused_cases``; :mod:`tests.ops.test_fused` runs it in a process of its own.
"""

from __future__ import annotations

import tests.interpreted  # isort: skip

import json
from collections.abc import Callable

import torch
from torch import Tensor

from wm_gym.nn.backbone import Backbone
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.fused import run_layers
from wm_gym.nn.local_attention import Rotary
from wm_gym.ops.triton import bias_gelu, chunk_scan, conv_silu

assert tests.interpreted

Pass = Callable[[Backbone, Tensor, Tensor, Rotary], Tensor]


def plain(backbone: Backbone, tokens: Tensor, condition: Tensor, rotary: Rotary) -> Tensor:
    for layer in backbone.layers:
        tokens, _ = layer(tokens, condition, rotary, None, None, 0, None)
    return tokens


def fused(backbone: Backbone, tokens: Tensor, condition: Tensor, rotary: Rotary) -> Tensor:
    return run_layers(backbone.layers, tokens, condition, rotary)  # pyright: ignore[reportArgumentType]


def outcome(run: Pass, backbone: Backbone, frames: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output and gradients on inputs that only depend on the sizes."""
    c, generator, batch = backbone.config, torch.Generator().manual_seed(1), 2
    tokens = torch.randn(batch, frames, c.token_rows, c.token_columns, c.width, generator=generator)
    condition = torch.randn(batch, frames, c.condition_width, generator=generator)
    rotary = Rotary.create(frames, c.token_rows, c.token_columns, c.width // c.num_attention_heads, torch.device("cpu"))
    tokens.requires_grad_()
    condition.requires_grad_()
    backbone.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = run(backbone, tokens.to(dtype), condition, rotary).float()
    (y * torch.randn(y.shape, generator=generator)).sum().backward()
    found = {"output": y.detach(), "tokens": tokens.grad, "condition": condition.grad}
    found |= {name: p.grad for name, p in backbone.layers.named_parameters()}
    missing = [name for name, value in found.items() if value is None]
    assert not missing, f"no gradient for {missing}"
    return {name: value.clone() for name, value in found.items() if value is not None}


def errors(block_sizes: tuple[int, ...], frames: int, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    torch.manual_seed(0)
    config = WorldModelConfig(
        frame_height=16,
        frame_width=16,
        width=32,
        block_sizes=block_sizes,
        head_dim=32,
        state_dim=16,
        window=2,
        num_attention_heads=2,
        condition_width=8,
    )
    backbone = Backbone(config)
    for parameter in backbone.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    expected = outcome(plain, backbone, frames, torch.float32)
    actual = outcome(fused, backbone, frames, dtype)
    floor = 1e-3 * max(float(want.norm()) for want in expected.values())
    return {
        name: float((actual[name] - want).norm()) / max(float(want.norm()), floor) for name, want in expected.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    # Small tiles, so that few tokens make several chunks and segments, and the last of each is not full.
    chunk_scan._CHUNK = 8
    conv_silu._SEGMENT, conv_silu._SEGMENTS, bias_gelu._STEPS = 5, 4, 3
    found = {
        "block 1": errors((1,), 9),
        "block 2 in segments": errors((2,), 3),
        "two layers in bfloat16": errors((1, 2), 3, torch.bfloat16),
    }
    chunk_scan._PROGRAMS = 1
    found["block 2 in one piece"] = errors((2,), 3)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
