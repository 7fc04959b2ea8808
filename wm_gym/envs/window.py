"""A window that shows frames; the only place that imports pygame."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Window:
    """Shows uint8 RGB frames [H, W, 3] enlarged to at least 512 pixels, at most `fps` of them a second.

    Raises gymnasium.error.DependencyNotInstalled without pygame and gymnasium.error.Error without a display.
    """

    def __init__(self, title: str, fps: float) -> None:
        try:
            import pygame
        except ImportError as error:
            raise gym.error.DependencyNotInstalled(
                "render_mode='human' needs pygame: `pip install pygame-ce`."
            ) from error
        self._pygame = pygame
        self._fps = fps
        self._clock = pygame.time.Clock()
        self._screen: Any = None
        self._title = title

    def show(self, frame: np.ndarray) -> None:
        """Draws one frame and waits as long as `fps` asks for."""
        pygame = self._pygame
        height, width = frame.shape[:2]
        scale = max(1, -(-512 // height))
        if self._screen is None:
            self._screen = self._open((width * scale, height * scale))
        surface = pygame.image.frombuffer(np.ascontiguousarray(frame).tobytes(), (width, height), "RGB")
        self._screen.blit(pygame.transform.scale(surface, self._screen.get_size()), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self._fps)

    def close(self) -> None:
        """Closes the window; `show` would open it again."""
        if self._screen is not None:
            self._pygame.display.quit()
            self._screen = None

    def _open(self, size: tuple[int, int]) -> Any:
        try:
            self._pygame.display.init()
            screen = self._pygame.display.set_mode(size)
        except self._pygame.error as error:
            raise gym.error.Error(
                f"render_mode='human' needs a display, and none could be opened ({error})."
            ) from error
        self._pygame.display.set_caption(self._title)
        return screen
