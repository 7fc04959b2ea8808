"""Trains a world model: ``python -m training.train --recipe NAME --data STORE --out RUN [--recipe.FIELD VALUE ...]``.

Under torchrun the batch of each process adds up. The same command again goes on with the run in RUN, exactly where its
latest checkpoint is. RUN/model.safetensors has the averaged weights, for `wm_gym`; RUN/logs is for TensorBoard. A
staged recipe keeps its phases in folders of RUN.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from training.baselines.recipes import ROWS, make_recipe
from training.loop import run
from training.loop.run import RunArguments
from training.objective.options import EARLIER_FLAGS
from training.recipes import RECIPES
from training.staged import STAGED_RECIPES, StagedArguments, train_staged
from wm_gym.nn.flat_config import FLAT_NAMES

# Flags before options and the parts of a model were nested -> flags now. The earlier ones go with release 0.3.
RENAMED_FLAGS = EARLIER_FLAGS | {
    f"--recipe.model.{no}{old}".replace("_", "-"): f"--recipe.model.{new.replace('.', '.' + no)}".replace("_", "-")
    for old, new in FLAT_NAMES.items()
    for no in (("", "no-") if old in ("ray_lines", "hide_actions") else ("",))
    if old != "odometry"
}


@dataclass(frozen=True)
class Arguments(RunArguments):
    """Trains a world model on a store of episodes. `--recipe NAME` chooses the defaults of the `--recipe.…` fields; for
    a row of the comparison (training.baselines.recipes.ROWS) `--base NAME` is the recipe that it changes."""


def parse_arguments(argv: Sequence[str]) -> RunArguments | StagedArguments:
    """The settings of a run, of one of `RECIPES` or `ROWS`, or of `STAGED_RECIPES`; exits where a flag is wrong."""
    names = argparse.ArgumentParser(prog="python -m training.train", add_help=False, allow_abbrev=False)
    names.add_argument("--recipe", choices=sorted([*RECIPES, *ROWS, *STAGED_RECIPES]))
    names.add_argument("--base", choices=sorted(RECIPES), default="")
    chosen, rest = names.parse_known_args(with_flags_of_now(argv))
    if chosen.recipe is None:
        if {"-h", "--help"} & set(rest):
            print(f"{__doc__}\n{recipe_list()}\n\nThe fields of a recipe: --recipe NAME --help")
            sys.exit()
        names.error(f"--recipe is missing; choose one of\n{recipe_list()}")
    if chosen.recipe in STAGED_RECIPES:
        staged = STAGED_RECIPES[chosen.recipe]()
        default: Any = StagedArguments(tyro.MISSING, tyro.MISSING, staged, recipe_name=chosen.recipe)
    else:
        recipe = make_recipe(chosen.recipe, chosen.base)
        default = Arguments(tyro.MISSING, tyro.MISSING, recipe, recipe_name=chosen.recipe)
    return tyro.cli(type(default), args=rest, default=default, prog="python -m training.train", description=__doc__)


def recipe_list() -> str:
    """One line for each recipe: its name and the first sentence of its docstring."""
    functions = {**STAGED_RECIPES, **RECIPES, **ROWS}
    width = max(map(len, functions))
    lines = {name: (make.__doc__ or "").split("\n")[0] for name, make in functions.items()}
    return "\n".join(f"  {name:<{width}}  {line}".rstrip() for name, line in lines.items())


def with_flags_of_now(argv: Sequence[str]) -> list[str]:
    """Replaces earlier names of flags, each with a DeprecationWarning."""
    renamed = []
    for word in argv:
        flag, separator, value = word.partition("=")
        now = RENAMED_FLAGS.get(flag.replace("_", "-"), flag)
        if now != flag:
            warnings.warn(f"{flag} is now {now}; the earlier name goes with the next release.", DeprecationWarning, 2)
        renamed.append(now + separator + value)
    return renamed


def train(arguments: RunArguments | StagedArguments) -> Path:
    """Begins a training or goes on with it; returns the path of the model. Errors as of `training.loop.run.train`."""
    return train_staged(arguments) if isinstance(arguments, StagedArguments) else run.train(arguments)


def main(argv: Sequence[str] | None = None) -> None:
    """The command; an error that a user can mend is one sentence."""
    try:
        train(parse_arguments(sys.argv[1:] if argv is None else argv))
    except (FileNotFoundError, ValueError, FloatingPointError, MemoryError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted before the checkpoint was written; an earlier one, if any, is intact.")


if __name__ == "__main__":
    main()
