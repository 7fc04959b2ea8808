"""What a command line calls a policy becomes one, or a sentence."""

from __future__ import annotations

import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.toy_env import ENV_ID
from wm_gym.policies.loading import load_policy

SIZE = 36  # the smallest image that SB3's CNN takes


def make_env(**kwargs: Any) -> gym.Env[Any, Any]:
    return gym.make(f"tests.toy_env:{ENV_ID}", **{"size": SIZE, **kwargs})


def counting(env: gym.Env[Any, Any], seed: int) -> Any:
    """Actions that begin with the seed and count up, beyond the action space in the end."""
    actions = iter(range(seed, seed + 100))
    return lambda obs, info: next(actions)


def save_sb3(path: Path, algorithm: str, policy: str, **arguments: Any) -> Path:
    package = pytest.importorskip("sb3_contrib" if algorithm == "RecurrentPPO" else "stable_baselines3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(package, algorithm)(policy, make_env(), device="cpu", seed=0, **arguments)
        model.save(path)
    return path


def actions_of(policy: Any, env: gym.Env[Any, Any], num_steps: int = 8) -> list[int]:
    obs, info = env.reset(seed=0)
    policy.reset(info)
    actions = []
    for _ in range(num_steps):
        actions.append(int(policy(obs, info)))
        obs, _, _, _, info = env.step(actions[-1])
    return actions


def test_a_named_policy_is_decided_by_its_seed() -> None:
    env = make_env()
    first, again, other = (actions_of(load_policy("random", env, seed), env, 20) for seed in (1, 1, 2))
    assert first == again != other


def test_a_function_is_called_with_environment_and_seed_and_its_actions_are_checked() -> None:
    env = make_env()
    policy = load_policy("tests.policies.test_loading:counting", env, seed=1)
    assert actions_of(policy, env, 2) == [1, 2]
    with pytest.raises(ValueError, match=r"counting chose the action 3, which is not in Discrete\(3\)"):
        actions_of(policy, env, 1)


@pytest.mark.parametrize(
    ("algorithm", "arguments"), [("PPO", {"n_steps": 4, "batch_size": 4}), ("DQN", {"buffer_size": 8}), ("A2C", {})]
)
def test_an_sb3_file_acts_as_the_model_that_was_saved(tmp_path: Path, algorithm: str, arguments: dict) -> None:
    path = save_sb3(tmp_path / "model.zip", algorithm, "CnnPolicy", **arguments)
    model = getattr(sys.modules["stable_baselines3"], algorithm).load(path, device="cpu")
    env = make_env()
    loaded = actions_of(load_policy(str(path), env), env)
    assert loaded == actions_of(_Predicting(model), env)


class _Predicting:
    def __init__(self, model: Any) -> None:
        self._model = model

    def reset(self, info: dict[str, Any]) -> None: ...

    def __call__(self, obs: Any, info: dict[str, Any]) -> Any:
        return self._model.predict(obs, deterministic=True)[0]


def test_a_recurrent_sb3_policy_keeps_its_memory_within_an_episode_and_drops_it_at_reset(tmp_path: Path) -> None:
    path = save_sb3(tmp_path / "model.zip", "RecurrentPPO", "CnnLstmPolicy", n_steps=4, batch_size=4)
    policy: Any = load_policy(str(path), make_env())
    memory = policy._policy  # what the next action depends on, beside the observation
    obs = np.full((SIZE, SIZE, 3), 99, np.uint8)
    policy.reset({})
    policy(obs, {})
    first = memory._state[0].copy()
    policy(obs, {})
    assert not np.array_equal(memory._state[0], first)
    policy.reset({})
    policy(obs, {})
    assert np.array_equal(memory._state[0], first)


def test_an_sb3_file_for_other_spaces_says_which(tmp_path: Path) -> None:
    path = save_sb3(tmp_path / "model.zip", "A2C", "CnnPolicy")
    with pytest.raises(ValueError, match=r"trained on observations .*36.*this environment has .*16"):
        load_policy(str(path), make_env(size=16))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("expert", ValueError, "ends in .zip, got 'expert'"),
        ("navigator", ValueError, "6 discrete actions"),
        ("nowhere.zip", FileNotFoundError, "no policy 'nowhere.zip'"),
        ("no_such_module:f", ValueError, "Cannot import the policy 'no_such_module:f'"),
        ("tests.toy_env:nothing", ValueError, "no function 'nothing'"),
        ("tests.policies.test_loading:make_env", ValueError, "called as function"),
        ("tests.policies.test_loading:returns_a_number", ValueError, "must return something that is called"),
    ],
)
def test_what_is_no_policy_is_one_sentence(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        load_policy(spec, make_env())
    assert "\n" not in str(raised.value)


def returns_a_number(env: gym.Env[Any, Any], seed: int) -> int:
    return seed


@pytest.mark.parametrize("content", [b"text", None])
def test_a_file_that_is_no_sb3_model_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.zip"
    if content is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", '{"policy_class": {"__module__": "some.package"}}')
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a Stable-Baselines3 model|algorithm that is not known"):
        load_policy(str(path), make_env())


def test_an_sb3_file_without_the_package_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    path = save_sb3(tmp_path / "model.zip", "A2C", "CnnPolicy")
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(ImportError, match="comes from A2C: `pip install stable-baselines3`"):
        load_policy(str(path), make_env())
