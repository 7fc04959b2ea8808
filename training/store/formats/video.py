"""Plain mp4 + npz: one video and one file of arrays per episode.

    OUT/wm_gym.json                    header of the store, codec, and how exact the frames are
    OUT/train/episode_0000000017.mp4   frames, H.264
    OUT/train/episode_0000000017.npz   actions, rewards, terminations, truncations, pose, seed, attributes (JSON text)

Frames are lossless unless asked otherwise: H.264 in RGB with quantizer 0 ("High 4:4:4 Predictive"), which ffmpeg,
OpenCV, PyAV and mpv read and most browsers do not. Lossy ones are yuv420p with CRF 18, an eighth of the size, and play
everywhere: half the colour resolution is gone, and a world model learns the encoder's artefacts. The result and
`wm_gym.json` say which it is, with the PSNR measured on what a decoder gives back.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

from training.store.episode import Episode
from training.store.episode_files import episode_name
from training.store.episode_store import EpisodeStore, EpisodeWriter, create_store, header_from_json, header_to_json
from training.store.formats.common import (
    METADATA_FILE,
    ExportResult,
    SquaredError,
    accuracy_to_json,
    episodes_of,
    size_of,
    whole_folder,
    with_accuracy,
)

FORMAT_NAME = "wm-gym-mp4"
LOSSY_CRF = 18
FRAMES_PER_KEYFRAME = 10
_ARRAYS = ("actions", "rewards", "terminations", "truncations", "pose")


class VideoWriter:
    """Encodes frames to an mp4 file as they come.

    Args:
        path: of the file.
        frame_shape: (H, W, 3).
        fps: frames per second in the file.
        lossless: RGB with quantizer 0, or yuv420p with CRF 18.

    Raises ValueError for frames that are not RGB, or of odd size if lossy.
    """

    def __init__(self, path: Path, frame_shape: tuple[int, ...], fps: int, lossless: bool) -> None:
        height, width, channels = frame_shape
        if channels != 3:
            raise ValueError(f"A video needs RGB frames, got {channels} channels.")
        if not lossless and (height % 2 or width % 2):
            raise ValueError(f"A lossy video needs frames of even size, got {height}x{width}; export without --lossy.")
        quality = ["-qp", "0"] if lossless else ["-crf", str(LOSSY_CRF)]
        self._writer = imageio_ffmpeg.write_frames(
            str(path),
            (width, height),
            fps=fps,
            codec="libx264rgb" if lossless else "libx264",
            pix_fmt_out="rgb24" if lossless else "yuv420p",
            macro_block_size=1,
            quality=None,  # type: ignore[arg-type]  # else imageio-ffmpeg adds one of its own
            output_params=[*quality, "-g", str(FRAMES_PER_KEYFRAME), "-movflags", "+faststart"],
        )
        self._writer.send(None)

    def write(self, frames: Iterable[np.ndarray]) -> None:
        """Adds frames, each uint8 ``[H, W, 3]``."""
        for frame in frames:
            self._writer.send(np.ascontiguousarray(frame))

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


def decode_video(path: Path, frame_shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Frames of a video one after the other, uint8 [H, W, 3]. Raises ValueError with its name if it is damaged."""
    height, width, channels = frame_shape
    header = b"P6\n%d %d\n255\n" % (width, height)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-fps_mode", "passthrough"]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [*command, "-f", "image2pipe", "-c:v", "ppm", "-"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            while content := process.stdout.read(len(header) + height * width * channels):
                if not content.startswith(header):
                    size = content[3:20].partition(b"\n")[0].decode(errors="replace")
                    raise ValueError(f"{path} has frames of {size}, expected {width} {height}.")
                yield np.frombuffer(content, np.uint8, offset=len(header)).reshape(frame_shape)
            if process.wait() != 0:
                errors.seek(0)
                message = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise ValueError(f"{path} is damaged, or no video that ffmpeg reads ({message}).")
        finally:
            process.kill()  # it may have more frames than were wanted


def codec_to_json(lossless: bool) -> dict[str, Any]:
    """The settings of a codec as JSON types."""
    return {
        "codec": "h264",
        "pix_fmt": "gbrp" if lossless else "yuv420p",
        "rate_control": "qp 0" if lossless else f"crf {LOSSY_CRF}",
    }


def export_mp4(store: EpisodeStore, out: Path, lossless: bool = True, fps: int = 10) -> ExportResult:
    """Writes every episode of a store to a new folder, which appears when it is whole.

    Raises ValueError if `out` exists, an episode is damaged, or frames are no RGB images.
    """
    error, num_episodes, num_frames = SquaredError(), 0, 0
    with whole_folder(out) as folder:
        for split, episode in episodes_of(store):
            (folder / split).mkdir(exist_ok=True)
            path = folder / split / episode_name(episode.seed)
            writer = VideoWriter(path.with_suffix(".mp4"), store.header.frame_shape, fps, lossless)
            try:
                writer.write(episode.frames)
            finally:
                writer.close()
            error.add(episode.frames, np.stack(list(decode_video(path.with_suffix(".mp4"), store.header.frame_shape))))
            arrays = {name: getattr(episode, name) for name in _ARRAYS}
            attributes = np.array(json.dumps(episode.attributes))
            np.savez_compressed(path.with_suffix(".npz"), seed=np.int64(episode.seed), attributes=attributes, **arrays)
            num_episodes, num_frames = num_episodes + 1, num_frames + episode.num_frames
        metadata = {
            "format": FORMAT_NAME,
            "version": 1,
            "header": header_to_json(store.header),
            "fps": fps,
            "video": codec_to_json(lossless),
            "frames": accuracy_to_json(error.psnr),
        }
        (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n")
    return ExportResult(out, num_episodes, num_frames, size_of(out), error.psnr)


def import_mp4(path: Path, out: Path) -> EpisodeStore:
    """Adds the episodes of a folder that `export_mp4` wrote to the store at `out`, which is made if it is not there.

    Episodes that the store has already are left alone, so the same call goes on where it stopped. Those from a lossy
    export carry the attribute `lossy_source`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another format, a damaged file, or a store of another environment.
    """
    metadata_path = path / METADATA_FILE
    if not metadata_path.is_file():
        raise FileNotFoundError(f"There is no {metadata_path}; `python -m training.store export` writes such a folder.")
    metadata = json.loads(metadata_path.read_text())
    if metadata.get("format") != FORMAT_NAME or metadata.get("version") != 1:
        raise ValueError(f"{metadata_path} is of format {metadata.get('format')!r}, expected {FORMAT_NAME!r} 1.")
    store = create_store(out, header_from_json(metadata["header"]))
    for file in sorted(path.glob("*/episode_*.npz")):
        split = file.parent.name
        if store.episode_path(int(file.stem.rpartition("_")[2]), split).is_dir():
            continue
        EpisodeWriter(store, split).write(_read_episode(file, store.header.frame_shape, metadata["frames"]))
    return store


def _read_episode(file: Path, frame_shape: tuple[int, ...], accuracy: dict[str, Any]) -> Episode:
    frames = np.stack(list(decode_video(file.with_suffix(".mp4"), frame_shape)))
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            arrays = {name: content[name] for name in _ARRAYS}
            seed, attributes = int(content["seed"]), json.loads(str(content["attributes"]))
    except Exception as error:  # zipfile, zlib and numpy have a dozen of their own
        raise ValueError(f"{file} is damaged ({error}).") from error
    return Episode(seed, frames, **arrays, attributes=with_accuracy(attributes, FORMAT_NAME, accuracy))
