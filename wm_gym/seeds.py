"""Seeds of episodes: which ones may be trained on, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable

MAX_SEED = 2**32 - 1
FIRST_EVALUATION_SEED = 7_000_000  # of every world: from here on for evaluation only, and never trained on
FIRST_SELECTION_SEED = 7_500_000  # from here on for choosing among models, apart from those that judge the chosen one


def parse_seeds(text: str) -> list[int]:
    """ "3-5,9" as [3, 4, 5, 9], each seed once. Raises ValueError for anything else."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"Seeds are numbers and ranges such as 7000000-7000007,7000100, got {text!r}.")
        low, high = int(first), int(last or first)
        if low > high or high > MAX_SEED:
            raise ValueError(f"A range of seeds goes upward and ends at 2**32 - 1 at most, got {part!r}.")
        seeds.update(dict.fromkeys(range(low, high + 1)))
    return list(seeds)


def seed_ranges(seeds: Iterable[int]) -> list[list[int]]:
    """Sorted, inclusive ranges that cover exactly `seeds`: [1, 2, 3, 7] becomes [[1, 3], [7, 7]]."""
    ranges: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ranges
