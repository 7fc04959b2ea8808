import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from agents.dyna import DynaConfig, Stage, _lock, describe, main, run, stages
from agents.learning.config import PRESETS, PpoConfig
from agents.learning.dyna_policy import VARIABLE, act
from agents.ppo import train
from agents.scoring.episodes import play
from tests.paths import ROOT

LINE_ID = "examples.agent_in_a_dream:Line-v0"
TOY_ID = "tests.toy_env:tests/ToyMaze-v0"
NAMES = ["collect", "model", "clips", "agent", "score", "rewards"]
MODEL = (
    "--recipe.model.width 32 --recipe.model.block-sizes 2 1 --recipe.model.scan.head-dim 16 --recipe.model.window 2 "
    "--recipe.model.condition-width 32 --recipe.max-minutes 0 --recipe.steps 200 --recipe.learning-rate 4e-3"
)


def fake_stages(config, number):
    """Commands that say in a file that they ran; the score is the round's number."""
    folder = config.out / f"round_{number}"
    folder.mkdir(exist_ok=True)
    result = []
    for name in NAMES:
        text = f"open({str(config.out / 'ran')!r}, 'a').write('{number} {name}\\n')"
        if name == "score":
            report = {"mean_return": float(number), "interval95": [0.0, 1.0]}
            text += f"; open({str(folder / 'score.json')!r}, 'w').write({json.dumps(report)!r})"
        if name == "rewards":
            report = {"all": {"precision": 0.5, "recall": None, "dreamed_return": 1.0, "real_return": 0.5}}
            text += f"; open({str(folder / 'rewards.json')!r}, 'w').write({json.dumps(report)!r})"
        result.append(Stage(name, [sys.executable, "-S", "-c", text]))
    return result


@pytest.fixture
def faked(monkeypatch):
    monkeypatch.setattr("agents.dyna.stages", fake_stages)


def test_each_round_goes_on_from_the_one_before(tmp_path):
    config = DynaConfig(tmp_path / "run", env=TOY_ID, frames=100, later_recipe="later", init_model="first.safetensors")
    first, second = ({stage.name: " ".join(stage.command) for stage in stages(config, number)} for number in (0, 1))
    assert list(first) == NAMES
    assert "--frames 100 " in first["collect"] and "--frames 200 " in second["collect"], "Of all rounds together."
    assert "--init first.safetensors" in first["model"] and "--recipe tiny" in first["model"]
    assert f"--init {tmp_path}/run/round_0/model/model.safetensors" in second["model"]
    assert "--recipe later" in second["model"]
    assert "--init" not in first["agent"] and f"--init {tmp_path}/run/round_0/agent" in second["agent"]
    for stage in ("agent", "rewards"):
        assert f"{tmp_path}/run/round_1/model/model.safetensors" in second[stage]
    several = stages(dataclasses.replace(config, processes=4), 0)[1].command
    assert "--nproc_per_node=4" in several and several.index("training.train") > several.index("--nproc_per_node=4")


def test_every_stage_runs_once_in_order_and_rounds_can_be_added(tmp_path, faked):
    config = DynaConfig(tmp_path / "run", rounds=1)
    run(config)
    state = run(dataclasses.replace(config, rounds=2))
    expected = [f"{number} {name}" for number in (0, 1) for name in NAMES]
    assert (config.out / "ran").read_text().split("\n")[:-1] == expected
    assert [state["rounds"][number]["score"]["mean_return"] for number in "01"] == [0.0, 1.0]
    assert "round 1: real return 1.00 [0.00, 1.00], dreamed rewards that are real 50%" in describe(state)
    policy = json.loads((config.out / "policy.json").read_text())
    assert policy["run"] == str(config.out / "round_0/agent")


def test_a_stage_that_failed_is_run_again_and_those_before_it_are_not(tmp_path, faked, monkeypatch):
    config = DynaConfig(tmp_path / "run", rounds=1)

    def failing(config, number):
        fine = fake_stages(config, number)
        return [*fine[:3], Stage("agent", [sys.executable, "-c", "raise SystemExit(3)"]), *fine[4:]]

    with monkeypatch.context() as patch:
        patch.setattr("agents.dyna.stages", failing)
        with pytest.raises(RuntimeError, match="stage agent of round 0 failed with exit code 3"):
            run(config)
    run(config)
    assert (config.out / "ran").read_text().split("\n")[:-1] == [f"0 {name}" for name in NAMES]


def test_a_stage_that_stops_on_request_is_not_taken_for_finished(tmp_path, monkeypatch):
    config = DynaConfig(tmp_path / "run", rounds=1)
    waits = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(60)"
    )
    monkeypatch.setattr("agents.dyna.stages", lambda *_: [Stage("clips", [sys.executable, "-S", "-c", waits])])
    timer = threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert json.loads((config.out / "dyna.json").read_text())["rounds"].get("0", {}) == {}


def test_two_processes_never_work_in_one_folder(tmp_path, faked):
    config = DynaConfig(tmp_path / "run", rounds=1)
    run(config)
    with _lock(config.out), pytest.raises(RuntimeError, match="Another process is at work"):
        run(config)


