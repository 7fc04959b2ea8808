"""The invariants of the memory: parallel equals frame by frame, no future, constant cost, exact restore."""

import dataclasses

import pytest
import torch
from safetensors.torch import load, save

from tests.tiny import VECTOR_POSE
from wm_gym.codec import frames_to_model, model_to_frames
from wm_gym.flow import euler_sampler, linear_schedule
from wm_gym.nn.config import ScanConfig
from wm_gym.world_model import ModelState, WorldModel, WorldModelConfig

CONFIG = WorldModelConfig.plain(
    frame_height=32,
    frame_width=32,
    width=32,
    block_sizes=(2, 1, 4),
    scan=ScanConfig(head_dim=16, state_dim=8, num_groups=1),
    window=3,
    num_attention_heads=2,
    feed_forward_multiplier=4,
    condition_width=32,
    action_size=4,
    reward_values=(0.0, 1.0),
)
FRAMES = 11


def random_weights(model: WorldModel, seed: int = 0) -> WorldModel:
    """Give every parameter a value: at initialisation the conditions and heads are silent."""
    g = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 or "bias" in name:
            parameter.data.add_(torch.randn(parameter.shape, generator=g) * 0.05)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> WorldModel:
    torch.manual_seed(0)
    groups: int = getattr(request, "param", 1)
    return random_weights(
        WorldModel(dataclasses.replace(CONFIG, scan=dataclasses.replace(CONFIG.scan, num_groups=groups)))
    )


with_and_without_groups = pytest.mark.parametrize("model", [1, 4], ids=["one group", "four groups"], indirect=True)


def clip(frames: int = FRAMES, batch: int = 2, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (batch, frames, 32, 32, 3), generator=g, dtype=torch.uint8)
    return video, torch.randint(0, 4, (batch, frames - 1), generator=g)


def read(model: WorldModel, frames: int = FRAMES, batch: int = 2) -> ModelState:
    return model.prefill(model.initial_state(batch), *clip(frames, batch))


def assert_same_state(a: ModelState, b: ModelState, rtol: float = 1e-4) -> None:
    first, second = a.to_tensors(), b.to_tensors()
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=rtol, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@with_and_without_groups
@pytest.mark.parametrize("cuts", [[1], [4], [10], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [3, 7]])
def test_context_split_anywhere_gives_the_same_state(model: WorldModel, cuts: list[int]) -> None:
    frames, actions = clip()
    whole = model.prefill(model.initial_state(2), frames, actions)
    state = model.initial_state(2)
    for start, end in zip([0, *cuts], [*cuts, FRAMES], strict=True):
        state = model.prefill(state, frames[:, start:end], actions[:, max(start - 1, 0) : end - 1])
    assert_same_state(state, whole)


def test_context_longer_than_one_parallel_pass_equals_frame_by_frame(model: WorldModel) -> None:
    frames, actions = clip(140, batch=1)
    whole = model.prefill(model.initial_state(1), frames, actions)
    state = model.prefill(model.initial_state(1), frames[:, :1], actions[:, :0])
    for t in range(1, 140):
        state = model.advance(state, frames[:, t], actions[:, t - 1])
    assert_same_state(state, whole, rtol=1e-3)
    assert whole.num_frames.tolist() == [140]


@with_and_without_groups
def test_parallel_training_pass_equals_frame_by_frame_denoising(model: WorldModel) -> None:
    frames, actions = clip()
    level = torch.zeros(2, FRAMES)
    level[:, -1] = 0.7
    output = model(frames_to_model(frames), level, actions)
    state = model.prefill(model.initial_state(2), frames[:, :-1], actions[:, :-1])
    prediction = model.denoise(state, frames_to_model(frames[:, -1]), level[:, -1], actions[:, -1])
    torch.testing.assert_close(output.frame[:, -1], prediction.frame, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.reward_logits[:, -1], prediction.reward_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.termination_logits[:, -1], prediction.termination_logits, rtol=1e-4, atol=1e-5)


@with_and_without_groups
def test_no_output_depends_on_a_later_frame_action_or_noise_level(model: WorldModel) -> None:
    g = torch.Generator().manual_seed(0)
    frames, level = torch.randn(1, FRAMES, 3, 32, 32, generator=g), torch.rand(1, FRAMES, generator=g)
    actions = torch.randint(0, 4, (1, FRAMES - 1), generator=g)
    before = model(frames, level, actions)
    for t in (1, 5, FRAMES - 1):
        changed, other_level, other_actions = frames.clone(), level.clone(), actions.clone()
        changed[:, t:] += 1
        other_level[:, t:] = 1 - other_level[:, t:]
        other_actions[:, t - 1 :] = 3 - other_actions[:, t - 1 :]
        after = model(changed, other_level, other_actions)
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(a[:, :t], b[:, :t], rtol=0, atol=1e-5)
            assert (a[:, t:] - b[:, t:]).abs().max() > 1e-4


