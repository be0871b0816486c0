"""Peak memory of a call, in a pass of its own: measuring it would disturb the timing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from pytest_attn.perf.profiler import profiling

Step = Callable[[], object]


def peak_bytes(before: Step, measured: Step, device: torch.device) -> int:
    """Run ``before`` then ``measured`` and return the most bytes allocated during ``measured``.

    The count is over what was allocated when ``before`` began, so that inputs do not count, while what ``before``
    leaves behind (activations kept for a backward pass) does. On a CPU the allocations are those that go through
    torch's allocator, as its profiler reports them; buffers inside MKL or OpenMP are not seen.
    """
    if device.type == "cuda":
        return _cuda_peak(before, measured, device)
    return _cpu_peak(before, measured)


def _cuda_peak(before: Step, measured: Step, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    base = torch.cuda.memory_allocated(device)
    kept = before()
    torch.cuda.reset_peak_memory_stats(device)
    result = measured()
    torch.cuda.synchronize(device)
    del kept, result
    return torch.cuda.max_memory_allocated(device) - base


def _cpu_peak(before: Step, measured: Step) -> int:
    with profiling("CPU", profile_memory=True) as profiler:
        kept = before()
        with torch.autograd.profiler.record_function(_MARK):
            result = measured()
        del kept, result
    # The aggregated view drops allocations outside of an operator; the raw events have each one, with its sign.
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    mark = next(event for event in events if event.name() == _MARK)
    begin, end = mark.start_ns(), mark.end_ns()
    allocated = peak = 0
    for event in events:
        if event.name() != "[memory]":
            continue
        if event.start_ns() >= begin:
            peak = max(peak, allocated)
        if event.start_ns() > end:
            break
        allocated += event.nbytes()
    return max(peak, allocated if allocated > 0 else 0)


_MARK = "attn: measured"


class SavedBytes:
    """Counts what autograd keeps for the backward pass, each storage once, the given tensors left out.

    Used as a context around the forward pass; holds no reference to what it counts.
    """

    def __init__(self, leave_out: Iterable[torch.Tensor]) -> None:
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in leave_out}
        self.total = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)


def nbytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the tensors' elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
