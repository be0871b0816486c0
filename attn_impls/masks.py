"""The mask of a problem as a tensor, for implementations that need one."""

from __future__ import annotations

import torch

from attn_impls.problem import Problem


def visible(problem: Problem, device: torch.device) -> torch.Tensor | None:
    """Return bool ``[q_len, kv_len]``, true where the key is visible, or ``None`` for the full mask."""
    low, high = problem.mask.diagonals(problem.q_len, problem.kv_len)
    if low is None and high is None:
        return None
    everything = torch.ones(problem.q_len, problem.kv_len, dtype=torch.bool, device=device)
    if high is not None:
        everything = everything.tril(high)
    return everything if low is None else everything.triu(low)
