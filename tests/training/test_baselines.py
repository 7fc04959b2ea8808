"""The baselines keep the world model's promises: parallel = frame by frame, no future, equal size, and they train."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import PLANAR_POSE, tiny_model
from tests.toy_store import make_toy_store
from training.baselines import Architecture, BaselineConfig, BaselineModel, build_model, matching_config, model_type
from training.baselines.attention import attention_with_log_sum, cached_attention
from training.baselines.mamba_modules import with_mamba_modules
from training.baselines.model import num_parameters
from training.baselines.recipes import ROWS, make_recipe
from training.recipes import RECIPES, Recipe, Stage
from training.train import parse_arguments, train
from wm_gym.checkpoint import load_checkpoint
from wm_gym.codec import frames_to_model
from wm_gym.nn.config import ScanConfig
from wm_gym.ops.reference import local_attention
from wm_gym.poses import relative_to_first
from wm_gym.world_model import ModelState, WorldModel, WorldModelConfig

FRAMES = 9
CAUSAL: tuple[Architecture, ...] = ("causal_transformer", "sliding_transformer", "mamba2")
ALL: tuple[Architecture, ...] = (*CAUSAL, "bidirectional")
BASELINE_RECIPES = {
    "causal_transformer": (0, 0),
    "causal_transformer_192": (192, 0),
    "mamba2": (0, 0),
    "mamba2_frame_attention": (8, 8),
    "block_size_1": (8, 1),
    "dfot_25": (24, 0),
}


def tiny_config(architecture: Architecture, **changes: Any) -> BaselineConfig:
    values: dict[str, Any] = {"window": FRAMES if architecture == "bidirectional" else 3, "cache_frames": 4, **changes}
    return BaselineConfig(
        **vars(tiny_model().config) | values,
        architecture=architecture,
    )


def baseline(architecture: Architecture, **changes: Any) -> BaselineModel:
    """Tiny, with every parameter wide enough to matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BaselineModel(tiny_config(architecture, **changes))
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def clip(frames: int = FRAMES, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (batch, frames, 16, 16, 3), generator=g, dtype=torch.uint8)
    return video, torch.randint(0, 3, (batch, frames - 1), generator=g)


def frame_by_frame(
    model: WorldModel, frames: torch.Tensor, actions: torch.Tensor, poses: torch.Tensor | None = None
) -> ModelState:
    pose = [None] * frames.shape[1] if poses is None else list(poses.unbind(1))
    first = None if poses is None else poses[:, :1]
    state = model.prefill(model.initial_state(frames.shape[0]), frames[:, :1], actions[:, :0], first)
    for t in range(1, frames.shape[1]):
        state = model.advance(state, frames[:, t], actions[:, t - 1], pose[t])
    return state


@pytest.mark.parametrize("with_poses", [False, True])
@pytest.mark.parametrize("architecture", ALL)
def test_the_training_pass_equals_denoising_frame_by_frame(architecture: Architecture, with_poses: bool) -> None:
    changes = {"pose": PLANAR_POSE, "hide_noise": True} if with_poses else {}
    model, (frames, actions) = baseline(architecture, **changes), clip()
    level = torch.zeros(2, FRAMES)
    level[:, -1] = 0.7
    poses = relative_to_first(torch.randn(2, FRAMES, 4, generator=torch.Generator().manual_seed(2)))
    pose = poses if with_poses else None
    output = model(frames_to_model(frames), level, actions, pose)
    for state in (
        model.prefill(model.initial_state(2), frames[:, :-1], actions[:, :-1], poses[:, :-1] if with_poses else None),
        frame_by_frame(model, frames[:, :-1], actions[:, :-1], pose),
    ):
        newest = poses[:, -1] if with_poses else None
        prediction = model.denoise(state, frames_to_model(frames[:, -1]), level[:, -1], actions[:, -1], newest)
        torch.testing.assert_close(output.frame[:, -1], prediction.frame, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.reward_logits[:, -1], prediction.reward_logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("num_denoising_steps", [1, 2])
def test_a_step_is_denoise_then_advance_also_beyond_window_and_cache(
    architecture: Architecture, num_denoising_steps: int
) -> None:
    model, (frames, actions) = baseline(architecture, window=3), clip(2)
    stepped = model.prefill(model.initial_state(2), frames, actions)
    split = stepped.clone()
    action = torch.tensor([1, 2])
    for t in range(FRAMES):
        prediction, stepped = model.step(stepped, action, torch.Generator().manual_seed(t), num_denoising_steps)
        frame = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(t))
        for k in range(num_denoising_steps):
            level = 1 - k / num_denoising_steps
            clean = model.denoise(split, frame, torch.full((2,), level), action).frame
            frame = torch.lerp(clean, frame, (level - 1 / num_denoising_steps) / level)
        torch.testing.assert_close(prediction.frame, frame, rtol=1e-4, atol=1e-5)
        split = model.advance(
            split, prediction.frame, action, dreamed=True
        )  # the same frame, lest rounding tips one level over
    assert stepped.num_frames.tolist() == split.num_frames.tolist() == [2 + FRAMES] * 2


