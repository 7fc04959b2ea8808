"""Play the dream in a window with the arrow keys: `python examples/play_pygame.py [SEED]` (extra play); Escape ends it.

It is Gymnasium's own `gymnasium.utils.play`, which takes the dream as any other environment. `wm-gym play` does more.
"""

import sys

import gymnasium as gym
import pygame
from gymnasium.utils.play import play

import wm_gym  # noqa: F401 (registers the environments)

UP, LEFT, RIGHT = pygame.K_UP, pygame.K_LEFT, pygame.K_RIGHT
KEYS = {(UP,): 1, (LEFT,): 2, (RIGHT,): 3, (UP, LEFT): 4, (UP, RIGHT): 5}

env = gym.make("LSSVWM-MemoryMaze-v0", render_mode="rgb_array", num_denoising_steps=2)
seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
play(env, keys_to_action=KEYS, noop=0, seed=seed, fps=10, zoom=8)
