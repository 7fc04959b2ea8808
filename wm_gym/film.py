"""Pictures and videos of a dream beside the real episode; the only place that imports Pillow and imageio-ffmpeg."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wm_gym.files import atomic_path

BACKGROUND = (17, 19, 24)
TEXT = (232, 234, 237)
MUTED = (138, 143, 152)
ACCENT = (255, 179, 71)

PANEL_SIZE = 384  # pixels, about; the scale is a whole number
MARGIN = 16
BAR = 48
STRIP_STEPS = (1, 2, 3, 5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 400, 500, 700, 1000)
MAX_STRIP_STEPS = 10


@dataclass(frozen=True)
class Film:
    """A real episode and the dream of its second part.

    `real` holds C context frames and the S real frames after them, `dream` the S imagined ones.
    """

    real: np.ndarray  # uint8 [C + S, H, W, 3]
    dream: np.ndarray  # uint8 [S, H, W, 3]
    psnr: np.ndarray  # float [S], dB
    names: tuple[str, str] = ("real", "dream")

    @property
    def num_context_frames(self) -> int:
        """Frames of the context."""
        return len(self.real) - len(self.dream)


def video_frames(film: Film) -> Iterator[np.ndarray]:
    """Real | dream, enlarged and labelled: uint8 [height, width, 3], one for each real frame, all of one size."""
    scale = max(1, PANEL_SIZE // film.real.shape[1])
    num_context, num_dreamed = film.num_context_frames, len(film.dream)
    for index, real in enumerate(film.real):
        step = index - num_context
        reading = step < 0
        dream = real if reading else film.dream[step]
        caption = f"frame {index + 1} of {len(film.real)}"
        note = (
            f"reading context  {index + 1} / {num_context}"
            if reading
            else f"dreaming  {step + 1} / {num_dreamed}    {film.psnr[step]:.1f} dB"
        )
        progress = (index + 1) / len(film.real)
        yield _draw_pair(enlarge(real, scale), enlarge(dream, scale), reading, caption, note, progress)


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: int, quality: int = 7) -> None:
    """Writes uint8 RGB frames of even size as H.264 (yuv420p), atomically; quality from 0 to 10.

    Raises ImportError without imageio-ffmpeg.
    """
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ImportError("Writing a video needs imageio-ffmpeg: `pip install imageio-ffmpeg`.") from error
    frames = iter(frames)
    first = next(frames)
    height, width = first.shape[:2]
    with atomic_path(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (width, height),
            fps=fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=2,
            quality=quality,
            output_params=["-movflags", "+faststart"],
        )
        try:
            writer.send(None)
            for frame in itertools.chain([first], frames):
                writer.send(np.ascontiguousarray(frame))
        finally:
            writer.close()


def strip_steps(num_steps: int) -> list[int]:
    """Up to ten steps of a dream of that length that are worth showing: close together at first, then ever sparser."""
    steps = [step for step in STRIP_STEPS if step <= num_steps]
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MAX_STRIP_STEPS)).round().astype(int))
    return [steps[index] for index in chosen]


def write_strip(path: str | Path, film: Film, steps: Sequence[int]) -> None:
    """Writes a PNG, atomically: the last context frame and the given steps (1 is the first dreamed frame) of both."""
    with atomic_path(path) as temporary:
        _draw_strip(film, steps).save(temporary)


def _draw_pair(
    real: np.ndarray, dream: np.ndarray, reading: bool, caption: str, note: str, progress: float
) -> np.ndarray:
    height, width = real.shape[:2]
    image_module, draw_module, _ = pillow()
    left, right = MARGIN, 2 * MARGIN + width
    size = even(right + width + MARGIN), even(height + 2 * BAR)
    image = image_module.new("RGB", size, BACKGROUND)
    draw = draw_module.Draw(image)
    image.paste(image_module.fromarray(real), (left, BAR))
    # While the context is read nothing is imagined yet: the panel shows it darkened.
    image.paste(image_module.fromarray((dream * 0.35).astype(np.uint8) if reading else dream), (right, BAR))
    draw.text((left, BAR / 2), "real", TEXT, font(24), anchor="lm")
    draw.text((right, BAR / 2), "dream", MUTED if reading else ACCENT, font(24), anchor="lm")
    if reading:
        draw.text((right + width / 2, BAR + height / 2), "context", TEXT, font(32), anchor="mm")
    baseline = BAR + height + BAR / 2
    draw.text((left, baseline), caption, MUTED, font(18), anchor="lm")
    draw.text((right, baseline), note, MUTED if reading else TEXT, font(18), anchor="lm")
    draw.rectangle((0, size[1] - 4, progress * size[0], size[1]), fill=MUTED if reading else ACCENT)
    return np.asarray(image)


def _draw_strip(film: Film, steps: Sequence[int]) -> Any:
    image_module, draw_module, _ = pillow()
    scale = max(1, 128 // film.real.shape[1])
    height, width = film.real.shape[1] * scale, film.real.shape[2] * scale
    num_context, label, gap = film.num_context_frames, max(88, MARGIN + 8 + text_width(film.names, 20)), 6
    size = label + (width + gap) * (1 + len(steps)) + MARGIN, 2 * height + gap + 2 * 36
    image = image_module.new("RGB", size, BACKGROUND)
    draw = draw_module.Draw(image)
    tops = 36, 36 + height + gap
    for top, name, color in zip(tops, film.names, (TEXT, ACCENT), strict=True):
        draw.text((MARGIN, top + height / 2), name, color, font(20), anchor="lm")
    columns = [("context", "", film.real[num_context - 1], None)]
    for step in steps:
        real, dream = film.real[num_context + step - 1], film.dream[step - 1]
        columns.append((f"+{step}", f"{film.psnr[step - 1]:.1f} dB", real, dream))
    for index, (title, note, real, dream) in enumerate(columns):
        x = label + index * (width + gap)
        draw.text((x + width / 2, 18), title, TEXT, font(18), anchor="mm")
        draw.text((x + width / 2, size[1] - 18), note, MUTED, font(16), anchor="mm")
        image.paste(image_module.fromarray(enlarge(real, scale)), (x, tops[0]))
        if dream is not None:
            image.paste(image_module.fromarray(enlarge(dream, scale)), (x, tops[1]))
    draw.text((label + width / 2, tops[1] + height / 2), "read in", MUTED, font(16), anchor="mm")
    return image


def enlarge(frame: np.ndarray, scale: int) -> np.ndarray:
    """uint8 [H * scale, W * scale, 3]; every pixel becomes a square, and a single channel three equal ones."""
    if frame.shape[2] == 1:
        frame = frame.repeat(3, 2)
    return frame.repeat(scale, 0).repeat(scale, 1)


def even(size: int) -> int:
    """`size` or one more: videos need even sides."""
    return size + size % 2


def text_width(texts: Sequence[str], size: int) -> int:
    """Pixels that the longest of the texts takes."""
    return int(max(font(size).getlength(text) for text in texts)) + 1


@functools.cache
def font(size: int) -> Any:
    """Pillow's own font."""
    return pillow()[2].load_default(size)


def pillow() -> tuple[Any, Any, Any]:
    """Pillow's modules Image, ImageDraw and ImageFont. Raises ImportError that says what to install."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError("Drawing a dream needs Pillow: `pip install pillow`.") from error
    return Image, ImageDraw, ImageFont
