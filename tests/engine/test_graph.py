"""A step over buffers in place says what `WorldModel.step` says, keeps dreams apart, and never grows."""

import dataclasses
import itertools
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.rounding import assert_rounded_alike
from tests.tiny import PLANAR_POSE, SMALL_MAP, SMALL_SCAN, VECTOR_POSE, tiny_model
from wm_gym.codec import model_to_frames
from wm_gym.contexts import load_clips
from wm_gym.engine.graph import StepGraph, StepOutput
from wm_gym.engine.memory import StepMemory
from wm_gym.ops.step import frame_noise
from wm_gym.world_model import ModelState, WorldModel

BATCH = 3
PLANAR: dict[str, Any] = {"pose": PLANAR_POSE, "hide_noise": True}
KEYS = torch.tensor([5, -7, 1 << 62])


def read(model: WorldModel, num_frames: int = 6, batch: int = BATCH, seed: int = 1) -> ModelState:
    """A memory of random frames."""
    c, g = model.config, torch.Generator().manual_seed(seed)
    shape = (batch, num_frames, c.frame_height, c.frame_width, c.frame_channels)
    frames = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
    actions = torch.stack([some_actions(model, batch, seed + t) for t in range(num_frames)], 1)[:, : num_frames - 1]
    pose = torch.randn(batch, num_frames, c.pose.size, generator=g) if c.pose.size else None
    device = model.device
    pose = None if pose is None else pose.to(device)
    with torch.no_grad():
        return model.prefill(model.initial_state(batch), frames.to(device), actions.to(device), pose)


def some_actions(model: WorldModel, batch: int, t: int) -> torch.Tensor:
    c, g = model.config, torch.Generator().manual_seed(t)
    if c.action_kind == "discrete":
        return torch.randint(0, c.action_size, (batch,), generator=g)
    return torch.rand(batch, c.action_size, generator=g) * 2 - 1


def loaded(model: WorldModel, state: ModelState, keys: torch.Tensor = KEYS, **arguments: Any) -> StepGraph:
    graph = StepGraph(model, state.batch_size, **arguments)
    graph.load(state)
    graph.set_noise(keys.to(model.device))
    return graph


def play(graph: StepGraph, model: WorldModel, num_steps: int, first: int = 0) -> list[StepOutput]:
    """Copies of what some steps say."""
    outputs = []
    for t in range(first, first + num_steps):
        output = graph.step(some_actions(model, graph.batch_size, t).to(model.device))
        outputs.append(StepOutput(*(part.clone() for part in output)))
    return outputs


def assert_close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> None:
    """In norm; a NaN is not close to anything."""
    difference = (a.float().cpu() - b.float().cpu()).norm()
    assert difference <= tolerance * b.float().norm().cpu() + 1e-6, (difference, b.float().norm())


def assert_same_state(a: ModelState, b: ModelState, tolerance: float | None = None) -> None:
    first, second = a.to_tensors(), b.to_tensors()
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype, name
        if tolerance is None:
            assert torch.equal(first[name], second[name]), name
        else:
            assert_close(first[name], second[name], tolerance)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"block_sizes": (1, 2, 1, 2)},
        {"frame_height": 32, "block_sizes": (2, 1), "window": 5, "reward_values": (-1.0, 0.0, 2.0)},
        {"action_kind": "continuous", "action_size": 2},
        {"pose": VECTOR_POSE},
        PLANAR,
        {"hide_noise": True, "feedback_interval": 3},
        {"scan": dataclasses.replace(SMALL_SCAN, num_groups=2)},
        {**PLANAR, "map": SMALL_MAP},
        {**PLANAR, "map": dataclasses.replace(SMALL_MAP, layer=0), "feedback_interval": 2},
    ],
    ids=[
        "default",
        "four layers",
        "not square",
        "continuous",
        "pose",
        "planar",
        "every third frame enters",
        "two groups",
        "map",
        "map at the first layer",
    ],
)
@pytest.mark.parametrize(("num_denoising_steps", "num_steps"), [(1, 30), (3, 8)])
def test_a_step_says_what_the_models_step_says_and_leaves_the_same_memory(overrides, num_denoising_steps, num_steps):
    model = tiny_model(**overrides)
    state = read(model)
    graph = loaded(model, state, num_denoising_steps=num_denoising_steps)
    c = model.config
    with torch.no_grad():
        for t in range(num_steps):
            action = some_actions(model, BATCH, t)
            pose = torch.randn(BATCH, c.pose.size, generator=torch.Generator().manual_seed(t)) if c.pose.size else None
            noise = frame_noise(KEYS, torch.full((BATCH,), t), (c.frame_channels, c.frame_height, c.frame_width))
            expected, state = model.step(state, action, noise, num_denoising_steps, pose)
            given = graph.step(action, pose)
            assert_close(given.model_frame, expected.frame)
            assert_close(given.reward_logits, expected.reward_logits)
            assert_close(given.termination_logits, expected.termination_logits)
            assert_close(given.termination, expected.termination)
            assert torch.equal(given.reward, expected.reward)
            assert torch.equal(given.frame, model_to_frames(given.model_frame))
            # A value half-way between two grey levels may be rounded either way, and the dreams part.
            if not torch.equal(given.frame, model_to_frames(expected.frame)):
                assert_rounded_alike(given.frame, model_to_frames(expected.frame), expected.frame)
                graph.load(state)
            assert_same_state(graph.state(), state, 1e-4)
    assert graph.noise_counters.tolist() == [num_steps] * BATCH


