"""The descriptions under meta/ of a LeRobotDataset v3.0: features, info.json, stats.json, tasks.parquet."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from training.store.episode import StoreHeader

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise ImportError("LeRobot's format needs pyarrow: `pip install pyarrow`, or the extra wm-gym[train].") from error

__all__ = ["FORMAT_NAME", "IMAGE", "STATE", "Statistics", "features_of", "info_of", "pa", "pq", "tasks_table"]

FORMAT_NAME = "lerobot-v3.0"
VERSION = "v3.0"
IMAGE = "observation.image"
STATE = "observation.state"


class Statistics:
    """Minimum, maximum, mean, standard deviation and count of each feature, gathered episode by episode."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = {}

    def add(self, name: str, rows: np.ndarray) -> None:
        """[T] or [T, D]"""
        values = rows.reshape(len(rows), -1).astype(np.float64)
        self._merge(name, len(values), values.min(0), values.max(0), values.sum(0), np.square(values).sum(0))

    def add_frames(self, name: str, frames: np.ndarray) -> None:
        """uint8 [T, H, W, C]: statistics of each channel in [0, 1], as LeRobot has them."""
        counts = np.stack([np.bincount(channel.reshape(-1), minlength=256) for channel in np.moveaxis(frames, -1, 0)])
        values = np.arange(256) / 255
        seen = counts > 0
        low = values[seen.argmax(axis=1)]
        high = values[255 - seen[:, ::-1].argmax(axis=1)]
        # Counted in frames, so the sums are means over the pixels of each.
        pixels = frames.shape[1] * frames.shape[2]
        moments = ((counts * powers).sum(axis=1) / pixels for powers in (values, values**2))
        self._merge(name, len(frames), *(part.reshape(-1, 1, 1) for part in (low, high, *moments)))

    def _merge(self, name: str, count: int, *parts: np.ndarray) -> None:
        low, high, total, squares = parts
        if name in self._parts:
            count0, low0, high0, total0, squares0 = self._parts[name]
            low, high = np.minimum(low, low0), np.maximum(high, high0)
            count, total, squares = count + count0, total + total0, squares + squares0
        self._parts[name] = (count, low, high, total, squares)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The statistics as LeRobot's JSON types."""
        result = {}
        for name, (count, low, high, total, squares) in self._parts.items():
            mean = total / count
            deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
            parts = {"min": low, "max": high, "mean": mean, "std": deviation}
            result[name] = {key: value.tolist() for key, value in parts.items()} | {"count": [count]}
        return result


def features_of(
    header: StoreHeader, num_pose: int, images: str, fps: int, codec: dict[str, Any], accuracy: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """`features` of info.json."""
    height, width, channels = header.frame_shape
    video = {
        "video.height": height,
        "video.width": width,
        "video.channels": channels,
        "video.fps": fps,
        "video.codec": codec["codec"],
        "video.pix_fmt": codec["pix_fmt"],
        "video.is_depth_map": False,
        "has_audio": False,
    }
    image = {
        "dtype": "video" if images == "video" else "image",
        "shape": [height, width, channels],
        "names": ["height", "width", "channels"],
        "info": {**(video if images == "video" else {}), **accuracy},
    }
    features = {IMAGE: image}
    if num_pose:
        features[STATE] = _feature("float32", num_pose)
    features["action"] = _feature(str(header.action_dtype), *header.action_shape)
    features["next.reward"] = _feature("float32")
    features |= {f"next.{name}": _feature("bool") for name in ("done", "terminated", "truncated")}
    features["timestamp"] = _feature("float32")
    return features | {name: _feature("int64") for name in ("frame_index", "episode_index", "index", "task_index")}


def _feature(dtype: str, *shape: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) or [1], "names": None}


def info_of(
    rows: list[dict[str, Any]], features: dict[str, Any], images: str, fps: int, files_per_chunk: int
) -> dict[str, Any]:
    """info.json for the rows of meta/episodes."""
    file = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    splits: dict[str, str] = {}
    for split in dict.fromkeys(row["split"] for row in rows):
        indices = [row["episode_index"] for row in rows if row["split"] == split]
        splits[split] = f"{indices[0]}:{indices[-1] + 1}"
    return {
        "codebase_version": VERSION,
        "robot_type": None,
        "total_episodes": len(rows),
        "total_frames": rows[-1]["dataset_to_index"] if rows else 0,
        "total_tasks": 1,
        "chunks_size": files_per_chunk,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": splits,
        "data_path": f"data/{file}.parquet",
        "video_path": f"videos/{{video_key}}/{file}.mp4" if images == "video" else None,
        "features": features,
    }


def tasks_table(task: str) -> pa.Table:
    """tasks.parquet: LeRobot reads it as a pandas table with the task as its index."""
    table = pa.table({"task_index": pa.array([0], pa.int64()), "task": pa.array([task])})
    columns = [("task_index", "int64", "int64"), ("task", "unicode", "object")]
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, kind, numpy in columns
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
