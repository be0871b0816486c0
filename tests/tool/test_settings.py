"""Torch's settings: what changed is said and put back, by whichever of torch's interfaces it was set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from pytest_attn.perf.settings import Settings

MATMULS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


def precisions() -> tuple[str, str, str]:
    """Torch's word for all backends, and each one's own."""
    cuda, cpu = (str(matmul.fp32_precision) for matmul in MATMULS)
    return torch.get_float32_matmul_precision(), cuda, cpu


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    before, own = torch.get_float32_matmul_precision(), [matmul.fp32_precision for matmul in MATMULS]
    yield
    torch.set_float32_matmul_precision(before)
    for matmul, value in zip(MATMULS, own, strict=True):
        matmul.fp32_precision = value


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
