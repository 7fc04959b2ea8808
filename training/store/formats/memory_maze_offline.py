"""The offline dataset published with Memory Maze (https://github.com/jurgisp/memory-maze, "Offline Dataset").

One NPZ file per trajectory. Every array has a first axis of 1001 frames for 1000 steps:

    image         uint8 [64, 64, 3]  image[0] is seen before the first action, image[-1] after the last
    action        [6] one-hot        the LAST action: action[t] led from image[t-1] to image[t]; action[0] is none
    reward        float              the last reward, likewise
    maze_layout   [n, n]             1 where one can walk (the opposite of ours), maze_layout[y, x]
    agent_pos     float [2]          in grid units, as our pose
    agent_dir     float [2]          unit vector
    targets_pos   float [k, 2]       grid units
    targets_vec   float [k, 2]       the same seen from the agent: (to its right, ahead)
    target_pos, target_vec [2], target_color [3]   of the current target

The files do not tell the maze's seed, so seeds are given out in the order of file names: 0, 1, ... in split "train",
from 7,000,000 on in the others. They name episodes, and do not build these mazes again; each file is a maze of its own,
so splits made of whole files are splits by maze.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from training.store.episode import Episode, StoreHeader
from training.store.episode_store import EpisodeStore, EpisodeWriter, create_store
from training.store.formats.common import ExportResult, episodes_of, first_seed_of, size_of, whole_folder

NUM_ACTIONS = 6
DEFAULT_ENV = "wm_gym/MemoryMaze-9x9-v0"
POLICY = "memory-maze-offline"
_NEEDED = ("image", "action", "reward")
_SAME_PLACE = 1e-4  # grid units


def import_memory_maze(
    path: Path, out: Path, env_id: str = DEFAULT_ENV, split: str = "train", first_seed: int | None = None
) -> EpisodeStore:
    """Adds the episodes of all NPZ files in a folder to the store at `out`, which is made if it is not there.

    Episodes that the store has already are left alone, so the same call goes on where it stopped.

    Args:
        path: folder with the files.
        out: path of the store.
        env_id: the environment that they are from; the files do not say.
        split: part of the store.
        first_seed: of the first file; None means 0, or 7,000,000 for evaluation splits.

    Raises:
        FileNotFoundError: no files.
        ValueError: a file that is damaged or of other contents, seeds of another split, or a store of another
            environment.
    """
    files = sorted(path.glob("*.npz"))
    if not files:
        raise FileNotFoundError(f"There are no NPZ files in {path}.")
    start = first_seed_of(split) if first_seed is None else first_seed
    first = read_episode(files[0], start)
    header = StoreHeader(
        env_id=env_id,
        observation_space=gym.spaces.Box(0, 255, first.frames.shape[1:], np.uint8),
        action_space=gym.spaces.Discrete(NUM_ACTIONS),
        policy=POLICY,
        max_episode_steps=first.num_frames - 1,
    )
    store = create_store(out, header)
    writer = EpisodeWriter(store, split)
    for seed, file in enumerate(files, start):
        if not store.episode_path(seed, split).is_dir():
            writer.write(read_episode(file, seed))
        elif (there := store.attributes(seed, split).get("file")) != file.name:
            raise ValueError(f"Seed {seed} of {out} is {there}, not {file.name}; choose another first seed.")
    return store


def read_episode(file: Path, seed: int) -> Episode:
    """One published file as an episode. Raises ValueError that names it if it is damaged or of other contents."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            data = {name: content[name] for name in content.files}
    except Exception as error:  # zipfile, zlib and numpy have a dozen of their own
        raise ValueError(f"{file} is damaged, or no NPZ file ({error}).") from error
    missing = [name for name in _NEEDED if name not in data]
    if missing:
        raise ValueError(f"{file} has no {', '.join(missing)}; Memory Maze's files have {', '.join(_NEEDED)}.")
    frames, actions, rewards = (data[name] for name in _NEEDED)
    num_frames = len(frames)
    if any(len(array) != num_frames for array in data.values() if array.ndim):
        shapes = {name: list(array.shape) for name, array in data.items()}
        raise ValueError(f"The arrays of {file} differ in length: {shapes}.")
    if actions.ndim != 2 or actions.shape[1] != NUM_ACTIONS or not (actions[1:].astype(bool).sum(axis=1) == 1).all():
        raise ValueError(f"action in {file} must be one-hot [T, {NUM_ACTIONS}], got {list(actions.shape)}.")
    end = np.arange(1, num_frames) == num_frames - 1
    has_pose = "agent_pos" in data and "agent_dir" in data
    pose = np.concatenate([data["agent_pos"], data["agent_dir"]], axis=1) if has_pose else np.zeros((num_frames, 0))
    return Episode(
        seed=seed,
        frames=np.ascontiguousarray(frames),
        actions=actions[1:].argmax(axis=1).astype(np.int64),
        rewards=rewards[1:].astype(np.float32),
        terminations=np.zeros_like(end),
        truncations=end,
        pose=pose.astype(np.float32),
        attributes={"policy": POLICY, "file": file.name, **_maze_attributes(data, file)},
    )


