"""The ways to read a frozen memory: what is noted of it, what stands beside that, and the probe that reads it.

Sources that all of them have: `state`, the memory after the context, and `cleared_state`, after its last frames alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from training.probes.map_probe import MapProbe, written_map
from training.probes.memories import Note, Walk, map_part, memories_after, ssm_states, with_told_poses
from training.probes.memory_query import NUM_VIEWS, AskedProbe, can_be_asked, views_back
from training.probes.probe_model import AnyProbe, Probe, ProbeData, ProbeTraining
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.state import ModelState
from wm_gym.world_model import WorldModel

Readout = Literal["states", "asked", "map"]
Around = Literal["agent", "start"]
Noted = dict[int, tuple[Tensor, ...]]  # what probes read, by number of frames


class Reading(ABC):
    """One way to read the memories of a model.

    Args:
        config: of the model.
        around: where the positions are that are asked.

    Raises:
        ValueError: the model cannot be read so.
    """

    name: ClassVar[Readout]
    moments: ClassVar[int]  # of each walk that a probe is trained on, unless told otherwise
    defaults: ClassVar[ProbeTraining]  # what stands for a 0
    at_poses: ClassVar[bool] = True  # memories are read at poses: all at the same, also those that have not read them

    def __init__(self, config: WorldModelConfig, around: Around) -> None:
        self.config = config
        self.around: Around = around

    @property
    def tells_pose(self) -> bool:
        """Whether probes are told where the agent is."""
        return False

    def inputs(self, model: WorldModel, walk: Walk, lengths: list[int]) -> dict[str, Noted]:
        """What the probes read, by source and number of frames; `lengths` in ascending order."""
        if self.at_poses and walk.poses is None:
            walk = with_told_poses(model, walk)
        note = self.note(model, walk, lengths)
        state = memories_after(model, walk, lengths, "reading the walks", 0, note)
        num_last = model.config.window + 1
        cleared = _after_last(num_last, model, walk, lengths, note)
        return {"state": state, "cleared_state": cleared, **self.beside(model, walk, lengths, note, state)}

    @abstractmethod
    def note(self, model: WorldModel, walk: Walk, lengths: list[int]) -> Note:
        """What is noted of each memory."""

    @abstractmethod
    def beside(self, model: WorldModel, walk: Walk, lengths: list[int], note: Note, state: Noted) -> dict[str, Noted]:
        """Further sources, of what was noted of the whole memory as `state`."""

    @abstractmethod
    def probe(self, data: ProbeData, options: ProbeTraining) -> AnyProbe:
        """A new probe of what was noted."""

    @abstractmethod
    def definitions(self) -> dict[str, str]:
        """What the figures mean, as far as it depends on how the memory is read."""

    def _of_sources(self, memory: str, last_frame: str) -> dict[str, str]:
        return {
            "state": f"{memory} after the context",
            "cleared_state": f"{memory} after its last {self.config.window + 1} frames alone; poses that are given "
            "still count from the first frame",
            "last_frame": last_frame,
        }


class StatesReading(Reading):
    """All SSM states as they are, bilinear forms of which an MLP reads."""

    name = "states"
    moments = 4
    defaults = ProbeTraining(width=512, learning_rate=1e-3, batch_size=64)
    at_poses = False

    @property
    def tells_pose(self) -> bool:
        """Whether probes are given the agent's pose: for positions around the start."""
        return self.around == "start"

    def note(self, model: WorldModel, walk: Walk, lengths: list[int]) -> Note:
        """Notes all SSM states."""
        return ssm_states

    def beside(self, model: WorldModel, walk: Walk, lengths: list[int], note: Note, state: Noted) -> dict[str, Noted]:
        """The last frames."""
        return {"last_frame": {length: (walk.frames[:, length - 1].to(model.device),) for length in lengths}}

    def probe(self, data: ProbeData, options: ProbeTraining) -> AnyProbe:
        """An MLP over bilinear forms of the states."""
        return Probe(data, options)

    def definitions(self) -> dict[str, str]:
        """See `Reading.definitions`."""
        return {
            "around": "start: positions around, and directions of, the first frame; probes are told the agent's pose",
            "readout": "states: a small MLP reads bilinear forms of all SSM states",
            **self._of_sources("SSM states", "the last frame"),
        }


