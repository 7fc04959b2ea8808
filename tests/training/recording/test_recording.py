"""Any Gymnasium environment becomes episodes of uint8 frames, or is refused in one sentence."""

import importlib.util
import re
import sys
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.toy_env import FORWARD
from tests.toy_store import TOY_ENV
from training import collect as collect_module
from training.collect import CollectConfig, collect
from training.recording.episode import make_env, policy_seed, record_episode
from training.recording.frames import FrameSource, RecordingOptions, resize_frame
from training.recording.policies import make_policy
from training.store.episode_store import open_store

HERE = "tests.training.recording.test_recording"
STEPS = 5


class ScreenEnv(gym.Env[Any, Any]):
    """Counts its steps in the pixels of a 6x4 image; 5 steps long.

    Args:
        shape, dtype: of the image.
        key: None, or the key of a Dict observation that holds the image beside "count".
        action_space: what it takes; the actions taken are in `taken`.
        pose: "always", "never" or "late".
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        shape: tuple[int, ...] = (6, 4, 3),
        dtype: str = "uint8",
        key: str | None = None,
        action_space: gym.Space[Any] | None = None,
        pose: str = "always",
        render_mode: str | None = None,
    ) -> None:
        image = gym.spaces.Box(0, 255, tuple(shape), np.dtype(dtype).type)
        self.observation_space = (
            image if key is None else gym.spaces.Dict({"count": gym.spaces.Discrete(100), key: image})
        )
        self.action_space = gym.spaces.Discrete(3) if action_space is None else action_space
        self.render_mode = render_mode
        self.taken: list[Any] = []
        self._image = np.zeros(shape, dtype)
        self._key, self._pose, self._count = key, pose, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._count = 0
        return self._observation(), self._info()

    def step(self, action: Any):
        self.taken.append(action)
        self._count += 1
        return self._observation(), 0.5, False, self._count == STEPS, self._info()

    def render(self) -> Any:
        return np.full((8, 8, 3), 100 + self._count, np.uint8) if self.render_mode == "rgb_array" else None

    def _observation(self) -> Any:
        self._image[:] = self._count  # always the same buffer
        return self._image if self._key is None else {"count": self._count, self._key: self._image}

    def _info(self) -> dict[str, Any]:
        told = self._pose == "always" or (self._pose == "late" and self._count > 0)
        return {"pose": (float(self._count), 1.0)} if told else {}


gym.register("tests/Screen-v0", f"{HERE}:ScreenEnv")
SCREEN = f"{HERE}:tests/Screen-v0"


class CountingPolicy:
    """Acts on the environment's own observation, a Dict."""

    def __init__(self) -> None:
        self.offset = -1

    def reset(self, info: dict[str, Any]) -> None:
        self.offset = 0

    def __call__(self, obs: dict[str, Any], info: dict[str, Any]) -> int:
        return (obs["count"] + self.offset) % 3


def counting(env: gym.Env[Any, Any], seed: int) -> CountingPolicy:
    return CountingPolicy()


def constant(env: gym.Env[Any, Any], seed: int) -> Any:
    action = seed % 2
    return lambda obs, info: action


def forgetful(env: gym.Env[Any, Any], seed: int) -> None:
    """Returns no policy."""


def without_seed(env: gym.Env[Any, Any]) -> Any:
    return lambda obs, info: FORWARD


def record(options: RecordingOptions, policy: str = "random", seed: int = 3, **kwargs: Any):
    env = make_env(SCREEN, None, options) if not kwargs else ScreenEnv(**kwargs)
    return record_episode(env, make_policy(policy, env, policy_seed(seed)), seed, options=options)


def means(frames: np.ndarray) -> list[float]:
    return frames.mean((1, 2, 3)).tolist()


