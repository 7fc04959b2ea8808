"""The film of a comparison: both sides, their difference, the map, and the course of PSNR and rewards below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wm_gym.comparison.figures import EpisodeFigures
from wm_gym.comparison.topdown import MapDrawing
from wm_gym.film import ACCENT, BACKGROUND, BAR, MARGIN, MUTED, TEXT, Film, enlarge, even, font, pillow

PANEL = 320  # pixels, about; the scale is a whole number
NOTES = 64  # pixels of text below the panels
CURVE = 84  # pixels of the curve below the text
SURFACE = (27, 30, 38)
LINE = (58, 63, 75)
MAX_PSNR = 40.0  # dB, top of the curve
SHOWN_CONTEXT = 30  # of the context the film shows the end
REWARD_FLASH = 4  # frames that a reward's border lasts
# Mean absolute difference of a pixel, 0 to 128 grey levels and more: from the background over violet to white.
HEAT = np.array([BACKGROUND, (74, 32, 104), (190, 54, 96), (255, 140, 66), (255, 236, 190)], np.float64)
FULL_HEAT = 128


@dataclass(frozen=True)
class Captions:
    """Words in a film."""

    names: tuple[str, str]  # of the reference and of the environment under test
    title: str
    action_names: Sequence[str] | None


def difference_picture(frame: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """How much each pixel differs, mean over the channels, in the colours of `HEAT`: uint8 [H, W, 3]."""
    error = np.abs(frame.astype(np.float64) - reference).mean(-1)
    position = np.clip(error / FULL_HEAT, 0, 1) * (len(HEAT) - 1)
    stops = np.arange(len(HEAT))
    return np.stack([np.interp(position, stops, HEAT[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def film_of(episode: EpisodeFigures, names: tuple[str, str]) -> Film:
    """For `write_strip`."""
    return Film(episode.record.reference_frames, episode.record.frames, episode.psnr, names)


def comparison_frames(episode: EpisodeFigures, captions: Captions, part_psnr: float) -> Iterator[np.ndarray]:
    """The film's frames, uint8 [height, width, 3]: the end of the context, then every step; all of one size."""
    canvas = _Canvas(episode, captions, part_psnr)
    record = episode.record
    first = max(0, record.num_context_frames - SHOWN_CONTEXT)
    for index in range(first, len(record.reference_frames)):
        yield canvas.draw(index)


def comparison_frame(episode: EpisodeFigures, captions: Captions, part_psnr: float, step: int) -> np.ndarray:
    """The film's frame at one step, counted from 1."""
    return _Canvas(episode, captions, part_psnr).draw(episode.record.num_context_frames + step - 1)


def film_length(episode: EpisodeFigures) -> int:
    """How many frames `comparison_frames` yields."""
    record = episode.record
    return min(SHOWN_CONTEXT, record.num_context_frames) + record.num_steps


