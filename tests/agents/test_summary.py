import json

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("tensorboard")

from torch.utils.tensorboard import SummaryWriter

from agents.scoring.learning_curves import MOST_POINTS, between_scores, read_learning, reward_per_step, write_curves
from agents.summary import SummaryConfig, describe, main, summarize
from tests.agents.test_evaluate import TOY_ID
from wm_gym.files import write_json
from wm_gym.statistics import interval95

KWARGS = '{"checkpoint": "/a/b-c/m.safetensors"}'
COMMAND = f"python -m agents.ppo --env E --seeds 2 --total-timesteps 1000 --env-kwargs '{KWARGS}'"


def make_run(folder, env="LSSVWM-MemoryMaze-v0", steps=(1000, 400), speeds=(20.0, 30.0), command=COMMAND):
    """A run as agents.ppo leaves it, of one training seed for each of `steps`."""
    settings = {"num_envs": 2, "horizon": 5, "score_episodes": 4, "env_kwargs": "{}"}
    write_json(folder / "config.json", {"settings": settings, "train": {"env": env}, "command": command, "commit": "c"})
    for seed, last in enumerate(steps):
        scores = [
            {
                "timesteps": at,
                "real_return": 1.0,
                "real_length": 10.0,
                "frames_per_second": speed,
                "stopped": False,
                "dreamed_reward_per_step": 0.01,
            }
            for at, speed in zip((last // 2, last), speeds, strict=True)
        ]
        write_json(folder / f"seed_{seed}" / "scores.json", {"scores": scores})
    return folder


def write_events(folder, part, steps, reward=2.0, length=8.0):
    with SummaryWriter(str(folder / "tensorboard" / part)) as writer:
        for step in steps:
            writer.add_scalar("rollout/ep_rew_mean", reward, step)
            writer.add_scalar("rollout/ep_len_mean", length, step)


def make_scores(path, returns, digests=None, seeds=None, **changes):
    """A file as agents.evaluate leaves it, of the given returns by model."""
    results = {
        model: [
            {"seed": seed, "return": value, "length": 10}
            for seed, value in zip(seeds or range(9), values, strict=False)
        ]
        for model, values in returns.items()
    }
    by_model = {
        model: {"episodes": len(values), "mean_return": sum(values) / len(values), "interval95": interval95(values)}
        for model, values in returns.items()
    }
    environment = {"env": "E", "kwargs": {}, "max_episode_steps": None, "memory": None}
    record = {"by_model": by_model, "results": results, "environment": environment, "model_digests": digests or {}}
    write_json(path, {**record, **changes})
    return path


def config(tmp_path, **given) -> SummaryConfig:
    return SummaryConfig(out=tmp_path / "summary.json", **given)


def test_scores_are_held_against_the_floor_maze_by_maze(tmp_path):
    floor = make_scores(tmp_path / "floor.json", {"policy": [0.0, 1.0, 5.0]}, seeds=[3, 1, 2])
    agent = make_scores(tmp_path / "agent.json", {"seed_0": [2.0, 7.0, 4.0]}, seeds=[1, 2, 4])
    record = summarize(config(tmp_path, scores=(f"random={floor}", f"agent={agent}")))
    figures = record["scores"]["agent"]["by_model"]["seed_0"]
    # Mazes 1 and 2 were played by both: 2 - 1 and 7 - 5.
    assert figures["above_floor"] == {"episodes": 2, "mean": 1.5, "interval95": interval95([1.0, 2.0])}
    assert figures["returns"] == {"1": 2.0, "2": 7.0, "4": 4.0}
    assert "above_floor" not in record["scores"]["random"]["by_model"]["policy"]


def test_episodes_of_another_length_are_not_held_against_the_floor(tmp_path):
    floor = make_scores(tmp_path / "floor.json", {"policy": [0.0, 1.0]})
    short = {"env": "E", "kwargs": {}, "max_episode_steps": 200, "memory": None}
    agent = make_scores(tmp_path / "agent.json", {"seed_0": [2.0, 3.0]}, environment=short)
    record = summarize(config(tmp_path, scores=(f"random={floor}", f"agent={agent}")))
    assert "above_floor" not in record["scores"]["agent"]["by_model"]["seed_0"]


def test_what_was_not_trained_or_played_is_said(tmp_path):
    run = make_run(tmp_path / "run", steps=(1000, 400))
    half = make_run(tmp_path / "half", steps=(1000,))
    scores = make_scores(
        tmp_path / "s.json", {"seed_0": [1.0, 2.0], "seed_1": [1.0]}, {f"seed_{i}": "d" for i in range(3)}
    )
    record = summarize(config(tmp_path, runs=(f"run={run}", f"half={half}"), scores=(f"run={scores}",)))
    assert record["missing"] == [
        "run, seed_1: 400 of 1,000 steps were trained",
        "half: 1 of 2 training seeds were begun",
        "run, seed_1: 1 of 2 episodes were played",
        "run, seed_2: 0 of 2 episodes were played",
    ]
    assert all(line in describe(record) for line in record["missing"])


def test_a_run_that_was_to_end_after_a_time_is_not_missing_steps(tmp_path):
    run = make_run(tmp_path / "run", steps=(10, 20), command=COMMAND + " --minutes 3")
    assert summarize(config(tmp_path, runs=(f"run={run}",)))["missing"] == []


def test_the_speed_of_dreams_is_given_against_that_of_real_runs(tmp_path):
    dream, real = make_run(tmp_path / "dream"), make_run(tmp_path / "real", env=TOY_ID, speeds=(2.0, 3.0))
    speed = summarize(config(tmp_path, runs=(f"dream={dream}", f"real={real}")))["speed"]
    assert speed == {"frames_per_second": {"dream": 30.0, "real": 3.0}, "ratios": {"dream / real": 10.0}}


def test_the_file_holds_no_absolute_folders(tmp_path):
    run = make_run(tmp_path / "run")
    record = summarize(config(tmp_path, runs=(f"run={run}",), notes=("see https://a.b/c/d and ../x/y",)))
    assert '{"checkpoint": "m.safetensors"}' in record["training"]["run"]["command"]
    assert record["notes"] == ["see https://a.b/c/d and ../x/y"]
    assert str(tmp_path) not in json.dumps(record)


def test_the_curves_of_a_run_that_went_on_are_joined_and_thinned_up_to_the_last_step(tmp_path):
    write_events(tmp_path, "ppo_0", range(0, 300, 2))
    write_events(tmp_path, "ppo_1", range(250, 700, 2), reward=4.0)
    points = read_learning(tmp_path)["rollout/ep_rew_mean"]
    assert len(points) <= MOST_POINTS and points == sorted(set(points))
    assert points[0] == (0, 2.0) and points[-1] == (698, 4.0)
    assert {value for step, value in points if step >= 250} == {4.0}


def test_means_over_episodes_are_only_taken_for_reward_per_step_where_these_are_equally_long():
    rewards, equal = [(1, 1.0), (2, 2.0), (3, 6.0)], [(1, 4.0), (2, 4.0), (3, 4.0)]
    learning = {"rollout/ep_rew_mean": rewards, "rollout/ep_len_mean": equal}
    assert reward_per_step(learning, window=1) == [(1, 0.25), (2, 0.5), (3, 1.5)]
    assert reward_per_step(learning, window=3) == [(1, 0.375), (2, 0.75), (3, 1.0)]
    lucky = {**learning, "rollout/ep_len_mean": [(1, 2.0), *equal[1:]]}
    assert reward_per_step(lucky) == []
    assert reward_per_step({**lucky, "rollout/reward_per_step": [(5, 0.5)]}) == [(5, 0.5)]


def test_dreamed_rewards_between_scores_make_steps():
    scores = [{"timesteps": at, "dreamed_reward_per_step": rate} for at, rate in ((10, 0.5), (30, None), (40, 1.0))]
    assert between_scores(scores) == [(0, 0.5), (10, 0.5), (30, 1.0), (40, 1.0)]


def test_the_command_writes_the_figures_and_a_plot(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run")
    write_events(run / "seed_0", "ppo_0", range(0, 100, 10))
    scores = make_scores(tmp_path / "s.json", {"policy": [0.0, 1.0]})
    out = tmp_path / "out" / "agents.json"
    arguments = ["--runs", f"run={run}", "--scores", f"random={scores}", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["summary", *arguments])
    assert main() == 0
    assert "random: 0.50" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["floor"] == "random" and record["training"]["run"]["seeds"]["seed_1"]["timesteps"] == 400
    assert record["training"]["run"]["seeds"]["seed_0"]["learning"]["rollout/ep_rew_mean"][-1] == [90, 2.0]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_of_scores_that_are_all_zero_can_be_drawn(tmp_path):
    scores = make_scores(tmp_path / "s.json", {"policy": [0.0, 0.0]})
    write_curves(tmp_path / "c.png", summarize(config(tmp_path, scores=(f"random={scores}",))))
    assert (tmp_path / "c.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Nothing to put together"),
        ({"scores": ("nameless.json",)}, "NAME=PATH"),
        ({"scores": ("a=missing.json",)}, "There is no file missing.json"),
        ({"runs": ("a=nowhere",)}, "There is no file nowhere"),
    ],
)
def test_bad_input_is_a_clear_error(tmp_path, given, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        summarize(config(tmp_path, **given))


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[]", "has no by_model"), ("{}", "has no by_model")]
)
def test_a_file_that_is_no_result_is_refused(tmp_path, text, message):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        summarize(config(tmp_path, scores=(f"a={tmp_path / 's.json'}",)))