@pytest.mark.parametrize("num_frames", range(1, 10))
def test_a_state_comes_back_as_it_was_loaded_at_every_turn_of_the_ring(num_frames):
    model = tiny_model()
    state = read(model, num_frames)
    graph = loaded(model, state)
    assert_same_state(graph.state(), state)
    play(graph, model, 2)
    later = graph.state()
    graph.load(state)
    play(graph, model, 1)
    graph.load(later)
    assert_same_state(graph.state(), later)
    assert_same_state(graph.state(torch.tensor([2, 0])), later.index(torch.tensor([2, 0])))


def test_rows_of_different_ages_are_loaded_and_go_on_as_they_would_alone():
    model = tiny_model()
    graph = StepGraph(model, BATCH)
    states = [read(model, num_frames, batch=1, seed=num_frames) for num_frames in (1, 3, 8)]
    for row, state in enumerate(states):
        graph.load(state, torch.tensor([row]))
    graph.set_noise(KEYS)
    together = play(graph, model, 8)
    for row, state in enumerate(states):
        alone = loaded(model, state, KEYS[row : row + 1])
        for t in range(8):
            output = alone.step(some_actions(model, BATCH, t)[row : row + 1])
            assert_close(output.model_frame, together[t].model_frame[row : row + 1])
            assert_close(output.reward_logits, together[t].reward_logits[row : row + 1])
        assert_same_state(alone.state(), graph.state(torch.tensor([row])), 1e-4)


def test_rows_copied_from_a_pool_are_those_of_a_fresh_context_and_the_others_go_on():
    model = tiny_model()
    contexts = read(model, 9, batch=4, seed=20)
    pool = StepMemory(model.config, 4, model.device)
    pool.load(contexts)
    graph = loaded(model, read(model))
    twin = loaded(model, read(model))
    play(graph, model, 3)
    play(twin, model, 3)
    rows, numbers = torch.tensor([2, 0]), torch.tensor([3, 3])
    graph.copy_rows(rows, pool, numbers)
    graph.set_noise(KEYS[rows], rows=rows)
    fresh = loaded(model, contexts.index(numbers), KEYS[rows])
    assert_same_state(graph.state(rows), fresh.state())
    assert_same_state(pool.state(), contexts)
    for t in range(5):
        action = some_actions(model, BATCH, t)
        output = graph.step(action)
        assert torch.equal(output.frame[1], twin.step(action).frame[1])
        assert_close(output.model_frame[rows], fresh.step(action[rows]).model_frame)


def test_a_larger_memory_keeps_its_rows():
    model = tiny_model()
    memory = StepMemory(model.config, BATCH, model.device)
    memory.load(read(model))
    larger = memory.resized(5)
    assert larger.batch_size == 5
    assert_same_state(larger.state(torch.arange(BATCH)), memory.state())


