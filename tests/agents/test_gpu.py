"""Agents whose dreams and networks are on a GPU."""

import dataclasses
import json

import gymnasium as gym
import pytest
import torch

pytest.importorskip("stable_baselines3")

from agents.environments.settings import EnvSpec, MemorySpec
from agents.learning.config import PRESETS, PpoConfig
from agents.planners.mcts import make_search
from agents.planners.rollouts import make_rollouts
from agents.planners.shooting import make_planner
from agents.ppo import train
from agents.reward_check import RewardCheckConfig, check_rewards
from agents.scoring.episodes import EpisodePool, play
from tests.agents.toy_batch import BATCH_ID
from wm_gym.wrappers.features import MemoryKind

TOY_ID = "tests.toy_env:tests/ToyMaze-v0"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def agent(tmp_path, tiny_kwargs, memory, kind: MemoryKind = "states") -> PpoConfig:
    return PpoConfig(
        env="LSSVWM-MemoryMaze-v0",
        env_kwargs=json.dumps(tiny_kwargs),
        real_env=TOY_ID,
        real_env_kwargs='{"max_episode_steps": 5}',
        **{**PRESETS["smoke"], "total_timesteps": 2048, "score_every": 1024, "score_episodes": 2, "device": "cuda"},
        out=tmp_path / "run",
        memory=memory,
        memory_size=8,
        memory_kind=kind,
    )


@pytest.mark.parametrize("memory", [False, True])
def test_an_agent_learns_on_a_gpu_is_scored_on_the_cpu_and_advises_a_search_on_the_gpu(tmp_path, tiny_kwargs, memory):
    run = agent(tmp_path, tiny_kwargs, memory)
    scores = train(run)["seed_0"]
    assert [score["timesteps"] for score in scores] == [1024, 2048]
    env, critic = gym.make(TOY_ID, max_episode_steps=3), str(run.out / "seed_0/best.zip")
    for make in (
        make_search(tiny_kwargs["checkpoint"], critic, "cuda", simulations=8, leaves=4),
        make_planner(tiny_kwargs["checkpoint"], critic, "cuda", candidates=8, horizon=3),
    ):
        assert play(env, make, 0)["length"] == 3
        assert play(env, make, 0) == play(env, make, 0)


def test_an_agent_with_a_map_is_scored_side_by_side_on_the_gpu_and_rolled_out(tmp_path, map_kwargs):
    run = dataclasses.replace(agent(tmp_path, map_kwargs, True, "map"), score_device="cuda", score_workers=2)
    assert [score["timesteps"] for score in train(run)["seed_0"]] == [1024, 2048]
    path, model = str(run.out / "seed_0/best.zip"), map_kwargs["checkpoint"]
    spec = EnvSpec(TOY_ID, max_episode_steps=5, memory=MemorySpec(model, 8, kind="map"))
    with EpisodePool(spec, 2, "cuda") as pool:
        played = sorted(result["seed"] for _, result in pool.play([(path, seed) for seed in range(3)]))
    assert played == [0, 1, 2]
    rollouts = make_rollouts(model, path, "cuda", candidates=8, horizon=3)
    env = gym.make(TOY_ID, max_episode_steps=4)
    assert play(env, rollouts, 0) == play(env, rollouts, 0) and play(env, rollouts, 0)["length"] == 4


def test_what_an_agent_learns_from_in_a_real_environment_lies_on_the_gpu(tmp_path, tiny_kwargs):
    run = agent(tmp_path, tiny_kwargs, memory=False)
    batch = {"env": BATCH_ID, "env_kwargs": "{}", "envs_per_process": 16}
    scores = train(dataclasses.replace(run, **batch))["seed_0"]
    assert [score["timesteps"] for score in scores] == [1024, 2048]


def test_rewards_are_checked_in_dreams_on_a_gpu(tmp_path, tiny_kwargs):
    config = RewardCheckConfig(
        policy="random",
        out=tmp_path / "check.json",
        env_kwargs=json.dumps(tiny_kwargs),
        real=TOY_ID,
        seeds="7000000-7000007",
        context=5,
        context_policy="random",
        horizon=6,
        workers=2,
        device="cuda",
    )
    assert check_rewards(config)["all"]["episodes"] == 8
