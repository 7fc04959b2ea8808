"""The environments, one module each; `import wm_gym` registers them, `gym.make` loads them."""
