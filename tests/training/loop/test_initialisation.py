"""The scans begin with the decay times that they were given, whatever the size of their blocks."""

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import tiny_model
from training.baselines import baseline_config, build_model
from training.loop.initialisation import set_memory_length
from wm_gym.nn.block_scan import BlockScan


def _decay_frames(scan: object, tokens_per_frame: int) -> torch.Tensor:
    """Frames until a state has decayed to 1 / e, per head, ascending."""
    assert isinstance(scan, BlockScan)
    rate = F.softplus(scan.dt_bias) * scan.log_decay.exp() * tokens_per_frame
    return (1 / rate).sort().values.detach()


@pytest.mark.parametrize("shortest", [1.0, 16.0])
def test_decay_times_are_spread_over_the_heads_of_every_block_size(shortest: float) -> None:
    model = tiny_model()
    set_memory_length(model, shortest, 1000.0)
    for layer, size in zip(model.backbone.layers, model.config.block_sizes, strict=True):
        frames = _decay_frames(layer.block_scan, size**2)
        torch.testing.assert_close(frames[[0, -1]], torch.tensor([shortest, 1000.0]), rtol=1e-3, atol=0)
        ratio = frames[1:] / frames[:-1]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=0)


def test_the_mamba2_baseline_counts_all_tokens_of_a_frame() -> None:
    config = baseline_config("mamba2", 1, tiny_model().config)
    model = build_model(config)
    set_memory_length(model, 4.0, 400.0)
    frames = _decay_frames(model.backbone.layers[0].scan, config.num_tokens)
    torch.testing.assert_close(frames[[0, -1]], torch.tensor([4.0, 400.0]), rtol=1e-3, atol=0)


def test_times_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="memory_frames"):
        set_memory_length(tiny_model(), 10.0, 1.0)
