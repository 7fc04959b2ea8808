"""A dream with `max_distance` is cut exactly where it leaves what its context saw, row by row, and forks know it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.tiny import LEARNED_ODOMETRY, PLANAR_POSE, make_tiny_clips, save_tiny_checkpoint, save_tiny_clips, tiny_model
from wm_gym.envs.dream.seen_places import SeenPlaces
from wm_gym.envs.world_model import WorldModelEnv
from wm_gym.envs.world_model_vector import VectorEpisodeState, WorldModelVectorEnv
from wm_gym.odometry.visual import VisualOdometry
from wm_gym.world_model import WorldModel

HORIZON = 12
FAR = 1000.0
ACTIONS = np.random.default_rng(3).integers(0, 3, 60).tolist()
CLIPS = make_tiny_clips()


@pytest.fixture(scope="module")
def model() -> WorldModel:
    model = tiny_model(pose=PLANAR_POSE, odometry=LEARNED_ODOMETRY).requires_grad_(False)
    assert isinstance(model.odometry, VisualOdometry)
    for layer in (model.odometry.out, model.odometry.out_recent, model.odometry.recur):
        layer.weight.mul_(0.1)  # random ones would make motions grow without end
    return model


@pytest.fixture(scope="module")
def kwargs(model: WorldModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("odometry")
    return {
        "checkpoint": str(save_tiny_checkpoint(folder / "model.safetensors", model)),
        "contexts": str(save_tiny_clips(folder / "clips.npz")),
        "context_frames": 6,
        "horizon": HORIZON,
    }


def given_context(length: int, clip: int = 0) -> dict[str, Any]:
    return {"context": (CLIPS.frames[clip, :length], CLIPS.actions[clip, : length - 1])}


def positions_one_by_one(model: WorldModel, length: int) -> np.ndarray:
    """Where the frames of a given context were seen from, read one after the other, [T, 2]."""
    frames, actions = (torch.from_numpy(part)[None] for part in given_context(length)["context"])
    state = model.prefill(model.initial_state(1), frames[:, :1], actions[:, :0])
    positions = []
    for t in range(length):
        if t:
            state = model.advance(state, frames[:, t], actions[:, t - 1])
        assert state.pending is not None and state.pending.pose is not None
        positions.append(state.pending.pose[0, :2].numpy())
    return np.stack(positions)


def play(env: Any, actions: list[int]) -> list[Any]:
    """Steps until the episode ends."""
    steps = []
    for action in actions:
        steps.append(env.step(action))
        if steps[-1][2] or steps[-1][3]:
            break
    return steps


@pytest.mark.parametrize("length", [1, 6, 11])
def test_a_dream_is_truncated_at_the_very_step_that_leaves_its_context_and_not_changed_before(model, kwargs, length):
    free = WorldModelEnv(**kwargs)
    free.reset(seed=1, options=given_context(length))
    expected = play(free, ACTIONS)
    seen = positions_one_by_one(model, length)
    distances = [float(np.linalg.norm(seen - step[4]["estimated_pose"][:2], axis=1).min()) for step in expected]
    # Between the farthest of the first steps and the first one beyond, so that it leaves late.
    farthest = np.maximum.accumulate(distances)
    end = max(t for t in range(1, HORIZON - 1) if distances[t] > farthest[t - 1] + 1e-4)
    env = WorldModelEnv(**kwargs, max_distance=float(distances[end] + farthest[end - 1]) / 2)
    for _ in range(2):
        env.reset(seed=1, options=given_context(length))
        steps = play(env, ACTIONS)
        assert [step[3] for step in steps] == [False] * end + [True] and end > 1
        assert not any(step[2] for step in steps)
        for one, other in zip(steps, expected, strict=False):
            np.testing.assert_array_equal(one[0], other[0])
            assert one[1] == other[1]
        with pytest.raises(gym.error.ResetNeeded):
            env.step(0)


def test_a_dream_that_stays_near_ends_at_its_horizon_as_one_without_a_limit(kwargs):
    episodes = []
    for limit in (None, FAR):
        env = WorldModelEnv(**kwargs, max_distance=limit)
        env.reset(seed=4)
        episodes.append(play(env, ACTIONS))
    assert len(episodes[1]) == HORIZON and episodes[1][-1][3]
    for one, other in zip(*episodes, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:4] == other[1:4]


def test_rows_leave_when_the_single_environments_of_their_seeds_do(kwargs):
    """Over many autoresets, each of which draws another context."""
    limit = median_distance(kwargs)
    envs = WorldModelVectorEnv(4, **kwargs, max_distance=limit, autoreset_mode="SameStep")
    envs.reset(seed=20)
    singles = [WorldModelEnv(**kwargs, max_distance=limit) for _ in range(4)]
    for row, single in enumerate(singles):
        single.reset(seed=20 + row)
    lengths = set()
    for action in ACTIONS[:36]:
        truncated, info = envs.step(np.full(4, action))[3:]
        for row, single in enumerate(singles):
            step = single.step(action)
            assert truncated[row] == step[3]
            if step[3]:
                lengths.add(step[4]["imagined_steps"])
                assert info["final_info"]["imagined_steps"][row] == step[4]["imagined_steps"]
                single.reset()
    assert len(lengths) > 2 and min(lengths) < HORIZON


def median_distance(kwargs: dict[str, Any]) -> float:
    """From the end of the context, as dreams go half of the way to their horizon: some leave, some do not."""
    env, distances = WorldModelEnv(**kwargs), []
    for seed in range(6):
        start = env.reset(seed=seed)[1]["estimated_pose"][:2]
        last = play(env, ACTIONS[: HORIZON // 2])[-1]
        distances.append(np.linalg.norm(last[4]["estimated_pose"][:2] - start))
    return float(np.median(distances))


def moved_away(envs: WorldModelVectorEnv, row: int, distance: float) -> VectorEpisodeState:
    """The state of dreams one of which takes itself to be somewhere else."""
    state = envs.get_state()
    pending = state.dream.model_state.pending
    assert pending is not None and pending.pose is not None
    pending.pose[row, 0] += distance
    return state


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_one_row_that_is_far_away_ends_alone_and_starts_anew_in_its_place(kwargs, mode):
    envs = WorldModelVectorEnv(3, **kwargs, max_distance=FAR / 2, autoreset_mode=mode)
    envs.reset(seed=0)
    envs.step(np.array([0, 1, 2]))
    envs.set_state(moved_away(envs, 1, FAR))
    terminated, truncated = envs.step(np.array([0, 1, 2]))[2:4]
    assert truncated.tolist() == [False, True, False] and not terminated.any()
    ages = [2, 0, 2] if mode == "SameStep" else [3, 0, 3]
    if mode == "NextStep":
        info = envs.step(np.array([0, 1, 2]))[4]
        assert info["imagined_steps"].tolist() == ages
    truncated, info = envs.step(np.array([0, 1, 2]))[3:]
    assert info["imagined_steps"].tolist() == [age + 1 for age in ages] and not truncated.any()


def test_a_row_that_terminates_elsewhere_is_both_and_the_others_are_not_asked_for(kwargs):
    envs = WorldModelVectorEnv(
        2, **kwargs, max_distance=FAR / 2, end_at_reward=True, reward_threshold=1e-9, autoreset_mode="Disabled"
    )
    envs.reset(seed=0)
    envs.set_state(moved_away(envs, 0, FAR))
    terminated, truncated = envs.step(np.array([0, 1]))[2:4]
    assert terminated.tolist() == [True, True] and truncated.tolist() == [True, False]


def test_a_fork_leaves_where_its_episode_did_here_and_in_a_twin(model, kwargs):
    """In the twin another context was read, of another length: the fork brings its own places."""
    limit = float(np.abs(positions_one_by_one(model, 11)).max()) + median_distance(kwargs)
    env, twin = (WorldModelEnv(**kwargs, max_distance=limit) for _ in range(2))
    env.reset(seed=2, options=given_context(11))
    play(env, ACTIONS[:2])
    state = env.get_state()
    assert state.dream.seen_places is not None
    far = dataclasses.replace(state, dream=dataclasses.replace(state.dream, seen_places=state.dream.seen_places + FAR))
    expected = play(env, ACTIONS[2:])
    for one in (env, twin):
        one.reset(seed=7, options=given_context(2, clip=1))
        one.set_state(state)
        for mine, theirs in zip(play(one, ACTIONS[2:]), expected, strict=True):
            np.testing.assert_array_equal(mine[0], theirs[0])
            assert mine[1:4] == theirs[1:4]
        one.set_state(far)
        assert one.step(0)[3]
        one.reset(seed=7)
        assert not one.step(0)[3]


def test_forks_between_dreams_with_and_without_a_limit_are_refused(kwargs):
    limited, free = WorldModelEnv(**kwargs, max_distance=1), WorldModelEnv(**kwargs)
    for one, other in ((limited, free), (free, limited)):
        one.reset(seed=0)
        with pytest.raises(ValueError, match="max_distance"):
            other.set_state(one.get_state())
    assert free.get_state().dream.seen_places is None


def test_it_goes_through_gym_make_and_vectors_of_single_environments(kwargs):
    envs = gym.make_vec("LSSVWM-MemoryMaze-v0", 2, vectorization_mode="sync", **kwargs, max_distance=1e-7)
    envs.reset(seed=0)
    assert envs.step(np.array([1, 2]))[3].tolist() == [True, True]
    envs.close()


def some_places() -> SeenPlaces:
    places = SeenPlaces(3, 2, 1.0, torch.device("cpu"))
    places.put(torch.tensor([0, 1, 2]), torch.tensor([[[0.0, 0.0], [4.0, 0.0]]] * 3))
    return places


def at(*positions: tuple[float, float]) -> torch.Tensor:
    return torch.tensor([(*position, 1.0, 0.0) for position in positions])


def test_the_nearest_place_counts_and_the_very_distance_is_not_too_far():
    assert some_places().left(at((5.0, 0.0), (2.0, 0.0), (0.5, 0.9))).tolist() == [False, True, True]
    assert some_places().left(at((4.0, -1.0), (4.0, -1.01), (math.nan, 0.0))).tolist() == [False, True, True]


def test_places_of_contexts_of_other_lengths_replace_those_of_their_rows_alone():
    places = some_places()
    places.put(torch.tensor([1]), torch.tensor([[[9.0, 0.0], [9.0, 3.0], [9.0, 6.0]]]))
    assert places.left(at((4.0, 0.0), (9.0, 6.0), (0.0, 0.0))).tolist() == [False, False, False]
    assert places.left(at((9.0, 6.0), (4.0, 0.0), (9.0, 0.0))).tolist() == [True, True, True]
    places.put(torch.tensor([2, 1]), torch.tensor([[[20.0, 0.0]], [[30.0, 0.0]]]))
    assert places.left(at((0.0, 0.0), (30.0, 0.0), (20.0, 0.0))).tolist() == [False, False, False]
    assert places.left(at((4.0, 0.0), (9.0, 6.0), (0.0, 0.0))).tolist() == [False, True, True]


def test_what_began_in_inference_mode_goes_on_outside(kwargs):
    envs = WorldModelVectorEnv(2, **kwargs, max_distance=1e-7, autoreset_mode="SameStep")
    with torch.inference_mode():
        envs.reset(seed=0, options=given_context(9))
    for action in (0, 1):
        assert envs.step(np.full(2, action))[3].all()


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "2", True])
def test_a_distance_that_cannot_be_meant_is_refused(kwargs, value):
    for make in (WorldModelEnv, WorldModelVectorEnv):
        with pytest.raises(ValueError, match="max_distance must be a finite number above 0"):
            make(**kwargs, max_distance=value)


def test_it_is_refused_beside_what_forgets_where_the_context_was_and_for_models_that_do_not_know(kwargs, tiny_kwargs):
    with pytest.raises(ValueError, match="refresh_steps 4"):
        WorldModelEnv(**kwargs, max_distance=1.0, refresh_steps=4)
    with pytest.raises(ValueError, match="has no odometry"):
        WorldModelEnv(**tiny_kwargs, max_distance=1.0)


@pytest.mark.gpu
def test_on_a_gpu_rows_leave_without_another_wait_for_the_device(kwargs):
    """A step that resets all rows waits as often as one that resets none: once, for the flags."""
    waits = []
    for limit in (None, 1e-7):
        envs = WorldModelVectorEnv(
            3, **kwargs, max_distance=limit, device="cuda", output="torch", autoreset_mode="SameStep"
        )
        envs.reset(seed=0)
        actions = torch.tensor([0, 1, 2], device="cuda")
        envs.step(actions)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                truncated = envs.step(actions)[3]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert truncated.tolist() == [limit is not None] * 3
        waits.append(sum("synchronizing" in str(one.message) for one in caught))
    assert waits == [1, 1]
