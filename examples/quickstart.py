"""Act in a dream of Memory Maze: alone, forked, and four at once. `python examples/quickstart.py`"""

# pyright: reportAttributeAccessIssue=false
import gymnasium as gym

import wm_gym  # noqa: F401 (registers the environments)

# One dream. It starts from a packaged clip of the real maze, which the seed chooses.
env = gym.make("LSSVWM-MemoryMaze-v0")
obs, info = env.reset(seed=0)
print(f"read {info['context_frames']} real frames, the last one is the first observation: {obs.shape} {obs.dtype}")
for _ in range(10):
    obs, reward, terminated, truncated, info = env.step(1)  # forward

# A fork: two futures of the same moment.
state = env.unwrapped.get_state()
left = env.step(2)[0]
env.unwrapped.set_state(state)
right = env.step(3)[0]
print(f"turning left or right makes a difference of {abs(left.astype(int) - right).mean():.1f} grey levels per pixel")

# Many dreams in one batch; `device="cuda", output="torch"` keeps them on a GPU.
envs = gym.make_vec("LSSVWM-MemoryMaze-v0", num_envs=4, vectorization_mode="vector_entry_point", context_frames=20)
obs, info = envs.reset(seed=0)
obs, rewards, terminated, truncated, info = envs.step(envs.action_space.sample())
print(f"{envs.num_envs} dreams: {obs.shape}, rewards {rewards}")
env.close()
envs.close()
