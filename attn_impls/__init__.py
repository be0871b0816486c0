"""Attention implementations and the words to describe them. Importing this package imports no torch."""

from attn_impls.adapt import UnknownImplementation as UnknownImplementation
from attn_impls.adapt import as_implementation as as_implementation
from attn_impls.implementation import Capabilities as Capabilities
from attn_impls.implementation import HeadDims as HeadDims
from attn_impls.implementation import Implementation as Implementation
from attn_impls.implementation import Unavailable as Unavailable
from attn_impls.implementation import implementation as implementation
from attn_impls.problem import Direction as Direction
from attn_impls.problem import Mask as Mask
from attn_impls.problem import Problem as Problem
from attn_impls.registry import Registry as Registry
from attn_impls.registry import discover as discover
