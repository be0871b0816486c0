"""Every implementation, on cases drawn inside its capabilities, against the float64 oracle.

The error budget is stated in ``pytest_attn/correctness/budget.py``. A failure prints the command that repeats it.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attn_impls import Direction
from pytest_attn.correctness.profiles import suite_settings


@pytest.mark.correctness(direction="fwd")
@suite_settings()
@given(data=st.data())
def test_forward(attn_impl, attn_cases, attn_check, data):
    case = data.draw(attn_cases(Direction.FWD), label="case")
    attn_check(case, Direction.FWD)


@pytest.mark.correctness(direction="bwd")
@suite_settings()
@given(data=st.data())
def test_gradients(attn_impl, attn_cases, attn_check, data):
    if not attn_impl.capabilities.backward:
        pytest.skip(f"{attn_impl.name} has no backward")
    case = data.draw(attn_cases(Direction.BWD), label="case")
    attn_check(case, Direction.BWD)
