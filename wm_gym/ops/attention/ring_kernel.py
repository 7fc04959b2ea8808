"""Frame-local attention over a ring of cached frames: norms, rotation, softmax and sum in one kernel."""

# A kernel is Python in form only; the type checker does not know Triton's launches, loops and tuples.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from wm_gym.ops.launch import ceil_div, matrix_operand, matrix_precision, next_power_of_two

_FILLS_A_GPU = 256  # programs


@triton.jit
def _normalised_halves(source, weight, offset, mask, HALF_TILE: tl.constexpr, HALF: tl.constexpr):
    """RMS norm of vectors at `offset` ([rows, 1]), as their two halves in float32, [rows, HALF_TILE] each."""
    pair = tl.arange(0, HALF_TILE)[None, :]
    inside = pair < HALF
    first = tl.load(source + offset + pair, mask & inside, 0.0).to(tl.float32)
    second = tl.load(source + offset + HALF + pair, mask & inside, 0.0).to(tl.float32)
    squares = tl.sum(first * first, axis=1, keep_dims=True) + tl.sum(second * second, axis=1, keep_dims=True)
    scale = tl.rsqrt(squares / (2 * HALF) + 1e-6)
    first *= scale * tl.load(weight + pair, inside, 0.0).to(tl.float32)
    second *= scale * tl.load(weight + HALF + pair, inside, 0.0).to(tl.float32)
    return first, second


@triton.jit
def _rotated(first, second, cos, sin, position, mask, HALF_TILE: tl.constexpr, HALF: tl.constexpr):
    """Rotate by the angles at `position` ([rows, 1], frame * tokens + token)."""
    pair = tl.arange(0, HALF_TILE)[None, :]
    c = tl.load(cos + position * HALF + pair, mask & (pair < HALF), 0.0).to(tl.float32)
    s = tl.load(sin + position * HALF + pair, mask & (pair < HALF), 0.0).to(tl.float32)
    return first * c - second * s, first * s + second * c


@triton.jit
def _attend(q1, q2, k1, k2, value, visible, best, total, acc, PRECISION: tl.constexpr):
    """One tile of keys into the running softmax; scores are in units of log 2."""
    dtype: tl.constexpr = value.dtype
    scores = tl.dot(q1, tl.trans(k1.to(dtype)), input_precision=PRECISION)
    scores = tl.dot(q2, tl.trans(k2.to(dtype)), acc=scores, input_precision=PRECISION)
    scores = tl.where(visible, scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, axis=1))
    shrink = tl.exp2(best - new_best)
    weight = tl.exp2(scores - new_best[:, None])
    acc = tl.dot(weight.to(dtype), value, acc=acc * shrink[:, None], input_precision=PRECISION)
    return new_best, total * shrink + tl.sum(weight, axis=1), acc


