import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO

from agents.evaluate import EvaluateConfig, evaluate
from agents.learning.config import PRESETS, PpoConfig, make_specs, parse_arguments
from agents.learning.device_ppo import DevicePPO
from agents.learning.networks import ImageAndMemory
from agents.learning.real_score import read_scores
from agents.ppo import main, train
from agents.scoring.learning_curves import read_learning

DREAM_ID = "LSSVWM-MemoryMaze-v0"
TOY_ID = "tests.toy_env:tests/ToyMaze-v0"


def config(tmp_path: Path, tiny_kwargs=None, **changes) -> PpoConfig:
    """A run of two short updates, in a dream of a random model or else in the toy maze."""
    values = {
        "env": TOY_ID if tiny_kwargs is None else DREAM_ID,
        "env_kwargs": json.dumps(tiny_kwargs or {}),
        "real_env": TOY_ID,
        "real_env_kwargs": '{"max_episode_steps": 5}',
        "out": tmp_path / "run",
        "total_timesteps": 64,
        "seeds": 1,
        "num_envs": 4,
        "num_steps": 8,
        "batch_size": 16,
        "epochs": 1,
        "score_every": 32,
        "score_episodes": 2,
        "features": 16,
        "device": "cpu",
    }
    return PpoConfig(**{**values, **changes})


def model_digest(folder: Path) -> bytes:
    return (folder / "model.zip").read_bytes()


@pytest.mark.parametrize("kind", ["plain", "memory", "map", "recurrent"])
def test_a_run_in_a_dream_leaves_models_scores_and_curves_that_can_be_evaluated(
    tmp_path, tiny_kwargs, map_kwargs, kind
):
    changes = {
        "memory": {"memory": True, "memory_size": 8},
        "map": {"memory": True, "memory_kind": "map"},
        "recurrent": {"recurrent": True},
        "plain": {},
    }[kind]
    run = config(tmp_path, map_kwargs if kind == "map" else tiny_kwargs, **changes)
    scores = train(run)["seed_0"]
    assert [score["timesteps"] for score in scores] == [32, 64]
    for score in scores:
        assert score["real_length"] == 5 and score["frames_per_second"] > 1
        assert score["gap"] is None or score["gap"] == pytest.approx(1 - score["real_return"] / score["dreamed_return"])
    folder = run.out / "seed_0"
    assert (folder / "best.zip").is_file()
    curve = read_learning(folder)["rollout/reward_per_step"]
    for last, score in zip((0, 32), scores, strict=True):
        rates = [rate for step, rate in curve if last < step <= score["timesteps"]]
        assert rates and np.mean(rates) == pytest.approx(score["dreamed_reward_per_step"], abs=1e-4)
    report = evaluate(
        EvaluateConfig(str(run.out), tmp_path / "e.json", TOY_ID, '{"max_episode_steps": 5}', episodes=2, workers=1)
    )
    assert report["by_model"]["seed_0"]["episodes"] == 2 and "dreamed_return" in report


def test_the_same_command_trains_in_a_real_environment(tmp_path):
    run = config(tmp_path, num_envs=2, num_steps=16, real_env=None, seeds=2)
    scores = train(run)
    assert set(scores) == {"seed_0", "seed_1"} and scores["seed_0"][-1]["dreamed_return"] is None
    assert not (run.out / "seed_0" / "dreamed.json").exists()


def test_environments_may_share_processes(tmp_path):
    batch = "tests.agents.toy_batch:tests/ToyBatch-v0"
    run = config(tmp_path, env=batch, num_envs=4, envs_per_process=2, num_steps=8, score_every=0)
    assert train(run)["seed_0"][-1]["timesteps"] == 64
    with pytest.raises(ValueError, match="multiple of envs_per_process"):
        train(config(tmp_path / "b", env=batch, num_envs=3, envs_per_process=2))


