"""The figures of arXiv 2505.20171 (tables 1 and 2) beside which ours stand, by the recipe that makes the same row.

The paper's models have 200M parameters and saw billions of frames; frames are larger and are made by many steps.
"""

from __future__ import annotations

SOURCE = "arXiv 2505.20171, tables 1 and 2; 200M parameters"
OURS = "ours"

LABELS = {
    OURS: "LSSVWM (ours)",
    "causal_transformer": "causal transformer, full context (reference)",
    "causal_transformer_192": "causal transformer, 192 frames",
    "mamba2": "Mamba2",
    "mamba2_frame_attention": "Mamba2 + frame-local attention (no block-wise scan)",
    "block_size_1": "block size 1 in every layer",
    "without_long_context": "without long-context training",
    "with_map": "with a map",
    "dfot_25": "bidirectional (DFoT), 25 frames",
}

_NAMES = ("ssim", "lpips", "psnr")
_FIGURES = {
    "retrieval": {
        "causal_transformer_192": (0.829, 0.147, 26.4),
        "mamba2": (0.747, 0.313, 20.4),
        "mamba2_frame_attention": (0.735, 0.336, 19.3),
        OURS: (0.898, 0.069, 30.8),
        "causal_transformer": (0.914, 0.057, 32.6),
    },
    "reasoning": {
        "causal_transformer_192": (0.839, 0.125, 27.1),
        "mamba2": (0.827, 0.150, 26.4),
        "mamba2_frame_attention": (0.845, 0.113, 27.5),
        OURS: (0.855, 0.099, 28.2),
        "causal_transformer": (0.860, 0.089, 28.8),
        "block_size_1": (0.766, 0.198, 23.1),
        "without_long_context": (0.809, 0.143, 25.3),
    },
}


def paper_figures(protocol: str, row: str) -> dict[str, float] | None:
    """SSIM, LPIPS and PSNR of a row of Memory Maze, None where the paper has none.

    Args:
        protocol: "retrieval" or "reasoning".
        row: a recipe's name, or `OURS`.
    """
    figures = _FIGURES[protocol].get(row)
    return None if figures is None else dict(zip(_NAMES, figures, strict=True))
