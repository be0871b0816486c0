"""What copying costs: attention from host memory and back, ``pytest -m copies --benchmark-json=run.json``.

Inputs go to the device flat or pitched (one 2D copy into padded rows), on one stream or a quarter of the batch on each
of four.
"""

import pytest


@pytest.mark.copies
@pytest.mark.gpu
def test_copies(attn_end_to_end):
    attn_end_to_end()
