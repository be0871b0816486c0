"""Judges attention implementations: whether they are right, how fast and how large. What is judged: ``attn_impls``."""

__version__ = "0.1.0"
