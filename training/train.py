"""Trains a world model: ``python -m training.train --recipe NAME --data STORE --out RUN [--recipe.FIELD VALUE ...]``.

Under torchrun the batch of each process adds up. The same command again goes on with the run in RUN, exactly where its
latest checkpoint is. RUN/model.safetensors has the averaged weights, for `wm_gym`; RUN/logs is for TensorBoard.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from training.baselines import build_model
from training.baselines.recipes import ROWS, make_recipe
from training.data.dataset import EpisodeDataset
from training.data.loader import BatchLoader, open_dataset
from training.loop.distributed import Processes, start_processes
from training.loop.ema import ExponentialMovingAverage
from training.loop.initialisation import set_memory_length
from training.loop.run_log import RunLog
from training.loop.run_state import RunState, checkpoints, load_data_seeds, load_run_state, save_run_state
from training.loop.step import (
    MetricSums,
    export_model,
    load_initial_weights,
    make_optimizer,
    model_config,
    prepare_gpu,
    train_step,
)
from training.objective.diffusion_forcing import ClassWeights, class_weights
from training.objective.options import EARLIER_FLAGS
from training.objective.options.hooks import OptionContext
from training.recipes import RECIPES, Recipe, Stage
from training.store.episode_store import open_store

# Fields of a recipe that may change when a run goes on: they decide what is written and when, not what is computed.
FREE_FIELDS = (
    "log_steps",
    "checkpoint_minutes",
    "checkpoint_steps",
    "num_checkpoints",
    "export_dtype",
    "refresh_minutes",
)
# Steps between agreements of several processes about time and stop requests; each costs a round trip on the host.
AGREEMENT_STEPS = 10


@dataclass(frozen=True)
class Arguments:
    """Trains a world model on a store of episodes. `--recipe NAME` chooses the defaults of the `--recipe.…` fields; for
    a row of the comparison (training.baselines.recipes.ROWS) `--base NAME` is the recipe that it changes."""

    data: Path  # store written by training.collect
    out: Path  # folder of the run; an existing run goes on
    recipe: Recipe
    init: str | None = None  # start a new run from the weights of this wm_gym checkpoint
    device: str = "auto"  # "auto" takes the GPU if there is one
    data_device: Literal["auto", "cuda", "cpu", "stream"] = "auto"
    """Memory that keeps all frames: each GPU's, or the host's; "stream" reads them from the store as they are needed;
    "auto" takes the memory of --device if they fit, else streams. The batches are the same."""
    data_threads: int = 8  # that read frames
    compile: bool = True  # compile layers; GPU only
    stop_after_minutes: float = 0.0  # end this session with a checkpoint, schedules unchanged; 0: no limit
    stop_after_steps: int = 0  # likewise, after so many steps of this session
    recipe_name: tyro.conf.Suppress[str] = ""


def parse_arguments(argv: Sequence[str]) -> Arguments:
    names = argparse.ArgumentParser(prog="python -m training.train", add_help=False, allow_abbrev=False)
    names.add_argument("--recipe", choices=sorted([*RECIPES, *ROWS]), required=True)
    names.add_argument("--base", choices=sorted(RECIPES), default="")
    chosen, rest = names.parse_known_args(with_flags_of_now(argv))
    recipe = make_recipe(chosen.recipe, chosen.base)
    default: Any = Arguments(tyro.MISSING, tyro.MISSING, recipe, recipe_name=chosen.recipe)
    return tyro.cli(Arguments, args=rest, default=default, prog="python -m training.train", description=__doc__)


def with_flags_of_now(argv: Sequence[str]) -> list[str]:
    """Replaces earlier names of flags, each with a DeprecationWarning."""
    renamed = []
    for word in argv:
        flag, separator, value = word.partition("=")
        now = EARLIER_FLAGS.get(flag.replace("_", "-"), flag)
        if now != flag:
            warnings.warn(f"{flag} is now {now}; the earlier name goes with the next release.", DeprecationWarning, 2)
        renamed.append(now + separator + value)
    return renamed


def train(arguments: Arguments) -> Path:
    """Runs or goes on with a training run; returns the path of the exported model.

    Raises:
        FileNotFoundError, ValueError: for wrong data or settings, before anything is written.
        FloatingPointError: if the loss is not finite.
        MemoryError: if the GPU has not enough memory.
    """
    started, recipe, folder = time.monotonic(), arguments.recipe, arguments.out / "checkpoints"
    with start_processes(arguments.device) as processes, stop_requests() as requests, ExitStack() as stack:
        existing = checkpoints(folder)
        loader = stack.enter_context(closing(open_loader(arguments, processes, existing[-1] if existing else None)))
        dataset = loader.dataset
        state = new_state(arguments, dataset, processes)
        settings = run_settings(arguments, dataset, processes)
        if existing:
            load_run_state(existing[-1], state, settings, processes)
        last_good = existing[-1] if existing else None
        first_step, minutes_before = state.step, state.elapsed_minutes
        saved_minutes = refreshed_minutes = minutes_before
        weights = loss_weights(dataset, recipe, processes.device)
        sums, stopping, last_stage = MetricSums(processes.device), False, None
        exported = arguments.out / "model.safetensors"

        with RunLog(arguments.out, recipe.steps, state.step, processes.is_main) as log:
            while True:
                if state.step == first_step or processes.num_processes == 1 or state.step % AGREEMENT_STEPS == 0:
                    session_minutes = (time.monotonic() - started) / 60
                    late = 0 < arguments.stop_after_minutes <= session_minutes
                    agreed = processes.largest([minutes_before + session_minutes, float(bool(requests) or late)])
                    state.elapsed_minutes, stopping = agreed[0], agreed[1] > 0
                progress = recipe.progress(state.step, state.elapsed_minutes)
                enough = 0 < arguments.stop_after_steps <= state.step - first_step
                is_last = progress >= 1 or stopping or enough

                due = state.elapsed_minutes - saved_minutes >= recipe.checkpoint_minutes
                due |= recipe.checkpoint_steps > 0 and state.step % recipe.checkpoint_steps == 0
                if is_last or (due and state.step > first_step):
                    sums.check_finite(last_good)
                    last_good = save_run_state(folder, state, settings, processes, recipe.num_checkpoints)
                    saved_minutes = state.elapsed_minutes
                    if processes.is_main:
                        export_model(exported, state, recipe, arguments.recipe_name, dataset, arguments.init)
                if is_last:
                    log.say(f"{'Finished' if progress >= 1 else 'Stopped'} at step {state.step}: {exported}")
                    return exported
                if 0 < recipe.refresh_minutes <= state.elapsed_minutes - refreshed_minutes:
                    loader.refresh(processes.agree(dataset.recorded_seeds))
                    state.data_seeds = dataset.seeds
                    weights = loss_weights(dataset, recipe, processes.device)
                    refreshed_minutes = state.elapsed_minutes

                stage = recipe.stage_at(progress)
                if stage != last_stage:
                    log.say(f"Step {state.step}: {stage}")
                last_stage = stage
                learning_rate = recipe.learning_rate_at(state.step, progress)
                with telling_what_to_lower(state.step, recipe, stage):
                    batch = state.options.batch(loader, state.step, stage.batch_size, stage.length)
                    metrics = train_step(state, batch, recipe, stage, weights, learning_rate, processes)
                sums.add(metrics, state.step)
                log.advance(stage.batch_size * stage.length * processes.num_processes)
                if state.step % recipe.log_steps == 0:
                    sums.check_finite(last_good)
                    log.write(state.step, sums.read(processes) | {"learning_rate": learning_rate, "progress": progress})


@contextmanager
def telling_what_to_lower(step: int, recipe: Recipe, stage: Stage) -> Iterator[None]:
    """Makes of an out-of-memory error of the GPU a MemoryError that names the settings of the stage."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"The GPU has not enough memory at step {step}; lower --recipe.stages.{recipe.stages.index(stage)}"
            f".batch-size (now {stage.batch_size}) or .length ({stage.length}).{held_by_others()}"
        ) from error