def test_the_observation_a_key_of_it_or_what_is_rendered_is_recorded() -> None:
    counts = list(range(STEPS + 1))
    assert means(record(RecordingOptions()).frames) == counts
    with_key = record(RecordingOptions(obs_key="screen"), key="screen")
    assert with_key.frames.shape == (STEPS + 1, 6, 4, 3)
    assert means(with_key.frames) == counts
    rendered = record(RecordingOptions(obs_key="render"))
    assert rendered.frames.shape == (STEPS + 1, 8, 8, 3)
    assert means(rendered.frames) == [100 + count for count in counts]


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1), (6, 4, 4)])
@pytest.mark.parametrize("resize", [None, 2])
def test_grey_images_keep_one_channel_and_others_all(shape: tuple[int, ...], resize: int | None) -> None:
    options = RecordingOptions(resize=resize)
    episode = record(options, shape=shape)
    height, width = (6, 4) if resize is None else (2, 2)
    assert episode.frames.shape == (STEPS + 1, height, width, (*shape, 1)[2])
    assert means(episode.frames) == list(range(STEPS + 1))
    assert FrameSource(ScreenEnv(shape=shape), options).space().shape == episode.frames.shape[1:]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_resizing_takes_the_mean_of_the_area(channels: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (12, 24, channels)).astype(np.uint8)
    areas = frame.reshape(4, 3, 4, 6, channels).mean((1, 3))
    small = resize_frame(frame, 4)
    assert small.shape == (4, 4, channels) and small.dtype == np.uint8
    np.testing.assert_allclose(small, areas, atol=1.0)  # Pillow rounds after each axis


def test_a_frame_of_the_right_size_is_copied_bit_for_bit() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    for side in (None, 8):
        copy = resize_frame(frame, side)
        np.testing.assert_array_equal(copy, frame)
        assert not np.shares_memory(copy, frame)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_continuous_actions_are_recorded_as_they_were_taken(dtype: type) -> None:
    env = ScreenEnv(action_space=gym.spaces.Box(-2, 2, (3,), dtype))
    episode = record_episode(env, make_policy("random", env, 0), 0)
    assert episode.actions.dtype == np.float32 and episode.actions.shape == (STEPS, 3)
    np.testing.assert_array_equal(episode.actions, np.stack(env.taken))


@pytest.mark.parametrize("action", [3, -1, 1.5, None])
def test_an_action_outside_the_space_is_refused_and_not_rounded(action: Any) -> None:
    env = ScreenEnv()
    policy = make_policy(f"{HERE}:constant", env, 0)
    policy._function = lambda obs, info: action  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"action .* at frame 0 is not in Discrete\(3\)"):
        record_episode(env, policy, 0)
    assert env.taken == []


def test_a_pose_is_recorded_if_there_is_one_and_must_be_there_always() -> None:
    np.testing.assert_array_equal(record(RecordingOptions()).pose, [(count, 1) for count in range(STEPS + 1)])
    assert record(RecordingOptions(), pose="never").pose.shape == (STEPS + 1, 0)
    with pytest.raises(ValueError, match=r"info\['pose'\] has shape \[2\] at frame 1 .* \[0\] at frame 0"):
        record(RecordingOptions(), pose="late")


def test_a_users_policy_sees_the_environments_own_observation() -> None:
    episode = record(RecordingOptions(obs_key="screen", resize=2), policy=f"{HERE}:counting", key="screen")
    assert episode.actions.tolist() == [0, 1, 2, 0, 1]


def test_a_plain_function_of_observation_and_info_is_a_policy() -> None:
    actions = [record(RecordingOptions(), f"{HERE}:constant", seed).actions.tolist() for seed in (0, 1, 2, 3)]
    assert actions == [[policy_seed(seed) % 2] * STEPS for seed in (0, 1, 2, 3)]
    assert len({tuple(row) for row in actions}) == 2


