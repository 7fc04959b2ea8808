"""The training pass's operations on Triton kernels, each with its gradient. Import it only where Triton is there.

Under autocast the tensors arrive in bf16 and the parameters in float32; the kernels compute in float32 throughout.
"""

# pyright: reportIncompatibleMethodOverride=false
# (PyTorch declares the methods of functions without their arguments.)

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from wm_gym.ops.attention.training_kernel import frame_attention as attention_forward
from wm_gym.ops.attention.training_kernel import frame_attention_backward as attention_backward
from wm_gym.ops.feed_forward.bias_gelu_kernel import bias_gelu as gelu_forward
from wm_gym.ops.feed_forward.bias_gelu_kernel import bias_gelu_backward
from wm_gym.ops.norm.gated_training_kernel import gated_norm, gated_norm_backward
from wm_gym.ops.norm.residual_training_kernel import residual_norm as residual_norm_forward
from wm_gym.ops.norm.residual_training_kernel import residual_norm_backward
from wm_gym.ops.scan.conv_kernel import conv_silu, conv_silu_backward
from wm_gym.ops.scan.training_kernel import chunk_scan, chunk_scan_backward


class _Mixer(Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, *arguments: Any) -> Tensor:
        *parameters, block_size, num_groups = arguments
        conv_weight, conv_bias, dt_bias, log_decay, skip, norm_weight = parameters
        inner = norm_weight.shape[0]
        projected = projected.contiguous()
        mixed = conv_silu(projected, conv_weight, conv_bias, inner, block_size)
        y, states, steps = chunk_scan(mixed, projected, dt_bias, log_decay, skip, inner, block_size, num_groups)
        ctx.save_for_backward(projected, mixed, y, states, steps, *parameters)
        ctx.block_size, ctx.num_groups = block_size, num_groups
        return gated_norm(y, projected, norm_weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        projected, mixed, y, states, steps, *parameters = ctx.saved_tensors
        conv_weight, conv_bias, dt_bias, log_decay, skip, norm_weight = parameters
        inner = norm_weight.shape[0]
        grad_projected = torch.empty_like(projected)
        grad_y, grad_norm = gated_norm_backward(grad.contiguous(), y, projected, norm_weight, grad_projected)
        grad_x, grad_bc, *grad_scan = chunk_scan_backward(
            grad_y,
            mixed,
            projected,
            dt_bias,
            log_decay,
            skip,
            states,
            steps,
            ctx.block_size,
            ctx.num_groups,
            grad_projected,
        )
        grad_conv, grad_bias = conv_silu_backward(
            (grad_x, grad_bc), projected, conv_weight, conv_bias, inner, ctx.block_size, grad_projected
        )
        return grad_projected, grad_conv, grad_bias, *grad_scan, grad_norm, None, None


def block_mixer(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    log_decay: Tensor,
    skip: Tensor,
    norm_weight: Tensor,
    block_size: int,
    num_groups: int,
) -> Tensor:
    """Convolution, scan, gate and norm of a block-wise scan that starts from nothing.

    Args:
        projected: gate, convolved channels and step sizes, ``[B, T, rows, columns, inner + mixed + h]``.
        conv_weight, conv_bias: ``[4, mixed]``, ``[mixed]``.
        dt_bias, log_decay, skip: ``[h]``.
        norm_weight: ``[inner]``.
        num_groups: groups of consecutive heads that share a B and a C.

    Returns:
        ``[B, T, rows, columns, inner]``.
    """
    parameters = (conv_weight, conv_bias, dt_bias, log_decay, skip, norm_weight)
    return _Mixer.apply(projected, *(parameter.float() for parameter in parameters), block_size, num_groups)


class _ResidualNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        branch = branch.contiguous()
        out, modulated = residual_norm_forward(tokens.contiguous(), branch, gate, shift, scale)
        ctx.save_for_backward(out, branch, gate, scale)
        return out, modulated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_modulated: Tensor) -> tuple[Tensor | None, ...]:
        out, branch, gate, scale = ctx.saved_tensors
        return residual_norm_backward(grad_out.contiguous(), grad_modulated.contiguous(), out, branch, gate, scale)


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        tokens = tokens.contiguous()
        ctx.save_for_backward(tokens, scale)
        return residual_norm_forward(tokens, None, None, shift, scale)[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, scale = ctx.saved_tensors
        grad_tokens, _, _, grad_shift, grad_scale = residual_norm_backward(
            None, grad.contiguous(), tokens, None, None, scale
        )
        return grad_tokens, grad_shift, grad_scale


def modulated_norm(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm (arXiv 2212.09748, section 3.2).

    Args:
        tokens: ``[..., N, D]``.
        shift, scale: ``[R, D]``, one row for each frame of N tokens; their channels lie side by side.
    """
    return _Norm.apply(tokens, shift, scale)


def residual_norm(tokens: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """``tokens + (1 + gate) * branch``, and :func:`modulated_norm` of that.

    Args:
        branch: like ``tokens``.
        gate: like ``shift`` and ``scale``.
    """
    return _ResidualNorm.apply(tokens, branch, gate, shift, scale)


class _BiasGelu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, bias)
        return gelu_forward(x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return bias_gelu_backward(grad.contiguous(), *ctx.saved_tensors)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x + bias)`` with tanh's approximation (arXiv 1606.08415); x ``[..., width]``, bias ``[width]``."""
    return _BiasGelu.apply(x, bias.float())


class _FrameAttention(Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, query_norm: Tensor, key_norm: Tensor, cos: Tensor, sin: Tensor, window: int
    ) -> Tensor:
        qkv = qkv.contiguous()
        out, rotated, log_sums = attention_forward(qkv, query_norm, key_norm, cos, sin, window)
        ctx.save_for_backward(qkv, query_norm, key_norm, cos, sin, out, rotated, log_sums)
        ctx.window = window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, query_norm, key_norm, cos, sin, *results = ctx.saved_tensors
        grads = attention_backward(grad.contiguous(), qkv, query_norm, key_norm, cos, sin, ctx.window, *results)
        return *grads, None, None, None


def frame_attention(qkv: Tensor, query_norm: Tensor, key_norm: Tensor, cos: Tensor, sin: Tensor, window: int) -> Tensor:
    """Attention over a window of frames, with normalised and rotated queries and keys.

    Args:
        qkv: ``[B, T, N, 3, h, d]``.
        query_norm, key_norm: weights of RMS norms, ``[d]``.
        cos, sin: rotation angles, ``[T, N, 1, d / 2]``.
        window: number of previous frames that are seen.

    Returns:
        ``[B, T, N, h, d]``.
    """
    return _FrameAttention.apply(qkv, query_norm.float(), key_norm.float(), cos, sin, window)
