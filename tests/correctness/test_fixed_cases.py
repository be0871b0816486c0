"""Cases that always run, whatever hypothesis draws, and those too large to run unless asked for.

They are listed, with the fault that each looks for, in ``pytest_attn/correctness/fixed.py``.
"""

import pytest

from attn_impls import Direction
from pytest_attn.correctness.fixed import LARGE, fitted, fixed_cases
from pytest_attn.session import attn_session

DIRECTIONS = pytest.mark.parametrize("direction", [Direction.FWD, Direction.BWD])


@pytest.mark.correctness
@DIRECTIONS
def test_fixed_cases(attn_impl, attn_check, direction, request):
    device = attn_session(request.config).device
    cases = fixed_cases(attn_impl.capabilities, device.type, direction)
    if not cases:
        pytest.skip(f"the capabilities of {attn_impl.name} include none of them")
    for case in cases.values():
        attn_check(case, direction)


@pytest.mark.large
@pytest.mark.gpu
@pytest.mark.correctness
@DIRECTIONS
@pytest.mark.parametrize("size", LARGE)
def test_offsets_beyond_32_bits(attn_impl, attn_last_check, size, direction, request):
    if "large" not in request.config.getoption("markexpr"):
        pytest.skip("takes tens of GiB of device memory; run it with -m large")
    device = attn_session(request.config).device
    case = fitted(LARGE[size], attn_impl.capabilities, device.type, direction)
    if case is None:
        pytest.skip(f"the capabilities of {attn_impl.name} do not include it")
    attn_last_check(case, direction)
