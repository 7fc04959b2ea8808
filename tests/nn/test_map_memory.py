"""The map: written at points along rays, found from other places, the same in parallel and frame by frame."""

import math

import pytest
import torch

from tests.tiny import PLANAR_POSE, SMALL_MAP, tiny_model
from wm_gym.codec import frames_to_model
from wm_gym.nn.config import MapConfig
from wm_gym.nn.map_memory import MapMemory, Places
from wm_gym.world_model import WorldModelConfig

MAP = {"pose": PLANAR_POSE, "hide_noise": True, "map": SMALL_MAP}
FRAMES = 37  # more than two parts of a long context


def facing(x: float, y: float, degrees: float) -> list[float]:
    angle = math.radians(degrees)
    return [x, y, math.cos(angle), math.sin(angle)]


def walk(batch: int = 2, frames: int = FRAMES) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random frames, actions and poses of a slow walk."""
    g = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (batch, frames, 16, 16, 3), generator=g, dtype=torch.uint8)
    angle = (0.3 * torch.randn(batch, frames, generator=g)).cumsum(1)
    position = (0.3 * torch.randn(batch, frames, 2, generator=g)).cumsum(1)
    pose = torch.cat([position, torch.stack([angle.cos(), angle.sin()], -1)], -1)
    return video, torch.randint(0, 3, (batch, frames - 1), generator=g), pose


def map_memory(**overrides) -> MapMemory:
    torch.manual_seed(0)
    return MapMemory(WorldModelConfig(**overrides))


def test_the_training_pass_says_what_denoising_frame_by_frame_says():
    model = tiny_model(**MAP)
    frames, actions, pose = walk()
    level = torch.zeros(2, FRAMES)
    level[:, -1] = 0.7
    with torch.no_grad():
        whole = model(frames_to_model(frames), level, actions, pose).frame[:, -1]
        state = model.prefill(model.initial_state(2), frames[:, :-1], actions[:, :-1], pose[:, :-1])
        single = model.denoise(state, frames_to_model(frames[:, -1]), level[:, -1], actions[:, -1], pose[:, -1])
    torch.testing.assert_close(whole, single.frame, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cut", [1, 2, 17, 36])
def test_a_context_split_anywhere_leaves_the_same_map(cut):
    model = tiny_model(**MAP)
    frames, actions, pose = walk()
    with torch.no_grad():
        whole = model.prefill(model.initial_state(2), frames, actions, pose)
        part = model.prefill(model.initial_state(2), frames[:, :cut], actions[:, : cut - 1], pose[:, :cut])
        part = model.prefill(part, frames[:, cut:], actions[:, cut - 1 :], pose[:, cut:])
    assert whole.layers[1].place_map is not None and part.layers[1].place_map is not None
    assert whole.layers[1].place_map.abs().sum() > 0
    torch.testing.assert_close(part.layers[1].place_map, whole.layers[1].place_map, rtol=1e-4, atol=1e-5)


def test_what_was_written_from_one_place_is_found_from_another():
    memory = map_memory()
    memory.angles = torch.zeros(1)  # one ray, straight ahead
    written = torch.zeros(1, 1, 1, len(memory.distances), memory.values + 1)
    written[0, 0, 0, 6] = 1.0  # at a distance of 2.1 cells
    to_the_east, from_behind, elsewhere = facing(0, 0, 0), facing(2.1, -2.1, 90), facing(0, 0, 90)
    place_map = memory._added(*memory.places(torch.tensor([[to_the_east]])), written)
    poses = torch.tensor([[from_behind, elsewhere]])
    found = memory._found(place_map.expand(1, 2, -1, -1), *memory.places(poses))
    assert found[0, 0, 0, 6, 0] == pytest.approx(1.0, abs=1e-3)
    assert found[0, 0, 0].sum(0)[0] < 1.5  # and hardly anywhere else along that ray
    assert found[0, 1].abs().max() == 0


def test_a_map_wraps_around():
    memory = map_memory()
    extent = memory.config.map.size * memory.config.map.cell
    here, there = (memory.places(torch.tensor([[facing(x, -7.3, 20)]])) for x in (0.5, 0.5 + extent))
    assert torch.equal(here[0], there[0])
    torch.testing.assert_close(here[1], there[1], atol=1e-3, rtol=0)
    assert here[0].min() >= 0 and here[0].max() < memory.config.map.size**2


def test_noise_is_not_written_and_a_frame_does_not_read_itself():
    memory = map_memory()
    memory.out.weight.data.normal_()
    torch.manual_seed(1)
    tokens = torch.randn(1, 3, 8, 8, 256)
    pose = torch.tensor([facing(0, 0, 0)]).expand(1, 3, 4)
    quiet = memory(tokens, Places(torch.ones(1, 3), pose), None, 0)[0]
    assert torch.equal(quiet[:, 0], quiet[:, 2])
    loud = memory(tokens, Places(torch.zeros(1, 3), pose), None, 0)[0]
    assert torch.equal(loud[:, 0], quiet[:, 0])
    assert not torch.allclose(loud[:, 1], quiet[:, 1])


def test_gradients_pass_from_what_is_read_to_what_was_written():
    model = tiny_model(**MAP).train()
    frames, actions, pose = walk()
    level = torch.zeros(2, FRAMES)
    level[:, 20:] = 1
    model(frames_to_model(frames), level, actions, pose).frame[:, 20:].square().sum().backward()
    assert model.backbone.map_memory is not None
    for name, parameter in model.backbone.map_memory.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_configuration_refuses_a_map_without_planar_poses_or_of_odd_sizes():
    with pytest.raises(ValueError, match="planar"):
        WorldModelConfig.plain(map=MapConfig(size=8))
    with pytest.raises(ValueError, match=r"map\.cell"):
        MapConfig(size=8, cell=0)
    with pytest.raises(ValueError, match=r"map\.layer"):
        WorldModelConfig(map=MapConfig(size=8, layer=8))


def test_a_state_with_a_map_is_saved_and_restored():
    model = tiny_model(**MAP)
    frames, actions, pose = walk()
    with torch.no_grad():
        state = model.prefill(model.initial_state(2), frames, actions, pose)
    again = type(state).from_tensors(state.to_tensors())
    assert again.layers[0].place_map is None
    assert again.layers[1].place_map is not None and state.layers[1].place_map is not None
    assert torch.equal(again.layers[1].place_map, state.layers[1].place_map)
