"""Torch's settings: what changed is said and put back, by whichever of torch's interfaces it was set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pytest_attn.perf.settings import Settings

MATMULS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
OWNERS = (torch.backends, torch.backends.cudnn, torch.backends.mkldnn, *MATMULS)


def precisions() -> tuple[str, str, str]:
    """Torch's word for all backends, and each one's own."""
    cuda, cpu = (str(matmul.fp32_precision) for matmul in MATMULS)
    return torch.get_float32_matmul_precision(), cuda, cpu


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    before, own = torch.get_float32_matmul_precision(), fp32_precisions()
    threads = torch.get_num_threads()
    yield
    torch.set_float32_matmul_precision(before)
    for owner, value in zip(OWNERS, own, strict=True):
        owner.fp32_precision = value  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.set_grad_enabled(True)


def fp32_precisions() -> list[Any]:
    return [owner.fp32_precision for owner in OWNERS]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "read", "change"),
    [
        ("number of threads", torch.get_num_threads, lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
        ("default dtype", torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
        ("matmul precision", torch.get_float32_matmul_precision, lambda: torch.set_float32_matmul_precision("medium")),
        (
            "deterministic mode",
            torch.get_deterministic_debug_mode,
            lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        ),
        ("gradient mode", torch.is_grad_enabled, lambda: torch.set_grad_enabled(False)),
    ],
)
def test_each_setting_is_watched(name: str, read: Callable[[], object], change: Callable[[], object]) -> None:
    settings, before = Settings(), read()
    change()
    assert read() != before
    assert str(settings.put_back()).startswith(f"{name} from {before} to ")
    assert read() == before
    assert settings.put_back() is None


@pytest.mark.parametrize("own", ["none", "tf32"])
@pytest.mark.parametrize("owner", OWNERS, ids=["all", "cudnn", "mkldnn", "cuda.matmul", "mkldnn.matmul"])
def test_a_precision_is_put_back_at_whichever_level_it_was_set(owner: Any, own: str) -> None:
    owner.fp32_precision = own
    before, settings = fp32_precisions(), Settings()
    owner.fp32_precision = "ieee"
    assert fp32_precisions() != before
    assert settings.put_back() is not None
    assert fp32_precisions() == before


def one_backend() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def all_backends() -> None:
    torch.set_float32_matmul_precision("high")


@pytest.mark.parametrize(("change", "to"), [(one_backend, "set per backend"), (all_backends, "high")])
def test_a_changed_matmul_precision_is_put_back(change: Callable[[], None], to: str) -> None:
    before, settings = precisions(), Settings()
    change()
    assert settings.put_back() == f"matmul precision from highest to {to}"
    assert precisions() == before
    assert settings.put_back() is None


def test_a_precision_that_the_user_set_for_one_backend_stays() -> None:
    one_backend()
    settings, cpu = Settings(), MATMULS[1].fp32_precision
    assert settings.put_back() is None
    torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    assert settings.put_back() == f"matmul precision on a CPU from {cpu} to tf32"
    assert [matmul.fp32_precision for matmul in MATMULS] == ["tf32", cpu]
