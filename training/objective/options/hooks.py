"""The one hook between a training run and its options.

A step of a run calls, in this order: `batch`; then, within `step_context`, `forward_pass`, `frame_errors`,
`combine_losses`, `after_loss`, `further_loss` and `metrics` (all from
`training.objective.diffusion_forcing.world_model_loss`) and the backward pass; and, once the optimizer has moved the
weights, `after_step`. Checkpoints of the run keep `state_dict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from training.data.dataset import Batch
from training.data.loader import BatchLoader
from training.objective.config import LossConfig
from training.objective.metrics import Metrics
from wm_gym.array_typing import FrameMask, ModelFrames, NoiseLevels
from wm_gym.world_model import WorldModel


class LossTerms(NamedTuple):
    """The parts of the loss, each a number ``[]``."""

    frame: Tensor
    reward: Tensor
    termination: Tensor


@dataclass(frozen=True)
class OptionContext:
    """What an option may build on when a run starts."""

    model: WorldModel  # on its device
    generator: torch.Generator  # of the run's noise, on the same device
    loss: LossConfig
    has_rewards: bool  # whether the data has more than one reward ...
    has_terminations: bool  # ... and any termination


class TrainingOption:
    """One option of a training run, which overrides the hooks that it needs. As it stands it changes nothing."""

    learning_rate_factor: float = 1.0  # of its own parameters, relative to the model's

    def batch(self, loader: BatchLoader, step: int, batch_size: int, length: int) -> Batch | None:
        """Returns the batch of a step on the model's device; None leaves it to `loader`."""
        return None

    def step_context(self, batch_size: int) -> AbstractContextManager[Any]:
        """Returns a context that lasts from the first forward pass of a step to the end of its backward pass."""
        return nullcontext()

    def forward_pass(self, model: WorldModel) -> WorldModel:
        """Returns what takes the model's place in the loss."""
        return model

    def combine_losses(self, terms: LossTerms) -> Tensor | None:
        """Returns one loss of three; None weighs them as `LossConfig` says."""
        return None

    def frame_errors(self, predicted: ModelFrames, target: ModelFrames) -> NoiseLevels | None:
        """Returns the loss of each frame ``[B, T]``; None leaves it to the squared error."""
        return None

    def after_loss(self, squared_error: NoiseLevels, is_target: FrameMask) -> None:
        """Receives the mean squared error of each frame of the batch, without gradient, and which frames count."""

    def further_loss(self) -> tuple[Tensor, Metrics] | None:
        """Returns what is added to the loss of the step, with its metrics, or None."""
        return None

    def metrics(self) -> Metrics:
        """Returns what the run's log shows of the option."""
        return {}

    def after_step(self) -> None:
        """Runs after the optimizer has moved all weights."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Returns parameters of the option's own, which the run's optimizer moves and no exported model has."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Returns all that a checkpoint of the run must keep of this process; shapes are equal in all processes."""
        return {}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what `state_dict` returned."""


NO_OPTION = TrainingOption()


class OptionSettings(Protocol):
    """The frozen dataclass of one option's settings, which is a field of `training.objective.options.Options`."""

    @property
    def is_on(self) -> bool:
        """Whether a run has the option at all."""
        ...

    def check(self, batch_sizes: set[int]) -> None:
        """Raises ValueError for settings that cannot be meant, given the batch sizes of the recipe's stages."""
        ...

    def build(self, context: OptionContext) -> TrainingOption:
        """Returns the option of a new run. Raises ValueError where the model has no use for it."""
        ...


class ActiveOptions(TrainingOption):
    """All options of a run behind the hook of one; by name, under which their tensors are kept.

    Where several options give a batch or combine the losses, the first one does.
    """

    def __init__(self, options: Mapping[str, TrainingOption] | None = None) -> None:
        self._options = dict(options or {})

    def batch(self, loader: BatchLoader, step: int, batch_size: int, length: int) -> Batch:
        """The batch of a step, from the first option that has one, else from `loader`."""
        for option in self._options.values():
            if (batch := option.batch(loader, step, batch_size, length)) is not None:
                return batch
        return loader.batch(step, batch_size, length)

    def step_context(self, batch_size: int) -> AbstractContextManager[Any]:
        """The contexts of all options, one within the other."""
        with ExitStack() as stack:
            for option in self._options.values():
                stack.enter_context(option.step_context(batch_size))
            return stack.pop_all()

    def forward_pass(self, model: WorldModel) -> WorldModel:
        """The model as all options change it, one after the other."""
        for option in self._options.values():
            model = option.forward_pass(model)
        return model

    def combine_losses(self, terms: LossTerms) -> Tensor | None:
        """One loss, from the first option that combines them."""
        combined = (option.combine_losses(terms) for option in self._options.values())
        return next((loss for loss in combined if loss is not None), None)

    def frame_errors(self, predicted: ModelFrames, target: ModelFrames) -> NoiseLevels | None:
        """The losses of all frames, from the first option that has them."""
        errors = (option.frame_errors(predicted, target) for option in self._options.values())
        return next((each for each in errors if each is not None), None)

    def after_loss(self, squared_error: NoiseLevels, is_target: FrameMask) -> None:
        """Shows all options the errors of a batch."""
        for option in self._options.values():
            option.after_loss(squared_error, is_target)

    def further_loss(self) -> tuple[Tensor, Metrics] | None:
        """The sum of what options add."""
        further = [each for option in self._options.values() if (each := option.further_loss()) is not None]
        if not further:
            return None
        metrics: Metrics = {}
        for _, each in further:
            metrics |= each
        return torch.stack([loss for loss, _ in further]).sum(), metrics

    def metrics(self) -> Metrics:
        """Those of all options."""
        return {name: value for option in self._options.values() for name, value in option.metrics().items()}

    def after_step(self) -> None:
        """Tells all options."""
        for option in self._options.values():
            option.after_step()

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Those of all options, as OPTION.NAME."""
        return {
            f"{name}.{key}": parameter
            for name, option in self._options.items()
            for key, parameter in option.named_parameters().items()
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of an optimizer for options that have parameters; `learning_rate_factor` is read by the trainer."""
        return [
            {"params": parameters, "weight_decay": 0.0, "learning_rate_factor": option.learning_rate_factor}
            for option in self._options.values()
            if (parameters := list(option.named_parameters().values()))
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """Those of all options, as OPTION.NAME."""
        return {
            f"{name}.{key}": tensor
            for name, option in self._options.items()
            for key, tensor in option.state_dict().items()
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Gives each option its own tensors."""
        for name, option in self._options.items():
            prefix = f"{name}."
            own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            option.load_state_dict(own)
