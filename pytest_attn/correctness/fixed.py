"""Cases that always run beside the drawn ones: each name is a class of fault that has been met in attention kernels.

A fixed case keeps to the capabilities of an implementation by changing what is beside its point: the dtype, and, where
there is no grouped-query attention, the number of key heads.
"""

from __future__ import annotations

from dataclasses import replace

from attn_impls.implementation import Capabilities
from attn_impls.problem import CAUSAL, DTYPE_BYTES, FULL, Direction, Mask, Problem
from pytest_attn.correctness.case import Case

# The seeds choose the storage as well: 0 dense, 1 cut out, 2 wide rows, 3 packed, 4 to 6 mixed.
_CASES: dict[str, Case] = {
    "the maximum grows in every tile": Case(Problem(1, 1, 1, 33, 3001, 64, "fp16"), "sorted_keys", 0),
    "the maximum grows in every tile from the last on": Case(Problem(1, 1, 1, 33, 3001, 64, "fp16"), "falling_keys", 0),
    "the last key outweighs all": Case(Problem(1, 1, 1, 1025, 1025, 16, "fp32", CAUSAL), "outlier_key", 3),
    "the first key outweighs all": Case(Problem(1, 1, 1, 1025, 1025, 16, "fp32", CAUSAL), "early_outlier_key", 3),
    "a ragged tail between NaN": Case(Problem(1, 2, 2, 127, 129, 64, "fp16"), "cancellation", 2),
    "grouped heads, a window, unequal lengths": Case(
        Problem(2, 6, 2, 97, 161, 64, "bf16", Mask("window", 33, 16)), "one_hot", 1
    ),
    "one query on a long cache": Case(Problem(5, 4, 2, 1, 2049, 64, "bf16", CAUSAL), "normal", 3),
    "many queries on few keys": Case(Problem(1, 2, 1, 2049, 5, 32, "fp32", FULL), "one_hot", 1),
    "queries without a key": Case(Problem(2, 2, 1, 200, 72, 32, "fp16", CAUSAL), "normal", 1),
    "a window wider than all keys": Case(
        Problem(1, 2, 2, 130, 130, 64, "fp32", Mask("window", 10**6, 10**6)), "normal", 0
    ),
    "a window without a left end": Case(Problem(1, 2, 2, 97, 129, 64, "bf16", Mask("window", None, 17)), "one_hot", 0),
    "four query heads to a key head": Case(Problem(1, 4, 1, 512, 512, 128, "fp16", CAUSAL), "normal", 4),
    "seven query heads to a key head": Case(Problem(1, 7, 1, 384, 1000, 64, "bf16", CAUSAL), "normal", 5),
    "a training shape in bf16": Case(Problem(1, 1, 1, 1024, 1024, 128, "bf16", CAUSAL), "normal", 0),
    "a training shape in fp16": Case(Problem(1, 1, 1, 1024, 1024, 64, "fp16", CAUSAL), "normal", 6),
    "top-left alignment": Case(Problem(1, 2, 2, 65, 193, 64, "bf16", Mask("causal_top_left")), "one_hot", 0),
    "one key": Case(Problem(2, 3, 3, 33, 1, 8, "bf16"), "large_logits", 0),
    "an odd head dimension between NaN": Case(Problem(1, 2, 2, 65, 65, 59, "fp16", CAUSAL), "normal", 2),
    "the largest head dimension": Case(Problem(1, 2, 2, 129, 129, 256, "bf16", CAUSAL), "normal", 0),
    "a softcap and a scale": Case(Problem(1, 2, 2, 129, 129, 64, "fp16", CAUSAL, 20.0, 0.3), "large_logits", 0),
    "a bias of one percent in bf16": Case(Problem(2, 4, 4, 256, 256, 64, "bf16"), "normal", 0),
    "values at the limit": Case(Problem(1, 2, 2, 128, 128, 64, "fp16", CAUSAL), "limits", 0),
    "more heads than a warp": Case(Problem(1, 66, 66, 17, 17, 64, "fp32", CAUSAL), "normal", 0),
    "an empty batch": Case(Problem(0, 2, 2, 33, 33, 64, "fp16", CAUSAL), "normal", 0),
}

# More query tiles than a GPU has multiprocessors, several of a head: for kernels whose blocks take one after the other.
_CASES_ON_CUDA: dict[str, Case] = {
    f"more tiles than multiprocessors, head_dim {head_dim}, {name}": Case(
        Problem(batch, 48, 16, 449, 449, head_dim, "bf16", mask), "normal", seed
    )
    for head_dim, batch in ((64, 2), (128, 1), (256, 1))
    for name, mask, seed in (("full", FULL, 0), ("causal", CAUSAL, 1), ("window", Mask("window", 130, 0), 2))
}

# Each has tensors of more than 2^31 elements.
LARGE: dict[str, Case] = {
    "keys": Case(Problem(33, 8, 8, 1, 65536, 128, "bf16")),
    "queries": Case(Problem(3, 8, 8, 720896, 64, 128, "bf16")),
    "queries and keys": Case(Problem(132, 32, 32, 4096, 4096, 128, "bf16", CAUSAL)),
}


def fixed_cases(capabilities: Capabilities, device_type: str, direction: Direction) -> dict[str, Case]:
    """Return the fixed cases that ``capabilities`` include for ``direction``, by what each is for."""
    # What compiles each shape for seconds is no kernel whose blocks stay.
    crowds = _CASES_ON_CUDA if device_type == "cuda" and not capabilities.compiles_per_shape else {}
    fits = {name: fitted(case, capabilities, device_type, direction) for name, case in (_CASES | crowds).items()}
    return {name: case for name, case in fits.items() if case is not None}


def fitted(case: Case, capabilities: Capabilities, device_type: str, direction: Direction) -> Case | None:
    """Return ``case`` with a dtype and a number of key heads that the capabilities include, or ``None``."""
    problem = case.problem if capabilities.gqa else replace(case.problem, kv_heads=case.problem.heads)
    for dtype in (problem.dtype, *DTYPE_BYTES):
        candidate = replace(problem, dtype=dtype)
        if capabilities.why_not(candidate, direction, device_type) is None:
            return replace(case, problem=candidate)
    return None
