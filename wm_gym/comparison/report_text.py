"""The words of a comparison's results: names, notes, and what the figures mean."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wm_gym.comparison.config import CompareConfig
from wm_gym.comparison.figures import Criteria, EpisodeFigures
from wm_gym.comparison.identity import CheckpointIdentity


@dataclass(frozen=True)
class Subject:
    """What was compared, for the words of the results."""

    config: CompareConfig
    env_kwargs: dict[str, Any]
    reference_id: str
    reference_kwargs: dict[str, Any]
    policy: str
    recording: str | None  # name of the recorded episodes that stand in for the reference
    env_checkpoint: CheckpointIdentity | None
    reference_checkpoint: CheckpointIdentity | None

    @property
    def names(self) -> tuple[str, str]:
        """Short names of the reference and of the environment under test."""
        against = self.config.against is not None and self.recording is None
        reference = _short(self.reference_id, self.reference_checkpoint) if against else "real"
        if not against and self.env_checkpoint is not None:
            return reference, "dream"
        env = _short(self.config.env, self.env_checkpoint)
        return (f"{reference} (A)", f"{env} (B)") if env == reference else (reference, env)


def notes(subject: Subject, episodes: Sequence[EpisodeFigures]) -> list[str]:
    """What a reader must know to judge the figures."""
    notes = []
    seeds = [episode.record.seed for episode in episodes]
    sides = (subject.env_checkpoint, subject.config.env), (subject.reference_checkpoint, subject.reference_id)
    for checkpoint, env_id in sides:
        if checkpoint is not None and (trained := checkpoint.trained_on(seeds)):
            shown = ", ".join(map(str, trained[:8])) + (" …" if len(trained) > 8 else "")
            notes.append(
                f"The checkpoint {Path(checkpoint.name).name} of {env_id} was trained on {len(trained)} of these "
                f"{len(seeds)} seeds ({shown}). Take seeds from 7,000,000 on to see what it does where it has not been."
            )
    short = [episode.record for episode in episodes if episode.record.num_steps < subject.config.steps]
    if short:
        ends = ", ".join(f"{record.seed} after {record.num_steps} steps" for record in short[:8])
        notes.append(f"{len(short)} of {len(episodes)} episodes ended before step {subject.config.steps}: {ends}.")
    if not any(episode.record.reference_rewards.any() for episode in episodes):
        notes.append("No reward was given in these episodes, so the agreement of rewards says little.")
    return notes


def chips(subject: Subject, seeds: Sequence[int]) -> dict[str, str]:
    """What was compared, in a word or two each."""
    chips = {
        "seeds": f"{len(seeds)} ({seeds[0]} … {seeds[-1]})" if len(seeds) > 1 else str(seeds[0]),
        "policy": subject.policy if subject.recording is None else f"recorded in {subject.recording}",
        "context": f"{subject.config.context} frames",
        "steps": str(subject.config.steps),
    }
    for name, checkpoint in zip(subject.names, (subject.reference_checkpoint, subject.env_checkpoint), strict=True):
        if checkpoint is not None:
            chips[f"checkpoint of {name}"] = Path(checkpoint.name).name
    for name, kwargs in zip(subject.names, (subject.reference_kwargs, subject.env_kwargs), strict=True):
        chips.update({f"{name}: {key}": str(value) for key, value in portable(kwargs).items() if key != "checkpoint"})
    return chips


def cards(subject: Subject, figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The main figures of a summary: name, figure, what to hold it against."""
    reference, env = subject.names
    num_rewards = figures["reward_hits"] + figures["reward_misses"]
    cards = [
        (
            "PSNR",
            f"{figures['psnr']:.1f} dB",
            f"± {figures['psnr_std']:.1f} over seeds; still picture {figures['psnr_copy_last']:.1f}",
        ),
        ("first step", f"{figures['psnr_first_step']:.1f} dB", "PSNR right after the context"),
    ]
    if figures["ssim"] is not None:
        cards.append(("SSIM", f"{figures['ssim']:.3f}", f"± {figures['ssim_std']:.3f} over seeds"))
    parting = figures["median_parting_step"]
    cards += [
        (
            "they part at step",
            "never" if parting is None else str(parting),
            f"median; {figures['num_parted']} of {figures['num_seeds']} episodes part",
        ),
        (
            "rewards hit",
            f"{figures['reward_hits']} / {num_rewards}",
            f"{figures['reward_misses']} missed, {figures['reward_false_alarms']} false alarms",
        ),
        ("return", f"{figures['return']:.2f}", f"{env}; {figures['return_reference']:.2f} {reference}"),
    ]
    return cards


def definitions(criteria: Criteria, reference: str, env: str) -> dict[str, str]:
    """What each figure of the page means."""
    return {
        "PSNR": (
            "10 log10(255² / mean squared error) of one frame of both, in dB; equal frames have 58.9. Averages are "
            "over steps, then over seeds."
        ),
        "SSIM": "Structural similarity (Wang et al. 2004; Gaussian window of 11 pixels), 1 for equal frames.",
        "still picture": "The PSNR of repeating the last frame of the context.",
        "parted": (
            f"The first of {criteria.part_steps} steps in a row with a PSNR below {criteria.part_psnr:g} dB. An "
            "episode that never parts counts as the latest in the median."
        ),
        "hit": (
            f"A reward of {env} and one of {reference}, of the same value and at most {criteria.tolerance} steps "
            "apart; each reward is in one hit at most."
        ),
        "miss, false alarm": f"A reward of {reference} without one of {env}; and the other way round.",
        "return": "The sum of the rewards after the context, a mean over the episodes.",
    }


def portable(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments with absolute paths reduced to their names, which mean the same elsewhere."""
    return {
        key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for key, value in kwargs.items()
    }


def command(subject: Subject) -> str:
    """The command line that gives these results."""
    config = subject.config
    words = ["wm-gym", "compare"]
    if subject.recording is not None:
        words = ["python", "-m", "training.compare", "--data", subject.recording]
    for entry in fields(config):
        value = getattr(config, entry.name)
        if value != entry.default:
            text = Path(value).name if Path(str(value)).is_absolute() else str(value)
            if entry.name.endswith("_kwargs"):
                text = json.dumps(portable(json.loads(text)))
            words += [f"--{entry.name.replace('_', '-')}", text]
    return shlex.join(words)


def _short(env_id: str, checkpoint: CheckpointIdentity | None) -> str:
    return env_id.rpartition("/")[2] if checkpoint is None else Path(checkpoint.name).stem
