"""What a player does, without a server."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.play.serving import CONTEXT_FRAMES, TOY_ID, tiny_play
from training.store.__main__ import main as store_command
from training.store.episode_store import open_store
from wm_gym.play.command import Play, Troupe
from wm_gym.play.session import MAX_MOMENTS, Picture, Session


def last(pictures: Any) -> Picture:
    return deque(pictures, maxlen=1)[0]


def make_session(folder: Path, **options: Any) -> Session:
    return Troupe(tiny_play(folder, **options)).make_session()


def test_a_dream_starts_from_the_frames_of_the_real_environment_and_both_take_the_same_actions(tmp_path: Path) -> None:
    session = make_session(tmp_path, real=True)
    pictures = list(session.start(seed=5))
    assert [picture.phase for picture in pictures] == ["context"] * CONTEXT_FRAMES + ["play"]
    assert np.array_equal(pictures[-1].views["dream"], pictures[-1].views["real"])
    picture = session.step(2)
    assert picture.views["dream"].shape == picture.views["real"].shape
    assert session.real is not None
    assert session.main.actions == [2]
    assert session.real.actions[-1] == 2
    assert picture.psnr is not None and 0 < picture.psnr < 60
    assert len(session.path) == CONTEXT_FRAMES + 1
    assert session.context_path_points == CONTEXT_FRAMES


@pytest.mark.parametrize("real", [False, True])
def test_going_back_returns_to_the_very_frame_and_the_same_future(tmp_path: Path, real: bool) -> None:
    session = make_session(tmp_path, real=real)
    last(session.start(seed=1))
    kept = session.step(0)
    moment = session.remember()
    future = [session.step(action) for action in (1, 0, 2)]
    last(session.start(seed=2))  # another episode in between
    for _ in range(2):
        back = last(session.go_back(moment))
        again = [session.step(action) for action in (1, 0, 2)]
        for then, now in zip([kept, *future], [back, *again], strict=True):
            assert all(np.array_equal(then.views[label], now.views[label]) for label in then.views)
            assert {name: world["total"] for name, world in then.worlds.items()} == {
                name: world["total"] for name, world in now.worlds.items()
            }
    assert session.seed == (1 if real else session.main.seed)


def test_an_environment_that_does_not_repeat_itself_has_no_way_back(tmp_path: Path) -> None:
    session = make_session(tmp_path, real=True)
    last(session.start(seed=1))
    session.step(0)
    moment = session.remember()
    kept = session.moments[moment].mementos[1].obs
    kept[:] = 255 - kept
    with pytest.raises(ValueError, match="no way back"):
        last(session.go_back(moment))
    assert session.ended == "real: it cannot go back"
    last(session.start(seed=1))
    assert session.ended is None


def test_moments_have_a_limit_and_can_be_forgotten(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    with pytest.raises(ValueError, match="no episode yet"):
        session.remember()
    last(session.start())
    moments = [session.remember() for _ in range(MAX_MOMENTS)]
    with pytest.raises(ValueError, match="forget one"):
        session.remember()
    session.forget(moments[0])
    session.remember()
    with pytest.raises(ValueError, match="was forgotten"):
        last(session.go_back(moments[0]))


def test_the_end_of_either_world_ends_the_episode_and_says_so(tmp_path: Path) -> None:
    session = make_session(tmp_path, real=True, env_kwargs='{"horizon": 2}')
    last(session.start())
    assert session.step(0).ended is None
    assert session.step(0).ended == "dream: time limit"
    with pytest.raises(ValueError, match="has ended"):
        session.step(0)
    last(session.start())
    assert session.ended is None


def test_a_context_longer_than_the_real_episode_is_one_sentence(tmp_path: Path) -> None:
    session = make_session(tmp_path, real=True, context_frames=60)
    with pytest.raises(ValueError, match="ended within the 60 frames"):
        last(session.start())


def test_recordings_are_valid_stores_of_what_was_seen(tmp_path: Path, monkeypatch) -> None:
    session = make_session(tmp_path, real=True, record_dir=tmp_path / "record")
    session.start_recording()
    seen = [picture.views["real"] for picture in session.start()][:-1]
    seen += [session.step(action).views["real"] for action in (0, 1, 0)]
    seed = session.seed
    assert seed < 7_000_000  # fit for training
    moment = session.remember()
    last(session.go_back(moment))
    assert not session.recording
    session.step(0)  # is not recorded any more
    session.close()
    dream, real = sorted((tmp_path / "record").iterdir())
    for path, num_frames in ((dream, 4), (real, CONTEXT_FRAMES + 3)):
        monkeypatch.setattr(sys, "argv", ["store", "validate", str(path)])
        with pytest.raises(SystemExit) as exit_info:
            store_command()
        assert exit_info.value.code == 0
        episode = open_store(path).read(seed)
        assert episode.num_frames == num_frames
        assert episode.truncations[-1]
    assert np.array_equal(open_store(real).read(seed).frames, np.stack(seen))


def test_recording_without_a_folder_says_what_to_do(tmp_path: Path) -> None:
    session = make_session(tmp_path)
    with pytest.raises(ValueError, match="--record-dir"):
        session.start_recording()


def test_sessions_share_the_weights_and_nothing_else(tmp_path: Path) -> None:
    troupe = Troupe(tiny_play(tmp_path))
    one, other = troupe.make_session(), troupe.make_session()
    models = [session.main._env.unwrapped.model for session in (one, other)]  # pyright: ignore[reportAttributeAccessIssue]
    pairs = list(zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert pairs
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    last(one.start(seed=1))
    last(other.start(seed=1))
    first = one.step(0)
    last(other.start(seed=2))
    last(one.start(seed=1))
    assert np.array_equal(one.step(0).views["dream"], first.views["dream"])


def test_an_agent_acts_from_the_dream_it_sees(tmp_path: Path) -> None:
    session = make_session(tmp_path, policy="tests.play.test_session:brightest")
    seen = last(session.start()).views["dream"]
    for _ in range(4):
        picture = session.step(None)
        assert picture.by_agent
        assert picture.action == int(seen.sum()) % 3
        seen = picture.views["dream"]


def brightest(env: Any, seed: int) -> Any:
    return lambda obs, info: int(obs.sum()) % 3


def test_a_stable_baselines3_model_can_be_watched(tmp_path: Path) -> None:
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    model = stable_baselines3.PPO("MlpPolicy", gym.make(TOY_ID), n_steps=4, batch_size=4, seed=0, device="cpu")
    model.save(tmp_path / "agent.zip")
    session = make_session(tmp_path, policy=str(tmp_path / "agent.zip"))
    seen = last(session.start()).views["dream"]
    for _ in range(3):
        picture = session.step(None)
        assert picture.action == int(model.predict(seen, deterministic=True)[0])
        seen = picture.views["dream"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "navigator"}, "add --real"),
        ({"policy": "oracle"}, "add --real"),
        ({"policy": "restless"}, "add --real"),
        ({"context_frames": 1000}, "1000"),
        ({"policy": "expert"}, "got 'expert'"),
        ({"env": "Nowhere-v0", "real": False}, "Nowhere"),
        ({"env": TOY_ID, "checkpoint": "memory-maze"}, "takes no checkpoint"),
        ({"env_kwargs": "[1]"}, "JSON object"),
        ({"fps": 0.0}, "fps must be"),
        ({"max_players": 0}, "max_players must be"),
        ({"real": True, "env_kwargs": '{"checkpoint": "memory-maze"}'}, "same spaces"),
        ({"env": "CartPole-v1", "checkpoint": None, "contexts": None, "context_frames": None}, "observes Box"),
        ({"record_dir": Path(__file__)}, "is a file"),
        ({"record_dir": Path("x"), "recorder": "json:nothing"}, "no 'nothing' that could record"),
    ],
)
def test_what_cannot_be_played_is_said_before_anybody_comes(tmp_path: Path, options: Any, message: str) -> None:
    from wm_gym.play.command import make_stage

    config: Play = tiny_play(tmp_path, **options)
    with pytest.raises(ValueError, match=message) as raised:
        make_stage(config)
    assert "\n" not in str(raised.value)


def test_clips_that_are_not_there_are_told_before_anybody_comes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Troupe(tiny_play(tmp_path, contexts=str(tmp_path / "nowhere.npz")))
    Troupe(tiny_play(tmp_path, contexts=str(tmp_path / "nowhere.npz"), real=True))  # dreams of real frames need none


def test_a_recorder_that_is_not_there_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="root of the repository"):
        make_session(tmp_path, record_dir=tmp_path, recorder="no_such_package:Recorder")
