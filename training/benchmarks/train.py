"""How fast a training step is: ``python -m training.benchmarks.train --out docs/results/training_speed.json`` (on a
GPU).

The model and batch of a recipe's stage on random data, which cost what real data cost. Each variant is first compared
with the plain network in float32 on the CPU, outputs and gradients, then timed.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from training.baselines.recipes import make_recipe
from training.data.dataset import Batch
from training.loop.distributed import Processes
from training.loop.ema import ExponentialMovingAverage
from training.loop.run_state import RunState
from training.loop.step import make_optimizer, prepare_gpu, train_step
from training.objective.diffusion_forcing import class_weights
from training.recipes import Recipe, Stage
from wm_gym.files import write_json
from wm_gym.nn.backbone import Backbone
from wm_gym.provenance import command_arguments, provenance
from wm_gym.world_model import WorldModel


@dataclass(frozen=True)
class BenchTrain:
    """Measures training steps."""

    out: Path
    """JSON file of the results."""
    variants: tuple[str, ...] = ("plain", "fused")
    """What to compare, see VARIANTS."""
    recipe: str = "memory_maze_9x9_continued"
    """Whose model and stage."""
    stage: int = 0
    """Index of the recipe's stage."""
    steps: int = 20
    """Timed steps; the median counts."""
    profile: Path | None = None
    """Text file for the kernels of a step of each variant, longest first."""
    parity_frames: int = 24
    """Frames of the comparison with float32."""
    seed: int = 0
    """Of weights, data and noise."""


def _plain(model: WorldModel) -> None:
    model.backbone.use_fused_kernels = False


def _checkpointed(model: WorldModel) -> None:
    model.backbone.checkpoint_layers = True


VARIANTS: dict[str, Callable[[WorldModel], None]] = {
    "plain": _plain,
    "fused": lambda model: None,
    "checkpointed": _checkpointed,
}


def main(config: BenchTrain) -> None:
    """The command."""
    if not torch.cuda.is_available():
        raise SystemExit("training.benchmarks.train needs a CUDA device.")
    recipe = make_recipe(config.recipe)
    stage = recipe.stages[config.stage]
    results: dict[str, Any] = {}
    text = ""
    for name in config.variants:
        torch.compiler.reset()
        try:
            errors = parity(recipe, name, config)
            timing, kernels = measure(recipe, stage, name, config)
            results[name] = timing | {"relative_error": errors}
            text += f"== {name}\n{kernels}\n"
        except Exception as error:  # another variant may still work, and a machine is lent for minutes only
            traceback.print_exc()
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        print(f"{name}: {results[name]}", flush=True)
        torch.cuda.empty_cache()
    report = {
        **provenance("training.benchmarks.train", command_arguments()),
        "seed": config.seed,
        "recipe": config.recipe,
        "stage": dataclasses.asdict(stage),
        "variants": results,
    }
    write_json(config.out, report)
    if config.profile is not None:
        config.profile.write_text(text)


def parity(recipe: Recipe, variant: str, config: BenchTrain) -> dict[str, float]:
    """Relative errors in bf16 against the plain network in float32: of the outputs, and of all and the worst gradients.

    Weights are moved away from their initial values, where many gradients are 0.
    """
    torch.manual_seed(config.seed)
    reference = WorldModel(recipe.model)
    for parameter in reference.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    model = WorldModel(recipe.model)
    model.load_state_dict(reference.state_dict())
    VARIANTS[variant](model)
    model.cuda()
    expected, expected_gradients = _outputs_and_gradients(reference.backbone, config)
    with torch.autocast("cuda", torch.bfloat16):
        actual, gradients = _outputs_and_gradients(model.backbone, config)
    scale = max(gradient.norm() for gradient in expected_gradients.values()) * 1e-3
    each = {
        name: float((gradients[name] - wanted).norm() / wanted.norm().clamp(min=scale))
        for name, wanted in expected_gradients.items()
    }
    total, wanted = (torch.cat([g.flatten() for g in many.values()]) for many in (gradients, expected_gradients))
    worst = max(each, key=lambda name: each[name])
    print(f"{variant}: worst gradients", sorted(each.items(), key=lambda item: -item[1])[:4], flush=True)
    return {
        "output": float((actual - expected).norm() / expected.norm()),
        "gradient": float((total - wanted).norm() / wanted.norm()),
        "worst_gradient": each[worst],
    }


