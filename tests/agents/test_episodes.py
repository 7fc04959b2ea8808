import shutil

import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO

from agents.environments import EnvSpec
from agents.episodes import EpisodePool
from tests.agents.test_evaluate import FORWARD, TOY_ID, make_run

SPEC = EnvSpec(TOY_ID, max_episode_steps=60)


def played(pool, jobs):
    return sorted((policy, one["seed"], one["return"]) for policy, one in pool.play(jobs))


def test_several_processes_give_what_one_gives_call_after_call():
    jobs = [(policy, seed) for policy in (FORWARD, "random") for seed in range(3)]
    with EpisodePool(SPEC, 1) as alone, EpisodePool(SPEC, 2) as together:
        first = played(alone, jobs)
        assert len(first) == 6 and len({one[2] for one in first}) > 1
        assert played(together, jobs) == first == played(together, jobs)
        assert played(together, jobs[:1]) == [one for one in first if one[:2] == jobs[0]]


def test_a_model_file_is_loaded_again_when_it_has_changed(tmp_path):
    run = make_run(tmp_path / "run", num_seeds=2)
    models = [run / f"seed_{seed}" / "model.zip" for seed in (0, 1)]
    turning = PPO.load(models[1], device="cpu")
    turning.policy.get_parameter("action_net.bias").data[1] = 50.0
    turning.save(models[1])
    jobs = [(str(models[0]), seed) for seed in range(8)]
    with EpisodePool(SPEC, 1) as pool:
        first, second = played(pool, jobs), played(pool, [(str(models[1]), seed) for seed in range(8)])
        assert [one[2] for one in first] != [one[2] for one in second]
        assert played(pool, jobs) == first
        shutil.copy(models[1], models[0])
        assert [one[2] for one in played(pool, jobs)] == [one[2] for one in second]


def test_nothing_is_made_for_no_episodes():
    with EpisodePool(EnvSpec("no/Such-v0"), 1) as pool:
        assert list(pool.play([])) == []
