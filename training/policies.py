"""The recording policies, which live in `wm_gym.policies` because the demonstration in the wheel needs them too."""

from wm_gym.policies import Navigator, Policy, RandomPolicy, make_policy

__all__ = ["Navigator", "Policy", "RandomPolicy", "make_policy"]
