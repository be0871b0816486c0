"""What implementations claim beside right results: each claim of their capabilities is tested where it is made.

What a claim means and how it is checked stands in ``pytest_attn/correctness/claims.py``.
"""

import pytest

from attn_impls import Direction
from pytest_attn.correctness.claims import CLAIMS


@pytest.mark.correctness
@pytest.mark.parametrize("direction", [Direction.FWD, Direction.BWD])
@pytest.mark.parametrize("claim", CLAIMS)
def test_claim(attn_impl, attn_claim_check, claim, direction):
    attn_claim_check(claim, direction)
