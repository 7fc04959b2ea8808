"""The map of a maze from above, with the way that was walked, drawn from what the real environment tells in info."""

from __future__ import annotations

from typing import Any

import numpy as np

from wm_gym.film import ACCENT, MUTED, TEXT, pillow

WALL = (62, 68, 82)
FLOOR = (27, 30, 38)
EDGE = (44, 49, 60)
OVERSAMPLING = 2  # drawn larger and scaled down, so that lines are smooth


class MapDrawing:
    """Draws the map of one episode at any of its frames; north, where y grows, is up.

    Args:
        entries: as in `Record.map`; layout [n, m] indexed [y, x], pose [T, 4], and what there is of targets [k, 2],
            target_index [T] and target_color [T, 3] (0..1).
        size: height of the picture in pixels; the map is square, or as high as wide cells allow.
    """

    def __init__(self, entries: dict[str, np.ndarray], size: int) -> None:
        self._entries = entries
        self._size = size
        self._rows, self._columns = entries["layout"].shape
        self._cell = size * OVERSAMPLING / (max(self._rows, self._columns) + 0.5)
        self._floor = self._draw_floor()

    def draw(self, index: int, num_context_frames: int) -> Any:
        """A Pillow image [size, size]: the way up to frame `index`, its part in the context grey, and the agent."""
        image_module, draw_module, _ = pillow()
        image = self._floor.copy()
        draw = draw_module.Draw(image)
        self._draw_targets(draw, index)
        way = [self._point(*pose[:2]) for pose in self._entries["pose"][: index + 1]]
        context, after = way[:num_context_frames], way[num_context_frames - 1 :]
        for points, color in ((context, MUTED), (after, ACCENT)):
            if len(points) > 1:
                draw.line(points, color, 2 * OVERSAMPLING, joint="curve")
        self._draw_agent(draw, self._entries["pose"][index])
        return image.resize((self._size, self._size), image_module.Resampling.LANCZOS)

    def _draw_floor(self) -> Any:
        image_module, draw_module, _ = pillow()
        side = self._size * OVERSAMPLING
        image = image_module.new("RGB", (side, side), WALL)
        draw = draw_module.Draw(image)
        for y, x in np.argwhere(self._entries["layout"] == 0):
            (left, bottom), (right, top) = self._point(x, y), self._point(x + 1, y + 1)
            draw.rectangle((left, top, right, bottom), fill=FLOOR, outline=EDGE)
        return image

    def _draw_targets(self, draw: Any, index: int) -> None:
        radius = 0.24 * self._cell
        current = int(self._entries["target_index"][index]) if "target_index" in self._entries else -1
        for number, target in enumerate(self._entries.get("targets", ())):
            x, y = self._point(*target[:2])
            color = MUTED
            if number == current:
                color = TEXT
                if "target_color" in self._entries:
                    color = tuple(int(255 * part) for part in self._entries["target_color"][index])
            box = x - radius, y - radius, x + radius, y + radius
            draw.ellipse(box, fill=color if number == current else None, outline=color, width=OVERSAMPLING)

    def _draw_agent(self, draw: Any, pose: np.ndarray) -> None:
        heading, side = np.array(pose[2:4]), np.array((-pose[3], pose[2]))
        corners = (0.42 * heading, -0.28 * heading + 0.26 * side, -0.28 * heading - 0.26 * side)
        draw.polygon([self._point(*(pose[:2] + corner)) for corner in corners], fill=TEXT)

    def _point(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a place in the grid, whose cell (0, 0) is in the lower left corner, with a margin for the walls."""
        side = self._size * OVERSAMPLING
        left, bottom = (side - self._columns * self._cell) / 2, (side + self._rows * self._cell) / 2
        return left + float(x) * self._cell, bottom - float(y) * self._cell
