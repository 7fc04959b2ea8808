"""Reading a LeRobotDataset v3.0, ours or that of others; see training/store/formats/lerobot.py for the layout."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

from training.store.episode import Episode, StoreHeader
from training.store.episode_store import EpisodeStore, EpisodeWriter, create_store, header_from_json
from training.store.formats.common import METADATA_FILE, first_seed_of, with_accuracy
from training.store.formats.lerobot_metadata import FORMAT_NAME, STATE, pa, pq
from training.store.formats.video import decode_video


def import_lerobot(
    path: Path,
    out: Path,
    env_id: str | None = None,
    split: str = "train",
    first_seed: int | None = None,
    image_key: str | None = None,
) -> EpisodeStore:
    """Adds the episodes of a LeRobotDataset v3.0 to the store at `out`, which is made if it is not there.

    What `export_lerobot` wrote comes back as it was. In a dataset of others, the last action of an episode leads
    nowhere and is dropped, `observation.state` becomes the pose, and seeds are given out in the order of episodes.
    Episodes that the store has already are left alone, so the same call goes on where it stopped.

    Args:
        path: the dataset.
        out: the store.
        env_id, split, first_seed: for datasets of others, which do not tell them.
        image_key: the feature that has the frames; None takes the first camera.

    Raises:
        FileNotFoundError: no dataset at `path`.
        ValueError: another version, a damaged file, features that a store cannot hold, or a store of another
            environment.
    """
    info_path = path / "meta/info.json"
    if not info_path.is_file():
        raise FileNotFoundError(f"There is no {info_path}, which a LeRobotDataset v3.0 has.")
    info = json.loads(info_path.read_text())
    if not str(info.get("codebase_version")).startswith("v3."):
        raise ValueError(f"{path} is a LeRobotDataset {info.get('codebase_version')}, this code reads v3.0.")
    own_path = path / "meta" / METADATA_FILE
    own = json.loads(own_path.read_text()) if own_path.is_file() else None
    image_key = image_key or _first_camera(info, path)
    header = header_from_json(own["header"]) if own else _foreign_header(path, info, env_id, image_key)
    store = create_store(out, header)
    start = first_seed_of(split) if first_seed is None else first_seed
    reader = _Reader(path, info, header, image_key)
    for row in _episode_rows(path):
        if own:
            row_split, seed, attributes = row["split"], row["seed"], json.loads(row["attributes"])
            attributes = with_accuracy(attributes, FORMAT_NAME, own["frames"])
        else:
            row_split, seed, attributes = split, start + row["episode_index"], {"tasks": row["tasks"]}
            if info["features"][image_key]["dtype"] == "video":
                attributes = with_accuracy(attributes, FORMAT_NAME, {"lossless": False, "psnr_db": None})
        if not store.episode_path(seed, row_split).is_dir():
            EpisodeWriter(store, row_split).write(reader.read(row, seed, attributes))
    return store


class _Reader:
    """Reads episodes in ascending order, so that each video is decoded once, from its start to its end."""

    def __init__(self, path: Path, info: dict[str, Any], header: StoreHeader, image_key: str) -> None:
        self._path, self._info, self._header, self._image_key = path, info, header, image_key
        self._video: Path | None = None
        self._decoded: Iterator[np.ndarray] = iter(())
        self._position = 0

    def read(self, row: dict[str, Any], seed: int, attributes: dict[str, Any]) -> Episode:
        file = self._path / self._info["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        try:
            table = pq.read_table(file, filters=[("episode_index", "=", row["episode_index"])])
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{file} is damaged ({error}).") from error
        if table.num_rows != row["length"]:
            raise ValueError(
                f"{file} has {table.num_rows} frames of episode {row['episode_index']}, not {row['length']}."
            )
        steps = table.num_rows - 1
        is_video = self._info["features"][self._image_key]["dtype"] == "video"
        frames = self._decode(row) if is_video else np.stack(decode_images(table[self._image_key]))
        rewards = _column(table, "next.reward", np.zeros(steps + 1))[:steps].astype(np.float32)
        ends = _column(table, "next.done", np.zeros(steps + 1, bool))[:steps].astype(bool)
        last = np.arange(steps) == steps - 1
        terminations = _column(table, "next.terminated", np.append(ends, False))[:steps].astype(bool)
        return Episode(
            seed=seed,
            frames=frames,
            actions=_column(table, "action")[:steps]
            .astype(self._header.action_dtype)
            .reshape(steps, *self._header.action_shape),
            rewards=rewards.reshape(steps),
            terminations=terminations.reshape(steps),
            truncations=_column(table, "next.truncated", np.append(last & ~ends, False))[:steps].astype(bool),
            pose=_column(table, STATE, np.zeros((steps + 1, 0))).astype(np.float32).reshape(steps + 1, -1),
            attributes=attributes,
        )

    def _decode(self, row: dict[str, Any]) -> np.ndarray:
        prefix = f"videos/{self._image_key}"
        place = {key: row[f"{prefix}/{key}"] for key in ("chunk_index", "file_index")}
        file = self._path / self._info["video_path"].format(video_key=self._image_key, **place)
        first = round(row[f"{prefix}/from_timestamp"] * self._info["fps"])
        if file != self._video or first < self._position:
            self._video, self._position = file, 0
            self._decoded = decode_video(file, self._header.frame_shape)
        skipped = itertools.islice(self._decoded, first - self._position, first - self._position + row["length"])
        frames = list(skipped)
        self._position = first + row["length"]
        if len(frames) != row["length"]:
            raise ValueError(f"{file} ends before episode {row['episode_index']} does.")
        return np.stack(frames)


def _foreign_header(path: Path, info: dict[str, Any], env_id: str | None, image_key: str) -> StoreHeader:
    if env_id is None:
        raise ValueError(f"{path} does not tell its environment; name it with --env.")
    feature, action = info["features"][image_key], info["features"]["action"]
    shape = tuple(feature["shape"])
    names = [str(name)[0].lower() for name in feature.get("names") or ["height", "width", "channels"]]
    frame_shape = tuple(shape[names.index(axis)] for axis in "hwc")
    if action["dtype"].startswith("int") and tuple(action["shape"]) == (1,):
        files = sorted((path / "data").glob("*/*.parquet"))
        largest = max(pq.read_table(file, columns=["action"])["action"].to_numpy().max() for file in files)
        space: gym.Space[Any] = gym.spaces.Discrete(int(largest) + 1)
    else:
        space = gym.spaces.Box(-np.inf, np.inf, tuple(action["shape"]), np.float32)
    return StoreHeader(env_id, gym.spaces.Box(0, 255, frame_shape, np.uint8), space, policy="lerobot")


def _first_camera(info: dict[str, Any], path: Path) -> str:
    for name, feature in info["features"].items():
        if feature["dtype"] in ("video", "image"):
            return name
    raise ValueError(f"{path} has no camera among its features, which are {', '.join(info['features'])}.")


def _episode_rows(path: Path) -> list[dict[str, Any]]:
    files = sorted((path / "meta/episodes").glob("*/*.parquet"))
    rows = [
        row
        for file in files
        for row in pq.read_table(file)
        .drop_columns([name for name in pq.read_schema(file).names if name.startswith("stats/")])
        .to_pylist()
    ]
    return sorted(rows, key=lambda row: row["episode_index"])


def _column(table: pa.Table, name: str, default: np.ndarray | None = None) -> np.ndarray:
    if name not in table.column_names and default is not None:
        return default
    column = table[name].combine_chunks()
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten()).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)


def decode_images(column: pa.ChunkedArray) -> list[np.ndarray]:
    """uint8 [H, W, 3] each, from a column of encoded images."""
    return [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in column.to_pylist()]