def test_states_kept_in_bfloat16_are_close_and_half_the_size():
    model = tiny_model()
    state = read(model)
    exact, rounded = loaded(model, state), loaded(model, state, state_dtype=torch.bfloat16)
    assert_same_state(rounded.state(), state, 1e-2)
    ssm_bytes = sum(layer.ssm_state.numel() * 4 for layer in state.layers)
    assert exact.memory.num_bytes - rounded.memory.num_bytes == ssm_bytes / 2
    frames = zip(play(exact, model, 30), play(rounded, model, 30), strict=True)
    differences = [(a.model_frame - b.model_frame).norm() / a.model_frame.norm() for a, b in frames]
    assert 0 < max(differences) < 2e-2
    again = rounded.state()
    rounded.load(again)
    assert_same_state(rounded.state(), again)


def test_memory_is_the_same_to_the_byte_and_in_the_same_place_at_step_10_and_at_step_300():
    model = tiny_model()
    graph = loaded(model, read(model))

    def places() -> list[tuple[int, int]]:
        buffers = [graph.memory.frame, graph.memory.num_committed, graph.noise_counters]
        buffers += itertools.chain.from_iterable(
            (own.ssm_state, own.conv_state, own.kv_ring) for own in graph.memory.layers
        )
        return [(buffer.data_ptr(), buffer.numel()) for buffer in buffers]

    play(graph, model, 10)
    before = places(), graph.memory.num_bytes, graph.state().num_bytes()
    play(graph, model, 290, first=10)
    assert (places(), graph.memory.num_bytes, graph.state().num_bytes()) == before
    assert graph.memory.num_committed.tolist() == [305] * BATCH


class Recorder(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "overrides",
    [{}, {"action_kind": "continuous", "action_size": 2}, {"pose": PLANAR_POSE}],
    ids=["discrete", "box", "planar"],
)
def test_a_step_neither_waits_for_a_value_nor_brings_one_from_the_host(overrides):
    """Either would break a CUDA graph, which cannot be captured here."""
    model = tiny_model(**overrides)
    graph = loaded(model, read(model), num_denoising_steps=2)
    action = some_actions(model, BATCH, 0)
    pose = torch.randn(BATCH, 4) if model.config.pose.size else None
    with Recorder() as recorder:
        graph.step(action, pose)
    assert {"mm", "argmax", "lerp"} <= recorder.names
    assert not recorder.names & {"_local_scalar_dense", "nonzero", "lift_fresh", "scalar_tensor"}


def test_the_state_that_comes_out_is_one_that_the_model_goes_on_from():
    model = tiny_model()
    graph = loaded(model, read(model))
    play(graph, model, 4)
    action, noise = some_actions(model, BATCH, 4), frame_noise(KEYS, torch.full((BATCH,), 4), (3, 16, 16))
    with torch.no_grad():
        prediction, _ = model.step(graph.state(), action, noise)
    assert_close(graph.step(action).model_frame, prediction.frame)