def held_by_others() -> str:
    """A sentence about a GPU of which other processes hold more than a hundredth, else nothing."""
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    held = total - free - torch.cuda.memory_reserved()
    if held < 0.01 * total:  # what this process holds beside its tensors is less
        return ""
    return f" Other processes hold {held / 2**30:.0f} of its {total / 2**30:.0f} GiB."


def open_loader(arguments: Arguments, processes: Processes, latest: Path | None) -> BatchLoader:
    """Batches of the store, which is checked against all stages. A run goes on with the episodes that it had."""
    recipe, where = arguments.recipe, arguments.data_device
    if where == "cuda" and processes.device.type != "cuda":
        raise ValueError("--data-device cuda needs the model on the GPU too, see --device.")
    seeds = open_store(arguments.data).seeds("train") if latest is None else load_data_seeds(latest)
    options = {"seeds": processes.agree(seeds), "num_threads": arguments.data_threads}
    if where == "auto":
        room_to_grow = 2.0 if recipe.refresh_minutes > 0 else 1.0
        dataset = open_dataset(arguments.data, processes.device, room_to_grow=room_to_grow, **options)
    else:
        device = processes.device if where == "cuda" else "cpu"
        dataset = EpisodeDataset(arguments.data, device=device, streamed=where == "stream", **options)
    for stage in recipe.stages:
        # Raises ValueError now, and not hours later, if no episode is long enough.
        dataset.sample(1, stage.length, torch.Generator(), recipe.reward_window_fraction)
    return BatchLoader(dataset, processes.device, recipe.seed, processes.rank, recipe.reward_window_fraction)