def test_dreams_that_end_at_rewards_are_not_compared_with_reality(tmp_path, tiny_kwargs):
    kwargs = {**tiny_kwargs, "end_at_reward": True, "reward_threshold": 1e-9}
    run = config(tmp_path, kwargs)
    for score in train(run)["seed_0"]:
        # Every step is rewarded and so ends its episode.
        assert score["dreamed_reward_per_step"] == 1.0
        assert score["dreamed_return"] is None and score["gap"] is None
    assert not (run.out / "seed_0" / "dreamed.json").exists()


def test_minutes_end_training_and_the_same_command_goes_on(tmp_path, tiny_kwargs):
    run = config(tmp_path, tiny_kwargs, minutes=1e-6, score_every=0, total_timesteps=10_000)
    first = train(run)["seed_0"]
    assert len(first) == 1 and first[0]["timesteps"] < 10_000 and not first[0]["stopped"]
    again = train(run)["seed_0"]
    assert len(again) == 2 and again[1]["timesteps"] > first[0]["timesteps"]


def test_processes_may_share_a_run_each_with_a_seed_of_its_own(tmp_path, tiny_kwargs):
    for seed in (1, 0):
        train(config(tmp_path, tiny_kwargs, seeds=2, only_seed=seed, score_every=0))
    folders = [tmp_path / "run" / f"seed_{seed}" for seed in range(2)]
    assert all(read_scores(folder)[-1]["timesteps"] == 64 for folder in folders)
    assert model_digest(folders[0]) != model_digest(folders[1])


def test_memory_is_shown_in_a_real_environment_too(tmp_path, tiny_kwargs):
    memory = {"memory": True, "memory_size": 8, "memory_checkpoint": tiny_kwargs["checkpoint"]}
    run = config(tmp_path, num_envs=2, num_steps=16, real_env=None, real_env_kwargs="{}", **memory)
    assert train(run)["seed_0"][-1]["timesteps"] == 64


def test_a_run_goes_on_where_it_stopped_and_does_nothing_when_it_is_done(tmp_path, tiny_kwargs):
    first = config(tmp_path, tiny_kwargs)
    train(first)
    before = model_digest(first.out / "seed_0")
    train(first)
    assert model_digest(first.out / "seed_0") == before
    longer = dataclasses.replace(first, total_timesteps=128)
    assert [score["timesteps"] for score in train(longer)["seed_0"]] == [32, 64, 96, 128]
    assert model_digest(first.out / "seed_0") != before


def test_a_killed_run_keeps_its_newest_model(tmp_path, tiny_kwargs, monkeypatch):
    run = config(tmp_path, tiny_kwargs, score_every=0, checkpoint_minutes=0.0, total_timesteps=96)
    calls = []

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("agents.learning.real_score.RealScore._score", killed)
    with pytest.raises(KeyboardInterrupt):
        train(run)
    monkeypatch.undo()
    learn = PPO.learn

    def counted(self, *arguments, **keywords):
        calls.append(self.num_timesteps)
        return learn(self, *arguments, **keywords)

    monkeypatch.setattr(PPO, "learn", counted)
    scores = train(run)["seed_0"]
    assert calls == [64], "It was saved before the last rollout of 32 steps."
    assert scores[-1]["timesteps"] == 96


def test_other_settings_do_not_continue_a_run(tmp_path, tiny_kwargs):
    run = config(tmp_path, tiny_kwargs)
    train(run)
    for changes in ({"learning_rate": 1.0}, {"horizon": 3}, {"memory": True}, {"real_env_kwargs": "{}"}):
        with pytest.raises(ValueError, match="other settings"):
            train(dataclasses.replace(run, **changes))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="no run of"):
        train(dataclasses.replace(run, out=tmp_path / "full"))


def test_training_stops_early_when_reality_gets_no_better(tmp_path, tiny_kwargs, monkeypatch):
    returns = iter([1.0, 3.0, 2.0, 3.0, 99.0])

    def play(pool, jobs):
        value = next(returns)
        return iter([(policy, {"seed": seed, "return": value, "length": 5}) for policy, seed in jobs])

    monkeypatch.setattr("agents.learning.real_score.EpisodePool.play", play)
    run = config(tmp_path, tiny_kwargs, patience=2, total_timesteps=1000)
    scores = train(run)["seed_0"]
    assert [one["real_return"] for one in scores] == [1, 3, 2, 3] and scores[-1]["stopped"]
    assert scores[-1]["timesteps"] < 200
    folder = run.out / "seed_0"
    assert json.loads((folder / "dreamed.json").read_text())["timesteps"] == scores[1]["timesteps"]
    assert train(run)["seed_0"] == scores == read_scores(folder)


