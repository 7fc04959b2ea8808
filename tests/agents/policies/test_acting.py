import json
import shutil
from typing import Any

import gymnasium as gym
import pytest

pytest.importorskip("stable_baselines3")

from agents.learning.config import PRESETS, PpoConfig
from agents.policies.acting import RememberingPolicy, make_agent
from agents.policies.loading import policy_maker
from agents.ppo import train
from agents.scoring.episodes import play
from wm_gym.wrappers.memory import MemoryObservation

TOY_ID = "tests.toy_env:tests/ToyMaze-v0"


@pytest.fixture(scope="module")
def agents(tmp_path_factory, tiny_kwargs):
    """A run of two training seeds with a memory, and one of two without."""
    runs, folder = [], tmp_path_factory.mktemp("agents")
    for memory in (True, False):
        config = PpoConfig(
            env="LSSVWM-MemoryMaze-v0",
            env_kwargs=json.dumps(tiny_kwargs),
            real_env=TOY_ID,
            real_env_kwargs='{"max_episode_steps": 2}',
            **{**PRESETS["smoke"], "total_timesteps": 64, "num_envs": 4, "score_episodes": 1, "seeds": 2},
            out=folder / f"memory_{memory}",
            memory=memory,
            memory_size=8,
        )
        train(config)
        runs.append(config.out)
    return runs


def test_an_agent_acts_as_it_does_where_its_memory_is_shown(agents, tiny_kwargs):
    path = str(agents[0] / "seed_0" / "best.zip")
    env = gym.make(TOY_ID, max_episode_steps=12)
    shown = MemoryObservation(env, tiny_kwargs["checkpoint"], 8)
    logs = []
    for one, make in ((env, make_agent(path)), (shown, policy_maker(path))):
        for seed in (1, 2):
            policy, actions = make(one, seed), []
            obs, info = one.reset(seed=seed)
            policy.reset(info)
            for _ in range(12):
                actions.append(policy(obs, info))
                obs, *_, info = one.step(actions[-1])
            logs.append(actions)
    assert logs[:2] == logs[2:] and logs[0] != logs[1]


def test_the_seed_decides_which_training_seed_acts_and_what_it_does(agents):
    env = gym.make(TOY_ID, max_episode_steps=12)
    make: Any = make_agent(str(agents[1]))
    models = [make(env, seed)._model for seed in range(12)]
    assert len({id(model) for model in models}) == 2, "Both, and each is loaded once."
    assert [make(env, seed)._model for seed in range(12)] == models
    assert play(env, make, 5) == play(env, make_agent(str(agents[1])), 5)
    assert isinstance(make_agent(str(agents[0]))(env, 0), RememberingPolicy)


def test_what_does_not_fit_is_a_clear_error(agents, tmp_path):
    with pytest.raises(ValueError, match="this environment has"):
        make_agent(str(agents[1]))(gym.make(TOY_ID, size=32), 0)
    with pytest.raises(ValueError, match="this environment has"):
        make_agent(str(agents[0]))(gym.make(TOY_ID, size=32), 0)
    shutil.copytree(agents[1], tmp_path / "run", ignore=shutil.ignore_patterns("seed_*"))
    with pytest.raises(FileNotFoundError, match="has saved no model yet"):
        make_agent(str(tmp_path / "run"))
