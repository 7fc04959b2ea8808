"""LeRobotDataset v3.0 (https://huggingface.co/docs/lerobot/lerobot-dataset-v3), without the lerobot package.

    OUT/meta/info.json                              sizes, path templates, features
    OUT/meta/stats.json                             minimum, maximum, mean, standard deviation, count of each feature
    OUT/meta/tasks.parquet                          one task, the environment's id
    OUT/meta/episodes/chunk-000/file-000.parquet    one row per episode: where it lies; our seed, split, attributes
    OUT/meta/wm_gym.json                            header of the store, and how exact the frames are
    OUT/data/chunk-000/file-000.parquet             one row per frame
    OUT/videos/observation.image/chunk-000/file-000.mp4

A row holds a frame and what happened after it: action, next.reward, next.done. The last frame of an episode has no
action; its row has zeros, and importing drops it. Frames are lossless unless asked otherwise, see
training/store/formats/video.py: H.264 in RGB, or PNG in the data files (`images="png"`); LeRobot's own default is
lossy.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from training.store.episode import Episode, StoreHeader
from training.store.episode_store import EpisodeStore, header_to_json
from training.store.formats.common import (
    METADATA_FILE,
    ExportResult,
    SquaredError,
    accuracy_to_json,
    episodes_of,
    size_of,
    whole_folder,
)
from training.store.formats.lerobot_import import decode_images, import_lerobot
from training.store.formats.lerobot_metadata import (
    FORMAT_NAME,
    IMAGE,
    STATE,
    Statistics,
    features_of,
    info_of,
    pa,
    pq,
    tasks_table,
)
from training.store.formats.video import VideoWriter, codec_to_json, decode_video

__all__ = ["export_lerobot", "import_lerobot"]

FRAMES_PER_FILE = 50_000
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
FILES_PER_CHUNK = 1000


def export_lerobot(
    store: EpisodeStore,
    out: Path,
    lossless: bool = True,
    images: Literal["video", "png"] = "video",
    fps: int = 10,
    frames_per_file: int = FRAMES_PER_FILE,
) -> ExportResult:
    """Writes every episode of a store to a new dataset, which appears when it is whole.

    Args:
        store: what to export.
        out: path of the dataset.
        lossless: for videos: RGB with quantizer 0, or yuv420p with CRF 18. PNG always is.
        images: "video" for mp4 files, "png" for images in the data files.
        fps: frames per second that the timestamps tell.
        frames_per_file: a file of data or video takes no further episode from here on.

    Raises ValueError if `out` exists, an episode is damaged, or frames are no RGB images.
    """
    if images == "png" and not lossless:
        raise ValueError("PNG is lossless; choose images 'video' for lossy frames.")
    rows: list[dict[str, Any]] = []
    error, statistics = SquaredError(), Statistics()
    num_pose = 0
    with whole_folder(out) as folder:
        for file_number, group in enumerate(_groups(store, frames_per_file)):
            with ExitStack() as stack:
                place = _File(folder, store.header, file_number, images, lossless, fps, stack)
                written = []
                for split, episode in group:
                    num_pose = episode.pose.shape[1]
                    first = rows[-1]["dataset_to_index"] if rows else 0
                    rows.append(place.add(split, episode, len(rows), first, statistics))
                    written.append((split, episode.seed))
            _measure(store, place, written, error)
        features = features_of(
            store.header, num_pose, images, fps, codec_to_json(lossless), accuracy_to_json(error.psnr)
        )
        meta = folder / "meta"
        (meta / "episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), meta / "episodes/chunk-000/file-000.parquet")
        pq.write_table(tasks_table(store.header.env_id), meta / "tasks.parquet")
        _write_json(meta / "stats.json", statistics.to_json())
        _write_json(meta / "info.json", info_of(rows, features, images, fps, FILES_PER_CHUNK))
        metadata = {
            "format": FORMAT_NAME,
            "header": header_to_json(store.header),
            "frames": accuracy_to_json(error.psnr),
        }
        _write_json(meta / METADATA_FILE, metadata)
    return ExportResult(out, len(rows), rows[-1]["dataset_to_index"] if rows else 0, size_of(out), error.psnr)


def _groups(store: EpisodeStore, frames_per_file: int) -> Iterator[Iterator[tuple[str, Episode]]]:
    """Episodes, divided into those that share a file."""
    number = num_frames = 0

    def file_number(item: tuple[str, Episode]) -> int:
        nonlocal number, num_frames
        if num_frames >= frames_per_file:
            number, num_frames = number + 1, 0
        num_frames += item[1].num_frames
        return number

    return (group for _, group in itertools.groupby(episodes_of(store), key=file_number))


class _File:
    """A data file and a video file that are being written, and which go together."""

    def __init__(
        self,
        folder: Path,
        header: StoreHeader,
        number: int,
        images: str,
        lossless: bool,
        fps: int,
        stack: ExitStack,
    ) -> None:
        self.place = {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}
        name = FILE.format(**self.place)
        self.data = folder / "data" / f"{name}.parquet"
        self.video = folder / "videos" / IMAGE / f"{name}.mp4" if images == "video" else None
        self._header, self._fps, self._stack = header, fps, stack
        self._num_frames = 0
        self._writer: pq.ParquetWriter | None = None
        self.data.parent.mkdir(parents=True, exist_ok=True)
        if self.video is not None:
            self.video.parent.mkdir(parents=True, exist_ok=True)
            self._video_writer = VideoWriter(self.video, header.frame_shape, fps, lossless)
            stack.callback(self._video_writer.close)

    def add(self, split: str, episode: Episode, index: int, first: int, statistics: Statistics) -> dict[str, Any]:
        """Appends an episode, which starts at row `first` of the dataset; returns its row for meta/episodes."""
        columns = _columns(episode, index, first, self._fps)
        for name, column in columns.items():
            statistics.add(name, column)
        statistics.add_frames(IMAGE, episode.frames)
        table = {name: _to_arrow(column) for name, column in columns.items()}
        if self.video is None:
            table[IMAGE] = pa.array([{"bytes": _png(frame), "path": None} for frame in episode.frames])
        else:
            self._video_writer.write(episode.frames)
        table = pa.table(table)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.data, table.schema)
            self._stack.callback(self._writer.close)
        self._writer.write_table(table)  # a row group of its own
        row = {
            "episode_index": index,
            "tasks": [self._header.env_id],
            "length": episode.num_frames,
            "dataset_from_index": first,
            "dataset_to_index": first + episode.num_frames,
            **{f"data/{key}": value for key, value in self.place.items()},
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            "split": split,
            "seed": episode.seed,
            "attributes": json.dumps(episode.attributes),
        }
        if self.video is not None:
            row |= {f"videos/{IMAGE}/{key}": value for key, value in self.place.items()}
            row[f"videos/{IMAGE}/from_timestamp"] = self._num_frames / self._fps
            row[f"videos/{IMAGE}/to_timestamp"] = (self._num_frames + episode.num_frames) / self._fps
        self._num_frames += episode.num_frames
        return row


def _columns(episode: Episode, index: int, first: int, fps: int) -> dict[str, np.ndarray]:
    """Everything but the images: one array of T+1 rows per feature."""
    num_frames = episode.num_frames
    frame_index = np.arange(num_frames)

    def padded(array: np.ndarray, last: Any = 0) -> np.ndarray:
        return np.concatenate([array, np.full((1, *array.shape[1:]), last, array.dtype)])

    columns = {
        "action": padded(episode.actions),
        "next.reward": padded(episode.rewards),
        "next.done": padded(episode.terminations | episode.truncations, True),
        "next.terminated": padded(episode.terminations),
        "next.truncated": padded(episode.truncations),
        "timestamp": (frame_index / fps).astype(np.float32),
        "frame_index": frame_index,
        "episode_index": np.full(num_frames, index),
        "index": first + frame_index,
        "task_index": np.zeros(num_frames, np.int64),
    }
    return {STATE: episode.pose, **columns} if episode.pose.shape[1] else columns


def _measure(store: EpisodeStore, place: _File, written: list[tuple[str, int]], error: SquaredError) -> None:
    """Decodes a finished file and compares its frames with the store's."""
    decoded = iter(()) if place.video is None else decode_video(place.video, store.header.frame_shape)
    table = pq.ParquetFile(place.data)
    for row_group, (split, seed) in enumerate(written):
        num_frames = store.num_frames(seed, split)
        frames = store.read_frames(seed, 0, num_frames, split)
        if place.video is None:
            decoded = iter(decode_images(table.read_row_group(row_group, [IMAGE])[IMAGE]))
        error.add(frames, np.stack(list(itertools.islice(decoded, num_frames))))


def _to_arrow(column: np.ndarray) -> pa.Array:
    if column.ndim == 1:
        return pa.array(column)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(column).reshape(-1)), column.shape[1])


def _png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n")