def test_the_horizon_cuts_dreams_and_real_episodes_alike(tmp_path, tiny_kwargs):
    for kwargs in (None, tiny_kwargs):
        envs = make_specs(config(tmp_path, kwargs, horizon=3))[0].make_batch(2)
        envs.reset(seed=0)
        lengths, longest = np.zeros(2), 0
        for _ in range(30):
            *_, terminated, truncated, _ = envs.step(np.zeros(2, np.int64))
            lengths += 1
            longest = max(longest, lengths.max())
            lengths[terminated | truncated] = 0
        envs.close()
        assert longest == 3


def test_the_network_takes_images_from_8_pixels_on_and_memories():
    for side in (8, 16, 30, 64):
        image = gym.spaces.Box(0, 1, (3, side, side), np.float32)
        assert ImageAndMemory(image, 12)(torch.rand(2, 3, side, side)).shape == (2, 12)
        memory = gym.spaces.Box(-np.inf, np.inf, (5,), np.float32)
        both = ImageAndMemory(gym.spaces.Dict({"image": image, "memory": memory}), 12)
        given = {"image": torch.rand(2, 3, side, side), "memory": torch.randn(2, 5)}
        assert both(given).shape == (2, 24)
        assert not torch.equal(both(given), both({**given, "memory": torch.randn(2, 5)}))


def test_the_network_looks_in_a_map_for_what_the_image_asks():
    image, memory = gym.spaces.Box(0, 1, (3, 16, 16), np.float32), gym.spaces.Box(-np.inf, np.inf, (4, 21, 21))
    network = ImageAndMemory(gym.spaces.Dict({"image": image, "memory": memory}), 12)
    given = {"image": torch.rand(2, 3, 16, 16), "memory": 10 * torch.randn(2, 4, 21, 21)}
    out = network(given)
    assert out.shape == (2, 24)
    other = network({**given, "memory": 10 * torch.randn(2, 4, 21, 21)})
    assert torch.equal(out[:, :12], other[:, :12]) and not torch.equal(out[:, 12:], other[:, 12:])
    asked = network({**given, "image": torch.rand(2, 3, 16, 16)})
    assert not torch.equal(out[:, 12:], asked[:, 12:])


def test_an_agent_goes_on_with_a_map_of_which_it_knows_nothing_yet(tmp_path, map_kwargs):
    plain = config(tmp_path / "plain", map_kwargs)
    train(plain)
    with_map = config(tmp_path / "map", map_kwargs, memory=True, memory_kind="map", init=str(plain.out), score_every=0)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DevicePPO, "learn", lambda model, *arguments, **kwargs: seen.append(model))
        patch.setattr("agents.learning.real_score.RealScore._score", lambda *arguments: None)
        train(with_map)
    policy, image = seen[0].policy, torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    given = {"image": image, "memory": 10 * torch.randn(5, 4, 21, 21)}
    before: Any = PPO.load(plain.out / "seed_0" / "best.zip", device="cpu").policy
    with torch.no_grad():
        torch.testing.assert_close(
            policy.get_distribution(given).distribution.probs, before.get_distribution(image).distribution.probs
        )
        torch.testing.assert_close(policy.predict_values(given), before.predict_values(image))
    policy.predict_values(given).sum().backward()
    assert policy.mlp_extractor.value_net[0].weight.grad[:, 16:].abs().max() > 0, "It can learn from the map."


def test_a_preset_changes_defaults_and_options_override_it(tmp_path):
    arguments = ["--env", TOY_ID, "--preset", "smoke", "--out", str(tmp_path), "--epochs", "7"]
    smoke = parse_arguments(arguments)
    assert smoke.epochs == 7 and smoke.num_envs == PRESETS["smoke"]["num_envs"] != PpoConfig("e", tmp_path).num_envs
    with pytest.raises(ValueError, match="smoke"):
        parse_arguments(["--preset", "huge"])


