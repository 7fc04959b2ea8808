import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from agents.environments.settings import EnvSpec, MemorySpec
from agents.learning.config import PRESETS, PpoConfig
from agents.policies.loading import policy_maker
from agents.ppo import train
from agents.reward_check import RewardCheckConfig, check_rewards, describe, main
from agents.scoring.dreamed_episodes import Dreamed, DreamRows, Episode
from agents.scoring.real_episodes import real_episodes
from tests.tiny import save_tiny_checkpoint, tiny_model
from wm_gym.wrappers.memory import MemoryObservation

DREAM_ID = "LSSVWM-MemoryMaze-v0"
LINE_ID = "examples.agent_in_a_dream:Line-v0"
TOY_ID = "tests.toy_env:tests/ToyMaze-v0"


def config(tmp_path, tiny_kwargs, **changes) -> RewardCheckConfig:
    values = {
        "policy": "random",
        "out": tmp_path / "check.json",
        "env_kwargs": json.dumps(tiny_kwargs),
        "real": TOY_ID,
        "seeds": "7000000-7000004",
        "context": 5,
        "context_policy": "random",
        "horizon": 8,
        "batch": 3,
        "workers": 1,
        "device": "cpu",
    }
    return RewardCheckConfig(**{**values, **changes})


@pytest.fixture
def lying_kwargs(tmp_path, tiny_kwargs):
    """A dream that never ends and in which every step is rewarded."""
    model = tiny_model()
    model.backbone.event_head.out.bias.data[1] = 50.0
    path = save_tiny_checkpoint(tmp_path / "lying.safetensors", model)
    return {**tiny_kwargs, "checkpoint": str(path)}


def test_a_model_that_rewards_everything_is_found_out(tmp_path, lying_kwargs):
    report = check_rewards(config(tmp_path, lying_kwargs))
    figures = report["all"]
    assert figures["dreamed_rewards"] == figures["steps"] == 5 * 8
    assert figures["longest_dreamed_run"] == 8 and figures["most_unbacked_in_a_row"] > 4
    assert figures["precision"] == figures["hits"] / 40 < 0.3 and figures["gap"] > 0.7
    assert figures["recall"] in (None, 1.0)
    assert "false rewards in a row" in describe(report)
    assert all(row["dreamed_rewards"] == 40 for row in figures["by_threshold"]), "It is sure of each of them."
    assert figures["acted_gap"] == 1 - figures["acted_return"] / 8 and "acts in reality" in describe(report)


def test_what_another_threshold_would_have_dreamed_is_not_told_of_dreams_that_end_at_rewards(tmp_path, lying_kwargs):
    figures = check_rewards(config(tmp_path, {**lying_kwargs, "end_at_reward": True}))["all"]
    assert figures["steps"] == figures["dreamed_rewards"] == 5 and figures["by_threshold"] == []


def test_the_same_actions_are_taken_in_the_real_episode_from_the_end_of_the_context(tiny_kwargs):
    spec, seeds = EnvSpec(DREAM_ID, {**tiny_kwargs, "starts_per_clip": 1}), [7_000_001, 7_000_002, 7_000_003]
    with real_episodes(EnvSpec(TOY_ID)) as episodes:
        contexts = episodes.lead("random", seeds, 5)
        rows = DreamRows(spec, 4, 6, "cpu")
        dreamed = rows.play(policy_maker("random"), seeds, contexts)
        records = [one.record for one in episodes.replay(seeds, contexts, dreamed)]
    rows.close()
    for seed, context, one, record in zip(seeds, contexts, dreamed, records, strict=True):
        env, dream = gym.make(TOY_ID), gym.make(DREAM_ID, **{**tiny_kwargs, "horizon": 6})
        frames = [env.reset(seed=seed)[0]]
        rewards = []
        for action in record.actions:
            obs, reward, *_ = env.step(action)
            frames.append(obs)
            rewards.append(reward)
        np.testing.assert_array_equal(record.reference_frames, frames)
        np.testing.assert_array_equal(record.reference_rewards, rewards[4:])
        np.testing.assert_array_equal(record.actions[:4], context.actions)
        dream.reset(seed=seed, options={"context": (context.frames, context.actions)})
        terminated = truncated = False
        for step, action in enumerate(one.actions):
            obs, reward, terminated, truncated, _ = dream.step(action)
            np.testing.assert_array_equal(one.episode.frames[step], obs)
            assert one.episode.rewards[step] == reward
            assert 0 <= one.likely[step, 1] <= 1 and (reward == 0 or one.likely[step, 0] == reward)
        assert terminated or truncated, "The dream was played to its end."
        assert one.episode.end == ("terminated" if terminated else "truncated")


