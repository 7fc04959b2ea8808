"""Triton kernels: of one inference step, picked by :mod:`wm_gym.ops.step`, and of training, by :mod:`wm_gym.ops.fused`.

Only they import Triton. Under TRITON_INTERPRET=1, set before Triton is first imported, the kernels run on the CPU.
"""
