"""One imagined frame for each of B dreams as one CUDA graph, over memories that are written in place.

What :meth:`WorldModel.step` does, without allocations and without waiting for the host. On a CPU, and on a GPU without
Triton, the same code runs operation by operation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from wm_gym.array_typing import Action, Frame, ModelFrame, Pose, RowCount
from wm_gym.codec import frames_to_model, model_to_frames
from wm_gym.engine.memory import StepMemory
from wm_gym.engine.network import NetworkOutput, StepNetwork
from wm_gym.flow import euler_update, expand_level, feedback_level, linear_schedule
from wm_gym.nn.checks import check_actions, check_pose
from wm_gym.nn.state import ModelState
from wm_gym.ops import step as ops
from wm_gym.world_model import WorldModel, WorldModelConfig

_T = TypeVar("_T")
_NUM_WARM_UPS = 3  # kernels are compiled and libraries make their workspaces before anything is captured


class StepOutput(NamedTuple):
    """One imagined frame for each of B dreams. On a GPU the next step overwrites these tensors.

    Attributes:
        frame: uint8 ``[B, H, W, C]``.
        reward: the most probable of ``config.reward_values``, ``[B]`` float32.
        termination: probability that the episode ended, ``[B]`` float32.
        model_frame: the prediction before it is rounded to uint8, ``[B, C, H, W]`` in [-1, 1] up to error.
        reward_logits: ``[B, R]``.
        termination_logits: ``[B]``.
    """

    frame: Frame
    reward: Tensor
    termination: Tensor
    model_frame: ModelFrame
    reward_logits: Tensor
    termination_logits: Tensor


class StepGraph:
    """Steps B dreams whose memories it holds.

    Noise is drawn on the device from a 64-bit key per dream and a count of its imagined frames
    (:func:`wm_gym.ops.step.frame_noise`), so a dream does not depend on the others, nor on the device.

    Args:
        model: frozen weights; they are read once, so make a new graph after training. bfloat16 on a GPU.
        batch_size: B.
        num_denoising_steps: passes per frame.
        state_dtype: in which SSM states are kept, torch.float32 or torch.bfloat16; arithmetic is in float32.
        dtype: of weights and activations; None: bfloat16 on a GPU, float32 elsewhere.
        backend: which version of the operations runs; "auto": the kernels on a GPU, if Triton is installed and they
            take the model's sizes, else the plain one.
        capture: False runs operation by operation on a GPU too, to debug or to profile.

    Raises:
        ValueError: a number below 1, or a state_dtype that is neither of the two.
    """

    def __init__(
        self,
        model: WorldModel,
        batch_size: int,
        num_denoising_steps: int = 1,
        state_dtype: torch.dtype = torch.float32,
        dtype: torch.dtype | None = None,
        backend: ops.Backend = "auto",
        capture: bool = True,
    ) -> None:
        if backend == "auto" and not _kernels_take(model.config):
            backend = "plain"
        self.backend: ops.Backend = backend
        schedule = linear_schedule(num_denoising_steps)
        if dtype is None:
            dtype = torch.bfloat16 if model.device.type == "cuda" else torch.float32
        device = self.device = model.device
        self.config, self.batch_size = model.config, batch_size
        self.memory = StepMemory(model.config, batch_size, device, dtype, state_dtype)
        self._changes = tuple(itertools.pairwise(schedule[:-1]))
        with torch.inference_mode(False), torch.no_grad():
            self._network = StepNetwork(model, dtype, self.backend)
            self._reward_values = model.reward_values.clone()
            self._first_level = schedule[0]
            self._end_levels = self._network.embed_levels((0.0, 1.0))  # of a frame that is kept, and of pure noise
            self._later_levels = [self._network.embed_levels((level,)) for _, level in self._changes]
            self._has_action = torch.ones(batch_size, dtype=torch.bool, device=device)
            self._action = torch.zeros_like(self.memory.action)
            self._pose = None if self.memory.pose is None else torch.zeros_like(self.memory.pose)
            self._odometry = None if model.odometry is None else model.odometry.frozen(self.backend)
            if self._odometry is not None:
                self._carried = torch.zeros_like(_require(self.memory.odometry))
            self.noise_keys = torch.zeros(batch_size, dtype=torch.int64, device=device)
            self.noise_counters = torch.zeros(batch_size, dtype=torch.int64, device=device)
            self._graph: torch.cuda.CUDAGraph | None = None
            self._odometry_graph: torch.cuda.CUDAGraph | None = None  # of its own, for poses may be given instead
            self._map_odometry_graph: torch.cuda.CUDAGraph | None = None  # where no frame is real
            if capture and device.type == "cuda" and ops.uses_triton(device, backend):
                self._capture()

    @property
    def is_captured(self) -> bool:
        """Whether a step is a CUDA graph."""
        return self._graph is not None

    def load(self, state: ModelState, rows: Tensor | None = None) -> None:
        """Take over memories; see :meth:`StepMemory.load`. Keys and counters of the noise stay."""
        self.memory.load(state, rows)

    def state(self, rows: Tensor | None = None) -> ModelState:
        """A copy of the memories, of rows int64 ``[n]`` or of all; see :meth:`StepMemory.state`."""
        return self.memory.state(rows)

    def copy_rows(self, rows: Tensor, source: StepMemory, source_rows: Tensor) -> None:
        """Start dreams from prepared memories, with no synchronisation; see :meth:`StepMemory.copy_rows`."""
        self.memory.copy_rows(rows, source, source_rows)

    @torch.no_grad()
    def set_noise(self, keys: Tensor, counters: RowCount | int = 0, rows: Tensor | None = None) -> None:
        """Decide the noise of dreams.

        Args:
            keys: int64 ``[n]``, any values.
            counters: frames imagined so far, int64 ``[n]`` or one for all; 0 for a dream that starts.
            rows: which dreams, int64 ``[n]``; None: all of them.
        """
        if rows is None:
            rows = torch.arange(self.batch_size, device=self.device)
        if keys.shape != rows.shape or keys.dtype != torch.int64:
            raise ValueError(f"keys are {keys.dtype} {tuple(keys.shape)}; expected torch.int64 {tuple(rows.shape)}.")
        keys = keys.to(self.device)
        if isinstance(counters, int):
            counters = torch.full_like(keys, counters)
        self.noise_keys[rows] = keys
        self.noise_counters[rows] = counters.to(self.device)

    def step(self, action: Action, pose: Pose | None = None) -> StepOutput:
        """Imagine one frame in every dream and take it into its memory.

        Args:
            action: taken at the newest frame, ``[B]`` int64 or ``[B, A]`` float. On a GPU actions that are not among
                the model's are undefined behaviour: checking them would mean waiting.
            pose: pose of the frame to come, ``[B, P]``, for a model that is conditioned on poses; None to one with
                odometry, which predicts it then.

        Returns:
            Tensors on the device, which the next step overwrites.

        Raises:
            ValueError, TypeError: actions or pose of another shape or kind.
        """
        check_actions(self.config, action[:, None], self.batch_size, 1)
        check_pose(self.config, pose, (self.batch_size,))
        self._action.copy_(action)
        with torch.no_grad():
            if pose is not None:
                self._take_pose(pose)
            elif self._odometry is not None:
                self._locate()
            elif self._pose is not None:
                raise ValueError(f"the model needs the pose of the next frame, of shape {tuple(self._pose.shape)}.")
            if self._graph is None:
                output = self._advance()
            else:
                self._graph.replay()
                output = self._output
        self.memory.only_dreamed = True
        return output

    def _locate(self) -> None:
        """The next frame's pose by odometry; without a look at frames where none is real and there is a map."""
        if self.memory.only_dreamed and self.memory.place_map is not None:
            if self._map_odometry_graph is None:
                self._predict_pose_by_map()
            else:
                self._map_odometry_graph.replay()
        elif self._odometry_graph is None:
            self._predict_pose()
        else:
            self._odometry_graph.replay()

    def _take_pose(self, pose: Pose) -> None:
        """The next frame's pose as it was given."""
        if self._odometry is not None:
            memory = self.memory
            poses = torch.stack([_require(memory.pose), pose.to(self.device)], dim=1)
            self._carried.copy_(self._odometry.given(_require(memory.odometry), poses, self._action[:, None]))
        _require(self._pose).copy_(pose)

    def _predict_pose(self) -> None:
        """The next frame's pose by odometry, from the pending frame; reads and writes nothing but buffers."""
        memory = self.memory
        assert self._odometry is not None
        seen = _require(memory.odometry), memory.frame, self._action, _require(memory.pose)
        pose, carried = self._odometry.predict(*seen, ~memory.dreamed, memory.place_map)
        _require(self._pose).copy_(pose)
        self._carried.copy_(carried)

    def _predict_pose_by_map(self) -> None:
        """`_predict_pose` where all pending frames were dreamed and memory has a map."""
        memory = self.memory
        assert self._odometry is not None
        known = _require(memory.odometry), self._action, _require(memory.pose), _require(memory.place_map)
        pose, carried = self._odometry.predict_by_map(*known)
        _require(self._pose).copy_(pose)
        self._carried.copy_(carried)

    def _advance(self) -> StepOutput:
        """The step itself: reads and writes nothing but buffers."""
        memory, c = self.memory, self.config
        shape = (c.frame_channels, c.frame_height, c.frame_width)
        noise = ops.frame_noise(self.noise_keys, self.noise_counters, shape, backend=self.backend)
        poses = () if memory.pose is None or self._pose is None else (memory.pose, self._pose)
        has_action = torch.stack([memory.has_action, self._has_action], dim=1)
        condition = self._network.embed_actions((memory.action, self._action), has_action, poses)
        if c.write_once:
            newest = self._network.embed_actions((memory.action,), memory.has_action[:, None], poses[:1])
            self._network.fill_in(newest + self._end_levels[0], memory)
        level = memory.dreamed * feedback_level(memory.num_committed, c.feedback_interval, memory.dreamed.device)
        entering = memory.frame * (1 - expand_level(level, memory.frame))
        frames = torch.stack([entering, self._shown(noise, self._first_level)], dim=1)
        levels = F.embedding(F.pad(level[:, None], (0, 1), value=1.0).long(), self._end_levels)
        output = self._network(frames, condition + levels, memory, 1, poses, level[:, None], noise)
        memory.num_committed += 1
        self.noise_counters += 1
        noisy, none = noise, level[:, None][:, :0]
        for (before, now), embedded in zip(self._changes, self._later_levels, strict=True):
            noisy = euler_update(noisy, output.frame, before, now)
            shown = self._shown(noisy, now)
            output = self._network(shown[:, None], condition[:, 1:] + embedded, memory, 0, poses[1:], none)
        return self._finish(output)

    def _shown(self, noisy: ModelFrame, level: float) -> ModelFrame:
        """What the network sees of a noisy frame."""
        return noisy * (1 - level) if self.config.hide_noise else noisy

    def _finish(self, output: NetworkOutput) -> StepOutput:
        """Make the predicted frame the pending one."""
        memory = self.memory
        frame = model_to_frames(output.frame).contiguous()
        memory.frame.copy_(frames_to_model(frame))
        memory.action.copy_(self._action)
        memory.has_action.fill_(True)
        memory.dreamed.fill_(True)
        if memory.pose is not None and self._pose is not None:
            memory.pose.copy_(self._pose)
        if memory.odometry is not None:
            memory.odometry.copy_(self._carried)
        reward = self._reward_values[output.reward_logits.argmax(-1)]
        termination = output.termination_logits.sigmoid()
        return StepOutput(frame, reward, termination, output.frame, output.reward_logits, output.termination_logits)

    def _capture(self) -> None:
        """Record a step. It runs on empty memories, which are cleared again: nothing has been loaded yet."""
        with torch.cuda.device(self.device):
            if self._odometry is not None:
                self._odometry_graph, _ = _captured(self._predict_pose)
                if self.memory.place_map is not None:
                    self._map_odometry_graph, _ = _captured(self._predict_pose_by_map)
            self._graph, self._output = _captured(self._advance)
            self.memory.clear()
            self.noise_counters.zero_()


def _captured(function: Callable[[], _T]) -> tuple[torch.cuda.CUDAGraph, _T]:
    """A graph of what a function does, and what it returned."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_NUM_WARM_UPS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as a data loader's, may use the GPU meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()
    return graph, result


def _require(buffer: Tensor | None) -> Tensor:
    """A buffer that the model's configuration demands."""
    assert buffer is not None
    return buffer


def _kernels_take(config: WorldModelConfig) -> bool:
    """Whether the Triton scan takes the sizes of a model: powers of two from 16 on."""
    return all(size >= 16 and size & (size - 1) == 0 for size in (config.scan.head_dim, config.scan.state_dim))