def _maze_attributes(data: dict[str, np.ndarray], file: Path) -> dict[str, Any]:
    """`layout` and `targets` as our own environment gives them; which target was the current one, by first frame."""
    attributes: dict[str, Any] = {}
    for name in ("maze_layout", "targets_pos"):
        if name in data and not np.allclose(data[name], data[name][0], atol=_SAME_PLACE):
            raise ValueError(f"{name} in {file} changes within the episode.")
    if "maze_layout" in data:
        attributes["layout"] = (1 - data["maze_layout"][0].astype(np.int64)).tolist()
    if "targets_pos" not in data:
        return attributes
    targets = data["targets_pos"][0].astype(np.float32)
    attributes["targets"] = targets.tolist()
    if "target_pos" in data:
        distances = np.abs(data["target_pos"][:, None] - targets).max(axis=-1)
        indices = distances.argmin(axis=1)
        changes = [0, *(np.flatnonzero(np.diff(indices)) + 1).tolist()]
        attributes["target_changes"] = [[frame, int(indices[frame])] for frame in changes]
        if "target_color" in data:
            colors = {int(indices[frame]): data["target_color"][frame].tolist() for frame in changes}
            attributes["target_colors"] = [colors.get(index) for index in range(len(targets))]
    return attributes


def export_memory_maze(store: EpisodeStore, out: Path) -> ExportResult:
    """Writes NPZ files with the published keys, OUT/SPLIT/episode_SEED.npz, as far as the store knows them.

    Raises ValueError if `out` exists, an episode is damaged, or the store is not from a Memory Maze.
    """
    space = store.header.action_space
    if not (isinstance(space, gym.spaces.Discrete) and space.n == NUM_ACTIONS and space.start == 0):
        raise ValueError(f"Memory Maze has {NUM_ACTIONS} actions, {store.path} has {space}; export another format.")
    num_episodes = num_frames = 0
    with whole_folder(out) as folder:
        for split, episode in episodes_of(store):
            (folder / split).mkdir(exist_ok=True)
            np.savez_compressed(folder / split / f"episode_{episode.seed:010d}.npz", **published_arrays(episode))
            num_episodes, num_frames = num_episodes + 1, num_frames + episode.num_frames
    return ExportResult(out, num_episodes, num_frames, size_of(out), float("inf"), "seeds, ends and other attributes")


def published_arrays(episode: Episode) -> dict[str, Any]:
    """An episode as arrays under the published keys; those of the current target only if it knows `target_changes`."""
    num_frames = episode.num_frames
    action = np.zeros((num_frames, NUM_ACTIONS), np.uint8)
    action[np.arange(1, num_frames), episode.actions] = 1
    arrays: dict[str, Any] = {"image": episode.frames, "action": action}
    arrays["reward"] = np.append(np.float32(0), episode.rewards)
    attributes = episode.attributes
    if "layout" in attributes:
        layout = 1 - np.asarray(attributes["layout"], np.uint8)
        arrays["maze_layout"] = np.broadcast_to(layout, (num_frames, *layout.shape))
    if episode.pose.shape[1] != 4:
        return arrays
    position, heading = episode.pose[:, :2], episode.pose[:, 2:]
    arrays |= {"agent_pos": position, "agent_dir": heading}
    if "targets" not in attributes:
        return arrays
    targets = np.asarray(attributes["targets"], np.float32)
    arrays["targets_pos"] = np.broadcast_to(targets, (num_frames, *targets.shape))
    arrays["targets_vec"] = _seen_from(position, heading, arrays["targets_pos"])
    if "target_changes" in attributes:
        frames, indices = np.asarray(attributes["target_changes"], np.int64).T
        current = np.repeat(indices, np.diff(np.append(frames, num_frames)))
        arrays["target_pos"] = targets[current]
        arrays["target_vec"] = arrays["targets_vec"][np.arange(num_frames), current]
        if colors := attributes.get("target_colors"):
            known = np.array([color or [np.nan] * 3 for color in colors], np.float32)
            arrays["target_color"] = known[current]
    return arrays


def _seen_from(position: np.ndarray, heading: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[T, k, 2] points as (distance to the right, distance ahead) of an agent at [T, 2] that looks along [T, 2]."""
    offset = points - position[:, None]
    x, y = heading[:, None, 0], heading[:, None, 1]
    return np.stack([offset[..., 0] * y - offset[..., 1] * x, offset[..., 0] * x + offset[..., 1] * y], axis=-1)
