"""The scan and the convolution against their definitions."""

from typing import Any

import pytest
import torch

from wm_gym import ops
from wm_gym.ops import reference
from wm_gym.ops.scan import chunked


def scan_inputs(length: int, with_state: bool, groups: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    sequences, heads, dim, state = 3, 4, 4, 5
    inputs = {
        "x": draw(sequences, length, heads, dim),
        "dt": torch.nn.functional.softplus(draw(sequences, length, heads)),
        "a": -torch.exp(draw(heads)),
        "b": draw(sequences, length, groups, state),
        "c": draw(sequences, length, groups, state),
        "skip": draw(heads),
    }
    if with_state:
        inputs["initial_state"] = draw(sequences, heads, dim, state)
    return {name: value.float().requires_grad_() for name, value in inputs.items()}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 7, 16, 61])
@pytest.mark.parametrize("with_state", [False, True])
def test_chunked_scan_equals_recurrence_in_outputs_states_and_gradients(
    length: int, with_state: bool, groups: int
) -> None:
    fast, slow = scan_inputs(length, with_state, groups), scan_inputs(length, with_state, groups)
    y, final = chunked.ssd_scan(**fast, chunk_size=8)
    y_ref, final_ref = reference.ssd_scan(**slow)
    torch.testing.assert_close(y, y_ref, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(final, final_ref, rtol=1e-4, atol=1e-5)
    weight, state_weight = torch.randn_like(y), torch.randn_like(final)
    ((y * weight).sum() + (final * state_weight).sum()).backward()
    ((y_ref * weight).sum() + (final_ref * state_weight).sum()).backward()
    for name in fast:
        torch.testing.assert_close(fast[name].grad, slow[name].grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("num_committed", [0, 1, 4, 9])
def test_single_chunk_equals_recurrence_up_to_the_committed_token(num_committed: int, groups: int) -> None:
    fast, slow = (scan_inputs(9, True, groups) for _ in range(2))
    y, state = chunked.ssd_chunk(**fast, num_committed=num_committed)
    y_ref, _ = reference.ssd_scan(**slow)
    head = {k: v[:, :num_committed] if k in ("x", "dt", "b", "c") else v for k, v in slow.items()}
    state_ref = reference.ssd_scan(**head)[1] if num_committed else slow["initial_state"]
    torch.testing.assert_close(y, y_ref, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, state_ref, rtol=1e-4, atol=1e-5)
    (y.square().sum() + state.square().sum()).backward()
    (y_ref.square().sum() + state_ref.square().sum()).backward()
    for name in fast:
        torch.testing.assert_close(fast[name].grad, slow[name].grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("length", [5, 150])
@pytest.mark.parametrize("num_committed", [0, 3, None])
def test_picked_scan_gives_the_state_after_the_committed_tokens(length: int, num_committed: int | None) -> None:
    inputs = scan_inputs(length, with_state=True)
    y, state = ops.ssd_scan(**inputs, num_committed=num_committed)
    y_ref, state_ref = reference.ssd_scan(**inputs)
    if num_committed is not None:
        head = {k: v[:, :num_committed] if k in ("x", "dt", "b", "c") else v for k, v in inputs.items()}
        state_ref = reference.ssd_scan(**head)[1] if num_committed else inputs["initial_state"]
    torch.testing.assert_close(y, y_ref, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(state, state_ref, rtol=1e-3, atol=1e-4)


def test_groups_of_heads_scan_as_if_each_were_alone() -> None:
    inputs = scan_inputs(9, with_state=True, groups=2)
    y, state = reference.ssd_scan(**inputs)
    for group in range(2):
        heads = slice(2 * group, 2 * group + 2)
        alone = {name: inputs[name][:, :, heads] for name in ("x", "dt")}
        alone |= {name: inputs[name][heads] for name in ("a", "skip")}
        alone |= {name: inputs[name][:, :, group, None] for name in ("b", "c")}
        alone_y, alone_state = reference.ssd_scan(**alone, initial_state=inputs["initial_state"][:, heads])
        assert torch.equal(alone_y, y[:, :, heads])
        assert torch.equal(alone_state, state[:, heads])


def test_scan_split_anywhere_equals_scan_in_one() -> None:
    inputs = scan_inputs(23, with_state=False)
    whole, final = chunked.ssd_scan(**inputs, chunk_size=8)
    for cut in (1, 8, 15):
        first = {k: v[:, :cut] if k in ("x", "dt", "b", "c") else v for k, v in inputs.items()}
        second = {k: v[:, cut:] if k in ("x", "dt", "b", "c") else v for k, v in inputs.items()}
        y0, state = chunked.ssd_scan(**first, chunk_size=8)
        y1, end = chunked.ssd_scan(**second, initial_state=state, chunk_size=8)
        torch.testing.assert_close(torch.cat([y0, y1], 1), whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(end, final, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("with_state", [False, True])
def test_convolution_by_shifts_equals_its_definition(length: int, with_state: bool) -> None:
    x, weight, bias = torch.randn(2, length, 6), torch.randn(4, 6), torch.randn(6)
    conv_state = torch.randn(2, 3, 6) if with_state else None
    y, padded = ops.causal_conv(x, weight, bias, conv_state)
    y_ref, state_ref = reference.causal_conv(x, weight, bias, conv_state)
    torch.testing.assert_close(y, y_ref)
    torch.testing.assert_close(padded[:, length:], state_ref)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [130, 400, 777])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_mamba_kernels_equal_the_chunked_scan(length: int, with_state: bool, groups: int) -> None:
    from wm_gym.ops.scan import mamba

    assert mamba.is_available(), "mamba-ssm is not installed on this GPU machine"

    def inputs() -> dict[str, Any]:
        g = torch.Generator().manual_seed(0)
        shapes = {"x": (2, length, 2, 64), "dt": (2, length, 2)}
        shapes |= {"b": (2, length, groups, 64), "c": (2, length, groups, 64)}
        values = {k: torch.randn(*shape, generator=g) for k, shape in shapes.items()}
        values["dt"] = torch.nn.functional.softplus(values["dt"] - 2)
        values |= {"a": -torch.exp(torch.randn(2, generator=g)), "skip": torch.randn(2, generator=g)}
        if with_state:
            values["initial_state"] = torch.randn(2, 2, 64, 64, generator=g)
        return {k: v.cuda().requires_grad_() for k, v in values.items()}

    fast, slow = inputs(), inputs()
    mamba_scan: Any = mamba.ssd_scan
    y, final = mamba_scan(**fast)
    y_ref, final_ref = chunked.ssd_scan(**slow)
    (y.sum() + final.sum()).backward()
    (y_ref.sum() + final_ref.sum()).backward()
    for name, value, expected in [("y", y, y_ref), ("final", final, final_ref)] + [
        (k, fast[k].grad, slow[k].grad) for k in fast
    ]:
        assert value is not None and expected is not None, name
        assert (value - expected).norm() <= 1e-2 * expected.norm(), name
