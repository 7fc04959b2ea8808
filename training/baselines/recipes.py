"""The rows of the comparison: each changes the network, or what it is trained on, of a recipe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from training.baselines import Architecture, matching_config
from training.recipes import RECIPES, Recipe, memory_maze_9x9_comparison
from wm_gym.nn.config import MapConfig


def _with_network(base: Recipe, architecture: Architecture, longest: int = 0, **changes: Any) -> Recipe:
    """`base` with another network: about equal parameters, equal frames in every step, equal losses.

    Args:
        longest: frames of a segment that the network can take, 0 for any; shorter segments come in larger batches.
    """
    stages = []
    for stage in base.stages:
        length = min(stage.length, longest or stage.length)
        stages.append(dataclasses.replace(stage, length=length, batch_size=stage.batch_size * stage.length // length))
    return dataclasses.replace(base, model=matching_config(architecture, base.model, **changes), stages=tuple(stages))


def _with_blocks(base: Recipe, block_size: int) -> Recipe:
    """`base` with the same block size in every layer."""
    block_sizes = (block_size,) * len(base.model.block_sizes)
    return dataclasses.replace(base, model=dataclasses.replace(base.model, block_sizes=block_sizes))


# Rows of the comparison: each is a recipe of ours with another network or another loss (``--base NAME``).


def causal_transformer(base: Recipe) -> Recipe:
    """Sees its own and all earlier frames; the reference of what can be recalled."""
    return _with_network(base, "causal_transformer")


def causal_transformer_192(base: Recipe) -> Recipe:
    """Sees its own and the 192 frames before it."""
    return _with_network(base, "sliding_transformer")


def mamba2(base: Recipe) -> Recipe:
    """One Mamba2 scan over all tokens, no attention; keys as published: one group of 128, twice ours per head."""
    scan = dataclasses.replace(base.model.scan, state_dim=128, num_groups=1)
    return _with_network(base, "mamba2", scan=scan)


def dfot_25(base: Recipe) -> Recipe:
    """Denoises 25 frames that all see each other (DFoT, arXiv 2502.06764)."""
    return _with_network(base, "bidirectional", longest=25)


def mamba2_frame_attention(base: Recipe) -> Recipe:
    """Ours without blocks: one scan over all tokens, and frame-local attention. Two rows of the paper are this."""
    return _with_blocks(base, math.gcd(base.model.token_rows, base.model.token_columns))


def block_size_1(base: Recipe) -> Recipe:
    """Ours with a scan of its own for every token, in every layer."""
    return _with_blocks(base, 1)


def without_long_context(base: Recipe) -> Recipe:
    """Ours without clean prefixes: plain diffusion forcing."""
    return dataclasses.replace(base, loss=dataclasses.replace(base.loss, prefix_probability=0.0))


def with_map(base: Recipe) -> Recipe:
    """Ours with a map beside the states, which is read and written by place."""
    return dataclasses.replace(base, model=dataclasses.replace(base.model, map=MapConfig()))


ROWS: dict[str, Callable[[Recipe], Recipe]] = {
    row.__name__: row
    for row in (
        causal_transformer,
        causal_transformer_192,
        mamba2,
        mamba2_frame_attention,
        block_size_1,
        without_long_context,
        with_map,
        dfot_25,
    )
}
ROW_BASE = memory_maze_9x9_comparison.__name__  # of the rows, unless --base names another


def make_recipe(name: str, base: str = "") -> Recipe:
    """A recipe by its name, or a row of the comparison over the recipe `base`.

    Raises:
        ValueError: a name that there is not, or a base for a recipe that has none.
    """
    if name in RECIPES and not base:
        return RECIPES[name]()
    if name in RECIPES:
        raise ValueError(f"{name} is a recipe of its own; --base is for the rows {', '.join(ROWS)}.")
    if name not in ROWS or (base and base not in RECIPES):
        raise ValueError(
            f"There is no recipe {base if name in ROWS else name!r}; recipes are {', '.join(RECIPES)}, and rows over "
            f"them {', '.join(ROWS)}."
        )
    return ROWS[name](RECIPES[base or ROW_BASE]())
