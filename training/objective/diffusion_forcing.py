"""The training loss: diffusion forcing on frames, classification of rewards, detection of terminations.

Diffusion forcing (Chen et al. 2024, arXiv 2407.01392): every frame has its own, independent noise level. Long-context
training (Po et al. 2025, arXiv 2505.20171, section 3.3): half of the sequences begin with a perfectly clean prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.dataset import Batch
from training.data.pose_input import model_poses
from training.objective.config import LossConfig
from training.objective.metrics import Metrics, masked, single
from training.objective.mirror import mirror
from training.objective.options.hooks import NO_OPTION, LossTerms, TrainingOption
from training.objective.revisits import Turns, no_turns, turn_round
from training.objective.scattered import scatter
from training.objective.scheduled_sampling import after, continued_by_own_frames, scattered_own_frames
from wm_gym.array_typing import FrameMask, ModelFrames, NoiseLevels, Poses
from wm_gym.codec import frames_to_model
from wm_gym.flow import add_noise, expand_level
from wm_gym.nn.backbone import Output
from wm_gym.world_model import WorldModel, WorldModelConfig


@dataclass(frozen=True)
class ClassWeights:
    """Loss weights from the frequencies in the data; the commonest class has weight 1."""

    reward_values: Tensor  # [R], the reward of each class
    reward: Tensor  # [R]
    termination: Tensor  # [], of a terminal transition


def class_weights(rewards: Tensor, terminations: Tensor, values: Sequence[float], config: LossConfig) -> ClassWeights:
    """Weights ``min(sqrt(frequency of the commonest class / frequency), max_class_weight)``.

    Args:
        rewards: float, any shape: all rewards of the data.
        terminations: bool, any shape.
        values: the reward of each class.

    Raises:
        ValueError: if a reward is none of ``values``.
    """
    values_tensor = torch.tensor(values, device=rewards.device)
    classes = reward_classes(rewards, values_tensor)
    unknown = (rewards - values_tensor[classes]).abs() > 1e-4
    if unknown.any():
        found = rewards[unknown].unique()[:5].tolist()
        raise ValueError(
            f"The data has rewards {', '.join(f'{reward:g}' for reward in found)}, which are not among the model's "
            f"reward_values {tuple(values)}; set reward_values to all rewards that occur."
        )
    reward_counts = torch.bincount(classes.flatten(), minlength=len(values))
    num_terminal = terminations.sum()
    termination_counts = torch.stack([terminations.numel() - num_terminal, num_terminal])
    return ClassWeights(values_tensor, _weights(reward_counts, config), _weights(termination_counts, config)[1])


def _weights(counts: Tensor, config: LossConfig) -> Tensor:
    # A class without examples has no loss; weight 1 keeps its logit where the initialisation put it.
    ratio = counts.max() / counts.clamp(min=1)
    return torch.where(counts > 0, ratio.sqrt().clamp(max=config.max_class_weight), 1.0)


def reward_classes(rewards: Tensor, values: Tensor) -> Tensor:
    """Index of the nearest of ``values`` [R] for each reward; int64 of the same shape as ``rewards``."""
    return (rewards.unsqueeze(-1) - values).abs().argmin(-1)


def sample_prefixes(
    batch: int, length: int, config: LossConfig, generator: torch.Generator, turns: Turns | None = None
) -> Tensor:
    """Lengths of clean prefixes, int64 [batch], 0 for none: between the shortest and the longest, or up to its turn."""
    device = generator.device
    has_prefix, position = torch.rand(2, batch, generator=generator, device=device)
    shortest = int(config.shortest_prefix * length) + 1
    longest = min(int(config.longest_prefix * length), length - 1)  # a frame remains
    prefix = shortest + (position * max(longest + 1 - shortest, 0)).long()
    if turns is not None:
        prefix = torch.where(turns.first_revisit < length, turns.first_revisit, prefix)
    return torch.where((has_prefix < config.prefix_probability) & (shortest < length), prefix, 0)


def sample_noise_levels(
    batch: int, length: int, config: LossConfig, generator: torch.Generator, prefixes: Tensor | None = None
) -> NoiseLevels:
    """Noise levels [batch, length] on the generator's device: a mixture per frame, 0 on the prefixes.

    Args:
        prefixes: as `sample_prefixes` gives them; None draws them.
    """
    device = generator.device
    if prefixes is None:
        prefixes = sample_prefixes(batch, length, config, generator)
    kind, uniform = torch.rand(2, batch, length, generator=generator, device=device)
    level = torch.where(kind < config.clean_fraction, uniform * config.clean_level, uniform)
    level = torch.where(kind >= 1 - config.pure_noise_fraction, 1.0, level)
    if config.noise_after_prefix > 0:
        only_noise = torch.rand(batch, generator=generator, device=device) < config.noise_after_prefix
        level = torch.where((only_noise & (prefixes > 0))[:, None], 1.0, level)
    return torch.where(after(prefixes, length), level, 0.0)


def world_model_loss(
    model: WorldModel,
    batch: Batch,
    config: LossConfig,
    generator: torch.Generator,
    weights: ClassWeights,
    self_context: float = 0.0,
    mean_over_processes: Callable[[Tensor], Tensor] = lambda value: value,
    option: TrainingOption = NO_OPTION,
) -> tuple[Tensor, Metrics]:
    """Loss of one batch, and metrics that stay on the device.

    Args:
        generator: on the model's device; draws noise levels and noise.
        weights: from `class_weights`, on the model's device.
        self_context: probability of a frame that the model has predicted to replace the real one in the clean context,
            which trains the model to go on from its own frames (scheduled sampling, arXiv 1506.03099); with
            `own_generations`, also of a sequence with a prefix to go on with nothing else. Costs a pass without
            gradients for each generation if above 0.
        mean_over_processes: of a number on the device. What the loss divides by is averaged with it, so that the mean
            of all processes' gradients is that of one process with the whole batch.
        option: may change the pass and the loss.
    """
    forward = option.forward_pass(model)
    batch, turns = _augmented(batch, config, generator, model.config)
    frames, poses = frames_to_model(batch.frames), model_poses(model.config, batch.pose)
    size, length = frames.shape[:2]
    prefixes = sample_prefixes(size, length, config, generator, turns)
    context = frames
    if self_context > 0:
        context = _own_context(forward, batch, frames, poses, prefixes, config, generator, self_context)
    levels = sample_noise_levels(size, length, config, generator, prefixes)
    is_target = levels > config.min_frame_level
    noisy = _noisy(torch.where(expand_level(is_target, frames), frames, context), levels, generator)
    output = forward(noisy, levels, batch.actions, poses)

    squared_error = (output.frame.float() - frames).square().mean((2, 3, 4))
    num_targets = mean_over_processes(is_target.sum().float()).clamp(min=1e-6)
    frame_errors = option.frame_errors(output.frame, frames)
    frame_loss = ((squared_error if frame_errors is None else frame_errors) * is_target).sum() / num_targets
    reward_loss, termination_loss, event_metrics = _event_losses(
        output, batch, levels, turns, config, weights, mean_over_processes
    )
    option.after_loss(squared_error.detach(), is_target)
    loss = option.combine_losses(LossTerms(frame_loss, reward_loss, termination_loss))
    if loss is None:
        loss = frame_loss + config.reward_weight * reward_loss + config.termination_weight * termination_loss
    metrics = {"loss": single(loss), "mse": single(frame_loss)}
    metrics |= _frame_metrics(squared_error.detach(), levels, is_target, turns.is_revisit)
    metrics |= event_metrics | option.metrics()
    if (further := option.further_loss()) is not None:
        loss, metrics = loss + further[0], metrics | further[1]
    return loss, metrics


def _augmented(
    batch: Batch, config: LossConfig, generator: torch.Generator, model: WorldModelConfig
) -> tuple[Batch, Turns]:
    """The batch, parts of it in a mirror, turned round or in pieces as the settings say."""
    size, length = batch.frames.shape[:2]
    turns = no_turns(size, length, batch.frames.device)
    if config.mirror_probability > 0:
        batch = mirror(batch, config.mirror_probability, config.mirrored_actions, generator)
    if config.revisit_probability > 0:
        if not model.has_poses:
            raise ValueError("revisit_probability is above 0, but only a model that is given poses can be led back.")
        batch, turns = turn_round(batch, config.revisit_probability, generator)
    if config.scatter_probability > 0:
        if not (model.has_poses and model.pose.hide_actions):
            raise ValueError("scatter_probability is above 0, but only a model with poses and no actions may jump.")
        batch, turns = scatter(batch, turns, config.scatter_probability, generator)
    return batch, turns


def _own_context(
    model: WorldModel,
    batch: Batch,
    frames: ModelFrames,
    poses: Poses | None,
    prefixes: Tensor,
    config: LossConfig,
    generator: torch.Generator,
    probability: float,
) -> ModelFrames:
    """`frames`, of which some are the model's own: see `training.objective.scheduled_sampling`."""

    def predict(shown: ModelFrames, levels: NoiseLevels) -> ModelFrames:
        with torch.no_grad():
            frame = model(_noisy(shown, levels, generator), levels, batch.actions, poses).frame
        # Some earlier versions of PyTorch take weights that were cast here for the pass with gradients, too.
        torch.clear_autocast_cache()
        return frame.float().clamp(-1, 1)

    size, length = frames.shape[:2]
    if config.own_generations == 0:
        levels = sample_noise_levels(size, length, config, generator)
        return scattered_own_frames(predict, frames, levels, probability, generator)
    levels = sample_noise_levels(size, length, config, generator, prefixes)
    return continued_by_own_frames(predict, frames, levels, prefixes, probability, config.own_generations, generator)