@pytest.mark.slow
def test_a_stage_that_outlives_a_killed_run_is_waited_for(tmp_path, faked):
    config = DynaConfig(tmp_path / "run", rounds=1)
    code = f"""
import sys
from pathlib import Path
import agents.dyna as dyna
dyna.stages = lambda config, number: [dyna.Stage("clips", [sys.executable, "-S", "-c", "import time; time.sleep(60)"])]
dyna.run(dyna.DynaConfig(Path({str(config.out)!r}), rounds=1))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
    ) as parent:
        try:
            assert parent.stdout is not None and b"Round 0, clips" in parent.stdout.readline()
            time.sleep(0.3)
            os.kill(parent.pid, signal.SIGKILL)
            parent.wait()
            with pytest.raises(RuntimeError, match="Another process is at work"):
                run(config)
        finally:
            os.killpg(parent.pid, signal.SIGKILL)
    time.sleep(0.3)
    run(config)


def test_other_settings_and_other_folders_are_refused(tmp_path, faked, monkeypatch, capsys):
    config = DynaConfig(tmp_path / "run", rounds=1)
    run(config)
    with pytest.raises(ValueError, match=r"other settings \(horizon=400\)"):
        run(dataclasses.replace(config, horizon=9))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(ValueError, match=r"no run of agents\.dyna"):
        run(dataclasses.replace(config, out=tmp_path / "full"))
    with pytest.raises(ValueError, match="frames must be at least 1"):
        DynaConfig(tmp_path, frames=0)
    with pytest.raises(ValueError, match="explore must be"):
        DynaConfig(tmp_path, explore=1.5)
    monkeypatch.setattr("sys.argv", ["dyna", "--out", str(tmp_path / "full")])
    assert main() == 1 and "agents.dyna: " in capsys.readouterr().err


@pytest.mark.parametrize("memory", [False, True])
def test_a_seed_decides_whether_the_agent_records_or_the_first_policy(tmp_path, tiny_kwargs, monkeypatch, memory):
    config = PpoConfig(
        env="LSSVWM-MemoryMaze-v0",
        env_kwargs=json.dumps(tiny_kwargs),
        real_env=TOY_ID,
        real_env_kwargs='{"max_episode_steps": 2}',
        **{**PRESETS["smoke"], "total_timesteps": 64, "num_envs": 4, "score_episodes": 1, "seeds": 2},
        out=tmp_path / "agent",
        memory=memory,
        memory_size=8,
    )
    train(config)
    env = gym.make(TOY_ID, max_episode_steps=6)
    path = tmp_path / "policy.json"
    monkeypatch.setenv(VARIABLE, str(path))

    def actions(**changes):
        path.write_text(json.dumps({"run": str(config.out), "first_policy": "random", "explore": 0.5, **changes}))
        kinds, returns = [], []
        for seed in range(12):
            kinds.append(type(act(env, seed)).__name__)
            returns.append(play(env, act, seed))
        return kinds, returns

    kinds, returns = actions()
    assert set(kinds) == {"CheckedPolicy", "RememberingPolicy" if memory else "SampledPolicy"}
    assert actions() == (kinds, returns), "Nothing else than the seed decides."
    assert set(actions(run=None)[0]) == {"CheckedPolicy"} == set(actions(explore=1.0)[0])
    assert "CheckedPolicy" not in actions(explore=0.0)[0]


def test_an_agent_goes_on_from_another_run(tmp_path, tiny_kwargs):
    def agent(out, **changes):
        values = {**PRESETS["smoke"], "total_timesteps": 64, "num_envs": 4, "score_episodes": 1, **changes}
        return PpoConfig(
            env="LSSVWM-MemoryMaze-v0",
            env_kwargs=json.dumps(tiny_kwargs),
            real_env=TOY_ID,
            out=tmp_path / out,
            **values,
        )

    train(agent("first"))
    from agents.policies.loading import load_ppo

    spaces = gym.make(TOY_ID).observation_space, gym.make(TOY_ID).action_space
    weights = {}
    for name, init, rate in (("still", "first", 0.0), ("fresh", None, 0.0)):
        train(agent(name, init=None if init is None else str(tmp_path / init), learning_rate=rate))
        weights[name] = load_ppo(tmp_path / name / "seed_0/model.zip", *spaces).policy.action_net.weight
    first = load_ppo(tmp_path / "first/seed_0/best.zip", *spaces).policy.action_net.weight
    assert np.allclose(weights["still"].detach(), first.detach()) and not np.allclose(
        weights["fresh"].detach(), first.detach()
    )
    with pytest.raises(ValueError, match="another one"):
        train(agent("other", init=str(tmp_path / "first"), features=8))
    with pytest.raises(FileNotFoundError, match=r"no run of agents\.ppo"):
        train(agent("none", init=str(tmp_path / "nothing")))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_rounds_in_a_small_world_are_killed_and_go_on_and_end_above_random(tmp_path):
    command = [sys.executable, "-m", "agents.dyna", "--env", LINE_ID, "--out", str(tmp_path / "run"), "--rounds", "2"]
    command += ["--frames", "1200", "--context-frames", "4", "--horizon", "20", "--clips", "16", "--check-seeds", "4"]
    command += [f"--model-arguments={MODEL}", "--score-episodes", "10"]
    command += ["--agent-arguments=--preset smoke --total-timesteps 8192 --score-episodes 4"]
    for seconds in (20, 50):
        with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
            time.sleep(seconds)
            os.killpg(process.pid, signal.SIGKILL)
    subprocess.run(command, cwd=ROOT, check=True)
    state = json.loads((tmp_path / "run/dyna.json").read_text())
    assert list(state["rounds"]) == ["0", "1"] and all(list(done) == NAMES for done in state["rounds"].values())
    assert state["rounds"]["1"]["score"]["mean_return"] > 12, "Random play gets 5.5 on the average."
