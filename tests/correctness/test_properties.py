"""Every implementation, on cases drawn inside its capabilities: properties that relate its own results to each other.

Each is stated in ``pytest_attn/correctness/properties.py``. A failure prints the command that repeats it.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_attn.correctness.profiles import suite_settings
from pytest_attn.correctness.properties import PROPERTIES

EACH = [
    pytest.param(name, marks=pytest.mark.correctness(direction=rule.direction.value, property=name))
    for name, rule in PROPERTIES.items()
]
# A property costs two to three calls and ten of them follow each other, so each gets a quarter of the examples.
QUARTER = settings(suite_settings(), max_examples=max(10, suite_settings().max_examples // 4))


@pytest.mark.parametrize("name", EACH)
@QUARTER
@given(data=st.data())
def test_property(attn_impl, attn_cases, attn_property_check, name, data):
    never = PROPERTIES[name].never(attn_impl.capabilities)
    if never is not None:
        pytest.skip(f"{attn_impl.name} {never}")
    case = data.draw(attn_cases(PROPERTIES[name].direction), label="case")
    attn_property_check(name, case)
