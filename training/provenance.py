"""What stands behind a figure; agents' figures need it too, so it lives in `wm_gym.provenance`."""

from wm_gym.provenance import command_arguments, hardware, package_versions, provenance, seed_ranges

__all__ = ["command_arguments", "hardware", "package_versions", "provenance", "seed_ranges"]