def test_memory_reaches_beyond_the_attention_window(model: WorldModel) -> None:
    frames, actions = clip()
    other = frames.clone()
    other[:, 0] = 255 - other[:, 0]
    predictions = []
    for video in (frames, other):
        state = model.prefill(model.initial_state(2), video, actions)
        predictions.append(model.denoise(state, torch.zeros(2, 3, 32, 32), torch.ones(2), actions[:, 0]).frame)
    assert (predictions[0] - predictions[1]).abs().max() > 1e-6


@with_and_without_groups
@pytest.mark.parametrize("num_denoising_steps", [1, 3])
def test_step_equals_denoise_then_advance(model: WorldModel, num_denoising_steps: int) -> None:
    fused = separate = read(model)
    for t in range(4):
        action = torch.tensor([t % 4, (t + 1) % 4])
        prediction, fused = model.step(fused, action, torch.Generator().manual_seed(t), num_denoising_steps)
        noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(t))
        state = separate
        expected = euler_sampler(
            lambda frame, level, s=state, a=action: model.denoise(s, frame, level, a).frame,
            noise,
            linear_schedule(num_denoising_steps),
        )
        torch.testing.assert_close(prediction.frame, expected, rtol=1e-4, atol=1e-4)
        separate = model.advance(separate, prediction.frame, action, dreamed=True)
        assert_same_state(fused, separate, rtol=1e-3)


def test_a_dream_read_back_as_context_gives_the_state_of_the_dream(model: WorldModel) -> None:
    frames, actions = clip()
    state = read(model)
    video, taken = [frames], [actions]
    for t in range(5):
        action = torch.tensor([t % 4, 0])
        prediction, state = model.step(state, action, torch.Generator().manual_seed(t))
        video.append(model_to_frames(prediction.frame)[:, None])
        taken.append(action[:, None])
    again = model.prefill(model.initial_state(2), torch.cat(video, 1), torch.cat(taken, 1))
    assert state.pending is not None and state.pending.dreamed.all()
    state = dataclasses.replace(state, pending=state.pending.corrected(state.pending.frame))
    assert_same_state(again, state, rtol=1e-3)


def test_denoise_and_step_leave_the_given_state_as_it_is(model: WorldModel) -> None:
    state = read(model)
    before = state.clone()
    action = torch.tensor([1, 2])
    model.denoise(state, torch.randn(2, 3, 32, 32), torch.ones(2), action)
    model.step(state, action, torch.Generator().manual_seed(0))
    assert_same_state(state, before, rtol=0)


def test_state_keeps_its_size_from_the_first_step_to_the_last(model: WorldModel) -> None:
    state = read(model)
    shapes = None
    for t in range(300):
        _, state = model.step(state, torch.tensor([t % 4, 1]), torch.Generator().manual_seed(t))
        now = {name: tuple(v.shape) for name, v in state.to_tensors().items()}
        assert shapes is None or now == shapes
        shapes = now
    assert state.num_frames.tolist() == [FRAMES + 300] * 2


def test_saved_and_restored_state_goes_on_exactly(model: WorldModel) -> None:
    state = read(model)
    restored = ModelState.from_tensors(load(save(state.to_tensors())))
    for t in range(3):
        action = torch.tensor([t, 3 - t])
        a, state = model.step(state, action, torch.Generator().manual_seed(t))
        b, restored = model.step(restored, action, torch.Generator().manual_seed(t))
        assert torch.equal(a.frame, b.frame) and torch.equal(a.reward_logits, b.reward_logits)


def test_rows_are_independent_and_can_be_picked_and_mixed(model: WorldModel) -> None:
    state = read(model, batch=3)
    action = torch.tensor([0, 1, 2])
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    prediction, after = model.step(state, action, generators)
    alone, alone_after = model.step(state.index(1), action[1:2], torch.Generator().manual_seed(1))
    torch.testing.assert_close(prediction.frame[1:2], alone.frame, rtol=1e-4, atol=1e-5)
    assert_same_state(after.index(1), alone_after)
    mixed = after.where(torch.tensor([True, False, True]), state)
    assert mixed.num_frames.tolist() == [FRAMES + 1, FRAMES, FRAMES + 1]
    assert_same_state(mixed.index(1), state.index(1), rtol=0)


