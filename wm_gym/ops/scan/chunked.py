"""The scan in chunks, in plain PyTorch: the state-space dual form (arXiv 2405.21060, section 6, listing 1).

Inside a chunk the recurrence is a masked matrix product; between chunks only states are passed on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wm_gym.array_typing import ScanInput, ScanProjection, ScanState, ScanStep


def _segment_decay(log_decay: Tensor) -> Tensor:
    """``out[..., i, j] = exp(sum of log_decay[..., j+1 .. i])`` for ``j <= i``, else 0."""
    cumulative = log_decay.cumsum(-1)
    length = log_decay.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=log_decay.device).tril()
    difference = cumulative[..., :, None] - cumulative[..., None, :]
    return difference.masked_fill(~causal, float("-inf")).exp()


def ssd_chunk(
    x: ScanInput,
    dt: ScanStep,
    a: Tensor,
    b: ScanProjection,
    c: ScanProjection,
    skip: Tensor,
    initial_state: ScanState,
    num_committed: int,
) -> tuple[ScanInput, ScanState]:
    """The scan as a single chunk, for a few tokens; the state returned is that after ``num_committed`` of them.

    Otherwise the contract of :func:`wm_gym.ops.reference.ssd_scan`. All tokens see those before them, committed or not.
    """
    # [sequences, g, tokens or one of the group's heads, ...]
    by_group = (b.shape[2], -1)
    bf, cf = b.float().transpose(1, 2), c.float().transpose(1, 2)
    u = (x * dt[..., None]).float().transpose(1, 2).unflatten(1, by_group)
    log_decay = (dt.float() * a.float()).transpose(1, 2).unflatten(1, by_group)
    state = initial_state.unflatten(1, by_group)
    y = ((cf @ bf.transpose(2, 3))[:, :, None] * _segment_decay(log_decay)) @ u
    decay = log_decay.cumsum(-1)
    y = y + (cf[:, :, None] @ state.transpose(3, 4)) * decay.exp()[..., None]
    y = (y.flatten(1, 2).transpose(1, 2) + skip.float()[:, None] * x.float()).to(x.dtype)
    if num_committed == 0:
        return y, initial_state
    decay = decay[..., :num_committed]
    weight = (decay[..., -1:] - decay).exp()[..., None]
    update = (u[..., :num_committed, :] * weight).transpose(3, 4) @ bf[:, :, None, :num_committed]
    return y, torch.addcmul(update, state, decay[..., -1].exp()[..., None, None]).flatten(1, 2)


def ssd_scan(
    x: ScanInput,
    dt: ScanStep,
    a: Tensor,
    b: ScanProjection,
    c: ScanProjection,
    skip: Tensor,
    initial_state: ScanState | None = None,
    chunk_size: int = 64,
) -> tuple[ScanInput, ScanState]:
    """Same contract as :func:`wm_gym.ops.reference.ssd_scan`; states are kept in float32."""
    sequences, length, heads, dim = x.shape
    groups = b.shape[2]
    chunk = min(chunk_size, length)
    padding = -length % chunk
    # A padded token has dt = 0: it neither decays nor feeds the state.
    u, step = (x * dt[..., None]).float(), dt.float()
    bf, cf = b.float(), c.float()
    if padding:
        u = F.pad(u, (0, 0, 0, 0, 0, padding))
        step = F.pad(step, (0, 0, 0, padding))
        bf, cf = F.pad(bf, (0, 0, 0, 0, 0, padding)), F.pad(cf, (0, 0, 0, 0, 0, padding))
    chunks = (length + padding) // chunk
    # [sequences, chunks, g, (heads of a group,) tokens of a chunk, ...]
    u = u.reshape(sequences, chunks, chunk, groups, heads // groups, dim).permute(0, 1, 3, 4, 2, 5)
    bf, cf = (z.reshape(sequences, chunks, chunk, groups, -1).transpose(2, 3) for z in (bf, cf))
    log_decay = (step * a.float()).reshape(sequences, chunks, chunk, groups, -1).permute(0, 1, 3, 4, 2)
    cumulative = log_decay.cumsum(-1)

    inside = (cf @ bf.transpose(-1, -2))[:, :, :, None] * _segment_decay(log_decay)
    y = inside @ u

    to_end = (cumulative[..., -1:] - cumulative).exp()
    chunk_states = torch.einsum("ncghlp,ncgls->ncghps", u * to_end[..., None], bf).flatten(2, 3)
    if initial_state is None:
        initial_state = chunk_states.new_zeros(sequences, heads, dim, bf.shape[-1])
    states = torch.cat([initial_state.float()[:, None], chunk_states], dim=1)
    between = _segment_decay(F.pad(cumulative[..., -1].flatten(2), (0, 0, 1, 0)).transpose(1, 2))
    states = torch.einsum("nhij,njhps->nihps", between, states)
    before = states[:, :-1].unflatten(2, (groups, -1))
    y = y + torch.einsum("ncgls,ncghps->ncghlp", cf, before) * cumulative.exp()[..., None]

    y = y.permute(0, 1, 4, 2, 3, 5).reshape(sequences, chunks * chunk, heads, dim)[:, :length]
    return (y + skip.float()[:, None] * x.float()).to(x.dtype), states[:, -1]
