"""Training on a Ray cluster of two nodes of this machine."""

import dataclasses
import json
import os
import signal
import time
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from agents.evaluate import EvaluateConfig, evaluate
from agents.learning.config import PRESETS, PpoConfig, combinations
from agents.learning.ray_backend import Learner, read_files, train_on_cluster, write_files
from agents.ppo import train

TOY_ID = "tests.toy_env:tests/ToyMaze-v0"


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with a core each, and this process connected to the first one."""
    ray: Any = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    memory = 80 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": memory})
    cluster.add_node(num_cpus=1, object_store_memory=memory)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def config(tmp_path, tiny_kwargs, **changes) -> PpoConfig:
    values = {
        "env": "LSSVWM-MemoryMaze-v0",
        "env_kwargs": json.dumps(tiny_kwargs),
        "real_env": TOY_ID,
        "real_env_kwargs": '{"max_episode_steps": 3}',
        "out": tmp_path / "run",
        **PRESETS["smoke"],
        "total_timesteps": 64,
        "num_envs": 4,
        "score_episodes": 1,
        "backend": "ray",
    }
    return PpoConfig(**{**values, **changes})


def count_and_die_once(config: PpoConfig, seed: int) -> None:
    """Counts its calls in a file, and kills its process in the first one once the file has gone to the driver."""
    path = config.out / f"seed_{seed}" / "calls"
    path.parent.mkdir(parents=True, exist_ok=True)
    calls = int(path.read_text()) + 1 if path.exists() else 1
    path.write_text(str(calls))
    if calls == 1:
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGKILL)


def die(config: PpoConfig, seed: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(config: PpoConfig, seed: int) -> None:
    raise ArithmeticError("the walls are crooked")


def test_a_sweep_is_a_run_for_each_combination(tmp_path, tiny_kwargs):
    base = config(tmp_path, tiny_kwargs, sweep='{"learning_rate": [0.1, 0.2], "horizon": [3, 4]}')
    runs = combinations(base)
    assert [run.out.name for run in runs] == [
        f"learning_rate={rate},horizon={horizon}" for rate in (0.1, 0.2) for horizon in (3, 4)
    ]
    assert [(run.learning_rate, run.horizon, run.sweep) for run in runs][1] == (0.1, 4, "{}")
    assert combinations(dataclasses.replace(base, sweep="{}")) == [dataclasses.replace(base, sweep="{}")]
    for wrong in ('{"learning_rate": 0.1}', '{"out": ["x"]}', '{"speed": [1]}', '{"epochs": []}'):
        with pytest.raises(ValueError, match="A sweep is a JSON object"):
            combinations(dataclasses.replace(base, sweep=wrong))
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        combinations(dataclasses.replace(base, sweep='{"epochs": [1, 0]}'))


def test_a_sweep_is_trained_here_too(tmp_path, tiny_kwargs):
    run = config(tmp_path, tiny_kwargs, sweep='{"epochs": [1, 2]}', backend="local")
    scores = train(run)
    assert set(scores) == {"epochs=1/seed_0", "epochs=2/seed_0"} and all(
        one[-1]["timesteps"] == 64 for one in scores.values()
    )
    assert json.loads((run.out / "epochs=2/config.json").read_text())["settings"]["epochs"] == 2


def test_a_learner_sends_what_has_changed_and_scores_never_before_their_model(tmp_path, tiny_kwargs):
    def writes(config, seed):
        folder = config.out / "seed_0"
        for name in ("scores.json", "model.zip", ".half.tmp"):
            (folder / name).write_bytes(name.encode())

    learner = Learner((config(tmp_path, tiny_kwargs), 0), writes, {"seed_0/old": b"old", "config.json": b"{}"}, {})
    assert learner.changes() == {}
    learner.train()
    changes = learner.changes()
    assert list(changes) == ["seed_0/scores.json", "seed_0/model.zip"] and learner.changes() == {}
    write_files(tmp_path / "here", changes)
    assert (tmp_path / "here/seed_0/model.zip").stat().st_mtime_ns <= (
        tmp_path / "here/seed_0/scores.json"
    ).stat().st_mtime_ns
    assert read_files(tmp_path / "here", ["seed_0/model.zip"]) == {"seed_0/model.zip": b"model.zip"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_seeds_are_trained_on_the_cluster_as_they_are_here_and_go_on_there(tmp_path, tiny_kwargs, cluster):
    run = config(tmp_path, tiny_kwargs, seeds=2)
    scores = train(run)
    assert set(scores) == {"seed_0", "seed_1"} and all(one[-1]["timesteps"] == 64 for one in scores.values())
    here = train(config(tmp_path / "here", tiny_kwargs, backend="local"))["seed_0"][0]
    assert here["real_return"] == scores["seed_0"][0]["real_return"]
    longer = train(dataclasses.replace(run, total_timesteps=128, seeds=1))
    assert [one["timesteps"] for one in longer["seed_0"]] == [64, 128]
    assert list((run.out / "seed_0/tensorboard").rglob("events.*")), "Curves come here, too."
    report = evaluate(EvaluateConfig(str(run.out), tmp_path / "e.json", TOY_ID, episodes=1, workers=1))
    assert set(report["by_model"]) == {"seed_0", "seed_1"}


@pytest.mark.slow
def test_a_policy_whose_learner_dies_is_trained_on_from_what_had_come(tmp_path, tiny_kwargs, cluster, monkeypatch):
    monkeypatch.setattr("agents.learning.ray_backend.SECONDS_BETWEEN_COPIES", 0.2)
    run = config(tmp_path, tiny_kwargs)
    run.out.mkdir()
    train_on_cluster([(run, 0)], count_and_die_once, None, 1, 0.0)
    assert (run.out / "seed_0/calls").read_text() == "2", "The second learner has read what the first one wrote."


@pytest.mark.slow
def test_what_fails_again_and_again_is_given_up_with_its_reason(tmp_path, tiny_kwargs, cluster, monkeypatch):
    monkeypatch.setattr("agents.learning.ray_backend.SECONDS_BETWEEN_COPIES", 0.2)
    run = config(tmp_path, tiny_kwargs)
    run.out.mkdir()
    with pytest.raises(RuntimeError, match="3 learners of run/seed_0 died"):
        train_on_cluster([(run, 0)], die, None, 1, 0.0)
    with pytest.raises(RuntimeError, match="the walls are crooked"):
        train_on_cluster([(run, 0)], fail, None, 1, 0.0)
