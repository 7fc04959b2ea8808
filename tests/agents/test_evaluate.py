import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import FlattenExtractor

from agents.evaluate import EvaluateConfig, describe, evaluate
from agents.policies.loading import SampledPolicy, policy_maker
from agents.scoring.episodes import play
from agents.scoring.results import gap
from wm_gym.statistics import interval95

TOY_ID = "tests.toy_env:tests/ToyMaze-v0"


def forward(env, seed):
    """A policy that walks on, and turns with a probability of one half."""
    random = np.random.default_rng(seed)
    return lambda obs, info: int(random.integers(3) if random.random() < 0.5 else 0)


FORWARD = "tests.agents.test_evaluate:forward"


def config(tmp_path, **changes) -> EvaluateConfig:
    return EvaluateConfig(
        **{"policy": FORWARD, "out": tmp_path / "e.json", "env": TOY_ID, "workers": 1, "episodes": 4, **changes}
    )


def make_run(folder: Path, num_seeds=2, **config) -> Path:
    """A folder as agents.ppo leaves it, with models that have learned nothing."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"memory": None, "recurrent": False, **config}))
    for seed in range(num_seeds):
        (folder / f"seed_{seed}").mkdir()
        kwargs = {"features_extractor_class": FlattenExtractor}
        PPO("MlpPolicy", gym.make(TOY_ID), n_steps=8, batch_size=8, seed=seed, policy_kwargs=kwargs, device="cpu").save(
            folder / f"seed_{seed}" / "model.zip"
        )
    return folder


def test_the_figures_are_those_of_the_episodes_of_the_given_seeds(tmp_path):
    report = evaluate(config(tmp_path))
    env, expected = gym.make(TOY_ID), []
    for seed in range(7_000_000, 7_000_004):
        expected.append(play(env, policy_maker(FORWARD), seed))
    assert report["results"]["policy"] == expected
    returns = [one["return"] for one in expected]
    assert report["mean_return"] == np.mean(returns) and report["interval95"] == interval95(returns)
    assert report["by_model"]["policy"]["mean_length"] == 40
    assert json.loads((tmp_path / "e.json").read_text())["mean_return"] == report["mean_return"]
    assert "4 episodes" in describe(report)


def test_a_second_call_plays_only_what_is_missing(tmp_path, monkeypatch):
    whole = evaluate(config(tmp_path, out=tmp_path / "whole.json"))
    evaluate(config(tmp_path, episodes=2))
    played = []

    def counted(env, make, seed):
        played.append(seed)
        return play(env, make, seed)

    monkeypatch.setattr("agents.scoring.episodes.play", counted)
    assert evaluate(config(tmp_path))["results"] == whole["results"]
    assert played == [7_000_002, 7_000_003]
    assert evaluate(config(tmp_path))["results"] == whole["results"] and len(played) == 2


def test_results_survive_a_crash_in_the_middle(tmp_path, monkeypatch):
    def crash(env, make, seed):
        if seed == 7_000_002:
            raise KeyboardInterrupt
        return play(env, make, seed)

    monkeypatch.setattr("agents.scoring.episodes.play", crash)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config(tmp_path))
    kept = json.loads((tmp_path / "e.json").read_text())["results"]["policy"]
    assert [one["seed"] for one in kept] == [7_000_000, 7_000_001]


def test_other_settings_do_not_mix_with_the_results_of_a_file(tmp_path):
    evaluate(config(tmp_path, episodes=1))
    for changes in ({"policy": "random"}, {"max_episode_steps": 9}, {"env_kwargs": '{"size": 32}'}, {"seed": 5}):
        with pytest.raises(ValueError, match="other settings"):
            evaluate(config(tmp_path, **changes))
    (tmp_path / "e.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a file of"):
        evaluate(config(tmp_path))


def test_the_models_of_a_run_are_scored_each_and_the_interval_is_over_them(tmp_path):
    run = make_run(tmp_path / "run", num_seeds=3)
    report = evaluate(config(tmp_path, policy=str(run)))
    assert list(report["by_model"]) == ["seed_0", "seed_1", "seed_2"]
    means = [one["mean_return"] for one in report["by_model"].values()]
    assert report["mean_return"] == pytest.approx(np.mean(means))
    assert report["interval95"] == interval95(means) and report["interval_over"] == "training seeds"
    assert "dreamed_return" not in report


def test_a_model_that_was_trained_on_does_not_mix_with_what_it_was(tmp_path):
    run = make_run(tmp_path / "run", num_seeds=1)
    evaluate(config(tmp_path, policy=str(run), episodes=1))
    (run / "seed_0" / "best.zip").write_bytes((make_run(tmp_path / "other") / "seed_1" / "model.zip").read_bytes())
    with pytest.raises(ValueError, match="model_digests"):
        evaluate(config(tmp_path, policy=str(run), episodes=1))


def test_what_agents_dreamed_stands_beside_with_the_gap(tmp_path):
    run = make_run(tmp_path / "run", num_seeds=1)
    (run / "seed_0" / "dreamed.json").write_text(json.dumps({"reward_per_step": 0.25}))
    report = evaluate(config(tmp_path, policy=str(run)))
    assert report["dreamed_return"] == 0.25 * 40
    assert report["gap"] == pytest.approx(1 - report["mean_return"] / 10)
    assert "gap" in describe(report) and gap(0, 1) is None


def test_a_learned_policy_samples_what_its_seed_decides(tmp_path):
    run, env = make_run(tmp_path / "run", num_seeds=1), gym.make(TOY_ID)
    make, (obs, info) = policy_maker(str(run / "seed_0" / "model.zip")), env.reset(seed=0)
    episodes = []
    for seed in (1, 1, 2):
        policy = make(env, seed)
        assert isinstance(policy, SampledPolicy)
        episodes.append([policy(obs, info) for _ in range(30)])
    assert episodes[0] == episodes[1] != episodes[2] and set(episodes[0]) == {0, 1, 2}


def test_intervals_are_students():
    assert interval95([1.0]) is None
    assert interval95([1.0, 2.0, 3.0]) == pytest.approx([2 - 2.4841, 2 + 2.4841], abs=1e-3)


def test_bad_input_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="episodes must be"):
        config(tmp_path, episodes=0)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda"):
            evaluate(config(tmp_path, device="cuda"))
    with pytest.raises(ValueError, match="JSON object"):
        evaluate(config(tmp_path, env_kwargs="size=3"))
    with pytest.raises(ValueError, match="A policy is"):
        evaluate(config(tmp_path, policy="rndom"))
    with pytest.raises(ValueError, match="navigator acts in Memory Maze"):
        evaluate(config(tmp_path, policy="navigator"))
    run = make_run(tmp_path / "run", num_seeds=0)
    with pytest.raises(FileNotFoundError, match="saved no model"):
        evaluate(config(tmp_path, policy=str(run)))
    run = make_run(tmp_path / "trained", num_seeds=1)
    with pytest.raises(ValueError, match="was trained on observations"):
        evaluate(config(tmp_path, policy=str(run), env_kwargs='{"size": 32}'))
