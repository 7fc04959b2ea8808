"""Triton kernels. Import its modules only where Triton is there: :mod:`wm_gym.ops` decides."""
