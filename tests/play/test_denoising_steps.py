"""Who chooses the number of network passes per frame: the player, or the machine by what a step takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.play.serving import tiny_play
from wm_gym.play import denoising_steps as passes
from wm_gym.play.command import Troupe
from wm_gym.play.denoising_steps import BUDGET, WARM_UP_STEPS, Passes, choose_passes


class Timed(gym.Env[np.ndarray, Any]):
    """Its episodes last four steps, its steps as long as they are told; the first ones, which warm up, longer."""

    observation_space = gym.spaces.Box(0, 255, (4, 4, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, seconds: float) -> None:
        self.seconds, self.num_steps, self.age = seconds, 0, 4

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.age = 0
        return np.zeros((4, 4, 3), np.uint8), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.age < 4, "A step after the end of an episode."
        time.sleep(self.seconds * (20 if self.num_steps < WARM_UP_STEPS else 1))
        self.num_steps, self.age = self.num_steps + 1, self.age + 1
        return np.zeros((4, 4, 3), np.uint8), 0.0, False, self.age == 4, {}


@pytest.mark.parametrize(
    ("dream", "beside", "expected"), [(0.2, [], 2), (0.6, [0.05], 2), (1.5, [], 1), (0.6, [0.6], 1)]
)
def test_two_passes_are_taken_where_a_step_of_all_worlds_fits_the_budget(
    monkeypatch: pytest.MonkeyPatch, dream: float, beside: list[float], expected: int
) -> None:
    monkeypatch.setattr(passes, "BUDGET", budget := 0.02)
    chosen = choose_passes(Timed(dream * budget), [Timed(part * budget) for part in beside])
    assert chosen.number == expected
    assert chosen.step_seconds == pytest.approx((dream + sum(beside)) * budget, abs=0.3 * budget)


def test_the_budget_keeps_ten_frames_a_second_and_answers_a_key_within_200_ms() -> None:
    period = 0.1
    assert 0 < BUDGET < period
    assert period + BUDGET < 0.2  # a key that has just missed a step


@pytest.mark.parametrize(("budget", "expected"), [(1e9, 2), (0.0, 1)])
def test_the_machine_chooses_for_every_player_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: float, expected: int
) -> None:
    monkeypatch.setattr(passes, "BUDGET", budget)
    troupe = Troupe(tiny_play(tmp_path, denoising_steps="auto", real=True))
    told = troupe.welcome()["main"]["passes"]
    assert told["number"] == expected
    assert "a step with 2 takes" in told["reason"]
    frames = {number: _first_frame(Troupe(tiny_play(tmp_path, denoising_steps=number, real=True))) for number in (1, 2)}
    assert not np.array_equal(frames[1], frames[2])
    assert np.array_equal(_first_frame(troupe), frames[expected])


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"denoising_steps": 3}, 3), ({"denoising_steps": "auto", "env_kwargs": '{"num_denoising_steps": 4}'}, 4)],
)
def test_a_number_that_is_given_is_taken_unmeasured(tmp_path: Path, options: dict[str, Any], expected: int) -> None:
    told = Troupe(tiny_play(tmp_path, **options)).welcome()["main"]["passes"]
    assert told == Passes(expected).to_json() == {"number": expected, "reason": f"{expected} network passes per frame."}


def _first_frame(troupe: Troupe) -> np.ndarray:
    session = troupe.make_session()
    list(session.start(seed=5))
    frame = session.step(1).views["dream"]
    session.close()
    return frame
