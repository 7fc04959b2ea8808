import dataclasses

import numpy as np
import pytest
import torch

from tests.tiny import make_tiny_clips, tiny_model
from wm_gym.memory_feature import MemoryFeature


def states_after(num_frames):
    model = tiny_model()
    clips = make_tiny_clips()
    frames, actions = torch.from_numpy(clips.frames), torch.from_numpy(clips.actions)
    state = model.prefill(model.initial_state(len(clips)), frames[:, :num_frames], actions[:, : num_frames - 1])
    return model.config, [layer.ssm_state for layer in state.layers]


def test_the_feature_has_its_size_and_numbers_of_order_one():
    config, states = states_after(12)
    for size in (2, 33, 256):
        feature = MemoryFeature(config, size)(states)
        assert feature.shape == (3, size) and feature.dtype == torch.float32
    assert 0.7 < feature.square().mean().sqrt() < 1.4


def test_an_empty_memory_is_zero():
    config, states = states_after(1)
    assert (MemoryFeature(config, 16)(states) == 0).all()


def test_rows_do_not_depend_on_each_other():
    config, states = states_after(12)
    feature = MemoryFeature(config, 64)
    alone = feature([state[1:2] for state in states])
    torch.testing.assert_close(feature(states)[1:2], alone)


def test_memories_of_other_frames_have_other_features():
    config, states = states_after(12)
    feature = MemoryFeature(config, 64)(states)
    earlier = MemoryFeature(config, 64)(states_after(6)[1])
    for one, other in ((feature[0], feature[1]), (feature[0], earlier[0])):
        assert (one - other).norm() > 0.05 * one.norm()


def test_the_seed_decides_the_projection():
    config, states = states_after(12)
    first, again, other = (MemoryFeature(config, 64, seed)(states) for seed in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first - other).norm() > 0.5 * first.norm()


def test_it_does_not_depend_on_the_scale_of_a_layer_or_head():
    config, states = states_after(12)
    feature = MemoryFeature(config, 64)
    scaled = [state * torch.tensor([100.0, 0.01, 1.0, 3.0])[:, None, None] for state in states]
    torch.testing.assert_close(feature(scaled), feature(states), rtol=1e-4, atol=1e-4)


def test_every_layer_is_heard():
    config, states = states_after(12)
    feature = MemoryFeature(config, 5)
    for layer in range(2):
        changed = [state.flip(-1) if i == layer else state for i, state in enumerate(states)]
        parts = (feature(changed) - feature(states)).abs().split([2, 3], dim=1)
        assert parts[layer].max() > 0.01 and parts[1 - layer].max() == 0


def test_fewer_numbers_than_layers_are_an_error():
    with pytest.raises(ValueError, match="2 layers"):
        MemoryFeature(tiny_model().config, 1)


def test_the_feature_of_a_seed_is_the_same_on_every_machine():
    # Policies are trained on one machine and used on another.
    config = dataclasses.replace(tiny_model().config, state_dim=8, head_dim=16, width=32, block_sizes=(2, 1))
    feature = MemoryFeature(config, 4)
    states = [torch.ones(1, blocks, 4, 16, 8) for blocks in (1, 4)]
    np.testing.assert_allclose(feature(states)[0].numpy(), [0.064771, 0.529967, 0.564294, 0.055453], atol=1e-5)
