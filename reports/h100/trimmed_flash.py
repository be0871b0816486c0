"""flash-attn, claimed at the head dims that the trimmed build of these runs does hold: 64 and 128."""

import dataclasses

from attn_impls.flash import flash_attn
from attn_impls.implementation import HeadDims

at_64_and_128 = dataclasses.replace(
    flash_attn,
    capabilities=dataclasses.replace(flash_attn.capabilities, head_dims=HeadDims(64, 128, multiple_of=64)),
)