def test_a_gpu_that_is_too_small_says_what_to_lower(tmp_path, tiny_kwargs, monkeypatch, capsys):
    def too_much(*arguments, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DevicePPO, "learn", too_much)
    with pytest.raises(MemoryError, match=r"--num-envs \(now 4\) or --num-steps \(8\).*fewer clips"):
        train(config(tmp_path, tiny_kwargs))
    kwargs = ["--env-kwargs", json.dumps(tiny_kwargs), "--real-env", TOY_ID, "--out", str(tmp_path / "b")]
    monkeypatch.setattr("sys.argv", ["ppo", "--env", DREAM_ID, "--device", "cpu", *kwargs])
    assert main() == 1 and "agents.ppo: The GPU has not enough memory" in capsys.readouterr().err


def test_bad_input_is_a_clear_error(tmp_path, tiny_kwargs, monkeypatch, capsys):
    with pytest.raises(ValueError, match="num_steps must be"):
        config(tmp_path, num_steps=0)
    with pytest.raises(ValueError, match="real-env"):
        train(config(tmp_path, tiny_kwargs, real_env=None))
    with pytest.raises(ValueError, match="this environment has"):
        train(config(tmp_path, tiny_kwargs, memory=True, real_env_kwargs='{"size": 32}'))
    with pytest.raises(ValueError, match="without a map"):
        train(config(tmp_path / "states", tiny_kwargs, memory=True, memory_kind="map"))
    with pytest.raises(ValueError, match="leave memory_checkpoint out"):
        train(config(tmp_path, tiny_kwargs, memory_checkpoint="memory-maze"))
    if not torch.cuda.is_available():
        for option in ("device", "score_device"):
            with pytest.raises(ValueError, match="cuda"):
                train(config(tmp_path / option, tiny_kwargs, **{option: "cuda"}))
            assert not (tmp_path / option).exists(), "Nothing is left behind."
    with pytest.raises(ValueError, match="image of 8 pixels"):
        train(config(tmp_path / "flat", env="CartPole-v1", real_env=None, real_env_kwargs="{}"))
    monkeypatch.setattr("sys.argv", ["ppo", "--env", "NoSuch-v0", "--out", str(tmp_path / "no")])
    assert main() == 1
    assert "NoSuch" in capsys.readouterr().err


def test_an_agent_learns_a_world_within_seconds(tmp_path):
    # In the world itself; test_an_agent_that_learned_in_a_dream_... goes through a dream and takes longer.
    line = {"env": "examples.agent_in_a_dream:Line-v0", "real_env": None, "real_env_kwargs": "{}"}
    smoke = {**PRESETS["smoke"], "num_envs": 1, "num_steps": 256, "total_timesteps": 3072, "score_every": 0}
    score = train(config(tmp_path, **{**smoke, **line}))["seed_0"][-1]
    assert score["real_return"] > 15, "Random play gets 5.5 on the average."


@pytest.mark.slow
def test_an_agent_that_learned_in_a_dream_is_far_above_random_in_reality(line_dream, tmp_path):
    arguments = ["--env", DREAM_ID, "--env-kwargs", json.dumps(line_dream), "--out", str(tmp_path / "run")]
    train(parse_arguments([*arguments, "--preset", "smoke", "--total-timesteps", "12288"]))
    line = {"env": "examples.agent_in_a_dream:Line-v0", "episodes": 20, "workers": 1}
    learned = evaluate(EvaluateConfig(policy=str(tmp_path / "run"), out=tmp_path / "learned.json", **line))
    random = evaluate(EvaluateConfig(policy="random", out=tmp_path / "random.json", **line))
    assert random["mean_return"] < 9
    assert learned["mean_return"] > 17 > random["interval95"][1], "24 steps, of which up to 3 lead to the right cell."
    assert abs(learned["gap"]) < 0.5
