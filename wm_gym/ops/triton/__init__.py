"""Triton kernels of one inference step; :mod:`wm_gym.ops.step` picks them, and only they import Triton.

Under TRITON_INTERPRET=1, set before Triton is first imported, they run on the CPU.
"""
