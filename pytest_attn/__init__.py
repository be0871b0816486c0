"""Judges attention implementations: whether they are right, how fast, how large. See ``attn_impls`` for what is judged."""

__version__ = "0.1.0"