def test_nothing_is_to_be_had_after_a_real_end_but_a_cut_episode_says_nothing():
    kwargs, seed = {"terminate_after_rewards": 1}, 7_000_000
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 3, 300)
    for spec in (EnvSpec(TOY_ID, kwargs, max_episode_steps=1000), EnvSpec(TOY_ID, max_episode_steps=20)):
        with real_episodes(spec) as episodes:
            contexts = episodes.lead("random", [seed], 3)
            dreamed = Dreamed(
                actions, Episode(np.zeros((300, 16, 16, 3), np.uint8), np.ones(300), "truncated"), np.ones((300, 2))
            )
            record = episodes.replay([seed], contexts, [dreamed])[0].record
        if spec.kwargs:
            assert record.reference_end == "terminated" and record.num_steps == 300
            assert record.reference_rewards.sum() == 1 and record.rewards.sum() == 300
        else:
            assert record.reference_end == "truncated" and record.num_steps == 18 and record.end == ""


def test_policies_see_the_memory_of_the_dream_as_they_learned_with_it(tiny_kwargs):
    seen = []

    class Looks:
        def reset(self, info):
            pass

        def __call__(self, obs, info):
            seen.append(obs)
            return 1

    spec = EnvSpec(DREAM_ID, tiny_kwargs, memory=MemorySpec(tiny_kwargs["checkpoint"], 8))
    with real_episodes(EnvSpec(TOY_ID)) as episodes:
        contexts = episodes.lead("random", [3], 4)
    rows = DreamRows(spec, 2, 3, "cpu")
    rows.play(lambda env, seed: Looks(), [3], contexts)
    env = MemoryObservation(gym.make(DREAM_ID, **tiny_kwargs), size=8)
    obs, _ = env.reset(seed=3, options={"context": (contexts[0].frames, contexts[0].actions)})
    for one in seen:
        assert one in rows.observation_space
        np.testing.assert_array_equal(one["image"], obs["image"])
        np.testing.assert_allclose(one["memory"], obs["memory"], atol=1e-5)
        obs, *_ = env.step(1)


def turner(env, seed):
    """Turns once when an episode begins, and then walks on; remembers what it saw."""
    return Turner()


class Turner:
    def __init__(self):
        self.seen = []

    def reset(self, info):
        self.seen.clear()

    def __call__(self, obs, info):
        assert info == {}
        self.seen.append(obs)
        last.append(self)
        return 1 if len(self.seen) == 1 else 0


last: list[Turner] = []


def test_an_agent_acts_in_reality_from_the_context_on_as_if_an_episode_of_its_own_began(tiny_kwargs):
    name, memory = "tests.agents.test_reward_check:turner", MemorySpec(tiny_kwargs["checkpoint"], 8)
    with real_episodes(EnvSpec(TOY_ID)) as episodes:
        contexts = episodes.lead("random", [4], 5)
        (rewards,) = episodes.act(name, None, [4], contexts, 30)
        frames = list(last[-1].seen)
        (again,) = episodes.act(name, memory, [4], contexts, 3)
        remembered = list(last[-1].seen)
    env = gym.make(TOY_ID)
    obs, _ = env.reset(seed=4)
    for action in contexts[0].actions:
        obs, *_ = env.step(action)
    for step, frame in enumerate(frames):
        np.testing.assert_array_equal(frame, obs)
        obs, reward, *_ = env.step(1 if step == 0 else 0)
        assert reward == rewards[step]
    assert len(frames) == 30 and list(again) == list(rewards[:3])
    wrapped = MemoryObservation(gym.make(TOY_ID), memory.checkpoint, 8)
    obs, _ = wrapped.reset(seed=4)
    for action in contexts[0].actions:
        obs, *_ = wrapped.step(action)
    np.testing.assert_array_equal(remembered[0]["image"], obs["image"])
    np.testing.assert_allclose(remembered[0]["memory"], obs["memory"])


