"""Models behind one callable each: a step whose frame stays on the device. What latency and batches are measured on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from training.baselines import Architecture, matching_config
from training.baselines.attention import KVState, join_attention
from training.baselines.layers import TransformerLayer
from training.baselines.mamba_modules import with_mamba_modules
from training.baselines.model import BaselineModel
from wm_gym.codec import model_to_frames
from wm_gym.engine.graph import StepGraph
from wm_gym.nn.config import NO_ODOMETRY
from wm_gym.nn.state import ModelState, PendingFrame
from wm_gym.world_model import WorldModel

Step = Callable[[], Tensor]  # returns uint8 frames [B, H, W, C] on the device


def no_actions(model: WorldModel, batch_size: int) -> Tensor:
    """The first action, or zeros, for every row."""
    c = model.config
    if c.action_kind == "discrete":
        return torch.zeros(batch_size, dtype=torch.int64, device=model.device)
    return torch.zeros(batch_size, c.action_size, device=model.device)


def seen_state(model: WorldModel, num_frames: int) -> ModelState:
    """A state of one row that has read `num_frames` frames of noise: what a frame shows costs no time."""
    c = model.config
    generator = torch.Generator().manual_seed(0)
    shape = (1, num_frames, c.frame_height, c.frame_width, c.frame_channels)
    frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(model.device)
    actions = no_actions(model, num_frames - 1)[None]
    with torch.no_grad():
        return model.prefill(model.initial_state(1), frames, actions)


class FunctionalStepper:
    """`WorldModel.step`, operation by operation; the state goes on."""

    implementation = "WorldModel.step, operation by operation"

    def __init__(self, model: WorldModel, state: ModelState) -> None:
        self.model, self.state = model, state
        self.action = no_actions(model, state.batch_size)
        self.generator = torch.Generator(model.device).manual_seed(0)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        prediction, self.state = self.model.step(self.state, self.action, self.generator)
        return model_to_frames(prediction.frame)


class GraphStepper:
    """`StepGraph`, which is what the environment runs, for so many dreams that all start from the one of `state`."""

    def __init__(self, model: WorldModel, state: ModelState, batch_size: int = 1) -> None:
        self.graph = StepGraph(model, batch_size)
        for rows in torch.arange(batch_size, device=model.device).split(64):  # few, for states are large
            self.graph.load(state.index(torch.zeros_like(rows)), rows)
        self.action = no_actions(model, batch_size)
        self.implementation = "StepGraph, " + ("one CUDA graph" if self.graph.is_captured else "operation by operation")

    def __call__(self) -> Tensor:
        return self.graph.step(self.action).frame


class StandingStepper:
    """A step that always starts from the same state, so that its context keeps its length; a CUDA graph where it can.

    A captured step is the best case of a network whose work grows with the context: it would need a new graph for
    every frame.
    """

    def __init__(self, model: WorldModel, state: ModelState, what: str, capture: bool) -> None:
        self.model, self.state = model, state
        self.action = no_actions(model, state.batch_size)
        self.generator = torch.Generator(model.device).manual_seed(0)
        self.graph, self.frame = None, None
        if capture:
            self._capture()
        self.implementation = f"{what}, " + ("one CUDA graph for this length" if capture else "operation by operation")

    def __call__(self) -> Tensor:
        if self.graph is None or self.frame is None:
            return self._step()
        self.graph.replay()
        return self.frame

    @torch.no_grad()
    def _step(self) -> Tensor:
        prediction, _ = self.model.step(self.state, self.action, self.generator)
        return model_to_frames(prediction.frame)

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph):
            self.frame = self._step()
        self.graph = graph


def make_transformer(ours: WorldModel, architecture: Architecture, cache_frames: int) -> BaselineModel:
    """A transformer with our number of parameters and random weights, made as fast as it gets: weights in bfloat16 and
    what surrounds the attention compiled on a GPU, float32 elsewhere."""
    # Its state is filled, not read, and tells no way to go on from. A graph of it is of one frame, which enters.
    like = dataclasses.replace(ours.config, odometry=NO_ODOMETRY, feedback_interval=1)
    config = matching_config(architecture, like, cache_frames=cache_frames)
    model = BaselineModel(config).to(ours.device).eval().requires_grad_(False)
    if ours.device.type == "cuda":
        model.bfloat16()
        join = torch.compile(join_attention, dynamic=False)
        for layer in model.backbone.layers:
            assert isinstance(layer, TransformerLayer)
            layer.attention.join = join
            layer.before_attention = torch.compile(layer.before_attention, dynamic=False)
            layer.after_attention = torch.compile(layer.after_attention, dynamic=False)
    return model


def filled_state(model: BaselineModel, num_frames: int) -> ModelState:
    """A state as after `num_frames` frames: caches full of random values, the last frame pending."""
    state = model.initial_state(1)
    for layer in state.layers:
        assert isinstance(layer, KVState)
        layer.key.normal_()
        layer.value.normal_()
    c = model.config
    frame = torch.rand(1, c.frame_channels, c.frame_height, c.frame_width, device=model.device) * 2 - 1
    has_action = torch.ones(1, dtype=torch.bool, device=model.device)
    pending = PendingFrame(frame, no_actions(model, 1), has_action, torch.zeros_like(has_action), None)
    return dataclasses.replace(state, num_committed=torch.tensor([num_frames - 1]), pending=pending)


def transformer_stepper(ours: WorldModel, architecture: Architecture, num_frames: int) -> StandingStepper:
    """A stepper of a transformer that has seen `num_frames` frames."""
    cache_frames = num_frames + 1 if architecture == "causal_transformer" else 64
    model = make_transformer(ours, architecture, cache_frames)
    state = filled_state(model, num_frames)
    on_gpu = ours.device.type == "cuda"
    attention = (
        "FlashAttention over slices of a preallocated cache" if on_gpu else "attention over a preallocated cache"
    )
    dtype = "bfloat16, the rest compiled" if on_gpu else "float32"
    return StandingStepper(model, state, f"{attention}, {dtype}", capture=on_gpu)


def mamba_stepper(ours: WorldModel, num_frames: int) -> StandingStepper:
    """Raises ImportError without mamba-ssm."""
    model = with_mamba_modules(ours)
    on_gpu = ours.device.type == "cuda"
    what = "mamba_ssm.modules.mamba2.Mamba2.step, token by token"
    return StandingStepper(model, seen_state(ours, num_frames), what, capture=on_gpu)


def state_bytes(stepper: Any) -> int:
    """Bytes of the memory of one dream."""
    state = stepper.graph.state() if isinstance(stepper, GraphStepper) else stepper.state
    return state.num_bytes() // state.batch_size
