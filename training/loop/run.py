"""One training run: from a store of episodes and a recipe to RUN/model.safetensors, going on where it was stopped."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from training.baselines import build_model
from training.data.dataset import EpisodeDataset
from training.data.loader import BatchLoader, open_dataset
from training.loop.distributed import Processes, start_processes
from training.loop.ema import ExponentialMovingAverage
from training.loop.initialisation import set_memory_length
from training.loop.out_of_memory import explain_oom
from training.loop.run_log import RunLog
from training.loop.run_state import (
    RunState,
    checkpoints,
    load_data_seeds,
    load_run_progress,
    load_run_state,
    save_run_state,
)
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
from training.objective.options.hooks import OptionContext
from training.recipes import Recipe
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
class RunArguments:
    """What a run is made of, and where."""

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


def train(arguments: RunArguments) -> Path:
    """Begins a training run or goes on with it; returns the path of the exported model.

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
        session = _Session(arguments, started, state.step, state.elapsed_minutes)
        weights = loss_weights(dataset, recipe, processes.device)
        sums, last_stage = MetricSums(processes.device), None
        exported = arguments.out / "model.safetensors"

        with RunLog(arguments.out, recipe.steps, state.step, processes.is_main) as log:
            while True:
                session.agree(state, requests, processes)
                progress = recipe.progress(state.step, state.elapsed_minutes)
                is_last = progress >= 1 or session.ends(state.step)
                if is_last or session.checkpoint_is_due(state):
                    sums.check_finite(last_good)
                    last_good = save_run_state(folder, state, settings, processes, recipe.num_checkpoints)
                    if processes.is_main:
                        export_model(exported, state, recipe, arguments.recipe_name, dataset, arguments.init)
                    processes.barrier()
                if is_last:
                    log.say(f"{'Finished' if progress >= 1 else 'Stopped'} at step {state.step}: {exported}")
                    return exported
                if session.refresh_is_due(state):
                    loader.refresh(processes.agree(dataset.recorded_seeds))
                    state.data_seeds = dataset.seeds
                    weights = loss_weights(dataset, recipe, processes.device)

                stage = recipe.stage_at(progress)
                if stage != last_stage:
                    log.say(f"Step {state.step}: {stage}")
                last_stage = stage
                learning_rate = recipe.learning_rate_at(state.step, progress)
                with explain_oom(state.step, recipe, stage):
                    batch = state.options.batch(loader, state.step, stage.batch_size, stage.length)
                    metrics = train_step(state, batch, recipe, stage, weights, learning_rate, processes)
                sums.add(metrics, state.step)
                log.advance(stage.batch_size * stage.length * processes.num_processes)
                if state.step % recipe.log_steps == 0:
                    sums.check_finite(last_good)
                    log.write(state.step, sums.read(processes) | {"learning_rate": learning_rate, "progress": progress})


class _Session:
    """The clock of one session of a run, which says when a checkpoint, new episodes or the end are due."""

    def __init__(self, arguments: RunArguments, started: float, first_step: int, minutes_before: float) -> None:
        self._arguments, self._recipe = arguments, arguments.recipe
        self._started, self._first_step, self._minutes_before = started, first_step, minutes_before
        self._saved_minutes = self._refreshed_minutes = minutes_before
        self._stopping = False

    def agree(self, state: RunState, requests: list[int], processes: Processes) -> None:
        """Sets `state.elapsed_minutes`; several processes agree about it and about stop requests every few steps."""
        if state.step != self._first_step and processes.num_processes > 1 and state.step % AGREEMENT_STEPS:
            return
        minutes = (time.monotonic() - self._started) / 60
        late = 0 < self._arguments.stop_after_minutes <= minutes
        agreed = processes.largest([self._minutes_before + minutes, float(bool(requests) or late)])
        state.elapsed_minutes, self._stopping = agreed[0], agreed[1] > 0

    def ends(self, step: int) -> bool:
        """Whether the session was asked to end, or has done its steps."""
        return self._stopping or 0 < self._arguments.stop_after_steps <= step - self._first_step

    def checkpoint_is_due(self, state: RunState) -> bool:
        """Whether a checkpoint is due, by time or by steps; counted from now on if it is."""
        due = state.elapsed_minutes - self._saved_minutes >= self._recipe.checkpoint_minutes
        due |= self._recipe.checkpoint_steps > 0 and state.step % self._recipe.checkpoint_steps == 0
        due &= state.step > self._first_step
        if due:
            self._saved_minutes = state.elapsed_minutes
        return due

    def refresh_is_due(self, state: RunState) -> bool:
        """Whether the store is to be read again for new episodes; counted from now on if it is."""
        due = 0 < self._recipe.refresh_minutes <= state.elapsed_minutes - self._refreshed_minutes
        if due:
            self._refreshed_minutes = state.elapsed_minutes
        return due


def is_finished(arguments: RunArguments) -> bool:
    """Whether the run in `arguments.out` has come to its end.

    Raises ValueError if it has and was started with another recipe, or if its checkpoint is damaged.
    """
    existing = checkpoints(arguments.out / "checkpoints")
    if not existing or not (arguments.out / "model.safetensors").exists():
        return False
    step, minutes = load_run_progress(existing[-1], {"recipe": recipe_settings(arguments.recipe)})
    return arguments.recipe.progress(step, minutes) >= 1


def open_loader(arguments: RunArguments, processes: Processes, latest: Path | None) -> BatchLoader:
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


def new_state(arguments: RunArguments, dataset: EpisodeDataset, processes: Processes) -> RunState:
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


def run_settings(arguments: RunArguments, dataset: EpisodeDataset, processes: Processes) -> dict[str, Any]:
    """What has to be equal for a run to go on exactly."""
    return {
        "recipe": recipe_settings(arguments.recipe),
        "init": arguments.init,
        "num_processes": processes.num_processes,
        "device": processes.device.type,
        "env_id": dataset.env_id,
    }


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that decides what is computed."""
    return {name: value for name, value in dataclasses.asdict(recipe).items() if name not in FREE_FIELDS}


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
