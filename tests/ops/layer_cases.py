"""The layers' fused training pass beside the plain one, for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from wm_gym.nn.backbone import Backbone
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.layers import Layer
from wm_gym.nn.local_attention import Rotary

Pass = Callable[[Backbone, Tensor, Tensor, Rotary, bool], Tensor]


def part_of_the_frame_before(tokens: Tensor) -> Tensor:
    """What is added before the last layer, as a map would be."""
    return 0.2 * torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)


def plain(backbone: Backbone, tokens: Tensor, condition: Tensor, rotary: Rotary, added: bool) -> Tensor:
    for i, layer in enumerate(backbone.layers):
        if added and i == len(backbone.layers) - 1:
            tokens = tokens + part_of_the_frame_before(tokens)
        tokens, _ = layer(tokens, condition, rotary, None, None, 0, None)
    return tokens


def fused(backbone: Backbone, tokens: Tensor, condition: Tensor, rotary: Rotary, added: bool) -> Tensor:
    from wm_gym.nn.fused import run_layers  # imports Triton

    layers = cast("Sequence[Layer]", backbone.layers)
    before = {len(layers) - 1: part_of_the_frame_before} if added else {}
    return run_layers(layers, tokens, condition, rotary, backbone.checkpoint_layers, before)


def outcome(
    run: Pass, backbone: Backbone, frames: int, dtype: torch.dtype, device: str, added: bool
) -> dict[str, Tensor]:
    """Output and gradients on inputs that only depend on the sizes."""
    c, generator, batch = backbone.config, torch.Generator().manual_seed(1), 2
    tokens = torch.randn(batch, frames, c.token_rows, c.token_columns, c.width, generator=generator)
    condition = torch.randn(batch, frames, c.condition_width, generator=generator)
    rotary = Rotary.create(
        frames, c.token_rows, c.token_columns, c.width // c.num_attention_heads, torch.device(device)
    )
    backbone.to(device).zero_grad()
    tokens, condition = (x.to(device).requires_grad_() for x in (tokens, condition))
    with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = run(backbone, tokens.to(dtype), condition, rotary, added).float()
    (y * torch.randn(y.shape, generator=generator).to(device)).sum().backward()
    found = {"output": y.detach(), "tokens": tokens.grad, "condition": condition.grad}
    found |= {name: p.grad for name, p in backbone.layers.named_parameters()}
    missing = [name for name, value in found.items() if value is None]
    assert not missing, f"no gradient for {missing}"
    return {name: value.cpu().clone() for name, value in found.items() if value is not None}


def errors(
    config: WorldModelConfig,
    frames: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    checkpoint_layers: bool = False,
    added: bool = False,
) -> dict[str, float]:
    """Relative errors of the fused pass against the plain one in float32 on the CPU, by name."""
    torch.manual_seed(0)
    backbone = Backbone(config)
    for parameter in backbone.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    expected = outcome(plain, backbone, frames, torch.float32, "cpu", added)
    backbone.checkpoint_layers = checkpoint_layers
    actual = outcome(fused, backbone, frames, dtype, device, added)
    floor = 1e-3 * max(float(want.norm()) for want in expected.values())
    return {
        name: float((actual[name] - want).norm()) / max(float(want.norm()), floor) for name, want in expected.items()
    }
