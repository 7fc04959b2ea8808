"""Writes what a comparison found: tables, film, pictures and the page. The page comes last, each file atomically."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from tqdm import tqdm

from wm_gym.comparison.config import CompareConfig
from wm_gym.comparison.figures import (
    Criteria,
    EpisodeFigures,
    curves,
    episode_table,
    horizon_table,
    load_pandas,
    ranked,
    step_table,
    summary,
)
from wm_gym.comparison.identity import CheckpointIdentity
from wm_gym.comparison.pictures import Captions, comparison_frames, film_length, film_of
from wm_gym.comparison.plots import load_matplotlib, quality_figure, reward_figure, to_svg, write_summary_picture
from wm_gym.comparison.report import Report, render
from wm_gym.files import atomic_path, write_json
from wm_gym.film import pillow, strip_steps, write_strip, write_video
from wm_gym.machine import commit, hardware, versions

VIDEO_FPS = 15
PLOT_SIZE = (11.4, 3.5)  # inches of 100 pixels
PACKAGES = ("wm-gym", "torch", "numpy", "gymnasium", "torchmetrics", "pandas", "memory-maze", "mujoco")


@dataclass(frozen=True)
class Subject:
    """What was compared, for the words of the results."""

    config: CompareConfig
    env_kwargs: dict[str, Any]
    reference_id: str
    reference_kwargs: dict[str, Any]
    policy: str
    is_recorded: bool
    env_checkpoint: CheckpointIdentity | None
    reference_checkpoint: CheckpointIdentity | None
    device: str

    @property
    def names(self) -> tuple[str, str]:
        """Short names of the reference and of the environment under test."""
        against = self.config.against is not None and not self.is_recorded
        reference = _short(self.reference_id, self.reference_checkpoint) if against else "real"
        if not against and self.env_checkpoint is not None:
            return reference, "dream"
        env = _short(self.config.env, self.env_checkpoint)
        return (f"{reference} (A)", f"{env} (B)") if env == reference else (reference, env)


def check_extras(video: bool) -> None:
    """Raises ImportError that says what to install if something is missing that the results will need."""
    load_pandas()
    load_matplotlib()
    pillow()
    try:
        import torchmetrics  # noqa: F401
    except ImportError as error:
        raise ImportError("SSIM needs torchmetrics: `pip install wm-gym[compare]`.") from error
    if video:
        try:
            import imageio_ffmpeg  # noqa: F401
        except ImportError as error:
            raise ImportError("The film needs imageio-ffmpeg: `pip install imageio-ffmpeg`, or --films 0.") from error


def write_results(
    subject: Subject, criteria: Criteria, episodes: Sequence[EpisodeFigures]
) -> tuple[dict[str, Any], Any, Any, Any]:
    """Writes all files; returns the summary and the tables by episode, by horizon and by step."""
    out = subject.config.out
    tables = episode_table(episodes), horizon_table(episodes), step_table(episodes)
    with atomic_path(out / "compare.csv") as temporary:
        tables[2].to_csv(temporary, index=False)
    record = _record(subject, criteria, episodes, tables)
    shown = ranked(episodes, max(subject.config.films, 1))
    strips = []
    for rank, episode in shown:
        path = out / "strips" / f"{episode.record.seed:010d}.png"
        write_strip(path, film_of(episode, subject.names), strip_steps(episode.record.num_steps))
        strips.append((f"{rank}: seed {episode.record.seed}, {episode.psnr.mean():.1f} dB on average", path))
    median = min(range(len(shown)), key=lambda index: shown[index][0] != "median")
    with atomic_path(out / "compare.png") as temporary:
        figure = quality_figure(episodes, criteria.part_psnr, PLOT_SIZE)
        write_summary_picture(temporary, strips[median][1], figure)
    video = None
    if subject.config.films:
        video = out / "compare.mp4"
        total = sum(film_length(episode) for _, episode in shown)
        write_video(video, tqdm(_film(subject, shown), total=total, desc="film", unit="frame"), VIDEO_FPS)
    write_json(out / "compare.json", record)
    page = render(_report(subject, criteria, episodes, tables, record, video, strips))
    with atomic_path(out / "report.html") as temporary:
        temporary.write_text(page)
    return record["summary"], *tables


def _film(subject: Subject, shown: Sequence[tuple[str, EpisodeFigures]]) -> Iterator[Any]:
    action_names = _action_names(subject.config.env) or _action_names(subject.reference_id)
    for rank, episode in shown:
        captions = Captions(subject.names, f"seed {episode.record.seed}, {rank}", action_names)
        yield from comparison_frames(episode, captions, subject.config.part_psnr)


def _record(
    subject: Subject, criteria: Criteria, episodes: Sequence[EpisodeFigures], tables: tuple[Any, Any, Any]
) -> dict[str, Any]:
    """What compare.json holds."""
    by_episode, by_horizon, _ = tables
    rows = by_episode.astype(object).where(by_episode.notna(), None).to_dict("records")
    for row, episode in zip(rows, episodes, strict=True):
        # Steps count from 1, as everywhere in the results.
        row["reward_hits"] = [[real + 1, dreamed + 1] for real, dreamed in episode.agreement.hits]
        row["reward_misses"] = [step + 1 for step in episode.agreement.misses]
        row["reward_false_alarms"] = [step + 1 for step in episode.agreement.false_alarms]
        row["parted"] = episode.parted
    return {
        "env": subject.config.env,
        "env_kwargs": subject.env_kwargs,
        "env_checkpoint": _checkpoint_record(subject.env_checkpoint),
        "reference": subject.reference_id,
        "reference_kwargs": subject.reference_kwargs,
        "reference_checkpoint": _checkpoint_record(subject.reference_checkpoint),
        "policy": subject.policy,
        "context": subject.config.context,
        "steps": subject.config.steps,
        "seeds": [episode.record.seed for episode in episodes],
        "criteria": {name.name: getattr(criteria, name.name) for name in fields(criteria)},
        "notes": _notes(subject, episodes),
        "summary": summary(episodes),
        "by_horizon": by_horizon.astype(object).where(by_horizon.notna(), None).to_dict("records"),
        "by_episode": rows,
        "by_step": curves(episodes),
        "command": _command(subject),
        "commit": commit(),
        "hardware": hardware(subject.device),
        "versions": versions(PACKAGES),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _notes(subject: Subject, episodes: Sequence[EpisodeFigures]) -> list[str]:
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


def _report(
    subject: Subject,
    criteria: Criteria,
    episodes: Sequence[EpisodeFigures],
    tables: tuple[Any, Any, Any],
    record: dict[str, Any],
    video: Path | None,
    strips: Sequence[tuple[str, Path]],
) -> Report:
    reference, env = subject.names
    config = subject.config
    plots = [
        (
            to_svg(quality_figure(episodes, criteria.part_psnr, PLOT_SIZE)),
            "Line: mean over the seeds. Dark band: one standard deviation of the seeds; light band: their range. "
            f"Dotted: the {criteria.part_psnr:g} dB below which the two count as parted.",
        )
    ]
    if (rewards := reward_figure(episodes, subject.names, PLOT_SIZE[0])) is not None:
        caption = "Green: hits, joined. White: misses, real rewards that were not dreamed. Red: false alarms."
        plots.append((to_svg(rewards), caption))
    return Report(
        title=f"{env.capitalize()} beside {reference}",
        lead=(
            f"{config.env} and {subject.reference_id} took the same actions for {config.steps} steps, after the same "
            f"{config.context} frames of context."
        ),
        settings=_chips(subject, record),
        notes=record["notes"],
        cards=_cards(subject, record["summary"]),
        video=video,
        video_caption=(
            "One episode after the other, from the best to the worst. Below: PSNR by step, with the rewards of both "
            f"({reference} on top, {env} at the bottom). On the map the way in the context is grey."
        ),
        plots=plots,
        strips=strips,
        tables=[("By horizon", tables[1]), ("By episode", tables[0])],
        definitions=_definitions(criteria, reference, env),
        provenance={
            "command": record["command"],
            "commit": record["commit"] or "not from a repository",
            "hardware": record["hardware"],
            "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
            "date": record["date"],
        },
    )


def _chips(subject: Subject, record: dict[str, Any]) -> dict[str, str]:
    seeds = record["seeds"]
    chips = {
        "seeds": f"{len(seeds)} ({seeds[0]} … {seeds[-1]})" if len(seeds) > 1 else str(seeds[0]),
        "policy": subject.policy,
        "context": f"{subject.config.context} frames",
        "steps": str(subject.config.steps),
    }
    for name, checkpoint in zip(subject.names, (subject.reference_checkpoint, subject.env_checkpoint), strict=True):
        if checkpoint is not None:
            chips[f"checkpoint of {name}"] = Path(checkpoint.name).name
    for name, kwargs in zip(subject.names, (subject.reference_kwargs, subject.env_kwargs), strict=True):
        chips.update({f"{name}: {key}": str(value) for key, value in kwargs.items() if key != "checkpoint"})
    return chips


def _cards(subject: Subject, figures: dict[str, Any]) -> list[tuple[str, str, str]]:
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
        (
            "speed",
            f"{figures['steps_per_second']:.0f} steps/s",
            f"{env} on {subject.device}; {figures['steps_per_second_reference']:.0f} {reference}",
        ),
    ]
    return cards


def _definitions(criteria: Criteria, reference: str, env: str) -> dict[str, str]:
    return {
        "PSNR": "10 log10(255² / mean squared error) of one frame of both, in dB; equal frames have 58.9. Averages are over "
        "steps, then over seeds.",
        "SSIM": "structural similarity (Wang et al. 2004; Gaussian window of 11 pixels), 1 for equal frames.",
        "still picture": "the PSNR of repeating the last frame of the context.",
        "parted": f"the first of {criteria.part_steps} steps in a row with a PSNR below {criteria.part_psnr:g} dB. An episode that "
        "never parts counts as the latest in the median.",
        "hit": f"a reward of {env} and one of {reference}, of the same value and at most {criteria.tolerance} steps apart; each "
        "reward is in one hit at most.",
        "miss, false alarm": f"a reward of {reference} without one of {env}; and the other way round.",
        "return": "the sum of the rewards after the context, a mean over the episodes.",
    }


def _command(subject: Subject) -> str:
    """The command line that gives these results."""
    config = subject.config
    words = ["wm-gym", "compare"]
    if subject.is_recorded:
        words = ["python", "-m", "training.compare", "--data", subject.reference_id]
    for entry in fields(config):
        value = getattr(config, entry.name)
        if value != entry.default:
            text = value.name if isinstance(value, Path) and value.is_absolute() else str(value)
            words += [f"--{entry.name.replace('_', '-')}", text]
    return shlex.join(words)


def _checkpoint_record(checkpoint: CheckpointIdentity | None) -> dict[str, Any] | None:
    return None if checkpoint is None else {"name": Path(checkpoint.name).name, "digest": checkpoint.digest}


def _short(env_id: str, checkpoint: CheckpointIdentity | None) -> str:
    return env_id.rpartition("/")[2] if checkpoint is None else Path(checkpoint.name).stem


def _action_names(env_id: str) -> Sequence[str] | None:
    """What the environment's class calls its actions, if it does."""
    spec = gym.registry.get(env_id.rpartition(":")[2])
    if spec is None:
        return None
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    return getattr(creator, "action_names", None)
