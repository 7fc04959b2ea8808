"""Two environments under the same actions: `compare` and what it needs. The command is `wm-gym compare`."""

from wm_gym.comparison.config import CompareConfig
from wm_gym.comparison.recorded import Episodes, RecordedEpisode
from wm_gym.comparison.run import Comparison, compare

__all__ = ["CompareConfig", "Comparison", "Episodes", "RecordedEpisode", "compare"]
