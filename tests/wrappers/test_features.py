import dataclasses

import numpy as np
import pytest
import torch

from tests.tiny import SMALL_MAP, TINY_MAP, make_tiny_clips, tiny_model, tiny_model_with_odometry
from wm_gym.nn.config import ScanConfig
from wm_gym.wrappers.features import MapView, MemoryFeature, Remembered


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
    config = dataclasses.replace(tiny_model().config, scan=ScanConfig(head_dim=16, state_dim=8, num_groups=1))
    feature = MemoryFeature(config, 4)
    states = [torch.ones(1, blocks, 4, 16, 8) for blocks in (1, 4)]
    np.testing.assert_allclose(feature(states)[0].numpy(), [0.064771, 0.529967, 0.564294, 0.055453], atol=1e-5)


def view_of(cells, pose, **arguments):
    """What is seen of a map in which 10 was written with weight 1 into some cells of the plane."""
    config = dataclasses.replace(
        tiny_model_with_odometry(**TINY_MAP).config, map=dataclasses.replace(SMALL_MAP, cell=0.5)
    )
    place_map = torch.zeros(1, 24, 24, 4)
    for x, y in cells:
        place_map[0, x % 24, y % 24] = torch.tensor([10.0, 0, 0, 1])
    view = MapView(config, side=5, step=0.5, **arguments)
    return view(place_map.flatten(1, 2), torch.tensor([pose]))[0]


@pytest.mark.parametrize(
    ("pose", "row", "column"),
    [
        ((0.0, 0.0, 1.0, 0.0), 0, 1),  # two points ahead, one to the left
        ((0.0, 0.0, 0.0, 1.0), 1, 4),  # turned to the left: what was ahead is to the right
        ((0.0, 0.0, -1.0, 0.0), 4, 3),
        ((0.5, 0.5, 1.0, 0.0), 1, 2),
    ],
)
def test_the_map_is_seen_from_where_the_agent_is_and_as_it_looks(pose, row, column):
    seen = view_of([(2, 1)], pose)
    assert seen.shape == (4, 5, 5) and seen.dtype == torch.float32
    expected = torch.zeros(5, 5)
    expected[row, column] = 10 / 1.01
    torch.testing.assert_close(seen[0], expected, atol=1e-4, rtol=0)
    assert (seen[3] > 1).sum() == 1 and seen[3, row, column] > 1, "What was written is told from what nobody saw."


def test_a_memory_is_seen_as_its_states_or_as_its_map():
    model = tiny_model_with_odometry(**TINY_MAP)
    clips = make_tiny_clips()
    frames, actions = torch.from_numpy(clips.frames), torch.from_numpy(clips.actions)
    state = model.prefill(model.initial_state(len(clips)), frames, actions)
    states, view = Remembered(model.config, size=16), Remembered(model.config, "map")
    torch.testing.assert_close(states(state), MemoryFeature(model.config, 16)([one.ssm_state for one in state.layers]))
    seen = view(state)
    assert view.space.shape == (4, 21, 21) and seen.shape == (3, 4, 21, 21) and seen[:, :3].abs().amax() > 0
    assert states.space.shape == (16,)
    with pytest.raises(ValueError, match="without a map"):
        Remembered(tiny_model().config, "map")
    with pytest.raises(ValueError, match="'states' or 'map', got 'image'"):
        Remembered(model.config, "image")  # pyright: ignore[reportArgumentType]
