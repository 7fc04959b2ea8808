"""Our model with mamba-ssm's own modules in place of our scan; to compare speed, on a GPU with mamba-ssm."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from wm_gym.array_typing import Tokens
from wm_gym.nn.block_scan import CONV_TAPS, BlockScan, from_blocks, to_blocks
from wm_gym.nn.state import LayerState
from wm_gym.world_model import WorldModel


def load_mamba2() -> type[nn.Module]:
    """mamba-ssm's `Mamba2`. Raises ImportError with what to install."""
    try:
        from mamba_ssm.modules.mamba2 import Mamba2  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "This baseline runs mamba-ssm's modules on a GPU; install them with pip install --no-build-isolation \""
            f'wm-gym[cuda]" (missing: {error}).'
        ) from error
    return Mamba2


class MambaModuleScan(nn.Module):
    """`BlockScan` through `mamba_ssm.modules.mamba2.Mamba2`, with the same weights and the same memory.

    Its `step` takes one token; so the tokens of a block run one after the other, as mamba-ssm's users generate.
    """

    def __init__(self, scan: BlockScan) -> None:
        super().__init__()
        self.block_size = scan.block_size
        device, width = scan.in_proj.weight.device, scan.in_proj.in_features
        self.mamba: Any = load_mamba2()(
            width,
            d_state=scan.state_dim,
            d_conv=CONV_TAPS,
            expand=scan.inner // width,
            headdim=scan.head_dim,
            ngroups=scan.num_groups,
            use_mem_eff_path=False,  # that path needs causal-conv1d
            device=device,
            dtype=torch.float32,
        )
        self.mamba.norm.group_size = scan.inner  # ours is one norm over all groups
        weights = {
            "in_proj.weight": scan.in_proj.weight,
            "conv1d.weight": scan.conv_weight.t()[:, None],
            "conv1d.bias": scan.conv_bias,
            "dt_bias": scan.dt_bias,
            "A_log": scan.log_decay,
            "D": scan.skip,
            "norm.weight": scan.norm_weight,
            "out_proj.weight": scan.out_proj.weight,
        }
        self.mamba.load_state_dict({name: weight.detach() for name, weight in weights.items()})
        if device.type == "cuda":  # else autocast would convert them for every token
            self.mamba.in_proj.bfloat16()
            self.mamba.out_proj.bfloat16()

    def forward(
        self, tokens: Tokens, state: LayerState | None, num_committed: int
    ) -> tuple[Tokens, tuple[Tensor, Tensor] | None]:
        """As `BlockScan.forward`, with a state; raises ValueError without one, for training has no use for it."""
        if state is None:
            raise ValueError("mamba-ssm's modules are here to step; train our model, from which they take the weights.")
        sequences = to_blocks(tokens, self.block_size)
        batch, committed = tokens.shape[0], num_committed * self.block_size**2
        # mamba-ssm keeps the newest inputs last and drops the oldest of four before it takes in a token.
        conv_state = state.conv_state.flatten(0, 1).transpose(1, 2)
        conv_state = torch.cat([conv_state[:, :, :1], conv_state], dim=2).to(tokens.dtype)
        ssm_state = state.ssm_state.flatten(0, 1).clone()
        after = ssm_state, conv_state
        outputs = []
        for token in range(sequences.shape[1]):
            if token == committed:
                after, ssm_state, conv_state = (ssm_state, conv_state), ssm_state.clone(), conv_state.clone()
            outputs.append(self.mamba.step(sequences[:, token : token + 1], conv_state, ssm_state)[0])
        if committed == sequences.shape[1]:
            after = ssm_state, conv_state
        ssm_state, conv_state = after
        y = from_blocks(torch.cat(outputs, dim=1), self.block_size, tokens.shape)
        conv_state = conv_state[:, :, 1:].transpose(1, 2)
        return y, (ssm_state.unflatten(0, (batch, -1)), conv_state.unflatten(0, (batch, -1)))


def with_mamba_modules(model: WorldModel) -> WorldModel:
    """A copy of our model that scans through mamba-ssm's modules; states fit both. Raises ImportError without it."""
    twin = copy.deepcopy(model)
    for layer in twin.backbone.layers:
        scan = layer.block_scan
        assert isinstance(scan, BlockScan)
        layer.block_scan = MambaModuleScan(scan)
    return twin
