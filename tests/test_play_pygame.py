"""The dream under `gymnasium.utils.play`, without a display."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from wm_gym.envs.world_model import WorldModelEnv

EXAMPLE = Path(__file__).parent.parent / "examples" / "play_pygame.py"


def test_the_example_plays_the_dream_with_the_arrow_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    up, left = (pygame.event.Event(pygame.KEYDOWN, key=key) for key in (pygame.K_UP, pygame.K_LEFT))
    let_go = pygame.event.Event(pygame.KEYUP, key=pygame.K_UP)
    frames = iter([[], [up], [left], [let_go], [pygame.event.Event(pygame.QUIT)]])
    monkeypatch.setattr(pygame.event, "get", lambda: next(frames))
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "3"])
    actions: list[Any] = []
    step = WorldModelEnv.step

    def note_and_step(self: WorldModelEnv, action: Any) -> Any:
        actions.append(action)
        return step(self, action)

    monkeypatch.setattr(WorldModelEnv, "step", note_and_step)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert actions == [0, 1, 4, 2]