def loss_weights(dataset: EpisodeDataset, recipe: Recipe, device: torch.device) -> ClassWeights:
    """Of the episodes that are loaded, so that a run that goes on has the same."""
    weights = class_weights(dataset.rewards, dataset.terminations, recipe.model.reward_values, recipe.loss)
    return dataclasses.replace(weights, **{name: tensor.to(device) for name, tensor in vars(weights).items()})


def new_state(arguments: Arguments, dataset: EpisodeDataset, processes: Processes) -> RunState:
    """A run at step 0, with the same weights and different random streams in all processes."""
    recipe = arguments.recipe
    torch.manual_seed(recipe.seed)
    model = build_model(model_config(recipe, dataset))
    if recipe.memory_frames is not None:
        set_memory_length(model, *recipe.memory_frames)
    if arguments.init is not None:
        load_initial_weights(model, arguments.init)
    model.to(processes.device).train()
    model.backbone.checkpoint_layers = recipe.checkpoint_layers
    processes.broadcast_parameters(model.parameters())
    if processes.device.type == "cuda":
        prepare_gpu(model, arguments.compile)
    stream = recipe.seed * 1_000_003 + processes.rank
    generator = torch.Generator(processes.device).manual_seed(2 * stream + 1)
    has_rewards = bool((dataset.rewards != dataset.rewards[0]).any())
    has_terminations = bool(dataset.terminations.any())
    options = recipe.options.build(OptionContext(model, generator, recipe.loss, has_rewards, has_terminations))
    return RunState(
        model=model,
        ema=ExponentialMovingAverage(dict(model.named_parameters()), recipe.ema_decay),
        optimizer=make_optimizer(model, recipe, processes.device, options),
        noise_generator=generator,
        data_seeds=dataset.seeds,
        options=options,
    )


def run_settings(arguments: Arguments, dataset: EpisodeDataset, processes: Processes) -> dict[str, Any]:
    """What has to be equal for a run to go on exactly."""
    recipe = dataclasses.asdict(arguments.recipe)
    return {
        "recipe": {name: value for name, value in recipe.items() if name not in FREE_FIELDS},
        "init": arguments.init,
        "num_processes": processes.num_processes,
        "device": processes.device.type,
        "env_id": dataset.env_id,
    }


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that receives SIGINT and SIGTERM while the context lasts; a later, second SIGINT interrupts at once."""
    received: list[int] = []
    first = 0.0

    def receive(number: int, frame: Any) -> None:
        nonlocal first
        # Under torchrun one Ctrl-C arrives twice: from the terminal and from torchrun.
        if number == signal.SIGINT and received and time.monotonic() - first > 2:
            raise KeyboardInterrupt
        first = first or time.monotonic()
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> None:
    try:
        train(parse_arguments(sys.argv[1:] if argv is None else argv))
    except (FileNotFoundError, ValueError, FloatingPointError, MemoryError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted before the checkpoint was written; an earlier one, if any, is intact.")


if __name__ == "__main__":
    main()
