"""Scores in reality while an agent learns in a dream: the figure that chooses the model and ends the run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from agents.environments.settings import EnvSpec
from agents.policies.loading import BEST_FILE, MODEL_FILE
from agents.scoring.episodes import EpisodePool
from agents.scoring.learning_curves import ROLLOUT_REWARD
from agents.scoring.results import Result, gap, summary
from wm_gym.files import atomic_path, write_json
from wm_gym.seeds import FIRST_SELECTION_SEED

SCORES_FILE, DREAMED_FILE = "scores.json", "dreamed.json"


class RealScore(BaseCallback):
    """Saves the model, and every so often plays real episodes with it.

    Each score goes into scores.json and TensorBoard: the real return, and what the steps since the last score would
    have given in a dream over as many steps, with the gap between the two, and how many frames per second were dreamed
    and learned from since the last score. The best model in reality is kept.

    Args:
        folder: of one training seed.
        spec: the real environment.
        every: steps between scores; 0: only at the end.
        episodes: for a score.
        workers: processes that play them.
        patience: scores without a better one after which training stops; 0: it never does.
        checkpoint_minutes: between two saves of the newest model.
        is_dream: whether training happens in a dream, so that there is something to compare.
        comparable: whether these dreams give what reality might; not if they end at a reward and begin before one.
        minutes: of training, scores not counted, after which it stops; None: it goes on.
        device: of the models that read real frames, with a memory.
    """

    def __init__(
        self,
        folder: Path,
        spec: EnvSpec,
        every: int,
        episodes: int,
        workers: int,
        patience: int,
        checkpoint_minutes: float,
        is_dream: bool,
        comparable: bool = True,
        minutes: float | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        self._folder, self._pool = folder, EpisodePool(spec, workers, device)
        self._every, self._episodes, self._patience = every, episodes, patience
        self._checkpoint_seconds = 60 * checkpoint_minutes
        self._is_dream, self._comparable = is_dream, comparable
        self._seconds_left = float("inf") if minutes is None else 60 * minutes
        self._scores = read_scores(folder)
        self._saved_at = time.monotonic()
        self._reward, self._steps = 0.0, 0
        self._before_rollout = (0.0, 0)
        self._began = time.monotonic()
        self._stops = False

    def _on_training_start(self) -> None:
        self._began = time.monotonic()

    def _on_rollout_start(self) -> None:
        # Between an update and the next rollout: the model is all that has to be kept.
        last = self._scores[-1]["timesteps"] if self._scores else 0
        if self._every and self.num_timesteps >= last + self._every:
            self._score(self.model)
        elif time.monotonic() - self._saved_at > self._checkpoint_seconds:
            self._save(self.model, MODEL_FILE)
        self._before_rollout = self._reward, self._steps

    def _on_rollout_end(self) -> None:
        # Of all steps: the means over the newest episodes favour short ones where a reward ends an episode.
        reward, steps = self._reward - self._before_rollout[0], self._steps - self._before_rollout[1]
        self.logger.record(ROLLOUT_REWARD, reward / steps)

    def _on_step(self) -> bool:
        rewards = self.locals["rewards"]
        self._reward, self._steps = self._reward + float(rewards.sum()), self._steps + len(rewards)
        return not self._stops and time.monotonic() - self._began < self._seconds_left

    def finish(self, model: BaseAlgorithm) -> None:
        """Saves and scores the model as it is at the end, unless that was just done."""
        if not self._scores or (self._scores[-1]["timesteps"] < model.num_timesteps and not self._stops):
            self._score(model)

    def _score(self, model: BaseAlgorithm) -> None:
        self._save(model, MODEL_FILE)
        trained = time.monotonic() - self._began
        self._seconds_left -= trained
        speed = self._steps / max(trained, 1e-9)
        real = summary(self._play())
        rate = self._reward / self._steps if self._is_dream and self._steps else None
        dreamed = rate * real["mean_length"] if rate is not None and self._comparable else None
        best = max((one["real_return"] for one in self._scores), default=float("-inf"))
        is_best = real["mean_return"] > best
        if is_best:
            self._save(model, BEST_FILE)
            if dreamed is not None:
                write_json(self._folder / DREAMED_FILE, {"reward_per_step": rate, "timesteps": model.num_timesteps})
        without = 0 if is_best else 1 + (self._scores[-1]["without_better"] if self._scores else 0)
        self._stops = 0 < self._patience <= without
        entry = {
            "timesteps": model.num_timesteps,
            "real_return": real["mean_return"],
            "interval95": real["interval95"],
            "real_length": real["mean_length"],
            "dreamed_return": dreamed,
            "dreamed_reward_per_step": rate,
            "gap": None if dreamed is None else gap(dreamed, real["mean_return"]),
            "frames_per_second": round(speed, 1) if self._steps else None,
            "without_better": without,
            "stopped": self._stops,
        }
        self._scores.append(entry)
        write_json(self._folder / SCORES_FILE, {"scores": self._scores})
        self._show(model, entry)
        self._reward, self._steps = 0.0, 0
        self._began = time.monotonic()

    def _play(self) -> list[Result]:
        """Real episodes of the newest model. The processes are kept for the next score: they take long to start."""
        path = str(self._folder / MODEL_FILE)
        seeds = range(FIRST_SELECTION_SEED, FIRST_SELECTION_SEED + self._episodes)
        played = [result for _, result in self._pool.play([(path, seed) for seed in seeds])]
        return sorted(played, key=lambda one: one["seed"])

    def close(self) -> None:
        """Ends the processes that play."""
        self._pool.close()

    def _save(self, model: BaseAlgorithm, name: str) -> None:
        with atomic_path(self._folder / name) as temporary:
            model.save(temporary)
        self._saved_at = time.monotonic()

    def _show(self, model: BaseAlgorithm, entry: dict[str, Any]) -> None:
        text = f"{self._folder.name}, step {entry['timesteps']:,}: real return {entry['real_return']:.2f}"
        if entry["dreamed_return"] is not None:
            text += f", dreamed {entry['dreamed_return']:.2f}"
        elif entry["dreamed_reward_per_step"] is not None:
            text += f", {1000 * entry['dreamed_reward_per_step']:.2f} dreamed in 1,000 steps"
        if entry["gap"] is not None:
            text += f", gap {entry['gap']:.0%}"
        print(text + ("; no better one in a while, stopping" if entry["stopped"] else ""), flush=True)
        names = {"real_return": "real/return", "dreamed_return": "real/dreamed_return", "gap": "real/gap"}
        names["dreamed_reward_per_step"] = "dream/reward_per_step"
        for key, name in names.items():
            if entry[key] is not None:
                model.logger.record(name, entry[key])
        model.logger.dump(model.num_timesteps)


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """The scores of a training seed so far, in order."""
    path = folder / SCORES_FILE
    return json.loads(path.read_text())["scores"] if path.is_file() else []
