"""Where the tokens of a scan block lie in a tensor that keeps the order of frames, rows and columns."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def token_index(sequence, position, frames, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr):
    """Row of ``[B * T * rows * columns, ...]`` that holds token ``position`` of block sequence ``sequence``.

    The same order as :func:`wm_gym.nn.block_scan.to_blocks`, without moving anything. int64, for it is multiplied next.
    """
    blocks_across: tl.constexpr = COLUMNS // SIZE
    blocks: tl.constexpr = (ROWS // SIZE) * blocks_across
    batch = sequence // blocks
    block = sequence % blocks
    frame = position // (SIZE * SIZE)
    inside = position % (SIZE * SIZE)
    row = (block // blocks_across) * SIZE + inside // SIZE
    column = (block % blocks_across) * SIZE + inside % SIZE
    return (((batch * frames + frame) * ROWS + row) * COLUMNS + column).to(tl.int64)