class _Canvas:
    """Draws frame after frame on a background that is drawn once."""

    def __init__(self, episode: EpisodeFigures, captions: Captions, part_psnr: float) -> None:
        self._episode, self._record, self._captions = episode, episode.record, captions
        self._part_psnr = part_psnr
        height, width = self._record.frames.shape[1:3]
        self._scale = max(1, PANEL // max(height, width))
        self._panel = height * self._scale, width * self._scale
        self._map = MapDrawing(self._record.map, self._panel[0]) if self._record.map else None
        num_panels = 4 if self._map else 3
        self._lefts = [MARGIN + panel * (self._panel[1] + MARGIN) for panel in range(num_panels)]
        right = self._lefts[-1] + (self._panel[0] if self._map else self._panel[1])
        bottom = BAR + self._panel[0] + NOTES + CURVE + MARGIN
        self._size = even(right + MARGIN), even(bottom)
        self._box = MARGIN, bottom - CURVE - MARGIN, right, bottom - MARGIN  # of the curve
        self._background = self._draw_background()

    def draw(self, index: int) -> np.ndarray:
        """The frame for reference frame `index`."""
        step = index - self._record.num_context_frames  # below 0 while the context is read
        image = self._background.copy()
        self._draw_panels(image, index, step)
        draw = pillow()[1].Draw(image)
        self._draw_notes(draw, index, step)
        if step >= 0:
            x, top, bottom = self._x(step), self._box[1], self._box[3]
            draw.line((x, top, x, bottom), TEXT, 1)
            y = self._y(self._episode.psnr[step])
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=ACCENT)
        return np.asarray(image)

    def _draw_panels(self, image: Any, index: int, step: int) -> None:
        image_module, draw_module, _ = pillow()
        real = self._record.reference_frames[index]
        dreamed = real if step < 0 else self._record.frames[step]
        # While the context is read nothing is imagined yet: the panel shows it darkened.
        shown = (dreamed * 0.35).astype(np.uint8) if step < 0 else dreamed
        for left, picture in zip(self._lefts, (real, shown, difference_picture(dreamed, real)), strict=False):
            image.paste(image_module.fromarray(enlarge(picture, self._scale)), (left, BAR))
        draw = draw_module.Draw(image)
        if step < 0:
            centre = self._lefts[1] + self._panel[1] / 2, BAR + self._panel[0] / 2
            draw.text(centre, "context", TEXT, font(28), anchor="mm")
        rewards = self._record.reference_rewards, self._record.rewards
        for left, values, color in zip(self._lefts, rewards, (TEXT, ACCENT), strict=False):
            if step >= 0 and np.any(values[max(0, step - REWARD_FLASH + 1) : step + 1]):
                box = left - 4, BAR - 4, left + self._panel[1] + 3, BAR + self._panel[0] + 3
                draw.rectangle(box, outline=color, width=4)
        if self._map:
            image.paste(self._map.draw(index, self._record.num_context_frames), (self._lefts[3], BAR))

    def _draw_notes(self, draw: Any, index: int, step: int) -> None:
        record, lines = self._record, (BAR + self._panel[0] + 20, BAR + self._panel[0] + 44)
        if step < 0:
            draw.text((self._lefts[0], lines[0]), f"frame {index + 1} of the context", MUTED, font(17), anchor="lm")
            draw.text((self._lefts[1], lines[0]), "reads along", MUTED, font(17), anchor="lm")
            return
        for left, rewards in zip(self._lefts, (record.reference_rewards, record.rewards), strict=False):
            text = f"reward {rewards[step]:g}   return {rewards[: step + 1].sum():g}"
            draw.text((left, lines[0]), text, TEXT, font(17), anchor="lm")
        text = f"step {step + 1} / {record.num_steps}   {self._action(record.actions[index - 1])}"
        draw.text((self._lefts[0], lines[1]), text, MUTED, font(17), anchor="lm")
        quality = f"{self._episode.psnr[step]:.1f} dB"
        if not np.isnan(self._episode.ssim[step]):
            quality += f"   SSIM {self._episode.ssim[step]:.2f}"
        draw.text((self._lefts[2], lines[0]), quality, TEXT, font(17), anchor="lm")

    def _action(self, action: Any) -> str:
        if self._captions.action_names is not None and np.ndim(action) == 0:
            return self._captions.action_names[int(action)].replace("_", " + ")
        return f"action {action}" if np.ndim(action) == 0 else "action " + " ".join(f"{x:.2f}" for x in action)

    def _draw_background(self) -> Any:
        image_module, draw_module, _ = pillow()
        image = image_module.new("RGB", self._size, BACKGROUND)
        draw = draw_module.Draw(image)
        names = [*self._captions.names, "difference", "map"]
        for left, name, color in zip(self._lefts, names, (TEXT, ACCENT, MUTED, MUTED), strict=False):
            draw.text((left, BAR / 2), name, color, font(22), anchor="lm")
        draw.text((self._size[0] - MARGIN, BAR / 2), self._captions.title, MUTED, font(16), anchor="rm")
        self._draw_curve(draw)
        return image

    def _draw_curve(self, draw: Any) -> None:
        """PSNR by step, the level below which the two have parted, and the rewards of both as ticks."""
        left, top, right, bottom = self._box
        draw.rectangle(self._box, fill=SURFACE)
        y = self._y(self._part_psnr)
        for x in range(left, right, 10):
            draw.line((x, y, x + 4, y), LINE, 1)
        draw.text((right - 6, y - 9), f"{self._part_psnr:g} dB", MUTED, font(13), anchor="rm")
        draw.text((left + 6, top + 10), "PSNR", MUTED, font(13), anchor="lm")
        if self._episode.parted is not None:
            x = self._x(self._episode.parted - 1)
            draw.line((x, top, x, bottom), LINE, 1)
            draw.text((x + 5, bottom - 10), "parted", MUTED, font(13), anchor="lm")
        points = [(self._x(step), self._y(value)) for step, value in enumerate(self._episode.psnr)]
        if len(points) > 1:
            draw.line(points, ACCENT, 2)
        for step in np.flatnonzero(self._record.reference_rewards):
            draw.line((self._x(step), top, self._x(step), top + 9), TEXT, 3)
        for step in np.flatnonzero(self._record.rewards):
            draw.line((self._x(step), bottom - 9, self._x(step), bottom), ACCENT, 3)

    def _x(self, step: int | np.integer[Any]) -> float:
        left, _, right, _ = self._box
        return left + (right - left) * (int(step) + 0.5) / self._record.num_steps

    def _y(self, decibels: float) -> float:
        _, top, _, bottom = self._box
        return bottom - (bottom - top) * float(np.clip(decibels / MAX_PSNR, 0, 1))
