"""What `wm-gym compare` prints."""

from __future__ import annotations

from wm_gym.comparison.config import CompareConfig
from wm_gym.comparison.recorded import Episodes
from wm_gym.comparison.run import Comparison, compare


def run_compare(config: CompareConfig, episodes: Episodes | None = None) -> Comparison:
    """`compare`, and its tables on the terminal. Raises as `compare`."""
    comparison = compare(config, episodes=episodes)
    for table in (comparison.horizons, comparison.episodes):
        print(f"\n{table.to_string(index=False, float_format=lambda value: f'{value:.2f}', na_rep='-')}")
    figures = comparison.summary
    parting = figures["median_parting_step"]
    print(
        f"\n{figures['psnr']:.2f} dB on average ({figures['psnr_copy_last']:.2f} dB for a still picture); rewards: "
        f"{figures['reward_hits']} hits, {figures['reward_misses']} misses, {figures['reward_false_alarms']} false "
        f"alarms; parted at step {'-' if parting is None else parting} (median)\n"
        f"The report is {comparison.out / 'report.html'}."
    )
    return comparison