def _noisy(frames: ModelFrames, levels: NoiseLevels, generator: torch.Generator) -> ModelFrames:
    noise = torch.randn(frames.shape, generator=generator, device=frames.device)
    return add_noise(frames, noise, levels)


def _event_losses(
    output: Output,
    batch: Batch,
    levels: NoiseLevels,
    turns: Turns,
    config: LossConfig,
    weights: ClassWeights,
    mean_over_processes: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Metrics]:
    """The losses of rewards and terminations, where sequences have not turned round, and their metrics."""
    counted = ~turns.is_revisit[:, 1:]
    logits = output.reward_logits[:, 1:].float()
    reward, metrics = _reward_loss(logits, batch.rewards, levels[:, 1:], counted, config, weights, mean_over_processes)
    logits = output.termination_logits[:, 1:].float()
    termination = _termination_loss(logits, batch.terminations, counted, config, weights.termination)
    return reward, termination, {"reward/loss": single(reward), **metrics, "termination/loss": single(termination)}


def _reward_loss(
    logits: Tensor,
    rewards: Tensor,
    levels: NoiseLevels,
    counted: FrameMask,
    config: LossConfig,
    weights: ClassWeights,
    mean_over_processes: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Metrics]:
    """Weighted cross-entropy, with precision and recall of rewards other than 0 on frames of pure noise.

    Weights alone would make the rare class too eager: they multiply its odds. The logits are shifted by what the
    weights do in the optimum, so that the class of the highest logit is right without them, up to `rare_class_odds`.
    """
    target = reward_classes(rewards, weights.reward_values)
    shifted = logits + _logit_shift(weights.reward, config)
    each = F.cross_entropy(shifted.flatten(0, 1), target.flatten(), weight=weights.reward, reduction="none")
    total = (each * counted.flatten()).sum()
    loss = total / mean_over_processes((weights.reward[target] * counted).sum()).clamp(min=1e-6)
    is_noise = (levels == 1) & counted
    said, true = weights.reward_values[logits.argmax(-1)] != 0, weights.reward_values[target] != 0
    hits = (said & true & is_noise).sum()
    metrics = {
        "reward/precision": torch.stack([hits, (said & is_noise).sum()]),
        "reward/recall": torch.stack([hits, (true & is_noise).sum()]),
    }
    return loss, metrics


def _termination_loss(
    logits: Tensor, terminations: Tensor, counted: FrameMask, config: LossConfig, weight: Tensor
) -> Tensor:
    target = terminations.to(logits.dtype)
    shifted = logits + _logit_shift(weight, config)
    each = torch.where(terminations, weight, 1.0) * counted
    return F.binary_cross_entropy_with_logits(shifted, target, weight=each)


def _logit_shift(weight: Tensor, config: LossConfig) -> Tensor:
    """0 for a class of weight 1; log(weight / rare_class_odds) for a rare one."""
    return (weight / config.rare_class_odds).clamp(min=1).log()


def _frame_metrics(
    squared_error: NoiseLevels, levels: NoiseLevels, is_target: FrameMask, is_revisit: FrameMask
) -> Metrics:
    # The range [-1, 1] is 2 wide: PSNR = 10 log10(2^2 / MSE).
    psnr = 10 * torch.log10(4 / squared_error.clamp(min=1e-6))
    from_noise = levels == 1
    return {
        "psnr/from_noise": masked(psnr, from_noise),
        "psnr/from_middle_levels": masked(psnr, is_target & ~from_noise),
        "psnr/revisited_from_noise": masked(psnr, from_noise & is_revisit),
    }