def test_given_noise_is_that_of_the_generator_that_drew_it(model: WorldModel) -> None:
    state, action = read(model), torch.tensor([1, 2])
    drawn, _ = model.step(state, action, torch.Generator().manual_seed(5))
    given, _ = model.step(state, action, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(drawn.frame, given.frame)
    other, _ = model.step(state, action, torch.zeros(2, 3, 32, 32))
    assert not torch.equal(drawn.frame, other.frame)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    model = random_weights(WorldModel(dataclasses.replace(CONFIG, pose=VECTOR_POSE))).requires_grad_(True)
    frames, level = torch.randn(1, 5, 3, 32, 32), torch.rand(1, 5)
    output = model(frames, level, torch.randint(0, 4, (1, 4)), torch.randn(1, 5, 4))
    sum(part.square().sum() for part in output).backward()  # pyright: ignore[reportAttributeAccessIssue]
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert silent == []


def test_continuous_actions_and_poses_condition_the_dream() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, action_kind="continuous", action_size=2, pose=VECTOR_POSE)
    model = random_weights(WorldModel(config))
    frames, _ = clip()
    actions, pose = torch.randn(2, FRAMES - 1, 2), torch.randn(2, FRAMES, 4)
    state = model.prefill(model.initial_state(2), frames, actions, pose)
    noise = torch.zeros(2, 3, 32, 32)
    base = model.denoise(state, noise, torch.ones(2), actions[:, 0], pose[:, 0]).frame
    assert (model.denoise(state, noise, torch.ones(2), actions[:, 1], pose[:, 0]).frame - base).abs().max() > 1e-5
    assert (model.denoise(state, noise, torch.ones(2), actions[:, 0], pose[:, 1]).frame - base).abs().max() > 1e-5


def test_bad_input_is_one_clear_error(model: WorldModel) -> None:
    frames, actions = clip()
    empty, state = model.initial_state(2), read(model)
    with pytest.raises(TypeError, match=r"torch\.uint8"):
        model.prefill(empty, frames.float(), actions)
    with pytest.raises(ValueError, match=r"frames have shape .* expected \[2, T, 32, 32, 3\]"):
        model.prefill(empty, frames[:, :, :16], actions)
    with pytest.raises(ValueError, match="one action between each two frames"):
        model.prefill(empty, frames, actions[:, :-1])
    with pytest.raises(TypeError, match="int64"):
        model.prefill(empty, frames, actions.float())
    with pytest.raises(ValueError, match="prefill"):
        model.step(empty, actions[:, 0], torch.Generator())
    with pytest.raises(ValueError, match="one per row"):
        model.step(state, actions[:, 0], [torch.Generator()])
    with pytest.raises(ValueError, match=r"frame has shape .* expected \(2, 3, 32, 32\)"):
        model.step(state, actions[:, 0], torch.zeros(1, 3, 32, 32))
    with pytest.raises(TypeError, match="float"):
        model.step(state, actions[:, 0], torch.zeros(2, 3, 32, 32, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_denoising_steps"):
        model.step(state, actions[:, 0], torch.Generator(), 0)
    with pytest.raises(ValueError, match="without pose conditioning"):
        model.prefill(empty, frames, actions, torch.zeros(2, FRAMES, 4))
    with pytest.raises(ValueError, match="damaged"):
        tensors = state.to_tensors()
        del tensors["layers.0.ssm_state"]
        ModelState.from_tensors(tensors)


def test_a_configuration_refuses_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="does not divide the token grid"):
        dataclasses.replace(CONFIG, block_sizes=(3,))
    with pytest.raises(ValueError, match="patch_size"):
        dataclasses.replace(CONFIG, patch_size=7)


@pytest.mark.gpu
def test_on_a_gpu_parallel_pass_context_and_single_steps_agree_in_bfloat16() -> None:
    torch.manual_seed(0)
    model = random_weights(WorldModel(WorldModelConfig.plain(block_sizes=(2, 8, 1)))).cuda()
    g = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (2, 40, 64, 64, 3), generator=g, dtype=torch.uint8).cuda()
    actions = torch.randint(0, 6, (2, 39), generator=g).cuda()

    def close(a: torch.Tensor, b: torch.Tensor) -> bool:
        return bool((a.float() - b.float()).norm() <= 2e-2 * b.float().norm())

    whole = model.prefill(model.initial_state(2), frames[:, :-1], actions[:, :-1])
    single = model.prefill(model.initial_state(2), frames[:, :1], actions[:, :0])
    for t in range(1, 39):
        single = model.advance(single, frames[:, t], actions[:, t - 1])
    for name, tensor in whole.to_tensors().items():
        assert close(single.to_tensors()[name], tensor), name

    last, level = frames_to_model(frames[:, -1]), torch.ones(2, device="cuda")
    prediction = model.denoise(whole, last, level, actions[:, -1])
    levels = torch.zeros(2, 40, device="cuda")
    levels[:, -1] = 1
    with torch.autocast("cuda", torch.bfloat16):
        output = model(frames_to_model(frames), levels, actions)
    assert close(prediction.frame, output.frame[:, -1])
    assert close(prediction.reward_logits, output.reward_logits[:, -1])
