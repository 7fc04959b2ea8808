import shutil

import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO

from agents.environments.settings import EnvSpec, MemorySpec
from agents.ppo import train
from agents.scoring.batched_episodes import EpisodeBatch, plays_in_batches
from agents.scoring.episodes import POLICY_STREAM, EpisodePool
from tests.agents.test_evaluate import FORWARD, TOY_ID, make_run
from tests.agents.test_ppo import config

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


@pytest.mark.parametrize("kind", ["states", "map"])
def test_side_by_side_episodes_are_those_that_each_would_be_alone(tmp_path, map_kwargs, kind):
    run = config(tmp_path, map_kwargs, memory=True, memory_kind=kind, memory_size=8, score_every=0)
    train(run)
    memory = MemorySpec(map_kwargs["checkpoint"], 8, kind=kind)
    spec, model = EnvSpec(TOY_ID, max_episode_steps=12, memory=memory), str(run.out / "seed_0" / "best.zip")
    assert plays_in_batches(spec, model) and not plays_in_batches(SPEC, model) and not plays_in_batches(spec, "random")
    seeds = list(range(5))
    with EpisodePool(spec, 1) as pool:
        alone = sorted((result for _, result in pool.play([(model, seed) for seed in seeds])), key=lambda r: r["seed"])
    assert {one["length"] for one in alone} == {12} and len({one["return"] for one in alone}) > 1
    batch = EpisodeBatch(spec, 2, "cpu")
    try:
        assert list(batch.play(model, seeds, POLICY_STREAM)) == alone
        assert list(batch.play(model, seeds[2:3], POLICY_STREAM)) == alone[2:3]
    finally:
        batch.close()
