"""Writes what a comparison found: tables, film, pictures and the page. The page comes last, each file atomically."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from tqdm import tqdm

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
from wm_gym.comparison.pictures import Captions, comparison_frame, comparison_frames, film_length, film_of
from wm_gym.comparison.plots import load_matplotlib, quality_figure, reward_figure, to_svg, write_summary_picture
from wm_gym.comparison.report import Report, render
from wm_gym.comparison.report_text import Subject, cards, chips, command, definitions, notes, portable
from wm_gym.files import atomic_path, write_json
from wm_gym.film import pillow, strip_steps, write_strip, write_video
from wm_gym.machine import commit, versions

VIDEO_FPS = 15
VIDEO_QUALITY = 5  # of 10; the page holds the whole film
POSTER_STEP = 20
PLOT_SIZE = (11.4, 3.5)  # inches of 100 pixels
PACKAGES = ("wm-gym", "torch", "numpy", "gymnasium", "torchmetrics", "pandas", "memory-maze", "mujoco")


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
    strips = _write_strips(subject, shown)
    median = min(range(len(shown)), key=lambda index: shown[index][0] != "median")
    with atomic_path(out / "compare.png") as temporary:
        write_summary_picture(temporary, strips[median][1], episodes, criteria.part_psnr, subject.names[1])
    video = None if subject.config.films == 0 else _write_film(subject, shown)
    write_json(out / "compare.json", record)
    page = render(_report(subject, criteria, episodes, tables, record, video, strips))
    with atomic_path(out / "report.html") as temporary:
        temporary.write_text(page)
    return record["summary"], *tables


def _write_strips(subject: Subject, shown: Sequence[tuple[str, EpisodeFigures]]) -> list[tuple[str, Path]]:
    """Film strips of the chosen episodes, with their captions."""
    strips = []
    for rank, episode in shown:
        path = subject.config.out / "strips" / f"{episode.record.seed:010d}.png"
        write_strip(path, film_of(episode, subject.names), strip_steps(episode.record.num_steps))
        strips.append(
            (f"{rank.capitalize()}: seed {episode.record.seed}, {episode.psnr.mean():.1f} dB on average", path)
        )
    return strips


def _write_film(subject: Subject, shown: Sequence[tuple[str, EpisodeFigures]]) -> tuple[Path, bytes]:
    """Writes the film; returns its path and the picture, as PNG, that stands for it."""
    path = subject.config.out / "compare.mp4"
    total = sum(film_length(episode) for _, episode in shown)
    write_video(
        path, tqdm(_film_frames(subject, shown), total=total, desc="film", unit="frame"), VIDEO_FPS, VIDEO_QUALITY
    )
    rank, episode = shown[0]
    step = min(POSTER_STEP, episode.record.num_steps)
    picture = comparison_frame(episode, _captions(subject, rank, episode), subject.config.part_psnr, step)
    buffer = io.BytesIO()
    pillow()[0].fromarray(picture).save(buffer, "PNG")
    return path, buffer.getvalue()


def _film_frames(subject: Subject, shown: Sequence[tuple[str, EpisodeFigures]]) -> Iterator[Any]:
    for rank, episode in shown:
        yield from comparison_frames(episode, _captions(subject, rank, episode), subject.config.part_psnr)


def _captions(subject: Subject, rank: str, episode: EpisodeFigures) -> Captions:
    action_names = _action_names(subject.config.env) or _action_names(subject.reference_id)
    return Captions(subject.names, f"seed {episode.record.seed}, {rank}", action_names)


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
        "env_kwargs": portable(subject.env_kwargs),
        "env_checkpoint": _checkpoint_record(subject.env_checkpoint),
        "reference": subject.reference_id,
        "reference_kwargs": portable(subject.reference_kwargs),
        "reference_checkpoint": _checkpoint_record(subject.reference_checkpoint),
        "policy": subject.policy,
        "context": subject.config.context,
        "steps": subject.config.steps,
        "seeds": [episode.record.seed for episode in episodes],
        "criteria": {name.name: getattr(criteria, name.name) for name in fields(criteria)},
        "notes": notes(subject, episodes),
        "summary": summary(episodes),
        "by_horizon": by_horizon.astype(object).where(by_horizon.notna(), None).to_dict("records"),
        "by_episode": rows,
        "by_step": curves(episodes),
        "command": command(subject),
        "commit": commit(),
        "hardware": ", ".join(sorted({episode.record.hardware for episode in episodes})),
        "versions": versions(PACKAGES),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _report(
    subject: Subject,
    criteria: Criteria,
    episodes: Sequence[EpisodeFigures],
    tables: tuple[Any, Any, Any],
    record: dict[str, Any],
    video: tuple[Path, bytes] | None,
    strips: Sequence[tuple[str, Path]],
) -> Report:
    reference, env = subject.names
    config = subject.config
    speeds = record["summary"]["steps_per_second"], record["summary"]["steps_per_second_reference"]
    plots = [
        (
            to_svg(quality_figure(episodes, criteria.part_psnr, env, PLOT_SIZE)),
            "Line: mean over the seeds. Dark band: one standard deviation of the seeds; light band: their range. "
            f"Dotted: the {criteria.part_psnr:g} dB below which the two count as parted.",
        )
    ]
    if (rewards := reward_figure(episodes, subject.names, PLOT_SIZE[0])) is not None:
        caption = "Green: hits, joined. White: misses, real rewards that were not dreamed. Red: false alarms."
        plots.append((to_svg(rewards), caption))
    return Report(
        title=f"{env[:1].upper()}{env[1:]} beside {'reality' if reference == 'real' else reference}",
        lead=(
            f"{config.env} and {subject.reference_id} took the same actions for {config.steps} steps, after the same "
            f"{config.context} frames of context."
        ),
        settings=chips(subject, record["seeds"]),
        notes=record["notes"],
        cards=cards(subject, record["summary"]),
        video=video,
        video_caption=(
            f"{'One episode after the other, from the best to the worst. ' if len(strips) > 1 else ''}"
            f"Below the pictures: PSNR by step, with the rewards of both ({reference} on top, {env} at the bottom). "
            "On the map the way in the context is grey."
        ),
        plots=plots,
        strips=strips,
        tables=[("By horizon", tables[1]), ("By episode", tables[0])],
        definitions=definitions(criteria, reference, env),
        provenance={
            "command": record["command"],
            "commit": record["commit"] or "not from a repository",
            "hardware": record["hardware"],
            "speed": f"{speeds[0]:.1f} steps/s {env}, {speeds[1]:.1f} steps/s {reference}",
            "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
            "date": record["date"],
        },
    )


def _checkpoint_record(checkpoint: CheckpointIdentity | None) -> dict[str, Any] | None:
    return None if checkpoint is None else {"name": Path(checkpoint.name).name, "digest": checkpoint.digest}


def _action_names(env_id: str) -> Sequence[str] | None:
    """What the environment's class calls its actions, if it does."""
    spec = gym.registry.get(env_id.rpartition(":")[2])
    if spec is None:
        return None
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    return getattr(creator, "action_names", None)