def test_what_does_not_fit_is_one_clear_error():
    model = tiny_model()
    state, graph = read(model), loaded(model, read(model))
    action = some_actions(model, BATCH, 0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        StepGraph(model, 0)
    with pytest.raises(ValueError, match="num_denoising_steps"):
        StepGraph(model, 1, 0)
    with pytest.raises(ValueError, match="state_dtype"):
        StepGraph(model, 1, state_dtype=torch.float16)
    with pytest.raises(ValueError, match="prefill"):
        graph.load(model.initial_state(BATCH))
    with pytest.raises(ValueError, match="3 rows was given for 2 rows"):
        graph.load(state, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="of another model"):
        graph.load(read(tiny_model(scan=dataclasses.replace(SMALL_SCAN, state_dim=32))))
    with pytest.raises(ValueError, match="of another model"):
        graph.load(read(tiny_model(window=5)))
    with pytest.raises(ValueError, match="4 layers; expected 2"):
        graph.load(read(tiny_model(block_sizes=(2, 1, 2, 1))))
    with pytest.raises(ValueError, match="exactly if the model is conditioned on poses"):
        graph.load(read(tiny_model(pose=VECTOR_POSE)))
    with pytest.raises(ValueError, match="actions have shape"):
        graph.step(action[:2])
    with pytest.raises(TypeError, match="int64"):
        graph.step(action.float())
    with pytest.raises(ValueError, match="without pose conditioning"):
        graph.step(action, torch.zeros(BATCH, 4))
    with pytest.raises(ValueError, match="keys are"):
        graph.set_noise(KEYS[:2])
    posed = tiny_model(pose=VECTOR_POSE)
    with pytest.raises(ValueError, match=r"needs the pose .* \(3, 4\)"):
        loaded(posed, read(posed)).step(action)
    assert_same_state(graph.state(), state)


INTERPRETED = """
import torch
from tests.engine.test_graph import KEYS, assert_close, assert_same_state, loaded, play, read
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny import tiny_model

torch.set_num_threads(1)
model = tiny_model(window=2)
state = read(model, 2, batch=1)
plain, kernels = (loaded(model, state, KEYS[:1], backend=name) for name in ("plain", "triton"))
for one, other in zip(play(kernels, model, 2), play(plain, model, 2), strict=True):
    assert_close(one.model_frame, other.model_frame)
    assert_close(one.reward_logits, other.reward_logits)
assert_same_state(kernels.state(), plain.state(), 1e-3)
"""


def test_the_kernels_interpreted_on_the_cpu_dream_what_their_plain_twins_do():
    """In a process of its own: Triton reads the environment when it is first imported."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", INTERPRETED]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_a_model_of_sizes_that_the_kernels_do_not_take_runs_plainly():
    assert StepGraph(tiny_model(), 1).backend == "auto"
    assert StepGraph(tiny_model(scan=dataclasses.replace(SMALL_SCAN, state_dim=8)), 1).backend == "plain"
    assert StepGraph(tiny_model(scan=dataclasses.replace(SMALL_SCAN, state_dim=24)), 1).backend == "plain"


@pytest.mark.gpu
@pytest.mark.parametrize("num_denoising_steps", [1, 2])
def test_on_a_gpu_the_graph_says_what_its_operations_say_one_by_one(num_denoising_steps):
    model = packaged("cuda")
    state, keys = packaged_state(model, 4), torch.arange(4)
    captured = loaded(model, state, keys, num_denoising_steps=num_denoising_steps)
    eager = loaded(model, state, keys, num_denoising_steps=num_denoising_steps, capture=False)
    assert captured.is_captured and not eager.is_captured
    for one, other in zip(play(captured, model, 20), play(eager, model, 20), strict=True):
        assert_close(one.model_frame, other.model_frame, 1e-2)
        assert torch.equal(one.reward, other.reward)
    assert_same_state(captured.state(), eager.state(), 2e-2)


@pytest.mark.gpu
def test_on_a_gpu_in_bfloat16_the_packaged_model_dreams_what_it_dreams_on_a_cpu_in_float32():
    gpu, cpu = packaged("cuda"), packaged("cpu")
    state = packaged_state(cpu, 2)
    graph, eager = loaded(gpu, state.to("cuda"), KEYS[:2]), loaded(cpu, state, KEYS[:2])
    for t in range(5):
        action = some_actions(cpu, 2, t)
        expected = eager.step(action)
        given = graph.step(action.cuda())
        assert_close(given.model_frame, expected.model_frame, 2e-2)
        assert graph.memory.num_committed.tolist() == eager.memory.num_committed.tolist()
        for own, other in zip(graph.state().layers, eager.state().layers, strict=True):
            assert_close(own.ssm_state, other.ssm_state, 2e-2)
            assert_close(own.kv_cache, other.kv_cache, 2e-2)
        graph.load(eager.state().to("cuda"))


@pytest.mark.gpu
def test_on_a_gpu_a_thousand_steps_take_no_more_memory():
    model = packaged("cuda")
    graph = loaded(model, packaged_state(model, 2), KEYS[:2])

    def bytes_after(num_steps: int) -> tuple[int, int, int]:
        for t in range(num_steps):
            graph.step(some_actions(model, 2, t).to(model.device))  # its outputs are not kept, unlike those of `play`
        torch.cuda.synchronize()
        size_of_state = graph.state().num_bytes()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), size_of_state

    assert bytes_after(10) == bytes_after(1000)


def packaged(device: str) -> WorldModel:
    return WorldModel.from_checkpoint("memory-maze", device)


def packaged_state(model: WorldModel, batch: int) -> ModelState:
    clips = load_clips()
    frames, actions = (torch.from_numpy(part[:batch]).to(model.device) for part in (clips.frames, clips.actions))
    with torch.no_grad():
        return model.prefill(model.initial_state(batch), frames[:, :40], actions[:, :39])