@pytest.mark.parametrize("architecture", CAUSAL)
def test_no_output_depends_on_a_later_frame_or_action(architecture: Architecture) -> None:
    model = baseline(architecture)
    g = torch.Generator().manual_seed(0)
    frames, level = torch.randn(1, FRAMES, 3, 16, 16, generator=g), torch.rand(1, FRAMES, generator=g)
    actions = torch.randint(0, 3, (1, FRAMES - 1), generator=g)
    before = model(frames, level, actions)
    for t in (1, 5, FRAMES - 1):
        changed, other_actions = frames.clone(), actions.clone()
        changed[:, t:] += 1
        other_actions[:, t - 1 :] = 2 - other_actions[:, t - 1 :]
        after = model(changed, level, other_actions)
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(a[:, :t], b[:, :t], rtol=0, atol=1e-5)
            assert (a[:, t:] - b[:, t:]).abs().max() > 1e-4


@pytest.mark.parametrize(("architecture", "remembers"), [(a, a not in ("sliding_transformer",)) for a in CAUSAL])
def test_only_the_sliding_window_forgets_the_first_frame(architecture: Architecture, remembers: bool) -> None:
    # Two layers of a window of 3 reach 6 frames back, and the newest frame is the ninth.
    model, (frames, actions) = baseline(architecture), clip()
    other = frames.clone()
    other[:, 0] = 255 - other[:, 0]
    level = torch.zeros(2, FRAMES)
    first, second = (model(frames_to_model(video), level, actions).frame[:, -1] for video in (frames, other))
    assert ((first - second).abs().max() > 1e-6) == remembers


def test_in_the_bidirectional_window_early_frames_see_later_ones() -> None:
    model, (frames, actions) = baseline("bidirectional"), clip()
    other = frames.clone()
    other[:, -1] = 255 - other[:, -1]
    level = torch.zeros(2, FRAMES)
    first, second = (model(frames_to_model(video), level, actions).frame[:, 0] for video in (frames, other))
    assert (first - second).abs().max() > 1e-4


