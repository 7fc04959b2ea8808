"""A dreamed frame is written into the map where nothing was known, once, and nowhere else."""

import dataclasses
from typing import Any

import gymnasium as gym
import pytest
import torch

from tests.engine.test_graph import PLANAR, assert_same_state, loaded, read
from tests.tiny import (
    LEARNED_ODOMETRY,
    SMALL_MAP,
    TINY_MAP,
    save_tiny_checkpoint,
    save_tiny_clips,
    tiny_model,
    tiny_model_with_odometry,
)
from wm_gym.nn.config import NO_MAP
from wm_gym.ops.step import frame_noise
from wm_gym.world_model import ModelState, WorldModel, WorldModelConfig

ONCE: dict[str, Any] = {**PLANAR, **TINY_MAP, "feedback_interval": 0, "write_once": 0.2}


def place_map(state: ModelState) -> torch.Tensor:
    assert state.place_map is not None
    return state.place_map


def step(model: WorldModel, state: ModelState, pose: torch.Tensor, seed: int = 0) -> ModelState:
    action = torch.zeros(state.batch_size, dtype=torch.int64)
    with torch.no_grad():
        return model.step(state, action, torch.Generator().manual_seed(seed), pose=pose)[1]


def walked(model: WorldModel, num_steps: int) -> ModelState:
    state = read(model)
    for t in range(num_steps):
        state = step(model, state, torch.tensor([[2.0 + t, 1.0, 1.0, 0.0]]).expand(3, 4), t)
    return state


def test_only_unknown_places_are_written_and_only_the_map_changes() -> None:
    model, never = tiny_model(**ONCE), tiny_model(**dict(ONCE, write_once=0.0))
    state, pose = read(model), torch.tensor([[50.0, 50.0, 1.0, 0.0]]).expand(3, 4)
    first = step(model, state, pose)  # its pending frame is real
    once, plain = step(model, first, pose), step(never, first, pose)
    known = place_map(first)[..., -1]
    changed = (place_map(once) != place_map(plain)).any(-1)
    assert changed.any() and torch.equal(place_map(plain), place_map(first))
    # Points between a known and an unknown cell are known if their mean is; no cell that is all known is written.
    assert not (changed & (known > 4 * 0.2)).any()
    assert torch.equal(once.layers[0].ssm_state, plain.layers[0].ssm_state)  # of the layer before the map


def test_a_frame_that_is_dreamed_again_from_the_same_place_writes_nothing() -> None:
    model = tiny_model(**dict(ONCE, write_once=1e-6))
    pose = torch.tensor([[3.0, 3.0, 1.0, 0.0]]).expand(3, 4)
    states = [read(model, num_frames=1)]
    for seed in range(4):
        states.append(step(model, states[-1], pose, seed))
    maps = [place_map(each) for each in states]
    assert not torch.equal(maps[1], maps[2])
    assert torch.equal(maps[2], maps[3]) and torch.equal(maps[3], maps[4])


def test_memory_depends_on_what_a_frame_in_an_unknown_place_shows() -> None:
    model = tiny_model(**ONCE)
    state = walked(model, 2)
    assert state.pending is not None
    other = dataclasses.replace(state.pending, frame=torch.rand_like(state.pending.frame))
    pose = torch.tensor([[3.0, 1.0, 1.0, 0.0]]).expand(3, 4)
    one, two = (step(model, dataclasses.replace(state, pending=p), pose) for p in (state.pending, other))
    assert not torch.equal(place_map(one), place_map(two))


@pytest.mark.parametrize("num_denoising_steps", [1, 2])
@pytest.mark.parametrize(
    "more", [{}, {"sample_noise": True}, {"odometry": LEARNED_ODOMETRY, "map": dataclasses.replace(SMALL_MAP, layer=0)}]
)
def test_a_step_graph_writes_what_world_model_step_writes(num_denoising_steps: int, more: dict[str, Any]) -> None:
    model = tiny_model(**ONCE | more)
    state = read(model)
    graph = loaded(model, state, num_denoising_steps=num_denoising_steps)
    keys, shape = graph.noise_keys.clone(), (3, 16, 16)
    for t in range(4):
        noise = frame_noise(keys, torch.full_like(keys, t), shape)
        pose = torch.tensor([[2.0 + t, 1.0, 1.0, 0.0]]).expand(3, 4)
        action = torch.zeros(3, dtype=torch.int64)
        with torch.no_grad():
            prediction, state = model.step(state, action, noise, num_denoising_steps, pose)
        output = graph.step(action, pose)
        torch.testing.assert_close(output.model_frame, prediction.frame, rtol=1e-3, atol=1e-3)
    assert_same_state(graph.state(), state, 1e-3)


def test_step_equals_denoise_then_advance() -> None:
    model = tiny_model(**ONCE, sample_noise=True)
    state = walked(model, 2)
    noise, action = torch.randn(3, 3, 16, 16), torch.zeros(3, dtype=torch.int64)
    pose = torch.tensor([[3.0, 1.0, 1.0, 0.0]]).expand(3, 4)
    with torch.no_grad():
        expected = model.denoise(state, noise, torch.ones(3), action, pose)
        stepped, newest = model.step(state, action, noise, pose=pose)
        advanced = model.advance(state, expected.frame, action, pose, dreamed=True)
    torch.testing.assert_close(stepped.frame, expected.frame)
    assert_same_state(newest, advanced, 1e-5)


def test_noise_is_seen_only_by_a_model_that_samples() -> None:
    for samples in (False, True):
        model = tiny_model(**ONCE, sample_noise=samples)
        state, action = read(model), torch.zeros(3, dtype=torch.int64)
        pose = torch.tensor([[3.0, 1.0, 1.0, 0.0]]).expand(3, 4)
        with torch.no_grad():
            frames = [
                model.step(state, action, torch.Generator().manual_seed(seed), pose=pose)[0].frame for seed in (0, 1)
            ]
        assert torch.equal(*frames) != samples


def test_a_model_without_a_map_says_that_it_cannot(tmp_path) -> None:
    with pytest.raises(ValueError, match="write_once must be at least 0, and needs a map"):
        WorldModelConfig(write_once=0.2, map=NO_MAP)
    checkpoint = save_tiny_checkpoint(tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match="needs a map"):
        gym.make("LSSVWM-MemoryMaze-v0", checkpoint=checkpoint, write_once=0.2)


def test_environments_write_once_if_asked(tmp_path) -> None:
    values = {key: value for key, value in ONCE.items() if key not in ("pose", "write_once")}
    checkpoint = save_tiny_checkpoint(tmp_path / "tiny.safetensors", tiny_model_with_odometry(**values))
    clips = save_tiny_clips(tmp_path / "clips.npz")
    maps = []
    for write_once in (None, 0.2):
        env = gym.make(
            "LSSVWM-MemoryMaze-v0", checkpoint=checkpoint, contexts=clips, context_frames=6, write_once=write_once
        )
        env.reset(seed=3)
        for _ in range(3):
            env.step(0)
        maps.append(env.unwrapped.get_state().dream.model_state.place_map)  # pyright: ignore[reportAttributeAccessIssue]
        env.close()
    assert not torch.equal(*maps)