def test_the_same_command_goes_on_and_refuses_other_settings(tmp_path, tiny_kwargs, monkeypatch):
    first = config(tmp_path, tiny_kwargs, seeds="7000000-7000001")
    check_rewards(first)
    whole = check_rewards(config(tmp_path, tiny_kwargs, batch=2, film=tmp_path / "film.mp4"))
    assert (tmp_path / "film.mp4").stat().st_size > 1000
    alone = check_rewards(config(tmp_path, tiny_kwargs, out=tmp_path / "alone.json", batch=5, workers=2))
    assert whole["results"] == alone["results"] and len(whole["results"]["policy"]) == 5

    def never(*arguments):
        raise AssertionError("Everything has been played.")

    monkeypatch.setattr("agents.reward_check._play", never)
    assert check_rewards(dataclasses.replace(first, tolerance=0))["tolerance"] == 0
    with pytest.raises(ValueError, match=r"other settings \(horizon=8\)"):
        check_rewards(config(tmp_path, tiny_kwargs, horizon=9))


def test_every_training_seed_of_a_run_is_checked(tmp_path, tiny_kwargs):
    run = PpoConfig(
        env=DREAM_ID,
        env_kwargs=json.dumps(tiny_kwargs),
        real_env=TOY_ID,
        real_env_kwargs='{"max_episode_steps": 2}',
        **{**PRESETS["smoke"], "total_timesteps": 64, "num_envs": 4, "score_episodes": 1, "seeds": 2},
        out=tmp_path / "run",
    )
    train(run)
    report = check_rewards(config(tmp_path, tiny_kwargs, policy=str(run.out), seeds="7000000-7000001"))
    assert set(report["by_model"]) == {"seed_0", "seed_1"} and report["all"]["episodes"] == 4


@pytest.mark.slow
def test_the_rewards_of_a_learned_dream_are_real(line_dream, tmp_path):
    figures = check_rewards(config(tmp_path, line_dream, real=LINE_ID, context=4, horizon=20, tolerance=1))["all"]
    assert figures["precision"] > 0.8 and figures["recall"] > 0.8 and abs(figures["gap"]) < 0.2


def test_what_does_not_fit_is_a_clear_error(tmp_path, tiny_kwargs, monkeypatch, capsys):
    for policy in ("navigator", "restless"):
        with pytest.raises(ValueError, match=f"{policy} reads the real environment's info"):
            config(tmp_path, tiny_kwargs, policy=policy)
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        config(tmp_path, tiny_kwargs, horizon=0)
    with pytest.raises(ValueError, match="is none"):
        check_rewards(config(tmp_path, {}, env=TOY_ID))
    with pytest.raises(ValueError, match="has the spaces"):
        check_rewards(config(tmp_path, tiny_kwargs, real_kwargs='{"size": 32}'))
    with pytest.raises(ValueError, match="take a shorter one"):
        check_rewards(config(tmp_path, tiny_kwargs, context=50))
    ours = ["--env-kwargs", json.dumps(tiny_kwargs), "--real", TOY_ID, "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["check", "--policy", "runs/none", "--out", str(tmp_path / "x.json"), *ours])
    assert main() == 1
    assert "agents.reward_check: A policy is" in capsys.readouterr().err