def test_training_the_bidirectional_transformer_keeps_nothing_for_every_pair_of_tokens() -> None:
    # For 128 segments of 25 frames of 64 tokens that would be 5 GB in each layer, whose tokens are 0.2 GB.
    model, largest = BaselineModel(tiny_config("bidirectional", window=255)), 0

    def measure(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    frames, actions = clip(256, batch=1)
    with torch.autograd.graph.saved_tensors_hooks(measure, lambda tensor: tensor):
        model(frames_to_model(frames), torch.zeros(1, 256), actions).frame.sum().backward()
    num_pairs = (256 * model.config.num_tokens) ** 2
    assert 0 < largest < num_pairs / 2


def test_the_bidirectional_transformer_takes_no_more_than_its_window() -> None:
    model, (frames, actions) = baseline("bidirectional", window=4), clip()
    with pytest.raises(ValueError, match="9 frames given to a bidirectional transformer of 5"):
        model(frames_to_model(frames), torch.zeros(2, FRAMES), actions)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("cached", [0, 1, 3, 4])
@pytest.mark.parametrize("window", [4, None])
def test_attention_over_a_cache_equals_the_dense_reference(frames: int, cached: int, window: int | None) -> None:
    g = torch.Generator().manual_seed(0)
    query = torch.randn(2, frames, 3, 2, 8, generator=g)
    key, value = (torch.randn(2, cached + frames, 3, 2, 8, generator=g) for _ in range(2))
    y = cached_attention(query, key[:, cached:], value[:, cached:], key[:, :cached], value[:, :cached], window)
    expected = local_attention(query, key, value, cached + frames if window is None else window)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


def test_the_log_sum_is_that_of_the_softmax() -> None:
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, length, 8, generator=g) for length in (3, 5, 5))
    y, log_sum = attention_with_log_sum(query, key, value)
    torch.testing.assert_close(y, torch.nn.functional.scaled_dot_product_attention(query, key, value))
    expected = (query @ key.mT / 8**0.5).exp().sum(-1).log()
    torch.testing.assert_close(log_sum, expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(attention_with_log_sum(query, key, value)[1], expected)


def test_a_full_cache_grows_by_steps_and_keeps_what_it_holds() -> None:
    model, (frames, actions) = baseline("causal_transformer"), clip(8)
    sizes = []
    state = model.initial_state(2)
    for t in range(8):
        before = None if t < 2 else state.layers[0].key[:, : t - 1].clone()  # pyright: ignore[reportAttributeAccessIssue]
        state = model.prefill(state, frames[:, t : t + 1], actions[:, max(t - 1, 0) : t])
        key = state.layers[0].key  # pyright: ignore[reportAttributeAccessIssue]
        sizes.append(key.shape[1])
        assert before is None or torch.equal(key[:, : t - 1], before)
    assert sizes == [4, 4, 4, 4, 4, 8, 8, 8]


def test_sliding_and_scanning_baselines_need_the_same_memory_at_every_age() -> None:
    for architecture in ("sliding_transformer", "mamba2", "bidirectional"):
        model, (frames, actions) = baseline(architecture), clip(3)
        state = model.prefill(model.initial_state(2), frames, actions)
        sizes = set()
        for t in range(8):
            _, state = model.step(state, torch.tensor([0, 1]), torch.Generator().manual_seed(t))
            sizes.add(state.num_bytes())
        assert len(sizes) == 1


def test_rows_of_different_age_are_refused() -> None:
    model, (frames, actions) = baseline("causal_transformer"), clip(4)
    state = model.prefill(model.initial_state(2), frames, actions)
    mixed = dataclasses.replace(state, num_committed=torch.tensor([3, 2]))
    with pytest.raises(ValueError, match="rows hold 2 to 3 frames"):
        model.step(mixed, torch.tensor([0, 1]), torch.Generator())


@pytest.mark.parametrize("architecture", ALL)
def test_a_matching_baseline_has_our_number_of_parameters(architecture: Architecture) -> None:
    ours = RECIPES["memory_maze_9x9"]().model
    counts = num_parameters(matching_config(architecture, ours)), num_parameters(ours)
    assert counts[0] == pytest.approx(counts[1], rel=0.03)
    assert counts[1] == sum(p.numel() for p in WorldModel(ours).parameters())


def test_where_layers_are_too_coarse_a_step_the_feed_forward_part_makes_up_for_it() -> None:
    ours = RECIPES["memory_maze_9x9"]().model
    config = matching_config("mamba2", ours)  # 10 or 11 whole layers are 4% off
    assert config.feed_forward_multiplier != ours.feed_forward_multiplier
    assert matching_config("causal_transformer", ours).feed_forward_multiplier == ours.feed_forward_multiplier


def base_with_poses() -> Recipe:
    """Settings that no row knows of."""
    base = RECIPES["memory_maze_9x9"]()
    sizes = {"pose": PLANAR_POSE, "hide_noise": True, "block_sizes": (2, 1, 4, 1, 8, 1), "width": 320}
    model = dataclasses.replace(base.model, **sizes)
    return dataclasses.replace(base, model=model, learning_rate=5e-4, stages=(Stage(800, 4, 0.5), Stage(400, 8, 0.5)))


@pytest.mark.parametrize("base", ["memory_maze_9x9", "memory_maze_9x9_map", "with_poses"])
@pytest.mark.parametrize("name", BASELINE_RECIPES)
def test_rows_of_the_comparison_have_equal_parameters_and_frames(name: str, base: str) -> None:
    ours = base_with_poses() if base == "with_poses" else RECIPES[base]()
    recipe = ROWS[name](ours)
    window, block_size = BASELINE_RECIPES[name]
    assert (recipe.model.pose.kind, recipe.model.hide_noise) == (ours.model.pose.kind, ours.model.hide_noise)
    assert num_parameters(recipe.model) == pytest.approx(num_parameters(ours.model), rel=0.03)
    assert [s.length * s.batch_size for s in recipe.stages] == [s.length * s.batch_size for s in ours.stages]
    assert dataclasses.replace(recipe, model=ours.model, stages=ours.stages) == ours
    if window:
        assert recipe.model.window == window
    if block_size:
        assert set(recipe.model.block_sizes) == {block_size} and not isinstance(recipe.model, BaselineConfig)
    else:
        assert isinstance(recipe.model, BaselineConfig) and recipe.model.map.size == 0


@pytest.mark.parametrize("name", ["causal_transformer_192", "mamba2", "dfot_25"])
def test_a_baseline_trains_by_its_recipe_and_its_checkpoint_loads(tmp_path: Path, name: str) -> None:
    make_toy_store(tmp_path / "store", range(4))
    sizes = {
        "width": 32,
        "scan.head-dim": 16,
        "scan.state-dim": 8,
        "num-attention-heads": 2,
        "block-sizes": "1 1",
        "window": 8,
    }
    options = [f"--recipe.model.{key} {value}" for key, value in sizes.items()]
    options += [f"--recipe.stages.{i}.length 6 --recipe.stages.{i}.batch-size 4" for i in range(3)]
    options += ["--recipe.steps 60 --recipe.warmup-steps 5 --recipe.log-steps 10 --device cpu"]
    out = tmp_path / "run"
    arguments = ["--recipe", name, "--base", "memory_maze_9x9", "--data", str(tmp_path / "store"), "--out", str(out)]
    exported = train(parse_arguments([*arguments, *(word for option in options for word in option.split())]))
    config = BaselineModel.from_checkpoint(str(exported)).config
    assert isinstance(config, BaselineConfig) and config.num_layers == 2
    checkpoint = load_checkpoint(str(exported))
    assert checkpoint.metadata["name"] == name
    assert model_type(checkpoint.config) is BaselineModel
    assert model_type(WorldModelConfig().to_dict()) is WorldModel
    with pytest.raises(ValueError, match="architecture"):
        WorldModel.from_checkpoint(str(exported))


@pytest.mark.parametrize("architecture", ALL)
def test_a_few_steps_lower_the_loss(architecture: Architecture) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_config(architecture)).train()
    frames, actions = clip(6, batch=4)
    target = frames_to_model(frames)
    level = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) / 2
    noisy = torch.lerp(target, torch.randn(target.shape), level[:, :, None, None, None])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = (model(noisy, level, actions).frame - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "event_head" not in name)


