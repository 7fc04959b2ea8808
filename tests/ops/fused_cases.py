"""Compares the fused training pass with the plain layers, in Triton's interpreter; prints relative errors as JSON.

``python -m tests.ops.fused_cases``; :mod:`tests.ops.test_fused` runs it in a process of its own.
"""

from __future__ import annotations

import tests.ops.interpreter  # isort: skip

import json

import torch

from tests.ops.layer_cases import errors
from wm_gym.nn.config import ScanConfig, WorldModelConfig
from wm_gym.ops.feed_forward import bias_gelu_kernel as bias_gelu
from wm_gym.ops.scan import conv_kernel as conv_silu
from wm_gym.ops.scan import training_kernel as chunk_scan

assert tests.ops.interpreter


def tiny(*block_sizes: int, head_dim: int = 32, num_scan_groups: int = 1) -> WorldModelConfig:
    return WorldModelConfig.plain(
        frame_height=16,
        frame_width=16,
        width=32,
        block_sizes=block_sizes,
        scan=ScanConfig(head_dim=head_dim, state_dim=16, num_groups=num_scan_groups),
        window=2,
        num_attention_heads=2,
        condition_width=8,
        feed_forward_multiplier=4,
    )


def main() -> None:
    torch.set_num_threads(1)
    # Small tiles, so that few tokens make several chunks and segments, and the last of each is not full.
    chunk_scan._CHUNK = 8
    conv_silu._SEGMENT, conv_silu._SEGMENTS, bias_gelu._STEPS = 5, 4, 3
    found = {
        "block 1": errors(tiny(1), 9),
        "block 2 in segments": errors(tiny(2), 3),
        "two layers in bfloat16": errors(tiny(1, 2), 3, torch.bfloat16),
    }
    found["two groups, block 2 in segments"] = errors(tiny(2, head_dim=16, num_scan_groups=2), 3)
    chunk_scan._PROGRAMS = 1
    found["four groups, block 2 in one piece"] = errors(tiny(2, head_dim=16, num_scan_groups=4), 3)
    found["something added before the second layer"] = errors(tiny(1, 2), 3, added=True)
    found["block 2 in one piece, checkpointed"] = errors(tiny(2), 3, checkpoint_layers=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
