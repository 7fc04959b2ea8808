"""Options of a training run, one file each, behind the hook of `training.objective.options.hooks`.

All of them are off by default. None that is about memory recalled better in its own trial (docs/results/trials.json);
they stay for those who want to try the sources that each file cites. A new option is a file with its settings and its
`TrainingOption`, and a field below; trainer, loss and run state name none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from training.objective.options.carried_states import CarriedStatesSettings
from training.objective.options.distilled_steps import DistilledStepsSettings
from training.objective.options.hooks import ActiveOptions, OptionContext, OptionSettings
from training.objective.options.learned_weights import LearnedWeightsSettings
from training.objective.options.memory_replay import MemoryReplaySettings
from training.objective.options.stochastic_depth import StochasticDepthSettings

# Flags of the recipe before options were nested -> flags now. The earlier ones go with release 0.3.
EARLIER_FLAGS: dict[str, str] = {
    "--recipe.attention-drop": "--recipe.options.stochastic-depth.probability",
    "--recipe.carried-frames": "--recipe.options.carried-states.part-frames",
    "--recipe.state-reconstruction": "--recipe.options.carried-states.reconstruction-weight",
    "--recipe.memory-replay": "--recipe.options.memory-replay.fraction",
    "--recipe.replay-segments": "--recipe.options.memory-replay.num-segments",
    "--recipe.loss.learned-weights": "--recipe.options.learned-weights.enabled",
    "--recipe.loss.no-learned-weights": "--recipe.options.learned-weights.no-enabled",
}


@dataclass(frozen=True)
class Options:
    """Settings of all options of a recipe."""

    distilled_steps: DistilledStepsSettings = field(default_factory=DistilledStepsSettings)
    carried_states: CarriedStatesSettings = field(default_factory=CarriedStatesSettings)
    memory_replay: MemoryReplaySettings = field(default_factory=MemoryReplaySettings)
    learned_weights: LearnedWeightsSettings = field(default_factory=LearnedWeightsSettings)
    stochastic_depth: StochasticDepthSettings = field(default_factory=StochasticDepthSettings)

    def active(self) -> dict[str, OptionSettings]:
        """The settings of those that are switched on, by name."""
        return {name: settings for name, settings in vars(self).items() if settings.is_on}

    def check(self, batch_sizes: set[int]) -> None:
        """Raises ValueError for settings that cannot be meant, given the batch sizes of the recipe's stages."""
        for settings in vars(self).values():
            settings.check(batch_sizes)

    def build(self, context: OptionContext) -> ActiveOptions:
        """Returns the options of a new run.

        Raises:
            ValueError: an option that the model has no use for.
        """
        return ActiveOptions({name: settings.build(context) for name, settings in self.active().items()})


def sampling_options() -> Options:
    """Options with which one pass learns to sample."""
    return Options(distilled_steps=DistilledStepsSettings(denoising_steps=3))
