"""Triton kernels of the training pass and of a single step. Import its modules only where Triton is there:
:mod:`wm_gym.ops.fused` and :mod:`wm_gym.ops.step` decide.

Under TRITON_INTERPRET=1, set before Triton is first imported, they run on the CPU.
"""