class AskedReading(Reading):
    """What the frozen network answers when it is asked for its own way back (`training.probes.memory_query`)."""

    name = "asked"
    moments = 2
    defaults = ProbeTraining(width=32, learning_rate=3e-3, batch_size=4)

    def __init__(self, config: WorldModelConfig, around: Around) -> None:
        super().__init__(config, around)
        if not can_be_asked(config):
            raise ValueError("Only a model of planar poses that hides noise can be asked; take --readout states.")

    def note(self, model: WorldModel, walk: Walk, lengths: list[int]) -> Note:
        """Notes what the model answers at the poses of its way back."""
        num_views = min(NUM_VIEWS, lengths[0])

        def note(state: ModelState, rows: Tensor, length: int) -> tuple[Tensor, ...]:
            assert walk.poses is not None
            way = walk.actions[rows], walk.poses[rows, :length]
            return views_back(model, state, *way, num_views, from_start=self.around == "start")

        return note

    def beside(self, model: WorldModel, walk: Walk, lengths: list[int], note: Note, state: Noted) -> dict[str, Noted]:
        """The memory of the last frame alone, and the poses alone."""
        path = {length: (torch.zeros_like(views), posed) for length, (views, posed) in state.items()}
        return {"last_frame": _after_last(1, model, walk, lengths, note), "path": path}

    def probe(self, data: ProbeData, options: ProbeTraining) -> AnyProbe:
        """A small network that is the same at all positions."""
        return AskedProbe(data, options)

    def definitions(self) -> dict[str, str]:
        """See `Reading.definitions`."""
        return {
            "around": "start: positions around, and directions of, the first frame",
            "readout": "asked: the frozen network is told all poses of its walk again, in reverse, each with a frame "
            "of pure noise, of which it sees nothing; one small network, the same at all positions, reads the mean "
            "tokens of the columns in which the position would be",
            "path": "the same network, of these poses alone",
            **self._of_sources("the memory", "the memory after the last frame alone, asked likewise"),
        }


class MapReading(Reading):
    """The map that the model writes what it sees into (`training.probes.map_probe`)."""

    name = "map"
    moments = 4
    defaults = ProbeTraining(width=96, learning_rate=1e-3, batch_size=16)

    def __init__(self, config: WorldModelConfig, around: Around) -> None:
        super().__init__(config, around)
        if not config.has_map:
            raise ValueError("The checkpoint keeps no map (map.size is 0); take --readout states or asked.")

    def inputs(self, model: WorldModel, walk: Walk, lengths: list[int]) -> dict[str, Noted]:
        """See `Reading.inputs`; the first layers alone write the map."""
        return super().inputs(map_part(model), walk, lengths)

    def note(self, model: WorldModel, walk: Walk, lengths: list[int]) -> Note:
        """Notes the map and the pose that positions are around."""

        def note(state: ModelState, rows: Tensor, length: int) -> tuple[Tensor, ...]:
            assert walk.poses is not None
            place_map = written_map(model, state)
            seats = walk.poses[rows, length - 1] if self.around == "agent" else torch.tensor([[0.0, 0.0, 1.0, 0.0]])
            return place_map, seats.expand(len(rows), 4).to(place_map)

        return note

    def beside(self, model: WorldModel, walk: Walk, lengths: list[int], note: Note, state: Noted) -> dict[str, Noted]:
        """The map of the last frame alone, and how much was written alone."""
        weights = {
            length: (place_map * (torch.arange(place_map.shape[2]) == self.config.map.width).to(place_map), seats)
            for length, (place_map, seats) in state.items()
        }
        return {"last_frame": _after_last(1, model, walk, lengths, note), "weights": weights}

    def probe(self, data: ProbeData, options: ProbeTraining) -> AnyProbe:
        """A small network that is the same at all positions."""
        return MapProbe(data, options, self.config.map.cell)

    def definitions(self) -> dict[str, str]:
        """See `Reading.definitions`."""
        return {
            "around": "start: positions around, and directions of, the first frame",
            "readout": "map: one small network, the same at all positions, reads what the frozen network has written "
            "into its map around the position, up to 0.9 cells to each side: mean values, and how much was written. "
            "Objects are looked for within a map's width of the middle of what was written, for it wraps around",
            "weights": "the same network, of how much was written alone, all values set to 0: what the ways and "
            "directions of what was written tell",
            **self._of_sources("the map", "the map after the last frame alone"),
        }


def _after_last(num_frames: int, model: WorldModel, walk: Walk, lengths: list[int], note: Note) -> Noted:
    """What is noted of memories that have read the last frames alone."""
    found = {}
    for length in lengths:
        what = f"reading the last {num_frames} frames" if num_frames > 1 else "reading the last frame"
        found |= memories_after(model, walk, [length], what, max(0, length - num_frames), note)
    return found


_READINGS: dict[Readout, type[Reading]] = {kind.name: kind for kind in (StatesReading, AskedReading, MapReading)}


def reading_of(readout: Readout | None, config: WorldModelConfig, around: Around) -> Reading:
    """How a model is read; None: the map, if there is one, else by asking, if that can be, else the states.

    Raises:
        ValueError: the model cannot be read so.
    """
    if readout is None:
        readout = "map" if config.has_map else "asked" if can_be_asked(config) else "states"
    return _READINGS[readout](config, around)