def _outputs_and_gradients(backbone: Backbone, config: BenchTrain) -> tuple[Tensor, dict[str, Tensor]]:
    c = backbone.config
    device = next(backbone.parameters()).device
    generator = torch.Generator().manual_seed(config.seed)
    shape = (2, config.parity_frames)
    frames = torch.randn(*shape, c.frame_channels, c.frame_height, c.frame_width, generator=generator)
    levels = torch.rand(*shape, generator=generator)
    actions = torch.randint(c.action_size, shape, generator=generator)
    has_action = torch.rand(*shape, generator=generator) < 0.9
    output, _ = backbone(*(x.to(device) for x in (frames, levels, actions, has_action)), None)
    flat = torch.cat([part.float().flatten() for part in output])
    (flat * torch.randn(flat.shape, generator=generator).to(device)).sum().backward()
    gradients = {name: p.grad.cpu() for name, p in backbone.named_parameters() if p.grad is not None}
    return flat.detach().cpu(), gradients


def measure(recipe: Recipe, stage: Stage, variant: str, config: BenchTrain) -> tuple[dict[str, float], str]:
    """Time and memory of a step, and a table of its kernels."""
    device = torch.device("cuda")
    torch.manual_seed(config.seed)
    model = WorldModel(recipe.model).to(device).train()
    VARIANTS[variant](model)
    prepare_gpu(model, compile_parts=True)
    state = RunState(
        model=model,
        ema=ExponentialMovingAverage(dict(model.named_parameters()), recipe.ema_decay),
        optimizer=make_optimizer(model, recipe, device),
        noise_generator=torch.Generator(device).manual_seed(config.seed),
    )
    batch = random_batch(recipe, stage, device)
    weights = class_weights(
        batch.rewards.flatten(), batch.terminations.flatten(), recipe.model.reward_values, recipe.loss
    )
    processes = Processes(0, 1, device, None)
    losses = []

    def step() -> None:
        losses.append(train_step(state, batch, recipe, stage, weights, 1e-4, processes)["loss"])

    started = time.perf_counter()
    step()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    for _ in range(4):
        step()
    torch.cuda.reset_peak_memory_stats()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(config.steps + 1)]
    started = time.perf_counter()
    for event in events[:-1]:
        event.record()
        step()
    events[-1].record()
    launched = time.perf_counter() - started
    torch.cuda.synchronize()
    milliseconds = statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events))
    timing = {
        "milliseconds": milliseconds,
        "frames_per_second": stage.batch_size * stage.length / milliseconds * 1e3,
        "launch_milliseconds": launched / config.steps * 1e3,
        "gigabytes": torch.cuda.max_memory_allocated() / 1e9,
        "first_step_seconds": first,
        "first_loss": float(losses[0][0]),
        "last_loss": float(losses[-1][0]),
    }
    return timing, kernel_table(step)


def random_batch(recipe: Recipe, stage: Stage, device: torch.device) -> Batch:
    """A batch of noise, of the shapes of real data."""
    c = recipe.model
    shape, transitions = (stage.batch_size, stage.length), (stage.batch_size, stage.length - 1)
    return Batch(
        frames=torch.randint(256, (*shape, c.frame_height, c.frame_width, c.frame_channels), device=device).byte(),
        actions=torch.randint(c.action_size, transitions, device=device),
        rewards=(torch.rand(transitions, device=device) < 0.01).float(),
        terminations=torch.zeros(transitions, dtype=torch.bool, device=device),
        pose=torch.zeros(*shape, 0, device=device),
    )


def kernel_table(step: Callable[[], None], num_steps: int = 2) -> str:
    """Milliseconds per step, share, launches and name of each kernel."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for _ in range(num_steps):
            step()
        torch.cuda.synchronize()
    kernels = [e for e in recorded.key_averages() if str(e.device_type).endswith("CUDA")]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in kernels)
    lines = [f"{total / num_steps / 1e3:.2f} ms of kernels per step"]
    lines += [
        f"{e.self_device_time_total / num_steps / 1e3:8.3f} ms {100 * e.self_device_time_total / total:5.1f}% "
        f"n={e.count // num_steps:4d} {e.key[:140]}"
        for e in kernels[:60]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(BenchTrain))