@pytest.mark.parametrize(
    ("name", "base", "message"),
    [
        ("tiny", "tiny", "of its own"),
        ("mamba3", "", "no recipe 'mamba3'"),
        ("mamba2", "causal_transformer", "no recipe"),
    ],
)
def test_a_name_or_base_that_there_is_not_is_refused(name: str, base: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_recipe(name, base)


def test_mamba_modules_say_what_to_install() -> None:
    if torch.cuda.is_available():
        pytest.skip("mamba-ssm may be installed here")
    with pytest.raises(ImportError, match="install them with pip install"):
        with_mamba_modules(tiny_model())


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [1, 2])
def test_mamba_modules_dream_what_our_scan_dreams(groups: int) -> None:
    ours = tiny_model(width=64, scan=ScanConfig(head_dim=32, state_dim=16, num_groups=groups)).cuda()
    theirs = with_mamba_modules(ours)
    frames, actions = (z.cuda() for z in clip(5))
    state = ours.prefill(ours.initial_state(2), frames, actions)
    other = state.clone()
    action = torch.tensor([0, 1], device="cuda")
    for t in range(4):
        first, state = ours.step(state, action, torch.Generator().manual_seed(t))
        second, other = theirs.step(other, action, torch.Generator().manual_seed(t))
        assert (first.frame - second.frame).norm() <= 2e-2 * first.frame.norm()
    for name, tensor in state.to_tensors().items():
        difference = (tensor.float() - other.to_tensors()[name].float()).norm()
        # The kernels round products to TF32; four dreamed frames later an H200 had 2.4%.
        assert difference <= 4e-2 * tensor.float().norm() + 1e-6, name


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ALL)
def test_on_a_gpu_flash_attention_over_the_cache_equals_the_training_pass(architecture: Architecture) -> None:
    model, (frames, actions) = baseline(architecture).cuda(), (z.cuda() for z in clip())
    level = torch.zeros(2, FRAMES, device="cuda")
    state = frame_by_frame(model, frames[:, :-1], actions[:, :-1])
    prediction = model.denoise(state, frames_to_model(frames[:, -1]), level[:, -1], actions[:, -1])
    cpu = baseline(architecture)
    expected = cpu(frames_to_model(frames.cpu()), level.cpu(), actions.cpu()).frame[:, -1]
    assert (prediction.frame.cpu() - expected).norm() <= 5e-2 * expected.norm()  # bfloat16 against float32