@triton.jit
def _ring_attention_kernel(
    qkv, query_norm, key_norm, cos, sin, kv_ring, num_cached, out, score_scale,
    HEADS: tl.constexpr, DIM: tl.constexpr, DIM_TILE: tl.constexpr, HALF_TILE: tl.constexpr,
    WINDOW: tl.constexpr, FRAMES: tl.constexpr, TOKENS: tl.constexpr,
    QUERY_TILE: tl.constexpr, KEY_TILE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    COMMIT: tl.constexpr,
):  # fmt: skip
    """Queries of one head of a dream. COMMIT, only if they are all its queries, takes frame 0 into the ring."""
    WIDTH: tl.constexpr = HEADS * DIM
    HALF: tl.constexpr = DIM // 2
    QUERIES: tl.constexpr = FRAMES * TOKENS
    tiles: tl.constexpr = (QUERIES + QUERY_TILE - 1) // QUERY_TILE
    tile = tl.program_id(0) % tiles
    head = tl.program_id(0) // tiles % HEADS
    row = (tl.program_id(0) // (tiles * HEADS)).to(tl.int64)
    fresh = qkv + row * (QUERIES * 3 * WIDTH) + head * DIM
    ring = kv_ring + row * (WINDOW * TOKENS * 2 * WIDTH) + head * DIM

    query = tile * QUERY_TILE + tl.arange(0, QUERY_TILE)
    exists = (query < QUERIES)[:, None]
    frame = query // TOKENS
    q1, q2 = _normalised_halves(fresh, query_norm, query[:, None] * (3 * WIDTH), exists, HALF_TILE, HALF)
    q1, q2 = _rotated(q1, q2, cos, sin, WINDOW * TOKENS + query[:, None], exists, HALF_TILE, HALF)
    q1, q2 = (q1 * score_scale).to(OPERAND), (q2 * score_scale).to(OPERAND)

    best = tl.full([QUERY_TILE], float("-inf"), tl.float32)
    total = tl.zeros([QUERY_TILE], tl.float32)
    acc = tl.zeros([QUERY_TILE, DIM_TILE], tl.float32)
    channel = tl.arange(0, DIM_TILE)[None, :]
    pair = tl.arange(0, HALF_TILE)[None, :]
    # Fresh frame 0 comes first: every query sees it, so that no running maximum stays infinite. A loop that is not
    # unrolled leaves registers for two programs at a time.
    for other in tl.range(0, FRAMES, num_stages=1):
        for start in tl.static_range(0, TOKENS, KEY_TILE):
            token = start + tl.arange(0, KEY_TILE)
            there = (token < TOKENS)[:, None]
            key = other * TOKENS + token
            offset = key[:, None] * (3 * WIDTH)
            k1, k2 = _normalised_halves(fresh + WIDTH, key_norm, offset, there, HALF_TILE, HALF)
            k1, k2 = _rotated(k1, k2, cos, sin, WINDOW * TOKENS + key[:, None], there, HALF_TILE, HALF)
            value = tl.load(fresh + 2 * WIDTH + offset + channel, there & (channel < DIM), 0.0).to(OPERAND)
            visible = (token < TOKENS)[None, :] & (frame >= other)[:, None]
            best, total, acc = _attend(q1, q2, k1, k2, value, visible, best, total, acc, PRECISION)
    count = tl.load(num_cached + row)
    for index in range(WINDOW):
        # A slot that holds no frame yet is not read, and its keys are seen by nobody.
        held = index + count >= WINDOW
        slot = ((count + index) % WINDOW).to(tl.int32)
        for start in tl.static_range(0, TOKENS, KEY_TILE):
            token = start + tl.arange(0, KEY_TILE)
            there = ((token < TOKENS) & held)[:, None]
            place = ring + (slot * TOKENS + token)[:, None] * (2 * WIDTH)
            half = there & (pair < HALF)
            k1 = tl.load(place + pair, half, 0.0).to(tl.float32)
            k2 = tl.load(place + HALF + pair, half, 0.0).to(tl.float32)
            k1, k2 = _rotated(k1, k2, cos, sin, index * TOKENS + token[:, None], there, HALF_TILE, HALF)
            value = tl.load(place + WIDTH + channel, there & (channel < DIM), 0.0).to(OPERAND)
            visible = ((token < TOKENS) & held)[None, :] & (frame <= index)[:, None]
            best, total, acc = _attend(q1, q2, k1, k2, value, visible, best, total, acc, PRECISION)

    place = out + (row * QUERIES + query)[:, None] * WIDTH + head * DIM + channel
    tl.store(place, (acc / total[:, None]).to(out.dtype.element_ty), exists & (channel < DIM))
    if COMMIT:
        tl.debug_barrier()  # all threads have read the ring
        target = ring + (count % WINDOW) * (TOKENS * 2 * WIDTH)
        for start in tl.static_range(0, TOKENS, KEY_TILE):
            token = start + tl.arange(0, KEY_TILE)[:, None]
            _commit(
                fresh, key_norm, target, token * (3 * WIDTH), token * (2 * WIDTH), token < TOKENS,
                WIDTH, DIM, DIM_TILE, HALF_TILE,
            )  # fmt: skip


@triton.jit
def _commit(
    fresh, key_norm, target, source, place, exists,
    WIDTH: tl.constexpr, DIM: tl.constexpr, DIM_TILE: tl.constexpr, HALF_TILE: tl.constexpr,
):  # fmt: skip
    """Normalised keys and values of vectors at `source` ([rows, 1]) of the fresh frames to `place` of a slot."""
    HALF: tl.constexpr = DIM // 2
    stored: tl.constexpr = target.dtype.element_ty
    pair = tl.arange(0, HALF_TILE)[None, :]
    half = exists & (pair < HALF)
    k1, k2 = _normalised_halves(fresh + WIDTH, key_norm, source, exists, HALF_TILE, HALF)
    tl.store(target + place + pair, k1.to(stored), half)
    tl.store(target + place + HALF + pair, k2.to(stored), half)
    channel = tl.arange(0, DIM_TILE)[None, :]
    whole = exists & (channel < DIM)
    value = tl.load(fresh + 2 * WIDTH + source + channel, whole, 0.0)
    tl.store(target + place + WIDTH + channel, value.to(stored), whole)


@triton.jit
def _commit_kernel(
    qkv, key_norm, kv_ring, num_cached,
    HEADS: tl.constexpr, DIM: tl.constexpr, DIM_TILE: tl.constexpr, HALF_TILE: tl.constexpr,
    WINDOW: tl.constexpr, FRAMES: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Frame 0's normalised keys and values into the oldest slot. Runs after all queries have read the ring."""
    WIDTH: tl.constexpr = HEADS * DIM
    tiles: tl.constexpr = (TOKENS * HEADS + TILE - 1) // TILE
    row = (tl.program_id(0) // tiles).to(tl.int64)
    vector = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)[:, None]  # token * HEADS + head
    source = vector // HEADS * (3 * WIDTH) + vector % HEADS * DIM
    place = vector // HEADS * (2 * WIDTH) + vector % HEADS * DIM
    slot = tl.load(num_cached + row) % WINDOW
    fresh = qkv + row * (FRAMES * TOKENS * 3 * WIDTH)
    target = kv_ring + (row * WINDOW + slot) * (TOKENS * 2 * WIDTH)
    _commit(fresh, key_norm, target, source, place, vector < TOKENS * HEADS, WIDTH, DIM, DIM_TILE, HALF_TILE)


def ring_attention(
    qkv: Tensor,
    query_norm: Tensor,
    key_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    kv_ring: Tensor,
    num_cached: Tensor,
    num_committed: int,
) -> Tensor:
    """Kernel of :func:`wm_gym.ops.step.ring_attention`.

    Raises:
        ValueError: if the ring or the angles are not contiguous.
    """
    batch, frames, tokens, _three, heads, dim = qkv.shape
    window = kv_ring.shape[1]
    if not (kv_ring.is_contiguous() and cos.is_contiguous() and sin.is_contiguous()):
        raise ValueError("kv_ring, cos and sin must be contiguous; pass them so.")
    qkv, num_cached = qkv.contiguous(), num_cached.contiguous()
    query_norm, key_norm = query_norm.contiguous(), key_norm.contiguous()
    out = qkv.new_empty(batch, frames, tokens, heads * dim)
    query_tile = _query_tile(frames * tokens, batch * heads)
    sizes = {
        "HEADS": heads,
        "DIM": dim,
        "DIM_TILE": max(16, next_power_of_two(dim)),
        "HALF_TILE": max(16, next_power_of_two(dim // 2)),
        "WINDOW": window,
        "FRAMES": frames,
        "TOKENS": tokens,
    }
    tiles = ceil_div(frames * tokens, query_tile)
    _ring_attention_kernel[(batch * heads * tiles,)](
        qkv, query_norm, key_norm, cos, sin, kv_ring, num_cached, out, dim**-0.5 * 1.4426950408889634,
        **sizes, QUERY_TILE=query_tile, KEY_TILE=min(64, max(16, next_power_of_two(tokens))),
        OPERAND=matrix_operand(qkv.dtype), PRECISION=matrix_precision(qkv.dtype),
        COMMIT=num_committed > 0 and tiles == 1, **_launch(query_tile),
    )  # fmt: skip
    if num_committed and tiles > 1:
        tile = 32
        _commit_kernel[(batch * ceil_div(tokens * heads, tile),)](
            qkv, key_norm, kv_ring, num_cached, **sizes, TILE=tile, num_warps=4
        )
    return out


def _query_tile(num_queries: int, num_heads: int) -> int:
    """Queries per program: fewer where there are few heads, so that more of the GPU works."""
    tile = min(128, max(16, next_power_of_two(num_queries)))
    while tile > 16 and num_heads * ceil_div(num_queries, tile) < _FILLS_A_GPU:
        tile //= 2
    return tile


def _launch(query_tile: int) -> dict[str, int | None]:
    """Measured on an H200. 128 registers let two programs of 128 queries share a multiprocessor."""
    if query_tile < 128:
        return {"num_warps": 4, "num_stages": 3, "maxnreg": None}
    return {"num_warps": 8, "num_stages": 1, "maxnreg": 128}