@pytest.mark.parametrize(
    ("kwargs", "key", "sentence"),
    [
        ({"dtype": "float32"}, None, "The observation .*is no image: .*got float32 [6, 4, 3]"),
        ({"shape": (6,)}, None, "got uint8 [6]"),
        ({"shape": (3, 6, 40)}, None, "got uint8 [3, 6, 40]"),
        ({"key": "screen"}, None, "one of 'count', 'screen', or 'render'"),
        ({"key": "screen"}, "image", "has no key 'image'"),
        ({"key": "screen"}, "count", "is no image, a uint8 Box"),
        ({}, "screen", "--obs-key 'screen' needs a Dict observation"),
        ({}, "render", "needs render_mode 'rgb_array'"),
    ],
)
def test_what_is_no_image_is_refused_by_name(kwargs: dict[str, Any], key: str | None, sentence: str) -> None:
    pattern = re.escape(sentence).replace(re.escape(".*"), ".*")
    with pytest.raises(ValueError, match=pattern):
        FrameSource(ScreenEnv(**kwargs), RecordingOptions(obs_key=key))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of training.collect."""
    monkeypatch.setattr(sys, "argv", ["collect", *arguments])
    monkeypatch.setattr(collect_module.signal, "signal", lambda *_: None)
    try:
        collect_module.main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_the_command_keeps_its_options_in_the_header_and_mixes_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store"
    options = ("--obs-key", "render", "--resize", "8", "--env-kwargs", '{"size": 32}')
    given = ("--env", TOY_ENV, "--policy", f"{HERE}:constant", "--frames", "60", "--out", str(path))
    assert command(monkeypatch, *given, *options) == 0
    store = open_store(path)
    assert store.header.recording == {"obs_key": "render", "resize": 8, "env_kwargs": {"size": 32}}
    assert store.header.policy == f"{HERE}:constant"
    assert store.seeds() == [0, 1]
    episode = store.read(1)
    assert episode.frames.shape == (41, 8, 8, 3) and episode.pose.shape == (41, 4)
    assert set(episode.actions.tolist()) == {policy_seed(1) % 2}

    capsys.readouterr()
    assert command(monkeypatch, *given, "--resize", "8") == 2
    errors = capsys.readouterr().err
    assert "is a store with recording {'obs_key': 'render', 'resize': 8, 'env_kwargs': {'size': 32}}" in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--env", "tests/NoSuch-v0"], "Cannot make environment 'tests/NoSuch-v0'"),
        (["--env", "CartPole-v1"], "The observation of CartPole-v1 is no image"),
        (["--obs-key", "image"], "--obs-key 'image' needs a Dict observation"),
        (["--resize", "0"], "resize must be at least 1"),
        (["--env-kwargs", "size=3"], "env_kwargs must be a JSON object"),
        (["--env-kwargs", '{"colour": 3}'], "'colour'"),
        (["--policy", "no_such_module:act"], "Cannot import the policy 'no_such_module:act'"),
        (["--policy", f"{HERE}:nothing"], f"The module {HERE} has no function 'nothing'"),
        (["--policy", f"{HERE}:forgetful"], "got NoneType"),
        (["--policy", f"{HERE}:without_seed"], "is called as function(env, seed)"),
        (["--policy", "walker"], "'backtrack-N', 'mixed' or PACKAGE.MODULE:FUNCTION, got 'walker'"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    sentence: str,
) -> None:
    given = {"--env": TOY_ENV, "--policy": "random", "--frames": "20", "--out": str(tmp_path / "store")}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    assert command(monkeypatch, *(text for pair in given.items() for text in pair)) == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "store").exists()


def needs(module: str, library: str | None = None) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None or (library is not None and find_library(library) is None)
    return pytest.mark.skipif(missing, reason=f"needs the extra {module}" + (f" and lib{library}" if library else ""))


@pytest.mark.filterwarnings("ignore")  # of others' packages
@pytest.mark.parametrize(
    ("env_id", "obs_key"),
    [
        pytest.param("minigrid:MiniGrid-MemoryS7-v0", "render", marks=needs("minigrid")),
        pytest.param("miniworld:MiniWorld-FourRooms-v0", None, marks=needs("miniworld", "EGL")),
        pytest.param("vizdoom.gymnasium_wrapper:VizdoomMyWayHome-v1", "screen", marks=needs("vizdoom")),
    ],
)
def test_published_environments_are_recorded_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env_id: str, obs_key: str | None
) -> None:
    monkeypatch.chdir(tmp_path)  # ViZDoom leaves a file in the working directory
    options = RecordingOptions(obs_key, resize=64)
    config = CollectConfig(
        env_id, tmp_path / "store", frames=22, policy="random", recording=options, max_episode_steps=10
    )
    store = collect(config)
    assert store.seeds() == [0, 1]
    for seed in (0, 1):
        env = make_env(env_id, 10, options)
        again = record_episode(env, make_policy("random", env, policy_seed(seed)), seed, options=options)
        env.close()
        episode = store.read(seed)
        assert episode.frames.shape == (11, 64, 64, 3)
        assert episode.frames.std() > 5
        np.testing.assert_array_equal(episode.frames, again.frames)
        np.testing.assert_array_equal(episode.actions, again.actions)
        np.testing.assert_array_equal(episode.rewards, again.rewards)
